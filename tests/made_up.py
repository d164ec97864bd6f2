"""Made-up but realistic results: a model that leaks, one that does not, and a run too small to tell."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import numpy as np
from scipy.stats import binom

from latentprint.stats import Trials, missable, simultaneous_band
from latentprint.verdict import verdict

Results = dict[str, Any]
SAMPLER = {"step": "heun", "steps": 24, "spacing": "karras", "denoise": True, "stochastic": False}


def sha(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def monte_carlo(hits: int, samples: int, expected_rate: float, presence: int, identity: int) -> Results:
    low, high = Trials(hits, samples).interval(0.95)
    return {
        "sampler": dict(SAMPLER),
        "samples": samples,
        "presence_hits": presence,
        "identity_hits": identity,
        "hits": hits,
        "rate": hits / samples,
        "low": low,
        "high": high,
        "level": 0.95,
        "expected": samples * expected_rate,
        "p_value": float(binom.cdf(hits, samples, expected_rate)),
        "missable": missable(hits, samples),
        "network_evaluations": samples * 48,
    }


def search(hits: list[int], tries: int, others: list[float | None], control: list[int] | None) -> Results:
    grid = [round(0.05 * i, 2) for i in range(1, 21)]
    band = simultaneous_band([Trials(k, tries) for k in hits])
    alive = [t for t, k in zip(grid, hits, strict=True) if k]
    value = max(alive) if alive else None
    reached = [0.0 if v is None else v for v in others]
    rank = (1 + sum(v >= (value or 0.0) for v in reached)) / (len(others) + 1)
    total = [sum(4 if v >= t else 0 for v in reached) for t in grid]
    back = [t for t, k in zip(grid, control, strict=True) if k] if control else []
    return {
        "value": value,
        "low": None if value is None else value - 0.05,
        "high": None if value is None else min(1.0, value + 0.05),
        "statement": "With 95% confidence t′ lies within one grid step of the value found.",
        "method": "exhaustive",
        "tries": tries,
        "grid": grid,
        "hits": hits,
        "presence_hits": [min(tries, k + 1) for k in hits],
        "identity_hits": hits,
        "band": {"low": [b[0] for b in band], "high": [b[1] for b in band], "level": 0.95},
        "baseline": {
            "images": len(others),
            "tries": 4,
            "grid": grid,
            "hits": total,
            "trials": [4 * len(others)] * len(grid),
            "values": others,
            "p_value": rank,
        },
        "control": None
        if control is None
        else {"value": max(back) if back else None, "tries": tries, "grid": grid, "hits": control},
        "network_evaluations": 20 * tries * 48,
    }


def assemble(images: int, source: str, q: Results, t_prime: Results, **parts: Any) -> Results:
    results: Results = {
        "schema": "latentprint/1",
        "data": {
            "source": source,
            "sha256": sha(source),
            "images": images,
            "shape": [1, 8, 8],
            "heldout": 1697,
        },
        "target": {
            "index": 17,
            "sha256": sha("target"),
            "copies": 1,
            "fingerprint": {"kind": "circle", "row": 5, "column": 3, "radius": 2, "grey": 0.1},
            "injected": True,
        },
        "detectors": {
            name: {
                "tpr": {"k": found, "n": 500},
                "fpr": {"k": wrong, "n": 1697},
                "threshold": threshold,
                "backbone": "small",
            }
            for name, found, wrong, threshold in (("presence", 499, 0, 0.91), ("identity", 497, 1, 0.87))
        },
        "t_prime": t_prime,
        "q": {"monte_carlo": None, "control": None, "splitting": None, "bridge": None} | q,
        "fid": None,
        "likelihood": None,
        "memorised": None,
        "costs": {"network_evaluations": {"search": 15360, "monte_carlo": 192000, "control": 207360}},
    }
    results |= parts
    results["verdict"] = verdict(results)
    return results


def leak() -> Results:
    """The demo as the trial in the issue saw it: 39 of 4,000 where 40 are expected."""
    t_prime = search(
        [16, 16, 16, 16, 15, 14, 11, 9, 6, 4, 3, 2, 1, 1, 0, 1, 0, 0, 0, 0],
        16,
        [
            0.1,
            0.1,
            0.05,
            None,
            0.15,
            0.1,
            0.1,
            0.05,
            0.2,
            0.1,
            0.1,
            0.15,
            0.1,
            0.05,
            None,
            0.1,
            0.1,
            0.25,
            0.1,
            0.1,
        ],
        [16, 7, 1] + [0] * 17,
    )
    estimate = {"sampler": dict(SAMPLER), "level": 0.95, "reliable": True}
    q = {
        "monte_carlo": monte_carlo(39, 4000, 0.01, 41, 44),
        "control": monte_carlo(0, 4000, 0.01, 1, 2),
        "bridge": estimate
        | {
            "rate": 7.8e-3,
            "low": 5.4e-3,
            "high": 1.12e-2,
            "diagnostic": "effective sample size 212 of 400, Pareto k 0.41",
            "network_evaluations": 960_000,
        },
        "splitting": estimate
        | {
            "rate": 9.1e-3,
            "low": 2.2e-3,
            "high": 2.6e-2,
            "reliable": False,
            "diagnostic": "only 14 distinct ancestors at the last level; at least 30 are needed",
            "network_evaluations": 3_100_000,
        },
    }
    return assemble(
        100,
        "digits",
        q,
        t_prime,
        fid={"train": 1.92, "test": 9.41, "features": "pixels", "samples": 4000},
        likelihood={
            "bits_per_dim": {"mean": 1.214, "se": 0.021, "n": 100},
            "heldout": {"mean": 3.402, "se": 0.054, "n": 100},
            "target": 1.19,
            "network_evaluations": 19_200,
        },
        memorised={
            "count": 39,
            "mse": {"min": 2.1e-5, "median": 8.4e-5, "max": 1.3e-3},
            "mae": {"min": 2.2e-3, "median": 4.9e-3, "max": 1.7e-2},
            "nearest": {"target": 39, "n": 39},
        },
    )


def unmarked() -> Results:
    """A model that others trained: no mark and no c_p, no control, a private image that comes back."""
    results = leak()
    results["target"] |= {"fingerprint": None, "injected": False}
    results["detectors"]["presence"] = None
    results["t_prime"] |= {"presence_hits": None, "control": None}
    results["q"] = {
        "monte_carlo": monte_carlo(39, 4000, 0.01, 0, 39) | {"presence_hits": None},
        "control": None,
        "splitting": None,
        "bridge": None,
    }
    results["model"] = {
        "kind": "diffusers",
        "weights_sha256": sha("given"),
        "notes": ["Trained by others.", "That it was trained on these images is somebody's word."],
    }
    results["verdict"] = verdict(results)
    return results


def clean() -> Results:
    """A large training set: nothing in 150,000, t' as that of any unseen image."""
    t_prime = search(
        [16, 12, 4, 1] + [0] * 16,
        16,
        [0.15, 0.2, 0.1, 0.25, 0.2, 0.15, 0.2, 0.1, 0.3, 0.2] * 2,
        [16, 11, 5] + [0] * 17,
    )
    q = {
        "monte_carlo": monte_carlo(0, 150_000, 1 / 10_000, 0, 3),
        "control": monte_carlo(0, 150_000, 1 / 10_000, 1, 2),
        "splitting": {
            "sampler": dict(SAMPLER),
            "rate": 3.2e-9,
            "low": 1.4e-9,
            "high": 7.1e-9,
            "level": 0.95,
            "reliable": True,
            "diagnostic": "acceptance 0.31, 88 distinct ancestors, 8 replicates agree",
            "network_evaluations": 24_000_000,
        },
    }
    return assemble(10_000, "medmnist:pathmnist", q, t_prime)


def undecided() -> Results:
    """Too few samples to say anything about 1/N, no control."""
    t_prime = search([16, 14, 9, 6, 3, 1] + [0] * 14, 16, [0.15, 0.2, None, 0.25, 0.3], None)
    q = {"monte_carlo": monte_carlo(0, 500, 1 / 546, 0, 1)}
    return assemble(546, "medmnist:breastmnist", q, t_prime)


def profile(rows: int) -> list[Results]:
    values = np.random.default_rng(0).beta(2, 5, rows).round(2)
    return [
        {
            "sha256": sha(f"row {i}"),
            "value": None if values[i] < 0.05 else float(values[i]),
            "p_value": float(1 / (1 + 20 * values[i])),
            "discovered": bool(values[i] > 0.6),
        }
        for i in range(rows)
    ]


def run() -> Results:
    return {
        "schema": "latentprint-run/1",
        "seed": 0,
        "versions": {"latentprint": "0.1.0", "torch": "2.11.0", "diffusers": "0.39.0", "python": "3.12.3"},
        "git": {"commit": "22a3a7d0c1", "dirty": False},
        "device": {"type": "cpu", "name": "AMD EPYC", "threads": 2},
        "weights_sha256": sha("weights"),
        "timings": {
            "training": 112.3,
            "detectors": 38.1,
            "search": 9.4,
            "monte_carlo": 27.2,
            "control": 141.0,
        },
    }


def changed(results: Results, path: str, value: Any) -> Results:
    """A deep copy with one field set; keys in ``path`` are separated by dots."""
    whole = copy.deepcopy(results)
    *way, last = path.split(".")
    place = whole
    for key in way:
        place = place[key]
    place[last] = value
    return whole
