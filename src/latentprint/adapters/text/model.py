"""A text-to-image model under its prompts: opened once, and asked under any of them.

    out = free + w (asked - free)        w: the scale of guidance, above 1 (Ho and Salimans 2022)
    out = asked at w                     a network distilled to take w as an input (Meng et al. 2023)

Prompts are embedded once, before anything is measured. Prompt and scale are part of the sampler's identity: q
and t' under one prompt say nothing about another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import torch
from torch import Tensor, nn

from latentprint.adapters.own import Own
from latentprint.adapters.text.families import About, Ask, Family, Reader, Rows, guided
from latentprint.denoiser import Denoiser
from latentprint.networks import ModelError

TOGETHER = 64
"""Prompts that are embedded in one pass."""


class Prompted(nn.Module):
    """The network under one prompt: (x, time) -> its prediction, guided if ``free`` is given."""

    def __init__(self, network: nn.Module, ask: Ask, asked: Rows, free: Rows | None, guidance: float) -> None:
        super().__init__()
        self.network, self.ask, self.asked, self.free, self.guidance = network, ask, asked, free, guidance

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """The prediction for x (n, ...) at times (n,)."""
        if self.free is None:
            return self.ask(self.network, x, time, _repeated(self.asked, x))
        both = {name: torch.cat([_to(self.free[name], x), _to(one, x)]) for name, one in self.asked.items()}
        rows = {name: one.repeat_interleave(len(x), dim=0) for name, one in both.items()}
        free, asked = self.ask(self.network, torch.cat([x, x]), torch.cat([time, time]), rows).chunk(2)
        return torch.lerp(free, asked, self.guidance)


def _to(row: Tensor, x: Tensor) -> Tensor:
    return row.to(device=x.device, dtype=x.dtype if row.is_floating_point() else row.dtype)


def _repeated(rows: Rows, x: Tensor) -> Rows:
    return {name: _to(one, x).expand(len(x), *one.shape[1:]) for name, one in rows.items()}


@dataclass(frozen=True, eq=False)
class Text:
    """What is needed to ask a model under a prompt.

    Attributes:
        guidance: the default scale of its pipeline.
        finish: from the network under a prompt to the denoiser and its own sampler.
    """

    family: Family
    network: nn.Module
    readers: Mapping[str, Reader]
    about: About
    guidance: float
    finish: Callable[[nn.Module], tuple[Denoiser, Own]]
    zeros: bool = False
    _known: dict[str | None, Rows] = field(default_factory=dict[str | None, Rows])

    @torch.no_grad()
    def learn(self, prompts: Sequence[str]) -> None:
        """Embed these prompts, each once."""
        new = [one for one in dict.fromkeys(prompts) if one not in self._known]
        for first in range(0, len(new), TOGETHER):
            some = new[first : first + TOGETHER]
            rows = self.family.encode(self.readers, [self.family.words(one) for one in some], self.about)
            for i, one in enumerate(some):
                self._known[one] = {name: values[i : i + 1].cpu() for name, values in rows.items()}

    def rows(self, prompt: str) -> Rows:
        """The network's input under a prompt, one row each."""
        self.learn([prompt])
        return self._known[prompt]

    @property
    def nothing(self) -> Rows:
        """The unconditional input: zeros, or the empty prompt."""
        if self.family.free is not None:
            if None not in self._known:
                with torch.no_grad():
                    free = self.family.free(self.readers, [""], self.about)
                self._known[None] = {name: one.cpu() for name, one in free.items()}
            return self._known[None]
        rows = self.rows("")
        if not self.zeros:
            return rows
        cleared = {name: torch.zeros_like(rows[name]) for name in ("hidden", "text_embeds") if name in rows}
        return {**rows, **cleared}

    def prompted(self, prompt: str, guidance: float) -> Prompted:
        """The network under a prompt; a scale of 1 or less means no guidance, as in the pipeline.

        Raises:
            ModelError: the network was distilled to do without guidance.
        """
        return self._asked(self.rows(prompt), guidance)

    def passes(self, guidance: float) -> int:
        """Passes through the network for one evaluation."""
        return 2 if guidance > 1 and not self.family.distilled else 1

    def _asked(self, rows: Rows, guidance: float) -> Prompted:
        if self.family.distilled:
            if guidance != 1 and not guided(self.about.network):
                raise ModelError(
                    f"guidance {guidance:g} was asked for, but this model was distilled to do without; leave "
                    "--guidance out"
                )
            rows = {**rows, "guidance": torch.tensor([guidance])}
        free = self.nothing if self.passes(guidance) == 2 else None
        return Prompted(self.network, self.family.ask, rows, free, guidance)

    def under(self, prompt: str, guidance: float) -> tuple[Denoiser, Own]:
        """The denoiser under a prompt, and the model's own sampler for it."""
        return self.finish(self.prompted(prompt, guidance))

    def unasked(self) -> Denoiser:
        """The unconditional denoiser."""
        return self.finish(self._asked(self.nothing, 1.0))[0]

    def lost(self, prompts: Sequence[str]) -> tuple[int, ...]:
        """For each prompt, how many tokens the model never sees because they are beyond its encoder's limit.

        If several encoders read it, the tokens that none of them sees.
        """
        words = [self.family.words(one) for one in prompts]
        each = [one.tokenizer(words, self.family.length).lost for one in self.readers.values()]
        return tuple(map(min, zip(*each, strict=True))) if prompts else ()


def prompt_sha256(prompt: str) -> str:
    """Identifies a prompt whose words must not be shown."""
    return sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
