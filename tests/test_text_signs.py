"""Attention that is watched from outside is the attention that the network used."""

from __future__ import annotations

from typing import Any

import pytest
import text_pipelines as tiny
import torch
from diffusers.models.attention_processor import AttnProcessor

from latentprint.adapters.text.attention import crosses, watched


class Keeping(AttnProcessor):
    """diffusers' own processor, keeping the weights that it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[torch.Tensor] = []

    def __call__(self, attn: Any, *given: Any, **named: Any) -> Any:
        plain, kept = attn.get_attention_scores, self.kept

        def keep(*of: Any) -> torch.Tensor:
            out = plain(*of)
            kept.append(out)
            return out

        attn.get_attention_scores = keep
        try:
            return super().__call__(attn, *given, **named)
        finally:
            del attn.get_attention_scores


@pytest.mark.parametrize("kind", ["unet", "pixart"])
def test_weights_are_those_of_the_librarys_own_processor(kind: str) -> None:
    pipeline = tiny.sd() if kind == "unet" else tiny.pixart()
    network = pipeline.unet if kind == "unet" else pipeline.transformer
    network.eval()
    draw = torch.Generator().manual_seed(1)
    x = torch.zeros(3, 4, 8, 8).normal_(generator=draw)
    words = torch.zeros(3, tiny.LENGTH, 32).normal_(generator=draw)
    time = torch.full((3,), 500.0)
    mask = torch.ones(3, tiny.LENGTH)
    mask[:, 9:] = 0
    more: dict[str, Any] = (
        {}
        if kind == "unet"
        else {
            "encoder_attention_mask": mask,
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }
    )

    def run() -> torch.Tensor:
        return network(x, timestep=time, encoder_hidden_states=words, **more).sample

    with torch.no_grad():
        before = run()
        with watched(network) as found:
            assert torch.equal(run(), before)  # watching changes nothing
        assert torch.equal(run(), before) and len(found.layers) == len(crosses(network)) > 0
        processors = {
            name: Keeping() if ".attn2." in name else one for name, one in network.attn_processors.items()
        }
        network.set_attn_processor(dict(processors))
        run()
    theirs = [one.kept[0] for one in processors.values() if isinstance(one, Keeping)]
    averaged = [one.unflatten(0, (3, -1)).mean((1, 2)) for one in theirs]
    ours = sorted(found.layers, key=lambda one: float(one[0, 0]))
    for one, other in zip(ours, sorted(averaged, key=lambda one: float(one[0, 0])), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    if kind == "pixart":
        assert all(float(one[:, 9:].max()) < 1e-6 for one in found.layers)  # padding is not attended to
    whole = torch.stack([one.sum(-1) for one in found.layers])
    assert torch.allclose(whole, torch.ones_like(whole), atol=1e-5)
    entropy = torch.stack([torch.distributions.Categorical(one).entropy() for one in found.layers]).mean(0)
    assert torch.allclose(found.entropy(), entropy, atol=1e-4)
