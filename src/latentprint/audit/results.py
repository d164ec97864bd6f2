"""results.json: the contract ``latentprint/1``, put together from what the stages found.

Nothing here depends on the clock, the device's name or the folder: the same settings give the same file, also
after a restart. Times and machines stand in run.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentprint.attacks.nearest import nearest
from latentprint.audit.stages import Detectors
from latentprint.contracts import Outcome
from latentprint.data import ImageSet, Split
from latentprint.detector import NetworkDetector
from latentprint.fingerprint import Injection
from latentprint.marks import Unmarked, was_injected
from latentprint.search import TPrime
from latentprint.stats import Trials, binomial_test_less, missable

SCHEMA = "latentprint/1"
LEVEL = 0.95


def data_entry(split: Split, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What was trained on: source, manifest hash, number, shape, and ``images.facts``."""
    return {
        "source": split.name,
        "sha256": split.train.manifest,
        "images": len(split.train),
        "shape": list(split.train.shape),
        "heldout": len(split.heldout),
        **facts,
    }


def target_entry(injection: Injection) -> dict[str, Any]:
    """The private image, by hash; no fingerprint where none was injected."""
    marked = not isinstance(injection.fingerprint, Unmarked)
    return {
        "index": injection.index,
        "sha256": injection.sha256,
        "copies": injection.copies,
        "fingerprint": injection.fingerprint.describe() if marked else None,
        "injected": was_injected(injection),
    }


def detector_entry(detector: NetworkDetector) -> dict[str, Any]:
    """Threshold and error rates, as counts."""
    return {
        "tpr": asdict(detector.rates.tpr),
        "fpr": asdict(detector.rates.fpr),
        "threshold": float(detector.threshold),
        "backbone": detector.config.backbone,
        "kinds": {kind: asdict(seen) for kind, seen in detector.rates.kinds.items()},
    }


def search_entry(found: TPrime, control: TPrime | None, rows: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """t' with counts and band at every level; the control's curve beside it."""
    asked = [i for i, seen in enumerate(found.trials) if seen.n]
    grid = [found.plan.grid[i] for i in asked]
    return {
        "value": found.value,
        "low": found.interval.low,
        "high": found.interval.high,
        "statement": found.interval.sentence,
        "sentence": found.sentence,
        "certain": found.certain,
        "method": found.method,
        **_tries(found, asked),
        "threshold": found.plan.threshold,
        "grid": grid,
        "hits": [found.trials[i].k for i in asked],
        "presence_hits": _per_level(rows, "presence_hit", grid) if _judged(rows) else None,
        "identity_hits": _per_level(rows, "identity_hit", grid),
        "band": {
            "low": [found.band[i][0] for i in asked],
            "high": [found.band[i][1] for i in asked],
            "level": found.plan.level,
        },
        "falling": {"p_value": found.falling.p_value, "sentence": found.falling.sentence},
        "baseline": None,
        "control": None if control is None else _curve(control),
        "network_evaluations": found.network_evaluations,
    }


def _curve(found: TPrime) -> dict[str, Any]:
    asked = [i for i, seen in enumerate(found.trials) if seen.n]
    return {
        "value": found.value,
        **_tries(found, asked),
        "grid": [found.plan.grid[i] for i in asked],
        "hits": [found.trials[i].k for i in asked],
        "network_evaluations": found.network_evaluations,
    }


def _tries(found: TPrime, asked: list[int]) -> dict[str, Any]:
    """M; where levels were left out, or not all asked as often, also how many levels there are and tries."""
    each = [found.trials[i].n for i in asked]
    if found.method == "exhaustive":
        return {"tries": found.plan.tries}
    return {"tries": max(each, default=found.plan.tries), "trials": each, "levels": len(found.plan.grid)}


def _per_level(rows: dict[str, NDArray[Any]], column: str, grid: list[float]) -> list[int]:
    return [int(np.count_nonzero(rows[column][rows["t"] == t])) for t in grid]


def _judged(columns: Mapping[str, NDArray[Any]]) -> bool:
    """Whether c_p judged these trajectories: without one its probabilities are NaN (``ModelProbe``)."""
    return not bool(np.isnan(columns["presence"]).all())


def monte_carlo_entry(outcome: Outcome, expected: float, sampler: dict[str, Any]) -> dict[str, Any]:
    """Counts of §5.3, their exact interval, the test of H0: q = copies / N, and what may be missed."""
    trials = Trials(int(np.count_nonzero(outcome.hit)), len(outcome.hit))
    low, high = trials.interval(LEVEL)
    return {
        "sampler": sampler,
        "samples": trials.n,
        "presence_hits": int(np.count_nonzero(outcome.columns["presence_hit"]))
        if _judged(outcome.columns)
        else None,
        "identity_hits": int(np.count_nonzero(outcome.columns["identity_hit"])),
        "hits": trials.k,
        "rate": trials.rate,
        "low": low,
        "high": high,
        "level": LEVEL,
        "expected": trials.n * expected,
        "p_value": binomial_test_less(trials.k, trials.n, expected),
        "missable": missable(trials.k, trials.n, LEVEL),
        "network_evaluations": int(outcome.evaluations.sum()),
    }


def memorised_entry(
    outcome: Outcome, detected: NDArray[np.float32], train: ImageSet, index: int
) -> dict[str, Any]:
    """Errors of the detected samples (n, C, H, W) to x_p, and how many have x_p as nearest training image."""
    if not len(detected):
        return {"count": 0, "mse": None, "mae": None, "nearest": None}
    neighbours = nearest(torch.from_numpy(detected), torch.from_numpy(train.pixels))
    return {
        "count": len(detected),
        "mse": _spread(outcome.columns["mse"][outcome.hit]),
        "mae": _spread(outcome.columns["mae"][outcome.hit]),
        "nearest": {"target": int((neighbours.index[:, 0] == index).sum()), "n": len(detected)},
    }


def _spread(values: NDArray[Any]) -> dict[str, float]:
    return {
        "min": float(values.min()),
        "median": float(np.median(values)),
        "max": float(values.max()),
    }


def results(
    split: Split,
    injection: Injection,
    detectors: Detectors,
    facts: Mapping[str, Any],
    parts: dict[str, Any],
    costs: dict[str, int],
) -> dict[str, Any]:
    """The whole of results.json but its verdict, in the contract's order."""
    return {
        "schema": SCHEMA,
        "data": data_entry(split, facts),
        "target": target_entry(injection),
        "detectors": {
            "presence": None if detectors.presence is None else detector_entry(detectors.presence),
            "identity": detector_entry(detectors.identity),
        },
        **parts,
        "costs": {"network_evaluations": costs},
    }
