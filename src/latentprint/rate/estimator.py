"""What every estimator of q receives, what it reports while it works, and its row in the table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentprint.denoiser import Codec, Denoiser, IdentityCodec
from latentprint.rate.levels import Inside, Pushforward, Score
from latentprint.rate.result import Rate
from latentprint.sampler.sampler import Sampler

Progress = Callable[[int, int], object]
"""Samples done, and how many are expected in all, as far as known."""

Part = dict[str, Any]
"""Plain values that JSON can hold. They depend on the estimator's settings and seed alone."""

Kept = Callable[[str, Callable[[], dict[str, object]]], Part]
"""(name of a part, how to make it) -> the part: read if an interrupted run made it, else made and kept."""


def silent(done: int, total: int, /) -> None:
    """A Progress that reports nothing."""


def anew(name: str, make: Callable[[], dict[str, object]], /) -> Part:
    """A Kept that keeps nothing."""
    return make()


@dataclass(frozen=True)
class Subject:
    """What q is about: a sampler, an image and its region.

    Attributes:
        push: the sampler as a map of its noise.
        sampler: itself, or its description if it has no steps of ours. A description alone does not say at
            which times a model's own sampler steps.
        inside: decoded images -> whether they lie in Omega. score: falls towards Omega.
        target: x_p in the model's own space.
        model: the denoiser, if there is one; estimators that need it refuse without.
        others: further images that the model may have learnt, like ``target``.
        codec: from the model's space to images.
    """

    push: Pushforward
    sampler: Sampler | Mapping[str, object]
    inside: Inside
    score: Score
    target: Tensor
    model: Denoiser | None = None
    others: Tensor | None = None
    codec: Codec = IdentityCodec()  # noqa: RUF009 (frozen and stateless)
    device: torch.device | str = "cpu"

    @property
    def described(self) -> Mapping[str, object]:
        """The sampler as results name it."""
        return self.sampler.describe() if isinstance(self.sampler, Sampler) else self.sampler

    def walked(self, estimator: str) -> Sampler:
        """The sampler.

        Raises:
            ValueError: there is only a description.
        """
        if not isinstance(self.sampler, Sampler):
            raise ValueError(f"the {estimator} estimator needs a sampler's steps, and there are none here")
        return self.sampler

    def denoiser(self, estimator: str) -> Denoiser:
        """The model.

        Raises:
            ValueError: there is no model.
        """
        if self.model is None:
            raise ValueError(f"the {estimator} estimator needs a denoiser, and there is none here")
        return self.model


@dataclass(frozen=True)
class Effort:
    """The relative standard error asked for, and the samples that may be spent."""

    relative: float = 0.2
    most: int = 50_000
    seed: int = 0
    level: float = 0.95
    progress: Progress = silent
    kept: Kept = anew


@dataclass(frozen=True)
class Estimator:
    """A row: ``name`` is the switch in the settings, the key in results and the word in reports.

    Attributes:
        least: the samples that it needs to begin.
        fixed_steps: whether it needs a sampler with a fixed number of steps.
    """

    name: str
    estimate: Callable[[Subject, Effort], Rate]
    least: int = 1
    fixed_steps: bool = False
