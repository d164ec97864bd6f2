"""The estimators of q beside brute force on networks that were trained, image by image: coverage and cost.

On models with a formula for q (benchmarks/probability.py) the denoiser is exact. A network that learnt its
images by heart is not, and the only truth is counting. ``ground.py`` trains the networks of the recipes by
seed and counts all their images at once; the counts are kept in ``proving/counts.json``. Here every estimator
of the table is run on images whose q lies between 1e-2 and 1e-5, and compared with their counts:

    held         log(estimate / count) within 1.96 standard errors of both together
    cost_ratio   network evaluations of counting for the estimate's own error, over those that were spent

    python benchmarks/proving.py --work FOLDER [--rows FILE] [--only WORD] [--quick] [--json]

Rows are appended to FILE as they are done, and not done again. ``--quick`` trains and counts a small network
of its own. Where the weights made here are not those that were counted, the row says so and is left out.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ground import (
    COUNTS,
    QUICK,
    RECIPES,
    SAMPLERS,
    UNIT,
    Ground,
    Recipe,
    brute_force,
    ground,
    lines,
    say,
    summed,
)
from record import add_output, record, tell

from latentprint.rate import ESTIMATORS, Effort, Rate, SamplerPushforward, Subject
from latentprint.stats import Trials

LEAST_HITS = 10
"""Hits that a count needs to be a truth."""

IMAGES = 6
"""Images of each network and sampler: spread evenly over the order of their counts."""


@dataclass(frozen=True)
class Case:
    """An image of a network under a sampler, with its count."""

    recipe: Recipe
    sampler: str
    image: int
    truth: Trials
    weights: str

    @property
    def name(self) -> str:
        return f"{self.recipe.name}/{self.sampler}/{self.image}"


def cases(counts: dict[str, Any], recipes: tuple[Recipe, ...], images: int) -> Iterator[Case]:
    """The images that are asked about: a function of the counts alone."""
    for recipe in recipes:
        for sampler in recipe.samplers:
            found = counts.get(f"{recipe.name}/{sampler}")
            if found is None:
                continue
            hits, n = found["hits"], found["samples"]
            known = sorted((k, i) for i, k in enumerate(hits) if k >= LEAST_HITS and 1e-5 <= k / n <= 1e-2)
            places = (
                {round(i * (len(known) - 1) / max(1, images - 1)) for i in range(images)} if known else set()
            )
            for k, image in (known[place] for place in sorted(places)):
                yield Case(recipe, sampler, image, Trials(k, n), found["weights"])


def subject(g: Ground, case: Case) -> Subject:
    sampler, i = SAMPLERS[case.sampler], case.image
    return Subject(
        push=SamplerPushforward(g.model, sampler, g.shape),
        sampler=sampler,
        inside=g.inside(i),
        score=g.score(i),
        target=g.images[i],
        model=g.model,
        others=torch.cat([g.images[:i], g.images[i + 1 :]]),
    )


def judged(case: Case, found: Rate, per_sample: int) -> dict[str, Any]:
    """The estimate beside the count."""
    row: dict[str, Any] = {
        "truth": case.truth.rate,
        "counted": [case.truth.k, case.truth.n],
        "rate": found.rate,
        "low": found.low,
        "high": found.high,
        "reliable": found.reliable,
        "diagnostic": found.diagnostic,
        "network_evaluations": found.network_evaluations,
        "per_sample": per_sample,
    }
    if found.rate is None or found.low is None or found.high is None or found.rate == 0:
        return row
    error = math.log(found.high / max(found.low, 1e-300)) / (2 * 1.96)
    apart = math.log(found.rate / case.truth.rate) / math.hypot(error, 1 / math.sqrt(case.truth.k))
    brute = (1 - case.truth.rate) / (case.truth.rate * error**2) * per_sample
    return row | {
        "error": error,
        "apart": apart,
        "held": abs(apart) <= 1.96,
        "cost_ratio": brute / found.network_evaluations,
    }


def work(folder: Path, file: Path, todo: list[Case], only: str, effort: Effort) -> None:
    """Every estimator on every case, unless its row is there."""
    done, held = {row["key"] for row in lines(file)}, dict[str, Ground]()
    for case in todo:
        for row in ESTIMATORS:
            key = f"{row.name}/{case.name}"
            if key in done or only not in key or (row.name == "path" and case.sampler == "heun-12"):
                continue
            if case.recipe.name not in held:
                held[case.recipe.name] = ground(case.recipe, folder)
            g = held[case.recipe.name]
            about = subject(g, case)
            busy = time.process_time()
            found = row.estimate(about, effort)
            entry = {"key": key, "estimator": row.name, "network": case.recipe.name, "sampler": case.sampler}
            entry |= {"image": case.image, **judged(case, found, about.push.evaluations)}
            entry |= {
                "these_weights": g.weights == case.weights,
                "cpu_seconds": round(time.process_time() - busy, 1),
            }
            with file.open("a") as out:
                out.write(json.dumps(entry) + "\n")
            say(f"{key}: {entry['rate']} (counted {entry['truth']:.2g}), {entry['cpu_seconds']} s")


def summary(rows: list[dict[str, Any]], counts: dict[str, Any]) -> dict[str, Any]:
    """Coverage, and the median of the cost ratios by decade of q, of the rows of the weights counted."""
    rows = [row for row in rows if row["these_weights"]]
    coverage, reliable = dict[str, Any](), dict[str, Any]()
    ratios = dict[str, dict[str, float]]()
    for name in dict.fromkeys(row["estimator"] for row in rows):
        mine = [row for row in rows if row["estimator"] == name]
        sure = [row for row in mine if row.get("held") is not None]
        reliable[name] = {"reliable": len(sure), "cases": len(mine)}
        if not sure:
            continue
        coverage[name] = sum(row["held"] for row in sure) / len(sure)
        decades = dict[str, list[float]]()
        for row in sure:
            decades.setdefault(f"1e{round(math.log10(row['truth']))}", []).append(row["cost_ratio"])
        ratios[name] = {decade: round(statistics.median(decades[decade]), 2) for decade in sorted(decades)}
    brute = {name: {"samples": one["samples"], "hits": sum(one["hits"])} for name, one in counts.items()}
    return {
        "cases": rows,
        "coverage": coverage,
        "reliable": reliable,
        "cost_ratio": ratios,
        "brute_force": brute,
        **record(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="estimators of q against counts on trained networks")
    parser.add_argument("--work", type=Path, help="folder of trained networks; a temporary one by default")
    parser.add_argument("--rows", type=Path, help="file of rows, appended to, resumed from")
    parser.add_argument(
        "--only", default="", help="the rows whose ESTIMATOR/NETWORK/SAMPLER/IMAGE holds this"
    )
    parser.add_argument("--images", type=int, default=IMAGES, help="of each network and sampler")
    parser.add_argument("--summarise", action="store_true", help="only the rows that are there already")
    parser.add_argument("--quick", action="store_true", help="a small network, counted here, two images")
    add_output(parser)
    a = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.work or Path(temporary)
        file = a.rows or folder / ("quick.jsonl" if a.quick else "rows.jsonl")
        if a.quick:
            folder.mkdir(parents=True, exist_ok=True)
            brute_force(folder, QUICK, QUICK.samplers[0], UNIT)
            counts = {k: v for k, v in summed(folder).items() if k.startswith(QUICK.name)}
            todo = list(cases(counts, (QUICK,), 400))[:2]
            work(folder, file, todo, "path", Effort(relative=0.3, most=3000))
        else:
            counts = json.loads(COUNTS.read_text())
            if not a.summarise:
                todo = list(cases(counts, RECIPES, a.images))
                work(folder, file, todo, a.only, Effort(relative=0.2, most=50_000))
        tell(summary(lines(file), counts), a)


if __name__ == "__main__":
    sys.exit(main())
