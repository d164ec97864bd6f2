"""Differentially private training: DP-SGD with opacus' gradients, optimiser and accountant.

A coin decides for each image whether it enters a step (Poisson sampling with chance B/N, which the
accountant's amplification assumes). Its gradient is clipped to norm 1, and Gaussian noise is added to the
sum. The noise is chosen so that all steps together spend the epsilon that was asked for.

Sources: Abadi et al. 2016; Mironov, Talwar, Zhang 2019 (Renyi accounting of the sampled Gaussian mechanism).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latentprint.contracts import InputError
from latentprint.denoiser import NetworkDenoiser
from latentprint.networks import label_of, multiple_of
from latentprint.schedule import Schedule
from latentprint.streams import Streams
from latentprint.training import TrainConfig, draw_times, errors_of

CLIP = 1.0
"""The largest norm of one image's gradient."""


class PrivateError(InputError):
    """Private training is not possible here, with the reason in one sentence."""


def require_opacus() -> None:
    """Check that the package is installed."""
    if find_spec("opacus") is None:
        raise PrivateError('training with differential privacy needs opacus: pip install "latentprint[dp]"')


def train_privately(
    images: NDArray[np.float32],
    network: nn.Module,
    schedule: Schedule,
    config: TrainConfig,
    streams: Streams,
    epsilon: float,
    delta: float,
    say: Callable[[int], None],
) -> tuple[NetworkDenoiser, float]:
    """(the model with averaged weights, epsilon spent) of a training on images (N, C, H, W); on the CPU."""
    require_opacus()
    from opacus.accountants import RDPAccountant
    from opacus.accountants.utils import get_noise_multiplier
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    pixels, count = torch.from_numpy(images), len(images)
    rate = min(1.0, config.batch / count)
    try:
        noise = get_noise_multiplier(
            target_epsilon=epsilon, target_delta=delta, sample_rate=rate, steps=config.steps, accountant="rdp"
        )
    except ValueError as error:
        raise PrivateError(f"no noise reaches epsilon = {epsilon:g} in {config.steps:,} steps") from error
    mean = copy.deepcopy(network).eval().requires_grad_(False)
    wrapped = GradSampleModule(network.train())
    spread = config.sigma_data or float(pixels.double().std()) or 1.0
    model = NetworkDenoiser(
        wrapped,
        schedule,
        config.parametrisation,
        spread,
        label_of(network),
        multiple=multiple_of(network),
        mean_data=config.scale_of(images)[0],
    )
    adam = torch.optim.AdamW(wrapped.parameters(), config.learning_rate, betas=(0.9, config.beta2))
    drawn = torch.Generator().manual_seed(int(streams.generator("private.noise").integers(2**63)))
    optimiser: Any = DPOptimizer(
        adam,
        noise_multiplier=noise,
        max_grad_norm=CLIP,
        expected_batch_size=round(rate * count),
        generator=drawn,
    )
    accountant = RDPAccountant()
    for step in range(config.steps):
        for group in optimiser.param_groups:
            group["lr"] = config.rate(step)
        rows = (streams.uniform("private.rows", range(count), step, (1,))[:, 0] < rate).nonzero()[:, 0]
        optimiser.zero_grad()
        _gradients(config, model, streams, pixels[rows], step * count)
        optimiser.step()
        accountant.step(noise_multiplier=noise, sample_rate=rate)
        keep = min(config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for average, now in zip(mean.parameters(), network.parameters(), strict=True):
                average.lerp_(now, 1 - keep)
        say(step + 1)
    return replace(model, network=mean), float(accountant.get_epsilon(delta))


def _gradients(
    config: TrainConfig, model: NetworkDenoiser, streams: Streams, images: Tensor, first: int
) -> None:
    """Put the gradient of each image (B, C, H, W) where opacus looks for it; none if the batch is empty."""
    if not len(images):
        for one in model.network.parameters():
            one.grad_sample = torch.zeros((0, *one.shape))  # pyright: ignore[reportAttributeAccessIssue]
        return
    t = draw_times(config, model.schedule, streams, first, len(images))
    noise = streams.noise("train.noise", range(first, first + len(images)), 0, tuple(images.shape[1:]))
    loss = errors_of(config, model, images, t, noise).mean()
    with warnings.catch_warnings():
        # opacus hooks every layer; the first has no input that needs a gradient.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        loss.backward()
