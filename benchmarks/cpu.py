"""An audit's work on a processor: float32 as it was, beside what ``tools.reproduce.tuning`` chooses here.

Compares, in alternating rounds of one process and by medians, on the U-Net of the preset `small` at 28 x 28:

    train      a step of Eq. 4, forward and backward; the optimiser, the same in both, is left out
    sample     trajectories from the prior
    search     trajectories from x_t, t evenly over the noise levels
    detectors  answers of the paper's ResNet-50

*_ratio says how many times faster what is chosen is than float32: 1 where float32 is chosen, as on processors
without instructions for bfloat16. ``chosen`` names it, and ``bfloat16_gain`` says how many times faster
bfloat16 is in each part, below 1 where it is slower. Detectors are not tuned; search goes as sampling does.
``ceiling`` is the speed of this processor's matrix products in GFLOP/s, measured here. ``convolution`` is
that of the costliest convolution of the U-Net, forward and backward, and ``share`` how much of the ceiling a
whole training step reaches. Where a convolution is at the ceiling, only fewer operations are faster. On a
machine that others use too, --cpu-time compares processor seconds on one thread.

--variants adds what else torch offers, each beside the arithmetic chosen: images with their channels last,
and the network compiled (Inductor; needs a C++ compiler, and minutes).

--processes adds whole trainings, started as --processes of an audit starts them (extra accelerate): one
process of N threads beside N processes of one thread, taking turns. A short training is subtracted from a
long one, and with it the start of the processes.

    python benchmarks/cpu.py [--quick] [--variants] [--processes] [--threads N] [--cpu-time]
                             [--json] [--out FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from record import add_output, record, tell
from torch.utils.flop_counter import FlopCounterMode

from latentprint.config import resolve
from latentprint.denoiser import NetworkDenoiser
from latentprint.detector import build_backbone
from latentprint.networks import build_unet
from latentprint.networks.speed import Evaluation, Speed, for_evaluation
from latentprint.sampler import trajectories
from latentprint.streams import Streams
from latentprint.together import launch, write_job

sys.path.append(str(Path(__file__).parents[1]))  # tools/ stands beside benchmarks/

from tools.reproduce.tuning import GAIN, PRECISIONS, Precision, pass_of, step_of

SHAPE = (1, 28, 28)
CONFIG = resolve({"model": {"training": {"batch": 64}}}, preset="small")
Work = Mapping[tuple[str, str], Callable[[], object]]
TUNED = ("train", "sample", "search")
PARTS = (*TUNED, "detectors")


def walk(precision: Precision, rows: int, steps: int, from_prior: bool) -> Callable[[], object]:
    """Trajectories of the preset's sampler, from the prior or from levels evenly over all."""
    streams, settings = Streams(0), CONFIG.model
    network = build_unet(settings.network, SHAPE[0], SHAPE[1:], streams)
    fast = for_evaluation(network, Evaluation(precision=precision), rows)
    denoiser = NetworkDenoiser(fast, settings.schedule(), settings.training.parametrisation, 0.5)
    sampler = replace(CONFIG.sampler, steps=steps).sampler()
    levels = torch.linspace(0, denoiser.schedule.start, rows + 1, dtype=torch.float64)[1:]
    t = torch.full_like(levels, denoiser.schedule.start) if from_prior else levels

    def begin(ids: torch.Tensor) -> torch.Tensor:
        return streams.noise("prior", ids, 0, SHAPE)

    def run() -> None:
        with torch.inference_mode():
            for _ in trajectories(denoiser, sampler, t, torch.arange(rows), begin, streams, "walk", rows):
                pass

    return run


def answers(precision: Precision, rows: int) -> Callable[[], object]:
    """A ResNet-50's answers, as c_id gives them."""
    network = for_evaluation(
        build_backbone("resnet50", Streams(0), "identity"), Evaluation(precision=precision), rows
    )
    x = Streams(1).noise("x", range(rows), 0, (3, *SHAPE[1:]))  # detectors see three channels

    def run() -> torch.Tensor:
        with torch.inference_mode():
            return network(x)

    return run


def matrices(precision: Precision, side: int) -> Callable[[], object]:
    """A matrix product: what the processor can do at best."""
    kind = torch.float32 if precision == "float32" else torch.bfloat16
    a = Streams(0).noise("a", [0], 0, (side, side))[0].to(kind)
    return lambda: a @ a


CHANNELS = (64, 64)
"""Into and out of the costliest convolution of the preset `small`: after its images were enlarged last."""


def convolution(precision: Precision, rows: int) -> Callable[[], object]:
    """That convolution of 3 x 3, forward and backward."""
    kind = torch.float32 if precision == "float32" else torch.bfloat16
    came, gone = CHANNELS
    x = Streams(0).noise("x", range(rows), 0, (came, *SHAPE[1:])).to(kind).requires_grad_()
    weights = Streams(0).noise("weights", range(gone), 0, (came, 3, 3)).to(kind).requires_grad_()
    back = torch.ones(rows, gone, *SHAPE[1:], dtype=kind)
    return lambda: torch.autograd.grad(torch.conv2d(x, weights, padding=1), (x, weights), back)


def medians(work: Work, rounds: int, clock: Callable[[], float]) -> dict[tuple[str, str], float]:
    """Median seconds of each, the candidates taking turns; the first round warms up."""
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in work}
    for turn in range(rounds + 1):
        for key, call in work.items():
            begun = clock()
            call()
            if turn:
                taken[key].append(clock() - begun)
    return {key: statistics.median(values) for key, values in taken.items()}


def compare(quick: bool, clock: Callable[[], float]) -> dict[str, Any]:
    """What was measured, and the ratios."""
    batch, rows, steps, side, rounds = (16, 16, 4, 512, 3) if quick else (64, 128, 24, 2048, 5)
    work: dict[tuple[str, str], Callable[[], object]] = {}
    for one in PRECISIONS:
        work["train", one] = step_of(CONFIG, SHAPE, one, batch)
        work["sample", one] = walk(one, rows, steps, True)
        work["search", one] = walk(one, rows, steps, False)
        work["detectors", one] = answers(one, rows)
        work["ceiling", one] = matrices(one, side)
        work["convolution", one] = convolution(one, batch)
    with FlopCounterMode(display=False) as counted:
        work["train", "float32"]()
    took = medians(work, rounds, clock)
    gains = {part: took[part, "float32"] / took[part, "bfloat16"] for part in PARTS}
    # forward once, backward twice: for the images and for the weights
    operations = 3 * 2 * batch * CHANNELS[0] * CHANNELS[1] * 9 * SHAPE[1] * SHAPE[2]
    images = {"train": batch, "sample": rows, "search": rows, "detectors": rows}
    each = {
        one: {f"{part}_images_per_second": n / took[part, one] for part, n in images.items()}
        | {"train_steps_per_second": 1 / took["train", one]}
        | {"ceiling": 2 * side**3 / took["ceiling", one] / 1e9}
        | {"convolution": operations / took["convolution", one] / 1e9}
        | {"share": counted.get_total_flops() / took["train", one] / (2 * side**3 / took["ceiling", one])}
        for one in PRECISIONS
    }
    shape = {"batch": batch, "rows": rows, "sampler_steps": steps, "rounds": rounds}
    return {**ratios(gains), "bfloat16_gain": gains, **each, "measured_on": shape}


def ratios(gains: Mapping[str, float]) -> dict[str, Any]:
    """What the tuning chooses where bfloat16 is ``gains`` times as fast as float32, and what that gains."""
    coarse = {part: gains["sample" if part == "search" else part] >= GAIN for part in TUNED}
    return {
        **{f"{part}_ratio": gains[part] if coarse[part] else 1.0 for part in TUNED},
        "chosen": {part: "bfloat16" if coarse[part] else "float32" for part in TUNED},
    }


def variants(
    quick: bool, clock: Callable[[], float], chosen: Mapping[str, Precision]
) -> dict[str, dict[str, float]]:
    """How many times faster than plain, in the arithmetic chosen, a training step and a pass of the sampler
    are."""
    batch, rows, rounds = (16, 16, 2) if quick else (64, 128, 5)
    asked = {"plain": Speed(), "channels_last": Speed(channels_last=True), "compile": Speed(compile=True)}
    work: dict[tuple[str, str], Callable[[], object]] = {}
    for name, speed in asked.items():
        training = replace(CONFIG.model.training, speed=speed)
        sampling = Evaluation(channels_last=speed.channels_last, compile=speed.compile)
        config = replace(
            CONFIG,
            model=replace(CONFIG.model, training=training),
            speed=replace(CONFIG.speed, sampling=sampling),
        )
        work["train", name] = step_of(config, SHAPE, chosen["train"], batch)
        work["pass", name] = pass_of(config, SHAPE, chosen["sample"], rows)
    took = medians(work, rounds, clock)
    return {
        name: {part: took[part, "plain"] / took[part, name] for part in ("train", "pass")}
        for name in asked
        if name != "plain"
    }


def divided(quick: bool, threads: int, precision: Precision) -> dict[str, float]:
    """Training steps a second of one process of ``threads`` threads and of that many of one thread."""
    batch, few, many, rounds = (16, 2, 50, 1) if quick else (64, 10, 110, 3)
    images = Streams(1).noise("images", range(4 * batch), 0, SHAPE).clamp(-1, 1).numpy()
    settings = CONFIG.model
    taken: dict[int, list[float]] = {1: [], threads: []}

    def seconds(processes: int, steps: int) -> float:
        training = replace(settings.training, batch=batch, steps=steps, precision=precision)
        with TemporaryDirectory() as folder:
            job, state, schedule = Path(folder, "job"), Path(folder, "state"), settings.schedule()
            write_job(job, images, settings.network, schedule, training, 0, state, processes)
            begun = time.perf_counter()
            launch(job, processes, torch.device("cpu"))
            return time.perf_counter() - begun

    for _, processes in product(range(rounds), taken):
        with patch.dict(os.environ, OMP_NUM_THREADS=str(threads // processes)):
            start = seconds(processes, few)
            taken[processes].append((many - few) / (seconds(processes, many) - start))
    return {f"{n} x {threads // n}": statistics.median(rates) for n, rates in taken.items()}


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small batches, four sampler steps")
    parser.add_argument("--variants", action="store_true", help="channels last, and compiled")
    parser.add_argument("--processes", action="store_true", help="one process of N threads or N of one")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="processor seconds, on one thread")
    add_output(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1 if arguments.cpu_time else arguments.threads)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    found = compare(arguments.quick, clock)
    if arguments.variants:
        found["variants"] = variants(arguments.quick, clock, found["chosen"])
    if arguments.processes:
        found["steps_per_second_of_processes_x_threads"] = divided(
            arguments.quick, arguments.threads, found["chosen"]["train"]
        )
    tell({**found, "clock": "processor" if arguments.cpu_time else "wall", **record()}, arguments)


if __name__ == "__main__":
    main()
