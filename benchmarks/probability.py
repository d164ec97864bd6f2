"""Estimators of q against models whose q is a formula: do their intervals hold it, and at what cost.

Coverage: random models with q log-uniform between 1e-9 and 0.3, one interval of nominal 95 % each; reported
are the share that holds the truth among those declared reliable, and the share declared reliable. Cost:
network evaluations for a relative error of 20 %, pilots included, beside brute force at the same q, which
needs (1 - q) / (0.04 q) samples of the same sampler. The error that enters is the larger of the one reported
and the one measured over repeats. An estimate to e costs (e / 0.2)^2 times what it would cost to 20 %, as for
brute force. The bridge, which is no part of latentprint any more, stands beside the others, and so does the
paper's own Darboux bound (Eq. 9): it is no probability, and the table shows it.

    python benchmarks/probability.py [--quick] [--json] [--rows FILE] [--out FILE]

Rows are appended to FILE as they are done, and rows found there are not done again: a stopped run goes on.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bridge import BridgeConfig, bridge
from darboux import riemann_sum, upper_darboux_sum
from record import add_output, record, tell

from latentprint import keys
from latentprint.calibrate import (
    LEVEL,
    Case,
    Row,
    gaussian,
    judged,
    leak,
    memorised,
    mixture,
    pictures,
    radius_of,
    random_case,
    row,
)
from latentprint.known import Mixture
from latentprint.rate import ESTIMATORS, brute_force_samples
from latentprint.sampler import Ancestral, EulerMaruyama
from latentprint.schedule import EDM, VP
from latentprint.streams import Streams

SEED = 20_000
NAMES = ("monte_carlo", *(row.name for row in ESTIMATORS), "bridge")
SMALL = ((1, 3, 3), (3, 2, 2), (1, 4, 4))  # exact traces take as many evaluations as there are pixels
COST_Q = (1e-5, 1e-7, 1e-9)
SMOOTH = EDM(sigma_min=0.005)


@dataclass(frozen=True)
class Task:
    """One case for one estimator; ``key`` names it in the file of rows."""

    group: str
    estimator: str
    index: int
    make: Callable[[], Case]

    @property
    def key(self) -> str:
        return f"{self.group}/{self.estimator}/{self.index}"


def linear(index: int) -> Case:
    """One kernel under few steps: the sampler is linear and its truth exact; up to 784 pixels."""
    rng = keys.generator(SEED, "benchmark.linear", index)
    q, width = float(10 ** rng.uniform(-9, math.log10(0.3))), float(rng.uniform(0.1, 0.6))
    shapes = [(1, 4, 4), (3, 4, 4), (1, 8, 8), (3, 8, 8), (1, 28, 28)]
    shape = shapes[4 if index % 20 == 9 else index % 20 // 5]
    schedule = (EDM(), VP())[index % 2]
    return gaussian(q, width, shape, schedule, int(rng.integers(2, 6)), int(rng.integers(2**31)))


def stochastic(index: int) -> Case:
    """One kernel under a stochastic sampler of few steps, linear too."""
    rng = keys.generator(SEED, "benchmark.stochastic", index)
    q, width = float(10 ** rng.uniform(-6, math.log10(0.3))), float(rng.uniform(0.1, 0.6))
    shape, step = [(1, 3, 3), (1, 4, 4), (3, 4, 4)][index % 3], (Ancestral(), EulerMaruyama())[index % 2]
    return gaussian(q, width, shape, VP(), int(rng.integers(8, 32)), int(rng.integers(2**31)), step)


def coin(index: int) -> Case:
    rng = keys.generator(SEED, "benchmark.coin", index)
    return leak(float(10 ** rng.uniform(-9, math.log10(0.3))), (1, 4, 4), int(rng.integers(2**31)))


def priced(q: float, index: int, side: int) -> Case:
    return mixture(q, 12, 0.3, (1, side, side), SMOOTH, 64, SEED + index)


def narrow(index: int) -> Case:
    """What the bridge is priced on: sets learnt by heart of 200 and 5,000 images, and narrow kernels.

    One trajectory with its exact divergence takes hundreds of evaluations, and no fewer than a hundred are
    drawn: as run, the bridge is dearer than counting at q = 1/200, and gives more than was asked.
    """
    if index % 2:
        return mixture(1e-5, 60, 0.1, (1, 4, 4), VP(end=1e-5), 64, SEED + index)
    return memorised(1, 5000 if index % 4 else 200, (1, 4, 4), VP(), 32, SEED + index)


def tasks(quick: bool) -> Iterator[Task]:
    coins, lines, models, bridges, repeats = (40, 40, 2, 5, 2) if quick else (200, 160, 60, 200, 4)
    side = 4 if quick else 8
    for i in range(coins):
        yield Task("coin", "monte_carlo", i, lambda i=i: coin(i))
    for i in range(lines):
        yield Task("linear", "splitting", i, lambda i=i: linear(i))
    for i in range(repeats):
        for q in COST_Q:
            name = f"cost {q:.0e}"
            yield Task(name, "splitting", i, lambda i=i, q=q: priced(q, i, side))
    for i in range(4 * repeats):
        yield Task("cost", "bridge", i, lambda i=i: narrow(i))
    for i in range(lines):
        yield Task("linear", "path", i, lambda i=i: stochastic(i))
    for i in range(max(models, bridges)):
        if i < models:
            yield Task("model", "splitting", i, lambda i=i: random_case(i, "splitting", SEED))
        if i < bridges:
            yield Task("model", "bridge", i, lambda i=i: random_case(i, "bridge", SEED + 1, SMALL))


def answer(case: Case, estimator: str, seed: int) -> Row:
    """An estimator on a case, beside its truth."""
    if estimator != "bridge":
        return row(case, estimator, seed, samples=4000)
    about, config = case.subject, BridgeConfig(relative=0.2)
    found = bridge(
        about.denoiser("bridge"), about.target, about.inside, seed=seed, level=LEVEL, config=config
    )
    return judged(case, estimator, found)


def do(task: Task) -> dict[str, Any]:
    case = task.make()
    start, busy = time.perf_counter(), time.process_time()
    found = answer(case, task.estimator, SEED + task.index)
    return {
        "key": task.key,
        "group": task.group,
        **found.to_json(),
        "diagnostic": found.diagnostic,
        "per_sample": case.subject.push.evaluations,
        "seconds": round(time.perf_counter() - start, 3),
        "cpu_seconds": round(time.process_time() - busy, 3),
    }


def read(path: Path | None) -> list[dict[str, Any]]:
    """The rows of an earlier run; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path and path.exists() else []


def run(quick: bool, path: Path | None, only: str | None) -> list[dict[str, Any]]:
    rows = read(path)
    done = {one["key"] for one in rows}
    for task in tasks(quick):
        if task.key in done or only not in (None, task.estimator):
            continue
        rows.append(do(task))
        if path is not None:
            with path.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
        last = rows[-1]
        verdict = "inside" if last["inside"] else "OUTSIDE" if last["reliable"] else "declined"
        print(f"{last['key']:24} {last['name']:44} {verdict:9} {last['seconds']:7.1f} s", file=sys.stderr)
    return rows


def coverage(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares by estimator, and counts by estimator and group."""
    shares: dict[str, float] = {}
    reliable: dict[str, float] = {}
    counts: dict[str, dict[str, int]] = {}
    for name in NAMES:
        mine = [r for r in rows if r["estimator"] == name]
        sure = [r for r in mine if r["reliable"]]
        if sure:
            shares[name] = sum(r["inside"] for r in sure) / len(sure)
        if mine:
            reliable[name] = len(sure) / len(mine)
        for group in dict.fromkeys(r["group"] for r in mine):
            part = [r for r in mine if r["group"] == group]
            counts[f"{name}, {group}"] = {
                "cases": len(part),
                "reliable": sum(r["reliable"] for r in part),
                "inside": sum(r["inside"] for r in part),
            }
    return {"coverage": shares, "reliable": reliable, "counts": counts}


def price(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Brute force over estimator, in network evaluations for 20 %, over the reliable rows of one price."""
    sure = [r for r in rows if r["reliable"]]
    if not sure:
        return {}
    reported = [math.log(r["high"] / r["low"]) / (2 * 1.96) for r in sure]
    measured = [r["rate"] / r["truth"] - 1 for r in sure]
    error = max(float(np.sqrt(np.mean(np.square(reported)))), float(np.sqrt(np.mean(np.square(measured)))))
    spent = float(np.mean([r["network_evaluations"] for r in rows]))
    at_20 = spent * (error / 0.2) ** 2
    brute = float(np.mean([brute_force_samples(r["truth"]) * r["per_sample"] for r in sure]))
    return {
        "ratio": brute / at_20,
        "ratio_as_run": brute / max(spent, at_20),
        "relative_error": error,
        "evaluations_spent": spent,
        "evaluations_for_20_percent": at_20,
        "brute_force_evaluations": brute,
        "repeats": len(rows),
    }


def darboux(samples: int = 64) -> dict[str, Any]:
    """Eq. 8 and 9 on a mixture of known q with exact densities: log10 of each, in two scalings of pixels."""
    q, shape, width = 1e-5, (1, 4, 4), 0.3
    images = pictures(12, shape, SEED)
    found: dict[str, Any] = {"q": q, "t_prime": 0.5}
    for scale in (1.0, 10.0):
        model = Mixture(images * scale, width * scale, VP())
        largest = radius_of(lambda r, m=model, c=scale: m.log_q(images[0] * c, r), q, 100.0 * scale)
        times = np.linspace(0.01, 0.5, 25)
        log_p: list[np.ndarray[Any, Any]] = []
        for t in times:
            when = torch.tensor(float(t), dtype=torch.float64)
            noise = Streams(SEED).noise("darboux", range(samples), 0, shape, dtype=torch.float64)
            x = model.schedule.alpha(when) * images[0] * scale + model.schedule.sigma(when) * noise
            log_p.append(model.log_density(model(x, when), torch.tensor(0.0, dtype=torch.float64)).numpy())
        sigma = VP().sigma(torch.tensor(times)).numpy()
        for name, rule in (("riemann", riemann_sum), ("upper_darboux", upper_darboux_sum)):
            total = rule(times, sigma, log_p, float(times[-1]))
            found[f"log10_{name}_pixels_times_{scale:g}"] = total.log / math.log(10)
        found[f"radius_pixels_times_{scale:g}"] = largest
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    prices = {
        group: price([r for r in rows if r["group"] == group and r["estimator"] == "splitting"])
        for group in (f"cost {q:.0e}" for q in COST_Q)
    }
    bridges = [r for r in rows if r["group"] == "cost" and r["estimator"] == "bridge"]
    for n in (200, 5000):
        mine = [r for r in bridges if r["name"].startswith(f"memorised 1 of {n},")]
        prices[f"bridge, memorised 1/{n}"] = price(mine)
    prices["bridge, narrow mixture 1e-05"] = price([r for r in bridges if r["name"].startswith("mixture")])
    prices = {name: value for name, value in prices.items() if value}
    return {
        **coverage(rows),
        "cost_ratio": {
            name.removeprefix("cost "): round(value["ratio"], 1) for name, value in prices.items()
        },
        "cost": prices,
        "darboux": darboux(),
        "cpu_seconds": round(sum(r["cpu_seconds"] for r in rows), 1),
        **record(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="coverage and cost of the estimators of q")
    parser.add_argument("--quick", action="store_true", help="under a minute on 2 cores")
    parser.add_argument("--rows", type=Path, help="file of rows, appended to and resumed from")
    parser.add_argument("--summarise", action="store_true", help="only the rows that are there already")
    add_output(parser)
    parser.add_argument("--only", choices=NAMES, help="one estimator")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = (
        read(arguments.rows) if arguments.summarise else run(arguments.quick, arguments.rows, arguments.only)
    )
    tell(summary(rows), arguments)


if __name__ == "__main__":
    main()
