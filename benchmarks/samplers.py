"""Samplers by what they cost: which reaches the law of the paper's sampler in fewest network evaluations.

Compares every step on every spacing with 1,000 steps of Euler-Maruyama (the paper's sampler) on the same
model, because an audit's cost is its network evaluations and its answer, q, belongs to the law it samples
from. A sampler has reached the law at a number of evaluations when, there and at every larger number tried,

    sliced   its sliced Wasserstein distance to the reference is below the 99.5 % quantile of that distance
             between random halves of two reference sets
    hits     the share of its samples that lie in Omega is inside the exact 99.9 % interval of the
    reference's,
             by a two-sided comparison of two counts (Fisher)

The model is the exact denoiser of 100 digits (Omega: near one of the first 30, so that q = 0.3 is known), or
with --model a trained folder (Omega: near any of --images N training digits). ``error`` is the sliced
distance, ``floor`` what two reference sets show. ``fewest`` is the answer; ``default`` its best sampler.

    python benchmarks/samplers.py [--quick] [--json] [--model FOLDER] [--samples 1000]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor

from latentprint.denoiser import Denoiser
from latentprint.known import Memorised
from latentprint.networks import load_model
from latentprint.sampler import (
    DDIM,
    PAPER,
    Ancestral,
    DPMSolverPP2M,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ReverseDiffusion,
    RungeKutta,
    Sampler,
    trajectories,
)
from latentprint.schedule import SubVP
from latentprint.streams import Streams

FIXED = (
    EulerMaruyama(),
    ReverseDiffusion(),
    PredictorCorrector(),
    Ancestral(),
    DDIM(),
    Heun(),
    DPMSolverPP2M(),
)


@dataclass(frozen=True)
class Law:
    """Samples (n, d) and which of them lie in Omega, with the mean cost of one."""

    x: Tensor
    hits: Tensor
    evaluations: float


def digits(count: int) -> Tensor:
    """The first ``count`` digits, (n, 1, 8, 8) float32 in [-1, 1]."""
    return torch.from_numpy(load_digits().images[:count, None] / 8 - 1).float()


def sample(denoiser: Denoiser, sampler: Sampler, omega: Tensor, n: int, seed: int) -> Law:
    schedule, streams, shape = denoiser.schedule, Streams(seed), tuple(omega.shape[1:])

    def begin(rows: Tensor) -> Tensor:
        return schedule.prior_std * streams.noise("prior", rows, 0, shape)

    starts = torch.full((n,), schedule.start, dtype=torch.float64)
    ends = list(trajectories(denoiser, sampler, starts, torch.arange(n), begin, streams, "walk", 500))
    x = torch.cat([e.x for e in ends]).flatten(1)
    hits = torch.cdist(x, omega.flatten(1)).min(dim=1).values ** 2 / x.shape[1] < 0.02
    return Law(x, hits, float(torch.cat([e.evaluations for e in ends]).double().mean()))


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


def candidates(quick: bool) -> dict[str, list[Sampler]]:
    """Per step and spacing, samplers of rising cost."""
    costs = (8, 16, 32, 64, 128) if quick else (6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)
    found: dict[str, list[Sampler]] = {}
    for step in FIXED:
        for spacing in ("karras",) if quick else ("karras", "log-snr", "uniform"):
            found[f"{step.name} {spacing}"] = [
                Sampler(step, max(1, (cost - 1) // step.evaluations), spacing) for cost in costs
            ]
    tolerances = (1e-1, 1e-2, 1e-3) if quick else (3e-1, 1e-1, 3e-2, 1e-2, 1e-3, 1e-4)
    found["runge-kutta adaptive"] = [Sampler(RungeKutta(v, v), 1) for v in tolerances]
    return found


def same_rate(one: Law, two: Law) -> bool:
    table = [[int(h.hits.sum()), int((~h.hits).sum())] for h in (one, two)]
    return float(stats.fisher_exact(table).pvalue) > 1e-3


def study(denoiser: Denoiser, omega: Tensor, n: int, quick: bool) -> dict[str, Any]:
    begun = time.perf_counter()
    one, two = (sample(denoiser, PAPER, omega, n, seed) for seed in (1, 2))
    print(f"reference: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(one.x.shape[1], 128, generator=generator), dim=0)
    usual, limit = floor(one, two, directions, 100 if quick else 400)
    both = Law(torch.cat([one.x, two.x]), torch.cat([one.hits, two.hits]), one.evaluations)
    curves: dict[str, list[dict[str, Any]]] = {}
    fewest: dict[str, float | None] = {}
    for name, samplers in candidates(quick).items():
        rows = []
        for sampler in samplers:
            law = sample(denoiser, sampler, omega, n, seed=3)
            error = max(sliced(law.x, reference.x, directions) for reference in (one, two))
            rows.append(
                {
                    "evaluations": law.evaluations,
                    "error": error,
                    "hits": int(law.hits.sum()),
                    "reached": error <= limit and same_rate(law, both),
                }
            )
        curves[name] = rows
        last_miss = max((i for i, row in enumerate(rows) if not row["reached"]), default=-1)
        fewest[name] = rows[last_miss + 1]["evaluations"] if last_miss + 1 < len(rows) else None
        print(f"{name:32} reaches the law at {fewest[name]}", file=sys.stderr, flush=True)
    reached = {name: cost for name, cost in fewest.items() if cost is not None}
    return {
        "samples": n,
        "reference": {"sampler": PAPER.describe(), "hits": [int(one.hits.sum()), int(two.hits.sum())]},
        "floor": usual,
        "limit": limit,
        "curves": curves,
        "fewest": fewest,
        "default": min(reached, key=lambda name: reached[name]) if reached else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Error against network evaluations, per sampler")
    parser.add_argument("--quick", action="store_true", help="less than a minute: one spacing, few costs")
    parser.add_argument("--json", action="store_true", help="one object on stdout and nothing else there")
    parser.add_argument("--model", type=Path, help="folder of a model trained on the digits")
    parser.add_argument("--images", type=int, default=100, help="how many digits that model was trained on")
    parser.add_argument("--samples", type=int, default=1000)
    arguments = parser.parse_args()
    n = min(arguments.samples, 400) if arguments.quick else arguments.samples
    images = digits(100)
    report = {"memorised": study(Memorised(images, SubVP()), images[:30], n, arguments.quick)}
    if arguments.model is not None:
        report["trained"] = study(load_model(arguments.model), digits(arguments.images), n, arguments.quick)
    if arguments.json:
        print(json.dumps(report))
        return
    for name, result in report.items():
        print(
            f"{name}: {result['samples']} samples, floor {result['floor']:.4f}, limit {result['limit']:.4f}"
        )
        for sampler, cost in sorted(result["fewest"].items(), key=lambda item: item[1] or math.inf):
            errors = " ".join(
                f"{row['evaluations']:.0f}:{row['error']:.3f}" for row in result["curves"][sampler]
            )
            print(f"  {sampler:32} {'never' if cost is None else f'{cost:.0f}':>6}   {errors}")


if __name__ == "__main__":
    main()
