"""Samplers by what they cost: which reaches the law of the paper's sampler in fewest network evaluations.

Compares every step on every spacing with 1,000 steps of Euler-Maruyama (the paper's sampler) on the same
model, because an audit's cost is its network evaluations and its answer, q, belongs to the law it samples
from. A sampler has reached the law at a number of evaluations when, there and at every larger number tried,

    sliced   its sliced Wasserstein distance to the reference is below the 99.5 % quantile of that distance
             between random halves of two reference sets
    hits     the share of its samples that lie in Omega agrees with the reference's: a two-sided comparison
             of two counts (Fisher) at 0.1 %
    returns  so does the share that comes back to one image from x_t, over 5 noise levels together: the law
             that t' is measured with. Samplers of the probability flow have another one there

The model is the exact denoiser of 100 digits (Omega: near one of the first 30, so that q = 0.3 is known), or
with --run the folder of an audit of digits, the network trained there (Omega: near any image it saw).
``error`` is the sliced distance, ``floor`` what two reference sets show. ``fewest`` counts all three,
``fewest_from_prior`` the first two; ``default`` is the best sampler of ``fewest``.

    python benchmarks/samplers.py [--quick] [--json] [--out FILE] [--run runs/demo] [--costs 8,16,32]
                                  [--steps ancestral,heun]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import add_output, record, tell
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor

from latentprint.audit.stages import for_sampling
from latentprint.denoiser import Denoiser
from latentprint.known import Memorised
from latentprint.networks import load_model
from latentprint.sampler import PAPER, RungeKutta, Sampler, trajectories
from latentprint.sampler.steps import STEPS
from latentprint.schedule import SubVP
from latentprint.store import Run
from latentprint.streams import Streams

sys.path.append(str(Path(__file__).parents[1]))  # tools/ stands beside benchmarks/

from tools.reproduce.pictures import images_of

LEVELS, TRIES = (0.25, 0.3, 0.35, 0.4, 0.45), 200  # where digits cease to come back
NEAR = 0.02  # mean squared distance of an image in Omega
EVERY = ("karras", "log-snr", "uniform")


@dataclass(frozen=True)
class Law:
    """Samples (n, d) and which of them lie in Omega, with the mean cost of one."""

    x: Tensor
    hits: Tensor
    evaluations: float
    returns: Tensor  # of ``tries`` from each of LEVELS
    tries: int = TRIES


def digits(count: int) -> Tensor:
    """The first ``count`` digits, (n, 1, 8, 8) float32 in [-1, 1]."""
    return torch.from_numpy(load_digits().images[:count, None] / 8 - 1).float()


def seen(run: Path) -> Tensor:
    """The images that an audit trained its network on, (n, C, H, W), x_p first."""
    *_, injection = images_of(Run.read(run), None)
    order = [injection.index, *(i for i in range(len(injection.marked)) if i != injection.index)]
    return torch.from_numpy(injection.marked.pixels[order])


def sample(denoiser: Denoiser, sampler: Sampler, omega: Tensor, n: int, seed: int) -> Law:
    """``n`` samples from the prior, and the returns to the first image of ``omega``."""
    schedule, streams, shape = denoiser.schedule, Streams(seed), tuple(omega.shape[1:])
    levels = torch.tensor(LEVELS, dtype=torch.float64).repeat_interleave(TRIES)
    alpha, sigma = (v.float().view(-1, 1, 1, 1) for v in (schedule.alpha(levels), schedule.sigma(levels)))

    def begin(rows: Tensor) -> Tensor:
        return schedule.prior_std * streams.noise("prior", rows, 0, shape)

    def noised(rows: Tensor) -> Tensor:
        return alpha[rows] * omega[0] + sigma[rows] * streams.noise("noised", rows, 0, shape)

    starts = torch.full((n,), schedule.start, dtype=torch.float64)
    ends = list(trajectories(denoiser, sampler, starts, torch.arange(n), begin, streams, "walk", 500))
    x = torch.cat([e.x for e in ends]).flatten(1)
    hits = torch.cdist(x, omega.flatten(1)).min(dim=1).values ** 2 / x.shape[1] < NEAR
    rows = torch.arange(len(levels))
    back = list(trajectories(denoiser, sampler, levels, rows, noised, streams, "back", 500))
    came = torch.zeros(len(levels), dtype=torch.bool)
    for e in back:
        came[e.rows] = (e.x - omega[0]).square().flatten(1).mean(1) < NEAR
    returns = came.reshape(len(LEVELS), TRIES).sum(1)
    return Law(x, hits, float(torch.cat([e.evaluations for e in ends]).double().mean()), returns)


def sliced(a: Tensor, b: Tensor, directions: Tensor) -> float:
    """Sliced Wasserstein-2 distance of two samples of equal size, per root of a pixel."""
    difference = (a @ directions).sort(dim=0).values - (b @ directions).sort(dim=0).values
    return float(difference.square().mean().sqrt())


def floor(one: Law, two: Law, directions: Tensor, splits: int) -> tuple[float, float]:
    """(median, 99.5 % quantile) of the distance between random halves of two reference sets."""
    pool, rng, found = torch.cat([one.x, two.x]), np.random.default_rng(0), []
    for _ in range(splits):
        order = torch.from_numpy(rng.permutation(len(pool)))
        found.append(sliced(pool[order[: len(one.x)]], pool[order[len(one.x) :]], directions))
    return float(np.median(found)), float(np.quantile(found, 0.995))


ADAPTIVE = "runge-kutta"
MISPLACED = ("ancestral-learned", "consistency", "tcd")
"""Steps of models that the two here are not: with a learnt variance, or distilled."""


def candidates(
    steps: Sequence[str], quick: bool, costs: Sequence[int], spacings: Sequence[Any]
) -> dict[str, list[Sampler]]:
    """Per step and spacing, samplers of rising cost."""
    found: dict[str, list[Sampler]] = {}
    for step in (kind() for kind in STEPS if kind.name in steps):
        for spacing in spacings:
            found[f"{step.name} {spacing}"] = [
                Sampler(step, max(1, (cost - 1) // step.evaluations), spacing) for cost in costs
            ]
    tolerances = (1e-1, 1e-2, 1e-3) if quick else (3e-1, 1e-1, 3e-2, 1e-2, 1e-3, 1e-4)
    if ADAPTIVE in steps:
        found[f"{ADAPTIVE} adaptive"] = [Sampler(RungeKutta(v, v), 1) for v in tolerances]
    return found


def same_rate(one: Law, two: Law) -> bool:
    table = [[int(h.hits.sum()), int((~h.hits).sum())] for h in (one, two)]
    return float(stats.fisher_exact(table).pvalue) > 1e-3


def same_returns(one: Law, two: Law) -> bool:
    """The shares that come back, over all noise levels, do not differ at 0.1 %."""
    table = [[int(h.returns.sum()), h.tries * len(LEVELS) - int(h.returns.sum())] for h in (one, two)]
    return float(stats.fisher_exact(table).pvalue) > 1e-3


def study(
    denoiser: Denoiser,
    omega: Tensor,
    n: int,
    quick: bool,
    tried: Mapping[str, Sequence[Sampler]],
) -> dict[str, Any]:
    begun = time.perf_counter()
    one, two = (sample(denoiser, PAPER, omega, n, seed) for seed in (1, 2))
    print(f"reference: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(one.x.shape[1], 128, generator=generator), dim=0)
    usual, limit = floor(one, two, directions, 100 if quick else 400)
    both = Law(
        torch.cat([one.x, two.x]),
        torch.cat([one.hits, two.hits]),
        one.evaluations,
        one.returns + two.returns,
        one.tries + two.tries,
    )
    curves: dict[str, list[dict[str, Any]]] = {}
    fewest: dict[str, dict[str, float | None]] = {"reached": {}, "law": {}}
    for name, samplers in tried.items():
        rows = []
        for sampler in samplers:
            law = sample(denoiser, sampler, omega, n, seed=3)
            error = max(sliced(law.x, reference.x, directions) for reference in (one, two))
            from_prior = error <= limit and same_rate(law, both)
            rows.append(
                {
                    "evaluations": law.evaluations,
                    "error": error,
                    "hits": int(law.hits.sum()),
                    "returns": law.returns.tolist(),
                    "law": from_prior,
                    "reached": from_prior and same_returns(law, both),
                }
            )
        curves[name] = rows
        for kind, found in fewest.items():
            last_miss = max((i for i, row in enumerate(rows) if not row[kind]), default=-1)
            found[name] = rows[last_miss + 1]["evaluations"] if last_miss + 1 < len(rows) else None
        print(
            f"{name:32} reaches the law at {fewest['law'][name]}, with returns {fewest['reached'][name]}",
            file=sys.stderr,
            flush=True,
        )
    reached = {name: cost for name, cost in fewest["reached"].items() if cost is not None}
    return {
        "samples": n,
        "reference": {
            "sampler": PAPER.describe(),
            "hits": [int(one.hits.sum()), int(two.hits.sum())],
            "levels": LEVELS,
            "tries": TRIES,
            "returns": [one.returns.tolist(), two.returns.tolist()],
        },
        "floor": usual,
        "limit": limit,
        "curves": curves,
        "fewest": fewest["reached"],
        "fewest_from_prior": fewest["law"],
        "default": min(reached, key=lambda name: reached[name]) if reached else None,
    }


def table(report: Mapping[str, Any]) -> str:
    """Per sampler the fewest evaluations that reach the law, and its distance at each number tried."""
    lines: list[str] = []
    for name, result in report.items():
        limits = f"floor {result['floor']:.4f}, limit {result['limit']:.4f}"
        lines.append(f"{name}: {result['samples']} samples, {limits}; {result['record']['device']}")
        for sampler, cost in sorted(result["fewest"].items(), key=lambda item: item[1] or math.inf):
            errors = " ".join(
                f"{row['evaluations']:.0f}:{row['error']:.3f}" for row in result["curves"][sampler]
            )
            lines.append(f"  {sampler:32} {'never' if cost is None else f'{cost:.0f}':>6}   {errors}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Error against network evaluations, per sampler")
    parser.add_argument("--quick", action="store_true", help="less than a minute: one spacing, few costs")
    parser.add_argument("--run", type=Path, help="folder of an audit, for the network that it trained")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--costs", help="network evaluations to try; a trained network takes hours for all")
    parser.add_argument("--spacings", default=",".join(EVERY))
    every = [kind.name for kind in STEPS if kind.name not in MISPLACED] + [ADAPTIVE]
    parser.add_argument("--steps", default=",".join(every), help="the steps to compare, by name")
    add_output(parser)
    parser.add_argument("--only", choices=("memorised", "trained"))
    arguments = parser.parse_args()
    quick = (8, 16, 32, 64, 128)
    costs = quick if arguments.quick else (6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)
    if arguments.costs is not None:
        costs = tuple(sorted(int(cost) for cost in arguments.costs.split(",")))
    spacings = arguments.spacings.split(",")[: 1 if arguments.quick else None]
    steps = arguments.steps.split(",")
    if set(steps) - set(every):
        parser.error(f"--steps knows {', '.join(every)}; got {arguments.steps}")
    n = min(arguments.samples, 400) if arguments.quick else arguments.samples
    known = digits(100)
    models: dict[str, tuple[Denoiser, Tensor]] = {}
    if arguments.only != "trained":
        models["memorised"] = Memorised(known, SubVP()), known[:30]
    if arguments.run is not None and arguments.only != "memorised":
        models["trained"] = for_sampling(load_model(arguments.run / "model")), seen(arguments.run)
    tried = candidates(steps, arguments.quick, costs, spacings)
    report: dict[str, Any] = {}
    for name, (model, omega) in models.items():
        report[name] = study(model, omega, n, arguments.quick, tried) | {"record": record()}
        if arguments.out is not None:  # a study takes hours: what is done is kept
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    tell(report, arguments, table)


if __name__ == "__main__":
    main()
