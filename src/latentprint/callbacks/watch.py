"""Quick audits of a model while it trains, within a share of the training time.

At noise levels t, evenly in log(sigma / alpha), training images x and held-out images are noised and denoised
once, with the same noise: the first step of Alg. 1. With e(x, t) = |D(x_t, t) - x|^2 alpha^2 / (d sigma^2)

    gap     1 - mean e(train) / mean e(held out)       0: knows them no better than strangers; 1: by heart
    t'      the largest t whose gap is significantly above 0 (one-sided, 97.5 %)

Training images take turns; the interval is that of a ratio of means (delta method).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latentprint.callbacks.canary import Canary
from latentprint.contracts import InputError
from latentprint.denoiser import Denoiser
from latentprint.schedule import expand
from latentprint.streams import Streams

Images = Tensor | NDArray[np.float32]
Log = Callable[[Mapping[str, float], int], object]
"""(numbers by name, step): ``accelerator.log``, a TensorBoard or W&B writer's own."""

CHUNK = 8
"""Training images, and as many held-out ones, between two looks at the clock."""

LEAST = 8
"""Fewest images of either kind for which a gap means something."""

_RATIOS = (0.3, 3.0)
_SURE = 1.96


class WatchError(InputError):
    """A training that cannot be watched in this way, with the reason in one sentence."""


@dataclass(frozen=True)
class Look:
    """One quick audit.

    Attributes:
        step: the number of steps done.
        gap, low, high: see the module, with its 95 % interval.
        t_prime: see the module; None: at no level.
        images: training images looked at, and as many held out.
        seconds: its duration.
        share: the share of the time since the first step that all audits took.
    """

    step: int
    gap: float
    low: float
    high: float
    t_prime: float | None
    images: int
    seconds: float
    share: float

    @property
    def values(self) -> dict[str, float]:
        """Numbers to log; a missing t' is 0."""
        return {
            "latentprint/gap": self.gap,
            "latentprint/gap_low": self.low,
            "latentprint/gap_high": self.high,
            "latentprint/t_prime": self.t_prime or 0.0,
            "latentprint/share_of_time": self.share,
        }


@dataclass
class Watch:
    """Watches a training; see the package.

    Attributes:
        denoiser: the model in training, as ``adapters.from_function`` makes it from a network and its noise.
        train, heldout: images (n, *shape) that it trains on, and images that it does not, as the network sees
            them (latents for a latent model); at least LEAST of each.
        network: the module that is switched to evaluation mode for an audit and back; None: those of the
            denoiser.
        every: steps between two audits.
        share: the share of the training time that audits may take; an audit that would take more waits.
        images: most training images of an audit, and most held-out ones.
        levels: noise levels of an audit.
        stop: ``step`` returns True once the gap is significantly above this; None: never.
        steps: how many the training has, if known; a rule that can never fire is refused.
        canary: a marked image to look for in the batches.
        log: called with each audit's numbers and its step.
        seed: of the noise.
        curve: the audits so far.

    Raises:
        WatchError: too few images, images of different shapes, numbers out of range, or a stop rule that can
            never fire.
    """

    denoiser: Denoiser
    train: Images
    heldout: Images
    network: nn.Module | None = None
    every: int = 100
    share: float = 0.02
    images: int = 32
    levels: int = 5
    stop: float | None = None
    steps: int | None = None
    canary: Canary | None = None
    log: Log | None = None
    seed: int = 0
    curve: list[Look] = field(default_factory=list[Look], init=False)
    spent: float = field(default=0.0, init=False)
    _began: float | None = field(default=None, init=False)
    _next: int = field(default=0, init=False)
    _chunk_seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.train, self.heldout = torch.as_tensor(self.train), torch.as_tensor(self.heldout)
        if self.train.shape[1:] != self.heldout.shape[1:] or min(len(self.train), len(self.heldout)) < LEAST:
            raise WatchError(
                f"{LEAST} training and {LEAST} held-out images of one shape are compared, got"
                f" {tuple(self.train.shape)} and {tuple(self.heldout.shape)}"
            )
        if min(self.every, self.levels) < 1 or self.images < CHUNK or not 0 < self.share <= 1:
            raise WatchError(
                f"every and levels are 1 or more, images {CHUNK} or more, share in (0, 1]; got {self.every},"
                f" {self.levels}, {self.images} and {self.share}"
            )
        if self.stop is not None and not 0 < self.stop < 1:
            raise WatchError(
                f"the gap lies below 1, and is about 0 before anything is learnt by heart: a rule that stops"
                f" at {self.stop:g} can never fire, or always does"
            )
        if self.stop is not None and self.steps is not None and self.every > self.steps:
            raise WatchError(
                f"audits come every {self.every} steps, and there are {self.steps}: the stop rule can never"
                " fire"
            )

    @property
    def time_share(self) -> float:
        """The share of the time since the first step that audits took."""
        gone = 0.0 if self._began is None else time.monotonic() - self._began
        return self.spent / gone if gone else 0.0

    def batch(self, images: Images, losses: Tensor | None = None) -> None:
        """Show a batch (B, *shape) as the loss sees it and, if available, its losses (B,).

        Warns (``CanaryWarning``) if the marked image is missing, has lost its mark, or has no loss.
        """
        if self.canary is not None:
            began = time.monotonic()
            self.canary.see(torch.as_tensor(images), losses, len(self.train))
            self.spent += time.monotonic() - began

    def step(self, step: int) -> bool:
        """Report that ``step`` steps are done; returns True if the stop rule says to end."""
        if self._began is None:
            self._began = time.monotonic()
            return False
        if step % self.every:
            return False
        allowed = self.share * (time.monotonic() - self._began) - self.spent
        if allowed < self._chunk_seconds:
            return False  # its turn comes after more training
        look = self._audit(step, allowed)
        self.curve.append(look)
        if self.log is not None:
            self.log(look.values, step)
        return self.stop is not None and look.low > self.stop

    def _audit(self, step: int, allowed: float) -> Look:
        device = torch.as_tensor(self.train).device
        _synchronise(device)
        began = time.monotonic()
        modules = [self.network] if self.network is not None else _networks(self.denoiser)
        training = [module.training for module in modules]
        for module in modules:
            module.eval()
        parts = list[tuple[Tensor, Tensor]]()
        try:
            with torch.no_grad():
                while len(parts) * CHUNK < min(self.images, len(self.train), len(self.heldout)):
                    parts.append(self._chunk())
                    _synchronise(device)
                    taken = time.monotonic() - began
                    self._chunk_seconds = taken / len(parts)
                    if taken + self._chunk_seconds > allowed:
                        break
        finally:
            for module, was in zip(modules, training, strict=True):
                module.train(was)
        own, others = (torch.cat(side).double().cpu().numpy() for side in zip(*parts, strict=True))
        seconds = time.monotonic() - began
        self.spent += seconds
        return _look(step, own, others, self._times().numpy(), seconds, self.time_share)

    def _times(self) -> Tensor:
        schedule = self.denoiser.schedule
        ends = schedule.ratio(torch.tensor([schedule.end, schedule.start], dtype=torch.float64)).log()
        low, high = (min(max(math.log(r), float(ends[0])), float(ends[1])) for r in _RATIOS)
        ratios = torch.linspace(low, high, self.levels, dtype=torch.float64).exp()
        return schedule.time(ratios).clamp(schedule.end, schedule.start)

    def _chunk(self) -> tuple[Tensor, Tensor]:
        """e of CHUNK training and CHUNK held-out images at each level, (CHUNK, L) each."""
        places = torch.arange(self._next, self._next + CHUNK)
        self._next += CHUNK
        return self._errors(self.train, places), self._errors(self.heldout, places)

    def _errors(self, of: Images, places: Tensor) -> Tensor:
        images = torch.as_tensor(of)
        x0 = images[(places % len(images)).to(images.device)].float()
        times = self._times()
        t, x = times.repeat(len(x0)), x0.repeat_interleave(len(times), 0)
        ids = (places[:, None] * len(times) + torch.arange(len(times))).flatten()
        noise = Streams(self.seed).noise("watch", ids, 0, tuple(x.shape[1:]), device=x.device)
        schedule = self.denoiser.schedule
        noisy = expand(schedule.alpha(t), x) * x + expand(schedule.sigma(t), x) * noise
        error = (self.denoiser(noisy, t) - x).square().flatten(1).mean(1)
        return (error * (schedule.ratio(t) ** -2).to(error)).reshape(len(x0), len(times))


def _look(
    step: int,
    own: NDArray[np.float64],
    others: NDArray[np.float64],
    times: NDArray[np.float64],
    seconds: float,
    share: float,
) -> Look:
    """The audit that errors (n, L) of training images and of held-out ones give."""
    unit = np.maximum(others.mean(0), 1e-300)
    gap, low, high = _gap((own / unit).mean(1), (others / unit).mean(1))
    sure = [t for t, mine, theirs in zip(times, own.T, others.T, strict=True) if _gap(mine, theirs)[1] > 0]
    return Look(step, gap, low, high, float(max(sure)) if sure else None, len(own), seconds, share)


def _gap(own: NDArray[np.float64], others: NDArray[np.float64]) -> tuple[float, float, float]:
    """(1 - the ratio of the means, its ends) of errors (n,) and (n,)."""
    mine, theirs = float(own.mean()), float(others.mean())
    if not theirs > 0 or not mine > 0:
        return (1.0, 1.0, 1.0) if theirs > 0 else (0.0, -math.inf, 1.0)
    spread = math.sqrt(own.var(ddof=1) / len(own) / mine**2 + others.var(ddof=1) / len(others) / theirs**2)
    ratio = mine / theirs
    return 1 - ratio, 1 - ratio * math.exp(_SURE * spread), 1 - ratio * math.exp(-_SURE * spread)


def _networks(denoiser: Denoiser) -> list[nn.Module]:
    held = [denoiser, *vars(denoiser).values()] if hasattr(denoiser, "__dict__") else [denoiser]
    return [one for one in held if isinstance(one, nn.Module)]


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
