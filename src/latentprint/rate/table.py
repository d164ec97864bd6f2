"""The estimators of q, one row each: settings, audits, calibration and reports all iterate over this table.

A new estimator is a module with its formula and a row here. The row's name is its switch in the settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from latentprint.denoiser import Codec, Denoiser, IdentityCodec
from latentprint.rate.estimator import Kept, Progress, anew, silent
from latentprint.rate.levels import Inside, Pushforward, Score
from latentprint.rate.path import PathConfig, path
from latentprint.rate.result import Rate
from latentprint.rate.splitting import SplittingConfig, splitting
from latentprint.sampler.sampler import sampler_from


@dataclass(frozen=True)
class Subject:
    """What q is about: a sampler, an image and its region.

    Attributes:
        push: the sampler as a map of its noise. sampler: its description.
        inside: decoded images -> whether they lie in Omega. score: falls towards Omega.
        target: x_p in the model's own space.
        model: the denoiser, if there is one; estimators that need it refuse without.
        others: further images that the model may have learnt, like ``target``.
        codec: from the model's space to images.
    """

    push: Pushforward
    sampler: Mapping[str, object]
    inside: Inside
    score: Score
    target: Tensor
    model: Denoiser | None = None
    others: Tensor | None = None
    codec: Codec = IdentityCodec()  # noqa: RUF009 (frozen and stateless)
    device: torch.device | str = "cpu"

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
    """A row: ``name`` is the switch in the settings and the key in results, ``title`` is for people.

    Attributes:
        least: the samples that it needs to begin.
        fixed_steps: whether it needs a sampler with a fixed number of steps.
    """

    name: str
    title: str
    estimate: Callable[[Subject, Effort], Rate]
    least: int = 1
    fixed_steps: bool = False


def _path(s: Subject, e: Effort) -> Rate:
    return path(
        s.denoiser("path"),
        sampler_from(s.sampler),
        s.target,
        s.inside,
        seed=e.seed,
        others=s.others,
        level=e.level,
        config=PathConfig(relative=e.relative, most=e.most),
        codec=s.codec,
        progress=e.progress,
        kept=e.kept,
    )


def _splitting(s: Subject, e: Effort) -> Rate:
    return splitting(
        s.push,
        s.score,
        s.inside,
        sampler=s.sampler,
        seed=e.seed,
        level=e.level,
        config=SplittingConfig(relative=e.relative, most=e.most),
        device=s.device,
        progress=e.progress,
        kept=e.kept,
    )


LEAST_TO_SPLIT = 4000
"""Samples that splitting needs to begin: twice its first replicates times their particles."""

ESTIMATORS = (
    Estimator("path", "Path", _path),
    Estimator("splitting", "Splitting", _splitting, LEAST_TO_SPLIT, fixed_steps=True),
)
