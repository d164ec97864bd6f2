"""Membership scores: does the model treat this image as a training image? A higher score means more likely
yes.

    loss     - mean over times of |e - eps(alpha_t x + sigma_t e, t)|^2 / d        e fixed per image and time
    SecMI    - |x_t - B(F(x_t, t, s), s, t)|^2 / d,  x_t reached from x by F in equal steps,
                                                   s one step above t
    PIA      - |e_0 - eps(alpha_t x + sigma_t e_0, t)|_4,   e_0 = eps(x, t_0)

with eps the noise that the model predicts, d the number of values, and F and B the same deterministic step up
and down:

    F, B:  x_s = alpha_s D(x_t, t) + sigma_s eps(x_t, t)

SecMI and PIA begin at t_0, the schedule's end, where the image is almost clean, because the noise in a clean
image is undefined. Their times are given as ratios sigma / alpha, which mean the same image with the same
noise in every schedule. So the papers' timesteps (of DDPM's linear betas, N = 1000) carry over: t = 100 for
SecMI with ten steps, t = 200 for PIA. Times of the loss are at equal steps of log(sigma / alpha).

None of these scores proves that an image leaks. They rank images, and their worth is measured on members and
on held-out images (``latentprint.stats.roc``). SecMI measures how much the predicted noise changes over one
step. A model that is exactly a finite set of images often predicts the same noise before and after, even for
held-out images, which then look like members.

Sources, from whose formulas this was written: loss: Yeom et al. 2018 and, for diffusion, Matsumoto et al.
2023, Carlini et al. 2023; SecMI: Duan et al. 2023, Eq. 8 to 10 (t-error, "stat"); PIA: Kong et al. 2024, Eq.
9 to 13.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from latentprint.denoiser import Codec, Denoiser, checked, epsilon_from_denoised
from latentprint.schedule import Schedule, expand
from latentprint.settings import STRICT, Some
from latentprint.streams import Streams


def _ddpm_ratio(timestep: int) -> float:
    """sigma / alpha at a timestep of DDPM's linear betas from 1e-4 to 0.02, N = 1000."""
    betas = np.linspace(1e-4, 0.02, 1000)
    level = float(np.prod(1.0 - betas[: timestep + 1]))
    return math.sqrt((1.0 - level) / level)


Ratio = Annotated[float, Field(ge=0.001, le=1000)]
"""sigma / alpha: from invisible noise to noise that hides everything."""


@dataclass(frozen=True, config=STRICT)
class MembershipConfig:
    """Where the scores look, and how often.

    Attributes:
        loss_ratios: smallest and largest sigma / alpha of the loss.
        loss_times: how many times between them.
        secmi_ratio: sigma / alpha of SecMI's t; None: that of DDPM's timestep 100, 0.342.
        secmi_steps: steps from the image to t.
        pia_ratio: sigma / alpha of PIA's t; None: that of DDPM's timestep 200, 0.724.
        batch: images at a time.

    Raises:
        ValueError: a number is out of range, or the range of ratios falls.
    """

    loss_ratios: tuple[Ratio, Ratio] = (0.1, 5.0)
    loss_times: Annotated[int, Field(ge=1, le=10_000)] = 16
    secmi_ratio: Ratio | None = None
    secmi_steps: Annotated[int, Field(ge=1, le=10_000)] = 10
    pia_ratio: Ratio | None = None
    batch: Some = 64

    def __post_init__(self) -> None:
        if self.loss_ratios[0] > self.loss_ratios[1]:
            raise ValueError(f"the ratios of the loss must rise, got {list(self.loss_ratios)}")

    def misses(self, schedule: Schedule) -> str | None:
        """Why a schedule does not allow the scores, in a sentence; None if it does.

        The loss uses the ratios that the schedule has; SecMI and PIA need one each.
        """
        low, high = float(schedule.ratio(schedule.end)), float(schedule.ratio(schedule.start))
        secmi, pia = self.secmi_ratio or _ddpm_ratio(100), self.pia_ratio or _ddpm_ratio(200)
        first, last = self.loss_ratios
        if min(secmi, pia, last) <= low or max(secmi, pia, first) >= high:
            return (
                f"the model's noise goes from {low:.3g} to {high:.3g} times the image, and membership scores"
                f" look at {secmi:.3g} (SecMI), {pia:.3g} (PIA) and {first:g} to {last:g} (loss)"
            )
        t = float(schedule.time(torch.tensor([secmi], dtype=torch.float64))[0])
        if t + (t - schedule.end) / self.secmi_steps > schedule.start:
            return f"SecMI needs one step of {self.secmi_steps} above its ratio {secmi:.3g}; more steps fit"
        return None

    def evaluations(self) -> int:
        """Network evaluations per image: loss, then SecMI (up, one up, one down), then PIA."""
        return self.loss_times + (self.secmi_steps + 2) + 2


def membership_scores(
    denoiser: Denoiser,
    images: Tensor,
    streams: Streams,
    ids: Sequence[int] | NDArray[np.int64],
    config: MembershipConfig | None = None,
    *,
    codec: Codec | None = None,
    likelihood: NDArray[np.float64] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """The scores "loss", "secmi", "pia" and, if given, "likelihood" of images (n, C, H, W) in [-1, 1].

    Args:
        streams: the loss's noise; it depends on (seed, id, time) alone, so no score depends on its
            batch-mates.
        ids: one per image.
        codec: of a latent model; images are scored as their latents.
        likelihood: log-likelihood per image, (n,), as ``latentprint.likelihood`` computes it, in any
            increasing unit.

    Raises:
        ValueError: lengths differ, the schedule does not reach a ratio, or the model's answer is not finite.
    """
    config, numbers = config or MembershipConfig(), np.asarray(ids, dtype=np.int64)
    if len(numbers) != len(images) or (likelihood is not None and len(likelihood) != len(images)):
        raise ValueError(f"{len(images)} images need one id and, if any, one likelihood each")
    parts = list[tuple[Tensor, Tensor, Tensor]]()
    with torch.no_grad():
        for first in range(0, len(images), config.batch):
            rows = slice(first, first + config.batch)
            x = images[rows] if codec is None else codec.encode(images[rows])
            parts.append(
                (
                    loss_score(denoiser, x, streams, numbers[rows], config),
                    secmi_score(denoiser, x, config),
                    pia_score(denoiser, x, config),
                )
            )
    scores = dict[str, NDArray[np.float64]]()
    for place, name in enumerate(("loss", "secmi", "pia")):
        scores[name] = np.concatenate([np.empty(0), *(part[place].numpy() for part in parts)])
    if likelihood is not None:
        scores["likelihood"] = np.asarray(likelihood, dtype=np.float64)
    return scores


def loss_score(
    denoiser: Denoiser, x: Tensor, streams: Streams, ids: NDArray[np.int64], config: MembershipConfig
) -> Tensor:
    """Minus the mean squared error of the noise over ``loss_times`` times, (n,) float64.

    Raises:
        ValueError: the schedule does not reach the ratios.
    """
    schedule = denoiser.schedule
    low, high = (math.log(ratio) for ratio in config.loss_ratios)
    logs = torch.linspace(low, high, config.loss_times, dtype=torch.float64)
    total = torch.zeros(len(x), dtype=torch.float64)
    for step, t in enumerate(_times(schedule, logs.exp())):
        e = streams.noise("membership.loss", ids, step, tuple(x.shape[1:]), device=x.device, dtype=x.dtype)
        noisy = expand(schedule.alpha(t), x) * x + expand(schedule.sigma(t), x) * e
        total += _mean_square(e - _epsilon(denoiser, noisy, t))
    return -total / config.loss_times


def secmi_score(denoiser: Denoiser, x: Tensor, config: MembershipConfig) -> Tensor:
    """Minus the squared t-error of one deterministic step up and down again, (n,) float64.

    Raises:
        ValueError: the schedule does not reach the ratio, or ends before the step above it.
    """
    schedule = denoiser.schedule
    ratio = torch.tensor([config.secmi_ratio or _ddpm_ratio(100)], dtype=torch.float64)
    t = _times(schedule, ratio)[0]
    begin = torch.tensor(schedule.end, dtype=torch.float64)
    grid = torch.linspace(float(begin), float(t), config.secmi_steps + 1, dtype=torch.float64)
    above = t + (t - begin) / config.secmi_steps
    if not float(begin) < float(t) or float(above) > schedule.start:
        raise ValueError(
            f"SecMI needs a time between {schedule.end:g} and {schedule.start:g}, got {float(t):g}"
        )
    x = expand(schedule.alpha(begin), x) * x
    for here, there in pairwise(grid):
        x = _deterministic(denoiser, x, here, there)
    returned = _deterministic(denoiser, _deterministic(denoiser, x, t, above), above, t)
    return -_mean_square(x - returned)


def pia_score(denoiser: Denoiser, x: Tensor, config: MembershipConfig) -> Tensor:
    """Minus the 4-norm of the difference between the noise predicted for the image and after adding it, (n,)
    float64.

    Raises:
        ValueError: the schedule does not reach the ratio.
    """
    schedule = denoiser.schedule
    ratio = torch.tensor([config.pia_ratio or _ddpm_ratio(200)], dtype=torch.float64)
    t = _times(schedule, ratio)[0]
    begin = torch.tensor(schedule.end, dtype=torch.float64)
    first = _epsilon(denoiser, expand(schedule.alpha(begin), x) * x, begin)
    noisy = expand(schedule.alpha(t), x) * x + expand(schedule.sigma(t), x) * first
    difference = (first - _epsilon(denoiser, noisy, t)).flatten(1).double()
    return -difference.pow(4).sum(1).pow(0.25).cpu()


def _times(schedule: Schedule, ratios: Tensor) -> Tensor:
    low, high = float(schedule.ratio(schedule.end)), float(schedule.ratio(schedule.start))
    if not (low <= float(ratios.min()) and float(ratios.max()) <= high):
        raise ValueError(
            f"the schedule's sigma / alpha goes from {low:g} to {high:g}, membership asks for "
            f"{float(ratios.min()):g} to {float(ratios.max()):g}"
        )
    return schedule.time(ratios)


def _epsilon(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    return epsilon_from_denoised(denoiser.schedule, x, checked(denoiser, x, t), t)


def _deterministic(denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """alpha_s D + sigma_s eps, in either direction."""
    schedule = denoiser.schedule
    image = checked(denoiser, x, t)
    noise = epsilon_from_denoised(schedule, x, image, t)
    return expand(schedule.alpha(s), x) * image + expand(schedule.sigma(s), x) * noise


def _mean_square(x: Tensor) -> Tensor:
    return x.flatten(1).double().square().mean(1).cpu()
