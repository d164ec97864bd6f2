"""How a score model is trained, and why training may end in a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from latentprint.contracts import InputError
from latentprint.denoiser import Parametrisation
from latentprint.networks.speed import Speed


class TrainingError(InputError):
    """Training cannot go on, for the reason given in one sentence."""


@dataclass(frozen=True)
class TrainConfig:
    """How a score model is trained; the defaults are the paper's 30,000 steps.

    Attributes:
        steps: optimiser steps.
        batch: images per step.
        learning_rate: of Adam, at its highest.
        warmup: steps over which the learning rate rises linearly from 0.
        decay: how it falls afterwards, to 0 at the last step: "none", "linear" or "cosine".
        beta2: Adam's second moment decay.
        weight_decay: decoupled (AdamW).
        clip: largest norm of the gradient.
        ema: decay of the weight average per step; it begins as (1 + k) / (10 + k): the first weights fade.
        parametrisation: what the network predicts, see `latentprint.denoiser.NetworkDenoiser`.
        sigma_data: standard deviation of the data, for "edm"; None measures it on the training images.
        weighting, times: see `latentprint.training.objective`.
        log_ratio_mean, log_ratio_std: of log(sigma/alpha), for times "lognormal".
        precision: "bfloat16" runs the network, not the optimiser, in half precision (autocast).
        checkpoint_seconds: time between two checkpoints.
        speed: what a GPU may do to be faster.

    Raises:
        ValueError: a number is outside its range.
    """

    steps: int = 30_000
    batch: int = 128
    learning_rate: float = 2e-4
    warmup: int = 500
    decay: Literal["none", "linear", "cosine"] = "none"
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.9999
    parametrisation: Parametrisation = "epsilon"
    sigma_data: float | None = None
    weighting: Literal["output", "likelihood"] = "output"
    times: Literal["uniform", "lognormal"] = "uniform"
    log_ratio_mean: float = -0.8
    log_ratio_std: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_seconds: float = 30.0
    speed: Speed = field(default_factory=lambda: Speed())

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "learning_rate", "clip", "log_ratio_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "checkpoint_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not (0 <= self.ema < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"ema and beta2 must lie in [0, 1), got {self.ema} and {self.beta2}")

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ..., steps - 1."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        done = max(0.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        fall = {"none": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[self.decay]
        return self.learning_rate * rise * fall
