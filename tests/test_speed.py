"""Faster arithmetic computes the same thing: compiled, bfloat16, channels-last, held to plain float32."""

from __future__ import annotations

import copy
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from latentprint.audit.stages import for_sampling
from latentprint.contracts import InputError
from latentprint.data import load
from latentprint.denoiser import IdentityCodec, NetworkDenoiser
from latentprint.detector import DetectorConfig, fit_embedding, fit_presence
from latentprint.detector.embedding import EmbeddingConfig
from latentprint.fingerprint import CircleConfig
from latentprint.networks import UNetConfig, build_unet
from latentprint.networks.speed import (
    Evaluated,
    Evaluation,
    Speed,
    arithmetic,
    for_evaluation,
    launched,
    rounding,
)
from latentprint.probe import from_image
from latentprint.sampler import Ancestral, Sampler, trajectories
from latentprint.schedule import SubVP
from latentprint.settings import SettingsError, read
from latentprint.streams import Streams
from latentprint.training import TrainConfig, train

TINY = UNetConfig(channels=(8,), layers_per_block=1, middle_attention=False, norm_groups=4)
COMPILED = Evaluation(compile=True, graphs=True)
HALF = Evaluation(precision="bfloat16", channels_last=True, autotune=True, tf32=True)
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")  # torch's compiler uses what torch deprecated
compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")


def stirred() -> torch.nn.Module:
    """A network whose last layer is not at its first value, zero."""
    network = build_unet(TINY, 1, (8, 8), Streams(0)).eval()
    for i, p in enumerate(network.parameters()):
        p.data += 0.1 * Streams(1).noise("stir", [i], 0, tuple(p.shape))[0]
    return network


def near(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Within ``tolerance`` of the largest value."""
    return bool((got - expected).abs().max() <= tolerance * expected.abs().max())


class Counting(torch.nn.Module):
    """Answers x plus its row's time, and keeps the shapes and strides that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, time: Tensor, class_labels: Tensor | None = None) -> Tensor:
        self.seen.append((*x.shape, *x.stride()))
        shift = time if class_labels is None else time + class_labels
        return x + shift[:, None, None, None]


@pytest.mark.parametrize("rows", [1, 5, 8, 19])
def test_what_is_compiled_sees_one_shape_and_rows_keep_their_own(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    inner = Counting()
    fast = Evaluated(inner, Evaluation(compile=True), 8)
    x, time = Streams(0).noise("x", range(rows), 0, (2, 3, 3)), torch.arange(1.0, rows + 1)
    labels = torch.arange(rows) * 100
    assert torch.equal(fast(x, time, class_labels=labels), x + (time + labels)[:, None, None, None])
    other = x.contiguous(memory_format=torch.channels_last)  # as a sampler's state may come to lie
    assert torch.equal(fast(other, time), x + time[:, None, None, None])
    assert set(inner.seen) == {(8, 2, 3, 3, 18, 9, 3, 1)} and len(inner.seen) == 2 * -(-rows // 8)
    assert fast(x[:0], time[:0]).shape == (0, 2, 3, 3)


@compiler
def test_compiled_and_eager_give_the_same_image_alone_and_in_a_batch() -> None:
    network = stirred()
    plain = NetworkDenoiser(network, SubVP(), "edm")
    fast = for_sampling(plain, COMPILED, 4)
    assert isinstance(fast, NetworkDenoiser)
    x, t = Streams(2).noise("x", range(6), 0, (1, 8, 8)), torch.linspace(0.05, 1, 6, dtype=torch.float64)
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        expected, got = plain(x, t), fast(x, t)
        alone = torch.cat([fast(x[i : i + 1], t[i : i + 1]) for i in range(6)])
    assert near(got, expected, 2e-5) and near(alone, got, 2e-6)
    # One graph without a break, compiled for one shape: six rows, four, two and one all met it.
    found = torch._dynamo.utils.counters
    assert found["stats"]["unique_graphs"] == 1 and not found["graph_break"]
    # What was compiled stays in its process; the rest can be sent to another one.
    sent = pickle.loads(pickle.dumps(fast.network))
    assert (
        sent._call is None
        and sent.how == COMPILED
        and near(for_sampling(replace(plain, network=sent.network))(x, t), expected, 2e-5)
    )


def test_compiled_training_has_the_losses_of_plain_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, differentiated ahead of time, for one shape; generating code too would take a minute here."""
    whole = torch.compile

    def traced(network: torch.nn.Module, *, mode: str | None, dynamic: bool) -> object:
        assert mode == "reduce-overhead"
        return whole(network, backend="aot_eager", dynamic=dynamic, fullgraph=True)

    monkeypatch.setattr(torch, "compile", traced)
    images = np.tanh(Streams(5).noise("images", range(10), 0, (1, 8, 8)).numpy())

    def losses(speed: Speed) -> list[float]:
        config = TrainConfig(steps=20, batch=4, warmup=2, parametrisation="edm", speed=speed)
        states = train(images, build_unet(TINY, 1, (8, 8), Streams(3)), SubVP(), config, Streams(3))
        return [state.loss for state in states if state.loss is not None]

    plain = losses(Speed())
    assert losses(Speed(compile=True, graphs=True, channels_last=True)) == pytest.approx(plain, rel=1e-3)
    assert losses(Speed(tf32=True, autotune=True, graphs=True)) == plain  # nothing of a CPU


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


@cuda
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("labels", [False, True], ids=["", "labels"])
def test_a_captured_network_trains_as_the_network_itself(precision: str, labels: bool) -> None:
    """Its weights change under the graph, which must read them anew at every step."""
    images = np.tanh(Streams(5).noise("images", range(10), 0, (1, 8, 8)).numpy())
    shape = replace(TINY, channels=(16, 32), norm_groups=8, augment_labels=labels)

    def weights(speed: Speed) -> tuple[list[float], dict[str, Tensor]]:
        config = TrainConfig(
            steps=40,
            batch=4,
            warmup=2,
            parametrisation="edm",
            precision=precision,  # pyright: ignore[reportArgumentType]
            speed=speed,
        )
        states = [
            *train(images, build_unet(shape, 1, (8, 8), Streams(3)), SubVP(), config, Streams(3), "cuda")
        ]
        return [s.loss for s in states if s.loss is not None], states[-1].denoiser.network.state_dict()

    plain, as_is = weights(Speed())
    fast, captured = weights(Speed(graphs=True))
    assert fast == pytest.approx(plain, rel=1e-4) and fast[-1] < fast[0]
    assert as_is.keys() == captured.keys()
    for name, value in as_is.items():
        assert near(captured[name], value, 1e-3), name


@cuda
def test_a_captured_network_answers_as_the_network_itself_and_keeps_its_answers() -> None:
    raw = NetworkDenoiser(stirred().cuda(), SubVP(), "edm")
    x, t = (
        Streams(2).noise("x", range(19), 0, (1, 8, 8)).cuda(),
        torch.linspace(0.05, 1, 19, dtype=torch.float64),
    )
    with torch.no_grad():
        for how in (Evaluation(graphs=True), Evaluation(graphs=True, precision="bfloat16")):
            fast, plain = (for_sampling(raw, one, 8) for one in (how, replace(how, graphs=False)))
            first, alone = fast(x, t), torch.cat([fast(x[i : i + 1], t[i : i + 1]) for i in range(19)])
            assert near(first, plain(x, t), 1e-5 if how.precision == "float32" else 1e-2)
            assert torch.equal(first, alone) and not torch.equal(fast(-x, t), first)


@cuda
def test_capturing_leaves_no_trace_in_a_batch_norm() -> None:
    with torch.random.fork_rng(devices=[]):
        body = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4)).cuda().train()
    other = copy.deepcopy(body)
    graph, x = launched(body, Speed(graphs=True)), Streams(2).noise("x", range(8), 0, (1, 8, 8)).cuda()
    # Weighted, for the mean of what is normalised has no gradient but rounding.
    weights = Streams(3).noise("w", range(8), 0, (4, 6, 6)).cuda()
    for sign in (1, -1):
        (graph(sign * x) * weights).mean().backward()
        (other(sign * x) * weights).mean().backward()
    for name, value in other.state_dict().items():
        assert torch.allclose(body.state_dict()[name], value, rtol=1e-5, atol=1e-7), name
    (mine, *_), (theirs, *_) = body.parameters(), other.parameters()
    assert mine.grad is not None and theirs.grad is not None and near(mine.grad, theirs.grad, 1e-4)


@pytest.fixture(scope="module")
def memorised() -> tuple[NetworkDenoiser, Tensor]:
    """A small network that has memorised 4 digits, and the digits."""
    digits = load("digits", seed=0, images=4).train.pixels
    network = build_unet(replace(TINY, channels=(16, 32), norm_groups=8), 1, (8, 8), Streams(3))
    config = TrainConfig(
        steps=200,
        batch=16,
        warmup=20,
        learning_rate=4e-3,
        decay="linear",
        beta2=0.99,
        ema=0.95,
        parametrisation="edm",
        times="lognormal",
    )
    *_, last = train(digits, network, SubVP(), config, Streams(3))
    return last.denoiser, torch.from_numpy(digits)


@pytest.mark.parametrize("how", [HALF, Evaluation(channels_last=True)], ids=["bfloat16", "channels-last"])
def test_a_search_in_bfloat16_finds_what_one_in_float32_finds(
    memorised: tuple[NetworkDenoiser, Tensor], how: Evaluation
) -> None:
    """The same trajectories from the same noise: 8 levels, 24 tries; a hit lies within 0.1 of the image."""
    model, digits = memorised
    t = torch.linspace(0.1, 0.8, 8, dtype=torch.float64).repeat_interleave(24)
    ids, streams = torch.arange(len(t)), Streams(0)

    def ended(denoiser: NetworkDenoiser) -> Tensor:
        begin = from_image(digits[0], denoiser, streams, "search", IdentityCodec())
        out, walk = torch.zeros(len(t), 1, 8, 8), Sampler(Ancestral(), 12, "karras")
        paths = trajectories(denoiser, walk, t, ids, lambda r: begin(t[r], ids[r]), streams, "path", 64)
        for one in paths:
            out[one.rows] = one.x
        return out

    whole, fast = ended(for_sampling(model)), ended(for_sampling(model, how, 64))
    assert fast.dtype == torch.float32  # the sampler's own state
    hits = [(x - digits[0]).square().mean((1, 2, 3)).sqrt() < 0.1 for x in (whole, fast)]
    shares = [one.view(8, 24).float().mean(1) for one in hits]
    assert 0 < int(hits[0].sum()) < len(t)  # neither always nor never
    changed = (whole - fast).square().mean((1, 2, 3)).sqrt()
    if how.precision == "float32":
        assert torch.equal(hits[0], hits[1]) and float(changed.max()) < 1e-3
        return
    # Half precision moves an image by about a hundredth, and a few trajectories into another basin.
    assert 0 < float(changed.median()) < 0.02
    assert int((hits[0] != hits[1]).sum()) <= 0.05 * len(t)
    assert float((shares[0] - shares[1]).abs().max()) <= 0.125


def test_half_precision_is_asked_for_and_the_state_stays_float32() -> None:
    network = stirred()
    x, t = Streams(2).noise("x", range(3), 0, (1, 8, 8)), torch.tensor([10.0, 300.0, 900.0])
    seen: list[torch.dtype] = []
    half = for_evaluation(network, HALF, 8)
    half.network.conv_in.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    with torch.no_grad():
        expected, got = network(x, t).sample, half(x, t)
    assert seen == [torch.bfloat16] and got.dtype == torch.float32
    assert near(got, expected, 3e-2) and not near(got, expected, 1e-5)
    # the original keeps its layout, mode and weights
    assert network.conv_in.weight.is_contiguous() and half.network is not network


@pytest.mark.parametrize("how", [HALF, pytest.param(COMPILED, marks=compiler)], ids=["bfloat16", "compiled"])
def test_detectors_fit_and_answer_as_plain_ones(how: Evaluation) -> None:
    images, config = load("digits", seed=0).train.pixels[:120], DetectorConfig("small", 3, 3, 128, 32, 4e-3)
    kind, streams = CircleConfig(radius=(0.2, 0.25)), Streams(0)
    *_, plain = fit_presence(images, kind, config, streams)
    *_, fast = fit_presence(images, kind, config, streams, how=how)
    assert plain.detector is not None and fast.detector is not None and fast.detector.how == how
    # Weights drift apart as rounding does; the fits are the same to their losses.
    assert fast.loss == pytest.approx(plain.loss, rel=0.1)
    x = torch.from_numpy(images[:40])
    same = replace(plain.detector, how=how)
    assert near(same.logit(x), plain.detector.logit(x), 2e-2 if how is HALF else 1e-5)
    assert same.logit(x).dtype == torch.float32 and same.features(x).dtype == torch.float32
    assert how is not HALF or not torch.equal(same.features(x), plain.detector.features(x))
    assert how is not COMPILED or same._backbone._call is not None
    torch.testing.assert_close(same.logit(x[:3]), same.logit(x)[:3], rtol=1e-4, atol=1e-4)


def test_the_embedding_is_fitted_and_used_in_half_precision() -> None:
    images = load("digits", seed=0).train.pixels[:80]
    config = EmbeddingConfig("small", epochs=2, draws=64, batch=32, false_positive_rate=0.1)
    *_, last = fit_embedding(images, CircleConfig(), config, Streams(0), how=HALF)
    found = last.detector
    assert found is not None and found.how == HALF
    x = torch.from_numpy(images[:20])
    plain, half = replace(found, how=Evaluation()).vectors(x), found.vectors(x)
    assert half.dtype == torch.float64 and near(half, plain, 2e-2) and not torch.equal(half, plain)


@pytest.mark.parametrize("speed", [Speed(tf32=True), Speed(autotune=True), Speed()], ids=str)
def test_a_gpu_rounds_as_asked_and_afterwards_as_before(speed: Speed) -> None:
    cudnn = torch.backends.cudnn

    def state() -> tuple[object, ...]:
        return cudnn.enabled, cudnn.allow_tf32, cudnn.benchmark, torch.get_float32_matmul_precision()

    def fails() -> None:
        with rounding(speed, torch.device("cuda")):
            assert state() == (True, speed.tf32, speed.autotune, "high" if speed.tf32 else "highest")
            assert cudnn.deterministic is not speed.autotune
            raise KeyError

    before = state()
    with pytest.raises(KeyError):
        fails()
    assert state() == before
    with arithmetic(Evaluation(), torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(SettingsError, match="float16"):
        read(Evaluation, {"precision": "float16"})
    with pytest.raises(InputError, match="single network"):
        for_sampling(Several(), HALF)
    assert isinstance(for_sampling(Several()), Several)


class Several:
    """A denoiser that is no single network."""

    schedule = SubVP()

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        return x
