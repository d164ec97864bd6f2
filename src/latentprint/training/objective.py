"""Denoising score matching: the network learns E[x_0 | x_t] from images and their noise.

    L = E_t E_x0 E_e [ lambda(t) | s(x_t, t) - grad log p(x_t | x_0) |^2 ]                      (paper Eq. 4)
    x_t = alpha x_0 + sigma e

With s = (alpha D - x) / sigma^2 (Tweedie) and grad log p(x_t | x_0) = (alpha x_0 - x) / sigma^2 the bracket
is (alpha^2 / sigma^4) | D - x_0 |^2: lambda only sets the weight w(t) of | D(x_t, t) - x_0 |^2. The choices
here:

    weighting "output"       w that gives the plain squared error of the network's own prediction: for
                             "epsilon" lambda = sigma^2 (Song et al. 2021), "edm" Karras et al. 2022, Eq. 8
    weighting "likelihood"   lambda = g^2, a bound on the negative log-likelihood (Song, Durkan et al. 2021)
    times "uniform"          t uniform on [end, T]
    times "lognormal"        log(sigma/alpha) normal, cut off at the ends (Karras et al. 2022, table 1)

Times are stratified over the batch, which keeps their distribution and lowers the variance of the loss.
Images come in permuted epochs, so that each is seen equally often.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentprint.denoiser import NetworkDenoiser
from latentprint.schedule import Schedule, expand
from latentprint.streams import Streams
from latentprint.training.settings import TrainConfig


def draw_times(config: TrainConfig, schedule: Schedule, streams: Streams, first: int, batch: int) -> Tensor:
    """The times of images number ``first`` ... ``first + batch - 1``: float64, (batch,), one per stratum."""
    place = streams.uniform("train.time", range(first, first + batch), 0, (1,), dtype=torch.float64)[:, 0]
    uniform = (torch.arange(batch) + place) / batch
    if config.times == "uniform":
        return schedule.end + (schedule.start - schedule.end) * uniform
    ends = torch.stack([schedule.ratio(schedule.end), schedule.ratio(schedule.start)])
    low, high = torch.special.ndtr((ends.log() - config.log_ratio_mean) / config.log_ratio_std)
    normal = torch.special.ndtri(low + (high - low) * uniform)
    ratio = (config.log_ratio_mean + config.log_ratio_std * normal).exp()
    return schedule.time(ratio.clamp(ends[0], ends[1])).clamp(schedule.end, schedule.start)


def draw_indices(streams: Streams, first: int, batch: int, count: int) -> NDArray[np.int64]:
    """Which of ``count`` images are number ``first`` ... ``first + batch - 1`` of the training: shape
    (batch,)."""
    places = np.arange(first, first + batch)
    return np.array([_epoch(streams, int(p) // count, count)[int(p) % count] for p in places], dtype=np.int64)


@lru_cache(maxsize=8)
def _epoch(streams: Streams, epoch: int, count: int) -> NDArray[np.int64]:
    return streams.generator("train.order", epoch).permutation(count)


def weight(config: TrainConfig, denoiser: NetworkDenoiser, t: Tensor) -> Tensor:
    """w(t) of |D - x_0|^2 in the loss: float64, shaped as t."""
    if config.weighting == "output":
        return denoiser.weight(t)
    schedule = denoiser.schedule
    return schedule.diffusion2(t) * schedule.alpha(t) ** 2 / schedule.sigma(t) ** 4


def loss_of(
    config: TrainConfig, denoiser: NetworkDenoiser, images: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    """Eq. 4 on a batch: images and noise (B, C, H, W), t (B,); the mean over images and pixels, shape ()."""
    return _weighted(config, denoiser, images, t, noise).square().mean()


def errors_of(
    config: TrainConfig, denoiser: NetworkDenoiser, images: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    """Eq. 4 for each image, (B,): their mean is ``loss_of``."""
    return _weighted(config, denoiser, images, t, noise).square().flatten(1).mean(1)


def _weighted(
    config: TrainConfig, denoiser: NetworkDenoiser, images: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    schedule = denoiser.schedule
    x = expand(schedule.alpha(t), images) * images + expand(schedule.sigma(t), images) * noise
    # The root is inside the square: w reaches 1e6 where D - x_0 is 1e-3 of it, and neither may overflow
    # alone.
    return expand(weight(config, denoiser, t).sqrt(), images) * (denoiser(x, t) - images)
