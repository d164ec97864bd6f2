"""What follows from the stored rows: the counts themselves, errors, likelihoods, costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from latentprint.report.reading import at
from latentprint.verify.check import Check

Rows = Mapping[str, NDArray[Any]]

PURPOSES = {
    "q.monte_carlo": "samples.model",
    "q.control": "samples.control",
    "t_prime": "search.model",
    "t_prime.control": "search.control",
}
"""Which rows a part of the results was counted from."""

LIKELIHOODS = {
    "bits_per_dim": "likelihood.train",
    "heldout": "likelihood.heldout",
    "target": "likelihood.target",
}


def from_rows(results: Mapping[str, Any], rows: Mapping[str, Rows]) -> Iterator[Check]:
    """The counts themselves, and what the rows say of errors, likelihoods and costs."""
    for part, purpose in PURPOSES.items():
        entry, kept = at(results, part), rows.get(purpose)
        if not isinstance(entry, dict) or not kept:
            continue
        derived = _counted(kept) if part.startswith("q.") else _curve(kept)
        for key, value in derived.items():
            if key in entry:
                yield Check(f"{part}.{key}", entry[key], value, "rows")
        if isinstance(looked := at(entry, "looks.samples"), list):
            hits = [int(np.count_nonzero(kept["hit"][:n])) for n in cast(list[int], looked)]
            yield Check(f"{part}.looks.hits", at(entry, "looks.hits"), hits, "rows")
        both = kept["presence_hit"] & kept["identity_hit"]
        yield Check(f"{part}.hits", int(np.count_nonzero(kept["hit"])), int(np.count_nonzero(both)), "rows")
    samples = rows.get(PURPOSES["q.monte_carlo"])
    if samples and isinstance(results.get("memorised"), dict):
        yield from _memorised(results, samples)
    if isinstance(results.get("likelihood"), dict):
        yield from _likelihoods(results, rows)
    costs = cast(dict[str, Any], at(results, "costs.network_evaluations") or {})
    for purpose, kept in rows.items():
        if kept and purpose in costs and "evaluations" in kept:
            path = f"costs.network_evaluations.{purpose}"
            yield Check(path, costs[purpose], int(kept["evaluations"].sum()), "rows")


def _likelihoods(results: Mapping[str, Any], rows: Mapping[str, Rows]) -> Iterator[Check]:
    held = {key: kept for key, purpose in LIKELIHOODS.items() if (kept := rows.get(purpose))}
    for key, kept in held.items():
        bits = kept["bits"]
        if key == "target":
            derived = {"": float(bits[0])}
        else:
            se = float(bits.std(ddof=1) / len(bits) ** 0.5) if len(bits) > 1 else None
            derived = {".mean": float(bits.mean()), ".se": se, ".n": len(bits)}
        for name, value in derived.items():
            path = f"likelihood.{key}{name}"
            yield Check(path, at(results, path), value, "rows")
    if len(held) == len(LIKELIHOODS):
        cost = sum(int(kept["evaluations"].sum()) for kept in held.values())
        path = "likelihood.network_evaluations"
        yield Check(path, at(results, path), cost, "rows")


def _counted(rows: Rows) -> dict[str, Any]:
    counts = {name: int(np.count_nonzero(rows[name])) for name in ("presence_hit", "identity_hit", "hit")}
    return {
        "samples": len(rows["id"]),
        "presence_hits": counts["presence_hit"] if _marked(rows) else None,
        "identity_hits": counts["identity_hit"],
        "hits": counts["hit"],
        "network_evaluations": int(rows["evaluations"].sum()),
    }


def _marked(rows: Rows) -> bool:
    """Whether c_p judged these rows: its probabilities are NaN where x_p carries no mark."""
    return "presence" not in rows or not bool(np.isnan(rows["presence"]).all())


def _curve(rows: Rows) -> dict[str, Any]:
    grid = np.unique(rows["t"])

    def per_level(column: str) -> list[int]:
        return [int(np.count_nonzero(rows[column][rows["t"] == t])) for t in grid]

    tries = {int(np.count_nonzero(rows["t"] == t)) for t in grid}
    return {
        "grid": [float(t) for t in grid],
        "hits": per_level("hit"),
        "presence_hits": per_level("presence_hit") if _marked(rows) else None,
        "identity_hits": per_level("identity_hit"),
        "tries": max(tries),
        "network_evaluations": int(rows["evaluations"].sum()),
    }


def _memorised(results: Mapping[str, Any], rows: Rows) -> Iterator[Check]:
    hit = rows["hit"].astype(bool)
    yield Check("memorised.count", at(results, "memorised.count"), int(hit.sum()), "rows")
    if not hit.any():
        return
    for error in ("mse", "mae"):
        values = rows[error][hit]
        spread = {"min": values.min(), "median": np.median(values), "max": values.max()}
        for name, value in spread.items():
            path = f"memorised.{error}.{name}"
            yield Check(path, at(results, path), float(value), "rows")
