"""The network in the form that sampling wants, held to the network as diffusers evaluates it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from latentprint.networks import DIGITS, SMALL28, UNetConfig, build_unet
from latentprint.networks.inference import inference_form
from latentprint.streams import Streams

ATTENTIVE = UNetConfig((16, 32), layers_per_block=1, attention=(False, True), norm_groups=8, head_channels=8)


def stirred(config, channels, size):
    """A network whose normalisations and last layers are not at their neutral first values."""
    network = build_unet(config, channels, size, Streams(0)).eval()
    for i, p in enumerate(network.parameters()):
        p.data += 0.1 * Streams(1).noise("stir", [i], 0, tuple(p.shape))[0]
    return network


@pytest.mark.parametrize(
    ("config", "channels", "size"),
    [(DIGITS, 1, 8), (SMALL28, 3, 28), (ATTENTIVE, 2, 12)],
    ids=["8", "28", "attention"],
)
def test_only_rounding_differs(config, channels, size):
    network = stirred(config, channels, size)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fast = inference_form(network)
    x = Streams(2).noise("x", range(3), 0, (channels, size, size))
    x[1] += 40  # a mean far above the deviation, where a one-pass variance would cancel
    t = torch.tensor([1.0, 400.0, 999.0])
    with torch.inference_mode():
        expected, got = network(x, t).sample, fast(x, t).sample
    assert (got - expected).abs().max() < 2e-5 * expected.abs().max()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(isinstance(m, nn.GroupNorm) for m in fast.modules())
    # it was not the original that was handed back
    fast.conv_in.weight.zero_()
    assert bool((network.conv_in.weight != 0).any())


@pytest.mark.parametrize(("config", "size"), [(SMALL28, 28), (ATTENTIVE, 12)], ids=["28", "attention"])
def test_in_bfloat16_it_rounds_no_worse_than_the_network_itself(config, size):
    """The last bits of a product go, as under torch's autocast; normalisation keeps float32."""
    network = stirred(config, 2, size)
    fast = inference_form(network)
    x = Streams(2).noise("x", range(6), 0, (2, size, size))
    t = torch.linspace(1, 999, 6)
    with torch.inference_mode():
        expected = network(x, t).sample
        with torch.autocast("cpu", torch.bfloat16):
            theirs, ours = network(x, t).sample.float(), fast(x, t).sample.float()
    error, allowed = (ours - expected).abs(), (theirs - expected).abs()
    assert 0 < error.mean() < 1.5 * allowed.mean() and error.max() < 3e-2 * expected.abs().max()


def test_rows_stay_rows():
    fast = inference_form(stirred(DIGITS, 1, 8))
    x, t = Streams(2).noise("x", range(5), 0, (1, 8, 8)), torch.linspace(10, 900, 5)
    with torch.inference_mode():
        whole = fast(x, t).sample
        for i in range(5):
            torch.testing.assert_close(
                fast(x[i : i + 1], t[i : i + 1]).sample[0], whole[i], rtol=1e-4, atol=1e-5
            )


def test_memory_used_again_leaves_no_trace():
    """Batches that grow and shrink, with and without inference mode: the same numbers."""
    network = stirred(SMALL28, 1, 28)
    used = inference_form(network)
    for count, mode in [
        (3, torch.inference_mode),
        (5, torch.no_grad),
        (2, torch.inference_mode),
        (5, torch.no_grad),
    ]:
        x, t = Streams(count).noise("x", range(count), 0, (1, 28, 28)), torch.linspace(10, 900, count)
        with mode():
            assert torch.equal(used(x, t).sample, inference_form(network)(x, t).sample)
            first = used(x, t).sample
            kept = first.clone()
            used(-x, t)
            assert torch.equal(first, kept)  # what was given out is not written over


def test_other_networks_are_left_as_they_are():
    plain = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU())
    x = Streams(0).noise("x", [0], 0, (4, 6, 6))
    assert torch.equal(inference_form(plain)(x), plain(x))
