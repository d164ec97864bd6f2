"""The search for t': Alg. 1 run as in the paper beside ours. One model, one detector, one device, one run.

    theirs  one t at a time, M = 16 trajectories in a batch, Euler-Maruyama on a grid of 1,000 steps
    ours    all t and tries in one staggered pass, ancestral steps (--steps, Karras' spacing); for t' alone,
            bisection with 5 anchors, and the sequential search

Both sample the reverse SDE. A probability-flow ODE (Heun, DPM-Solver++) is as fast, but P(return | t) from
the noised image is another function for it, so it would answer another question than Alg. 1.

    ratio_curve    time of theirs for the whole grid / time of ours: 50 is asked for on 2 CPU cores
    ratio_tprime   time of theirs for the whole grid / time of the bisection: 200 is asked for
    curves_agree   at no t measured on both sides are the two counts told apart (Fisher's exact test, 5 % over
                   all of them); a band around one side's counts would ignore that the other's scatter, too

The slow side is measured on some levels (--measured) and extrapolated to the others by its time per step;
the output says how much of it. Alg. 1 as printed returns at the first hit: its time, estimated from where our
curve ends, is given as ratio_tprime_first_hit. On a machine that others use too, --cpu-time compares
processor seconds instead of seconds on the wall; the output says which.

The model is --model FOLDER with the --data and the number of --images that it was trained on, or one trained
here (--train STEPS), or, where neither is given, the exact denoiser of the images with an untrained network
run beside it at every step and its output dropped: the answers are then those of a model that memorised, the
time is the network's. The output says which. A network runs in its form for sampling on both sides
(networks.inference), so that no ratio owes anything to it.

    python benchmarks/search.py [--quick] [--json] [--out FILE] [--network NAME] [--train 1200]
    python benchmarks/search.py --model runs/demo/model --data digits
    python benchmarks/search.py --network paper --device cuda --json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from record import add_output, record, tell
from scipy.stats import fisher_exact
from torch import Tensor

from latentprint.data import load
from latentprint.denoiser import Denoiser, IdentityCodec, NetworkDenoiser
from latentprint.known import Memorised
from latentprint.networks import DIGITS, PAPER, SMALL28, UNetConfig, build_unet, load_model, parameters
from latentprint.networks.inference import inference_form
from latentprint.probe import ModelProbe, from_image
from latentprint.sampler import PAPER as EULER_1000
from latentprint.sampler import Ancestral, Sampler
from latentprint.schedule import Schedule, SubVP
from latentprint.search import Plan, TPrime, bisection, even_grid, exhaustive, ids_of, sequential
from latentprint.stats import DetectorRates, Trials
from latentprint.streams import Streams
from latentprint.training import TrainConfig, train

TARGET = 5
TRIES = 16
NETWORKS: dict[str, tuple[UNetConfig, str, int]] = {
    "digits": (DIGITS, "digits", 1),
    "small28": (SMALL28, "phantom:100:28", 1),
    "paper": (PAPER, "phantom:100:28", 3),
}
"""A network, the images it is for unless --data names others, and its channels."""


@dataclass(frozen=True)
class Priced:
    """A denoiser's answers at another one's price: both are evaluated, the second one's output is dropped."""

    answers: Denoiser
    price: Denoiser

    @property
    def schedule(self) -> Schedule:
        return self.answers.schedule

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        self.price(x, t)
        return self.answers(x, t)


@dataclass(frozen=True)
class Nearest:
    """c_id by distance: x_p is the nearest training image, no further than ``radius`` (root mean square)."""

    images: Tensor
    target: int
    radius: float = 0.22
    name: str = "nearest"
    threshold: float = 0.5
    rates: DetectorRates = field(
        default_factory=lambda: DetectorRates(Trials(0, 0), Trials(0, 0), {}, "pixels")
    )

    def __call__(self, images: Tensor, /) -> Tensor:
        distance = torch.cdist(images.flatten(1), self.images.flatten(1)) / self.images[0].numel() ** 0.5
        return ((distance.argmin(1) == self.target) & (distance[:, self.target] < self.radius)).float()


@dataclass(frozen=True)
class Watch:
    """(result, seconds) of a piece of work."""

    device: torch.device
    clock: Callable[[], float]

    def __call__(self, work: Callable[[], Any]) -> tuple[Any, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        start = self.clock()
        result = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return result, self.clock() - start


def trained(
    images: np.ndarray[Any, Any], network: torch.nn.Module, steps: int, device: torch.device
) -> NetworkDenoiser:
    """The demo's training of the digits network."""
    config = TrainConfig(
        steps=steps,
        batch=64,
        learning_rate=2e-3,
        warmup=50,
        decay="cosine",
        beta2=0.99,
        ema=0.995,
        parametrisation="edm",
        times="lognormal",
    )
    state = None
    for state in train(images, network, SubVP(), config, Streams(0), device):
        if state.step % 100 == 0:
            print(f"training: {state.step} of {steps} steps, loss {state.loss:.3f}", file=sys.stderr)
    assert state is not None
    return state.denoiser


def sampled(denoiser: NetworkDenoiser) -> NetworkDenoiser:
    """The same model in the form that an audit samples with."""
    return replace(denoiser, network=inference_form(denoiser.network))


def model(arguments: argparse.Namespace, device: torch.device) -> tuple[Denoiser, Tensor, str]:
    """(denoiser, training images (N, C, H, W), what it is in words)."""
    config, source, channels = NETWORKS[arguments.network]
    split = load(arguments.data or source, seed=0, images=arguments.images, root=arguments.root).train
    if arguments.model is not None:
        given = load_model(arguments.model, device)
        size = f"U-Net of {sum(one.numel() for one in given.network.parameters()) / 1e6:.2f} M parameters"
        words = f"trained on {len(split)} images of {split.source}, {size}"
        return sampled(given), torch.from_numpy(split.pixels).to(device), words
    pixels = np.repeat(split.pixels, channels // split.pixels.shape[1] or 1, axis=1)
    images = torch.from_numpy(pixels).to(device)
    network = build_unet(config, images.shape[1], images.shape[-1], Streams(0))
    cast(Any, network).to(device)
    size = f"U-Net of {parameters(network) / 1e6:.2f} M parameters at {'x'.join(map(str, images.shape[1:]))}"
    if arguments.train:
        words = f"trained here for {arguments.train} steps on {len(images)} images, {size}"
        return sampled(trained(pixels, network, arguments.train, device)), images, words
    price = sampled(NetworkDenoiser(cast(Any, network).eval().requires_grad_(False), SubVP()))
    words = f"exact denoiser of {len(images)} images at the price of an untrained {size}"
    return Priced(Memorised(images, SubVP()), price), images, words


def theirs(probe: ModelProbe, plan: Plan, measured: list[int], watch: Watch) -> dict[int, Any]:
    """Alg. 1 level by level: {grid index: (hits, seconds)}."""
    seen: dict[int, Any] = {}
    for index in measured:
        t = np.full(plan.tries, plan.grid[index])
        outcome, seconds = watch(lambda: probe(t, ids_of(0, index, np.arange(plan.tries))))  # noqa: B023
        seen[index] = int(outcome.hit.sum()), seconds
        print(
            f"Alg. 1 at t = {plan.grid[index]:.2f}: {seen[index][0]} hits, {seconds:.2f} s", file=sys.stderr
        )
    return seen


def steps_at(sampler: Sampler, schedule: Schedule, plan: Plan) -> list[int]:
    """Network evaluations of one trajectory from each t."""
    return [sampler.evaluations(schedule, t) or 0 for t in plan.grid]


def alike(ours: list[int], theirs: list[int], tries: int) -> bool:
    """Whether no t tells hits of ``tries`` on one side from those on the other (Bonferroni)."""
    p_values = [
        cast(Any, fisher_exact([[a, tries - a], [b, tries - b]])).pvalue
        for a, b in zip(ours, theirs, strict=True)
    ]
    return min(p_values) > 0.05 / len(p_values)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(arguments.device)
    denoiser, images, words = model(arguments, device)
    plan = Plan(even_grid(arguments.levels), TRIES)
    streams, target = Streams(1), images[TARGET]
    slow = ModelProbe(
        denoiser=denoiser,
        sampler=EULER_1000,
        begin=from_image(target, denoiser, streams, "benchmark", IdentityCodec()),
        streams=streams,
        purpose="benchmark",
        target=target,
        identity=Nearest(images, TARGET),
        presence=None,
        batch=TRIES,
    )
    fast = replace(slow, sampler=Sampler(Ancestral(), arguments.steps, "karras"), batch=arguments.batch)
    count = len(plan.grid)
    few = min(count, max(2, round(count * arguments.measured)))
    measured = [int((i + 0.5) * count / few) for i in range(few)]
    watch = Watch(device, time.process_time if arguments.cpu_time else time.perf_counter)
    exhaustive(fast, Plan(even_grid(4), TRIES))  # warms caches and the allocator
    # Ours and theirs in turns, so that a slow moment of the machine meets both.
    runs, seen = list[tuple[TPrime, float]](), dict[int, Any]()
    halves = measured[: len(measured) // 2], measured[len(measured) // 2 :]
    quick = dict[str, list[tuple[TPrime, float]]](bisection=[], sequential=[])
    for half in halves:
        runs.append(watch(lambda: exhaustive(fast, plan)))
        quick["bisection"].append(watch(lambda: bisection(fast, plan)))
        quick["sequential"].append(watch(lambda: sequential(fast, plan)))
        seen |= theirs(slow, plan, half, watch)
    steps = steps_at(EULER_1000, denoiser.schedule, plan)
    seconds = sum(s for _, s in seen.values())
    per_step = seconds / sum(steps[i] for i in seen)
    whole = seconds + per_step * sum(steps[i] for i in range(len(steps)) if i not in seen)
    found, curve = runs[0][0], statistics.median(s for _, s in runs)
    alone = {name: statistics.median(s for _, s in each) for name, each in quick.items()}
    last = -1 if found.value is None else plan.grid.index(found.value)
    first_hit = per_step * sum(steps[max(last, 0) :])
    return {
        "ratio_curve": whole / curve,
        "ratio_tprime": whole / alone["bisection"],
        "curves_agree": alike([found.trials[i].k for i in seen], [k for k, _ in seen.values()], TRIES),
        "clock": "processor" if arguments.cpu_time else "wall",
        "ratio_tprime_sequential": whole / alone["sequential"],
        "ratio_tprime_first_hit": first_hit / alone["bisection"],
        "model": words,
        "levels": len(plan.grid),
        "tries": TRIES,
        "sampler": fast.sampler.describe(),
        "seconds": {"theirs": whole, "curve": curve, **alone},
        "extrapolated": 1 - seconds / whole,
        "evaluations": {
            "theirs": TRIES * sum(steps),
            "curve": found.network_evaluations,
            "bisection": quick["bisection"][0][0].network_evaluations,
            "sequential": quick["sequential"][0][0].network_evaluations,
        },
        "t_prime": {
            "curve": found.value,
            "bisection": quick["bisection"][0][0].value,
            "sequential": quick["sequential"][0][0].value,
        },
        "compared": {
            "t": [plan.grid[i] for i in seen],
            "theirs": [k for k, _ in seen.values()],
            "ours": [found.trials[i].k for i in seen],
            "band": [found.band[i] for i in seen],
        },
        **record(device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Alg. 1 as in the paper beside the staggered and faster searches"
    )
    parser.add_argument(
        "--quick", action="store_true", help="under a minute on 2 cores: fewer measured levels"
    )
    add_output(parser)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-time", action="store_true", help="compare processor seconds (CPU only)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--network", choices=NETWORKS, default="digits")
    parser.add_argument("--model", type=Path, help="folder of a trained model, for the images of --data")
    parser.add_argument(
        "--data", help="images instead of those of --network, as the audit command takes them"
    )
    parser.add_argument("--images", type=int, default=100, help="how many of them are trained on")
    parser.add_argument("--root", type=Path, help="folder of the MedMNIST files")
    parser.add_argument("--train", type=int, default=0, metavar="STEPS", help="train one here first")
    parser.add_argument("--levels", type=int, default=100, help="noise levels of the grid")
    parser.add_argument("--measured", type=float, help="share of the levels run on the slow side")
    parser.add_argument("--steps", type=int, default=12, help="of our sampler")
    parser.add_argument("--batch", type=int, default=256, help="of our sampler")
    arguments = parser.parse_args()
    if arguments.measured is None:
        arguments.measured = 0.03 if arguments.quick else 0.2
    torch.set_num_threads(arguments.threads)
    tell(compare(arguments), arguments)


if __name__ == "__main__":
    main()
