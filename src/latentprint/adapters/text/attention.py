"""How a U-Net's image attends to the words of its prompt, observed from outside.

    a_jk     the weight of word k at place j: softmax over k of q_j . k_k / sqrt(d), mean over heads
    entropy  - sum_k a_k log a_k  of  a_k = mean_j a_jk, mean over layers       Ren et al. 2024
    ending   a_k of the prompt's end token, mean over layers                    Chen et al. 2025

For a memorised prompt, attention stays on few words, and at the last step on the end token.

Sources: Ren et al. 2024, "Unveiling and Mitigating Memorization in Text-to-image Diffusion Models through
Cross Attention"; Chen et al. 2025, "Exploring Local Memorization in Diffusion Models via Bright Ending
Attention".
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from latentprint.adapters.text.model import Text

CROSS = "attn2"
"""diffusers' name for a U-Net's attention to its prompt."""


@dataclass
class Attended:
    """The weights of the words (n, L) of each layer, in the order in which the layers ran."""

    layers: list[Tensor] = field(default_factory=list[Tensor])

    def entropy(self) -> Tensor:
        """(n,): mean over the layers."""
        each = [-(one * one.clamp_min(1e-12).log()).sum(-1) for one in self.layers]
        return torch.stack(each).mean(0)

    def on(self, word: int) -> Tensor:
        """(n,): the weight of one word, mean over the layers."""
        return torch.stack([one[:, word] for one in self.layers]).mean(0)


def crosses(network: nn.Module) -> list[nn.Module]:
    """The layers whose weights can be observed; none in a network that attends to words and image at once."""
    return [one for name, one in network.named_modules() if name.rpartition(".")[2] == CROSS]


@contextmanager
def watched(network: nn.Module) -> Generator[Attended]:
    """The network's attention while it runs; its answers do not change."""
    found = Attended()

    def see(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        layer = cast(Any, module)
        hidden = cast(Tensor, given[0] if given else named["hidden_states"])
        words = cast(Tensor, named.get("encoder_hidden_states"))
        query, key = layer.to_q(hidden), layer.to_k(words)
        query = query if layer.norm_q is None else layer.norm_q(query)
        key = key if layer.norm_k is None else layer.norm_k(key)
        query, key = (layer.head_to_batch_dim(one) for one in (query, key))
        mask = named.get("attention_mask")
        if mask is not None:
            mask = layer.prepare_attention_mask(mask, words.shape[1], len(hidden))
        weights = layer.get_attention_scores(query, key, mask)
        found.layers.append(weights.float().unflatten(0, (len(hidden), -1)).mean((1, 2)))

    handles = [one.register_forward_pre_hook(see, with_kwargs=True) for one in crosses(network)]
    try:
        yield found
    finally:
        for one in handles:
            one.remove()


def last_word(text: Text, prompt: str) -> int:
    """The place of the prompt's last token, its end token where the encoder has one."""
    mask = text.rows(prompt).get("mask")
    if mask is None:
        _, mask = next(iter(text.readers.values())).ids([text.family.words(prompt)])
    return int(mask.sum()) - 1
