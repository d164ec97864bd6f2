"""How this processor runs a recipe fastest: arithmetic and threads, measured in seconds before it runs.

    training    one image forward and backward through Eq. 4
    sampling    one image through the network as samples are drawn

bfloat16 pays only where a processor has instructions for it (AVX512-BF16, AMX); elsewhere it is slower than
float32. A second thread pays on a quiet machine and costs on a busy one. Neither can be read off a name, so
both are measured. Candidates take turns: what else the machine does then slows all of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from statistics import median
from typing import Literal

import torch

from latentprint.config import AuditConfig
from latentprint.denoiser import NetworkDenoiser
from latentprint.networks import build_unet
from latentprint.networks.speed import for_evaluation, laid_out, launched, layout
from latentprint.streams import Streams
from latentprint.training import draw_times, loss_of

Part = Literal["training", "sampling"]
Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
ROWS: dict[Part, int] = {"training": 16, "sampling": 32}
"""Images a measurement takes at once: enough to leave the second cache, as whole batches do."""
GAIN = 1.1
"""A faster candidate must be faster by this factor: coarser rounding or a further core is not free."""


@dataclass(frozen=True)
class Timing:
    """Median seconds of one image in ``part`` of the work."""

    part: Part
    precision: Precision
    threads: int
    seconds: float


@dataclass(frozen=True)
class Tuned:
    """The settings with the arithmetic that was chosen, the threads to give it, and why."""

    config: AuditConfig
    threads: int
    timings: tuple[Timing, ...]


def tune(config: AuditConfig, shape: tuple[int, ...], *, seconds: float = 12.0) -> Tuned:
    """Measure for about ``seconds`` how ``config`` runs fastest on this processor, on images of ``shape``.

    Only ``model.training.precision`` and ``speed.sampling.precision`` are chosen. Every candidate
    is measured once at least, however long that takes.
    """
    counts = sorted({1, os.cpu_count() or 1})
    before = torch.get_num_threads()
    try:
        taken = _measured(config, shape, counts, seconds)
    finally:
        torch.set_num_threads(before)
    timings = tuple(Timing(*key, seconds=median(values)) for key, values in taken.items())
    return chosen(config, timings)


def chosen(config: AuditConfig, timings: tuple[Timing, ...]) -> Tuned:
    """The arithmetic and the threads that these timings speak for."""
    took = {(one.part, one.precision, one.threads): one.seconds for one in timings}
    counts = sorted({one.threads for one in timings})
    images: dict[Part, float] = {
        "training": config.model.training.steps * config.model.training.batch * (1 + config.control),
        "sampling": config.samples.count * config.sampler.steps * (1 + config.control),
    }

    def precision(part: Part, threads: int) -> Precision:
        gain = took[part, "float32", threads] / took[part, "bfloat16", threads]
        return "bfloat16" if gain >= GAIN else "float32"

    def cost(threads: int) -> float:
        return sum(images[part] * took[part, precision(part, threads), threads] for part in images)

    least = min(cost(count) for count in counts)
    threads = next(count for count in counts if cost(count) <= least * GAIN)
    training = replace(config.model.training, precision=precision("training", threads))
    sampling = replace(config.speed.sampling, precision=precision("sampling", threads))
    tuned = replace(
        config,
        model=replace(config.model, training=training),
        speed=replace(config.speed, sampling=sampling),
    )
    return Tuned(tuned, threads, timings)


def _measured(
    config: AuditConfig, shape: tuple[int, ...], counts: list[int], seconds: float
) -> dict[tuple[Part, Precision, int], list[float]]:
    """Seconds of one image, a list for each candidate."""
    work: dict[tuple[Part, Precision], Callable[[], object]] = {}
    for precision in PRECISIONS:
        work["training", precision] = step_of(config, shape, precision, ROWS["training"])
        work["sampling", precision] = pass_of(config, shape, precision, ROWS["sampling"])
    taken: dict[tuple[Part, Precision, int], list[float]] = {}
    until = time.monotonic() + seconds
    rounds = 0
    while rounds < 2 or time.monotonic() < until:
        for threads, ((part, precision), call) in product(counts, work.items()):
            torch.set_num_threads(threads)
            begun = time.perf_counter()
            call()
            spent = (time.perf_counter() - begun) / ROWS[part]
            if rounds:  # the first round finds cold caches, and oneDNN choosing its kernels
                taken.setdefault((part, precision, threads), []).append(spent)
        rounds += 1
    return taken


def _denoiser(config: AuditConfig, shape: tuple[int, ...]) -> NetworkDenoiser:
    channels, *sides = shape
    network = build_unet(config.model.network, channels, tuple(sides), Streams(config.seed))
    training = config.model.training
    return NetworkDenoiser(
        network, config.model.schedule(), training.parametrisation, training.sigma_data or 0.5
    )


def step_of(
    config: AuditConfig, shape: tuple[int, ...], precision: Precision, rows: int
) -> Callable[[], object]:
    """A training step of ``rows`` images, forward and backward, as something to call; what else the settings
    ask for, a memory layout or compilation, is done as in training."""
    denoiser, streams, training = _denoiser(config, shape), Streams(config.seed), config.model.training
    network = denoiser.network.train()
    network.to(memory_format=layout(network, training.speed))  # pyright: ignore[reportCallIssue, reportArgumentType]
    fast = replace(denoiser, network=launched(network, training.speed))
    t = draw_times(training, denoiser.schedule, streams, 0, rows)
    images = laid_out(streams.noise("tuning.images", range(rows), 0, shape).clamp(-1, 1), training.speed)
    noise = streams.noise("train.noise", range(rows), 0, shape)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = loss_of(training, fast, images, t, noise)
        network.zero_grad()
        loss.backward()

    return step


def pass_of(
    config: AuditConfig, shape: tuple[int, ...], precision: Precision, rows: int
) -> Callable[[], object]:
    """An evaluation of ``rows`` images as samples are drawn, as something to call."""
    denoiser, streams = _denoiser(config, shape), Streams(config.seed)
    how = replace(config.speed.sampling, precision=precision)
    fast = replace(denoiser, network=for_evaluation(denoiser.network, how, rows))
    x = streams.noise("tuning.images", range(rows), 0, shape)
    t = torch.linspace(denoiser.schedule.end, denoiser.schedule.start, rows, dtype=torch.float64)

    def evaluate() -> torch.Tensor:
        with torch.inference_mode():
            return fast(x, t)

    return evaluate
