"""The model of a recipe, and the cost of training it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from latentprint.denoiser import NetworkDenoiser
from latentprint.networks import build_unet
from latentprint.remedies.forecast import Looks
from latentprint.remedies.private import train_privately
from latentprint.remedies.table import Pixels, Recipe
from latentprint.streams import Streams
from latentprint.training import REPORT, TrainConfig, draw_times, errors_of, train

LOOK = 30
"""Steps between two looks at held-out images, after which training may end early."""

PATIENCE = 0.2
"""Training ends if the loss has not fallen for this share of all steps."""

_COMPARED = 512
_PAIRED = 192


@dataclass(frozen=True)
class Trained:
    """A model.

    Attributes:
        denoiser: with averaged weights.
        steps: for how many it was trained.
        seconds, cpu_seconds: of training, wall-clock and CPU time of this process.
        epsilon: of differential privacy; None: nothing is promised.
    """

    denoiser: NetworkDenoiser
    steps: int
    seconds: float
    cpu_seconds: float
    epsilon: float | None = None


def trained(recipe: Recipe, seed: int, folder: Path, say: Callable[[int], None]) -> Trained:
    """Train by the recipe; ``folder`` keeps the checkpoint of a training that continues when asked for again.

    Early stopping and private training start over.

    Raises:
        TrainingError, PrivateError: training is impossible.
    """
    config, streams = recipe.model.training, Streams(seed)
    network = build_unet(recipe.model.network, recipe.train.shape[1], recipe.train.shape[2:], streams)
    schedule = recipe.model.schedule()
    clock, cpu = time.monotonic(), time.process_time()
    epsilon, steps = None, config.steps
    if recipe.epsilon is not None:
        denoiser, epsilon = train_privately(
            recipe.train, network, schedule, config, streams, recipe.epsilon, recipe.delta, say
        )
    else:
        checkpoint = None if recipe.early else folder
        states = train(
            recipe.train, network, schedule, config, streams, checkpoint=checkpoint, heldout=recipe.heldout
        )
        denoiser, best, lowest = None, 0, float("inf")
        for state in states:
            say(state.step)
            denoiser, steps = state.denoiser, state.step
            if recipe.early and (state.step % LOOK == 0 or state.step == config.steps):
                loss = heldout_loss(config, state.denoiser, recipe.heldout, streams)
                if loss < lowest:
                    lowest, best, kept = loss, state.step, copy.deepcopy(state.denoiser)
                if state.step - best >= PATIENCE * config.steps:
                    break
        if recipe.early:
            denoiser, steps = kept, best  # pyright: ignore[reportPossiblyUnboundVariable]
        assert denoiser is not None  # a training yields its last state
    return Trained(
        replace(denoiser, network=denoiser.network.eval()),
        steps,
        time.monotonic() - clock,
        time.process_time() - cpu,
        epsilon,
    )


def heldout_loss(config: TrainConfig, denoiser: NetworkDenoiser, heldout: Pixels, streams: Streams) -> float:
    """Eq. 4 on images (m, C, H, W) that training does not see, with the same noise at every call."""
    return _loss(config, denoiser, np.resize(heldout[:_COMPARED], (_COMPARED, *heldout.shape[1:])), streams)


def looks_along(recipe: Recipe, seed: int, until: int, say: Callable[[int], None]) -> Looks:
    """Train for ``until`` steps, and compare training and held-out images every REPORT steps."""
    config, streams = recipe.model.training, Streams(seed)
    network = build_unet(recipe.model.network, recipe.train.shape[1], recipe.train.shape[2:], streams)
    some = min(_PAIRED, len(recipe.heldout))
    own = np.resize(recipe.train[:some], (some, *recipe.train.shape[1:]))
    steps, losses = list[int](), list[tuple[float, float]]()
    schedule = recipe.model.schedule()
    for state in train(recipe.train, network, schedule, config, streams, heldout=recipe.heldout):
        say(state.step)
        if state.step % REPORT == 0:
            steps.append(state.step)
            both = (_loss(config, state.denoiser, one, streams) for one in (own, recipe.heldout[:some]))
            losses.append((next(both), next(both)))
        if state.step >= until:
            break
    return Looks(steps, [a for a, _ in losses], [b for _, b in losses])


def _loss(config: TrainConfig, denoiser: NetworkDenoiser, pixels: Pixels, streams: Streams) -> float:
    images, count = torch.from_numpy(pixels), len(pixels)
    t = draw_times(config, denoiser.schedule, streams, 0, count)
    noise = streams.noise("heldout.noise", range(count), 0, tuple(images.shape[1:]))
    with torch.no_grad():
        parts = [
            errors_of(config, denoiser, images[i : i + 128], t[i : i + 128], noise[i : i + 128])
            for i in range(0, count, 128)
        ]
    return float(torch.cat(parts).mean())
