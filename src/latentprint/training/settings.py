"""How a score model is trained, and the error that ends a training with a sentence."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from latentprint.contracts import InputError
from latentprint.data.images import Pixels, mean_and_deviation
from latentprint.denoiser import Parametrisation
from latentprint.networks.speed import Speed
from latentprint.settings import STRICT, Any0, NotNegative, Positive, Share, Some

Decay = Annotated[float, Field(ge=0, lt=1)]


class TrainingError(InputError):
    """Training cannot continue, with the reason in one sentence."""


@dataclass(frozen=True, config=STRICT)
class Guidance:
    """How t'-guided training measures and steers, see `latentprint.training.guided`.

    Attributes:
        variant: what is done where an image is known.
        gap: how far the error of training images may fall below that of held-out images, as a share.
        every: steps between two looks at held-out images.
        levels: the number of bins of the noise levels.
        search_every: steps between two searches; "levels" without ``stop`` makes none.
        images: training images per search, in turn, and as many held-out images.
        steps: of the search's sampler.
        stop: end training when more than this share of the searched images is known; None: never.
    """

    variant: Literal["levels", "images", "repulsion", "augmentation"] = "levels"
    gap: Share = 0.3
    every: Some = 5
    levels: Annotated[int, Field(ge=2, le=100)] = 12
    search_every: Some = 100
    images: Some = 16
    steps: Some = 8
    stop: Share | None = None


@dataclass(frozen=True, config=STRICT)
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
        ema: decay of the weight average per step. It begins as (1 + k) / (10 + k), so that the first weights
            fade.
        parametrisation: what the network predicts, see `latentprint.denoiser.NetworkDenoiser`.
        sigma_data: standard deviation of the data, for "edm"; None measures it on the training images.
        mean_data: mean of the data, for "edm"; "measured" takes that of the training images. Where images are
            mostly background, the network then has less to learn.
        weighting, times: see `latentprint.training.objective`.
        log_ratio_mean, log_ratio_std: of log(sigma/alpha), for times "lognormal".
        precision: "bfloat16" runs the network, not the optimiser, in half precision (autocast).
        checkpoint_seconds: time between two checkpoints.
        augment: the share of images that are seen shifted by a pixel or mirrored (`training.augment`).
        guided: whether training is guided by t', so that no image is memorised (docs/remedies.md).
        guidance: how it is guided.
        speed: what a GPU may do to train faster.

    Raises:
        ValueError: a stop rule that can never fire.
    """

    steps: Some = 30_000
    batch: Some = 128
    learning_rate: Positive = 2e-4
    warmup: Any0 = 500
    decay: Literal["none", "linear", "cosine"] = "none"
    beta2: Decay = 0.999
    weight_decay: NotNegative = 0.0
    clip: Positive = 1.0
    ema: Decay = 0.9999
    parametrisation: Parametrisation = "epsilon"
    sigma_data: Positive | None = None
    mean_data: float | Literal["measured"] = 0.0
    weighting: Literal["output", "likelihood"] = "output"
    times: Literal["uniform", "lognormal"] = "uniform"
    log_ratio_mean: float = -0.8
    log_ratio_std: Positive = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_seconds: NotNegative = 30.0
    augment: Annotated[float, Field(ge=0, le=1)] = 0.0
    guided: bool = False
    guidance: Guidance = field(default_factory=Guidance)
    speed: Speed = field(default_factory=Speed)

    def __post_init__(self) -> None:
        how = self.guidance
        if how.stop is not None and not self.guided:
            raise ValueError("guidance.stop ends a guided training, and guided is false: it can never fire")
        if how.stop is not None and how.search_every >= self.steps:
            raise ValueError(
                f"guidance.stop can never fire: the first search comes after {how.search_every} steps, and"
                f" there are {self.steps}"
            )

    def scale_of(self, pixels: Pixels) -> tuple[float, float]:
        """``mean_data`` and ``sigma_data``, measured on these training images (N, C, *S) if they decide."""
        measured = self.sigma_data is None or self.mean_data == "measured"
        mean, deviation = mean_and_deviation(pixels) if measured else (0.0, 0.0)
        return (
            mean if self.mean_data == "measured" else self.mean_data,
            deviation if self.sigma_data is None else self.sigma_data,
        )

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ..., steps - 1."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        done = max(0.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        fall = {"none": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[self.decay]
        return self.learning_rate * rise * fall
