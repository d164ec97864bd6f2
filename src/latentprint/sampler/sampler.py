"""A complete sampler: a step, a grid and a last denoising. q belongs to a sampler, so results name it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any, cast

import torch
from torch import Tensor

from latentprint.sampler.adaptive import RungeKutta
from latentprint.sampler.grid import Spacing, own_times, times
from latentprint.sampler.state import Step
from latentprint.sampler.steps import STEPS, EulerMaruyama
from latentprint.schedule import Schedule


@dataclass(frozen=True)
class Sampler:
    """``steps`` times ``step`` on the grid ``spacing``, then, if ``denoise``, E[x_0 | x_end] as the image.

    Attributes:
        at: the grid itself, falling from the schedule's start, in place of a spacing: that of a scheduler
            that came with a model. A single time means a one-step model, whose last denoising makes the
            image.
        of: what the sampler belongs to, in words: a scheduler, a guidance scale, a condition.

    Raises:
        ValueError: steps < 1, or another number than ``at`` has (``times`` refuses an unknown spacing).
    """

    step: Step
    steps: int
    spacing: Spacing = "karras"
    denoise: bool = True
    at: tuple[float, ...] | None = None
    of: str | None = None

    def __post_init__(self) -> None:
        if self.at is None and self.steps < 1:
            raise ValueError(f"a sampler needs at least 1 step, got {self.steps}")
        if self.at is not None and (len(self.at) != self.steps + 1 or not (self.steps or self.denoise)):
            raise ValueError(f"{self.steps} steps need {self.steps + 1} times, got {len(self.at)}")

    def grid(self, schedule: Schedule) -> Tensor:
        """The common times of all rows, float64 (steps + 1,)."""
        if self.at is not None:
            return torch.tensor(self.at, dtype=torch.float64)
        return times(schedule, self.steps, self.spacing)

    def evaluations(self, schedule: Schedule, t: float | None = None) -> int | None:
        """Network evaluations of a row that starts at t (default T); None for an adaptive step."""
        if self.step.evaluations is None:
            return None
        start = schedule.start if t is None else t
        steps = len(own_times(self.grid(schedule), start)) - 1
        return steps * self.step.evaluations + (self.denoise and start > 0)

    def describe(self) -> dict[str, object]:
        """Plain values that name the sampler in results; ``sampler_from`` reads them."""
        own = {} if self.at is None else {"times_sha256": sha256(repr(self.at).encode()).hexdigest()[:16]}
        return {
            "step": self.step.name,
            **self.step.config(),
            "steps": self.steps,
            "spacing": self.spacing if self.at is None else "own",
            "denoise": self.denoise,
            "stochastic": self.step.draws > 0,
            **own,
            **({} if self.of is None else {"of": self.of}),
        }


PAPER = Sampler(EulerMaruyama(), 1000, "uniform", denoise=True)
"""The paper's: Euler-Maruyama of the reverse SDE, 1,000 steps, a noiseless last image (Song et al. 2021)."""


def sampler_from(description: Mapping[str, object]) -> Sampler:
    """The sampler that ``Sampler.describe`` described; ``stochastic`` may be left out.

    Raises:
        ValueError: unknown step, unknown or missing key, or a value that the step or the sampler refuses.
    """
    kinds = {kind.name: kind for kind in (*STEPS, RungeKutta)}
    values = cast("dict[str, Any]", dict(description))
    name = values.pop("step", None)
    if name not in kinds:
        raise ValueError(f"a step is one of {', '.join(kinds)}; got {name!r}")
    kind = kinds[name]
    stochastic = values.pop("stochastic", None)
    own = {f.name: values.pop(f.name) for f in fields(kind) if f.name in values}
    allowed = {"steps", "spacing", "denoise"}
    if set(values) - allowed or "steps" not in values:
        raise ValueError(
            f"sampler {name!r} needs steps and knows spacing, denoise and {[f.name for f in fields(kind)]}; "
            f"got {sorted(values)}"
        )
    sampler = Sampler(kind(**own), **values)
    if stochastic not in (None, sampler.step.draws > 0):
        raise ValueError(f"step {name!r} has stochastic = {sampler.step.draws > 0}, got {stochastic}")
    return sampler
