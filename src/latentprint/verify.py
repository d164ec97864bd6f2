"""Was a run altered? Every number of results.json that follows from stored counts or rows is derived again.

    rows (probes/*.parquet)  →  counts  →  rates, intervals, tests, t', verdict
    files on disk            →  hashes

Three answers for each number: it agrees, it differs (then one of the two was altered, or written by another
version), or nothing that is stored says it again. The last kind is listed, not passed over: what nobody can
recompute must be taken on trust. Rows and results altered together, consistently, cannot be told from a run
that went that way; only the hash of the folder, kept elsewhere, shows that.

Needs no model and no image. A lone results.json can be checked too, from its own counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from latentprint.contracts import InputError
from latentprint.search import NullLaw, Plan, conclude
from latentprint.stats import (
    CorrectedRate,
    Trials,
    binomial_test_less,
    corrected_interval,
    missable,
    running_interval,
    running_p_value,
)
from latentprint.store import Run
from latentprint.store.files import to_json
from latentprint.verdict import Rule, verdict

Source = Literal["counts", "rows", "files"]
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

SETTINGS = {
    "q.monte_carlo.sampler.steps": "sampler.steps",
    "q.control.sampler.steps": "sampler.steps",
    "t_prime.threshold": "search.threshold",
    "likelihood.probes": "likelihood.probes",
}
"""Which setting of run.json a number repeats."""


@dataclass(frozen=True)
class Check:
    """One number, as it stands in results.json and as it follows from ``source``."""

    path: str
    stored: Any
    derived: Any
    source: Source

    @property
    def agrees(self) -> bool:
        """Whether both are the same, numbers to rounding."""
        return alike(self.stored, self.derived)

    @property
    def sentence(self) -> str:
        """What was found, with the first place where they differ."""
        if self.agrees:
            return f"{self.path} agrees with the {self.source}."
        stored, derived = first_difference(self.stored, self.derived)
        return f"{self.path} says {stored}, but the {self.source} say {derived}."


@dataclass(frozen=True)
class Verification:
    """What was checked.

    Attributes:
        checks: every number derived again.
        unchecked: paths of numbers that nothing stored says again.
        notes: what was missing for a deeper check, in sentences.
    """

    checks: tuple[Check, ...]
    unchecked: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def altered(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.agrees)

    @property
    def exit_code(self) -> int:
        """0: everything that could be derived agrees; 1: something differs; 2: nothing could be derived."""
        return 2 if not self.checks else 1 if self.altered else 0

    @property
    def sentences(self) -> list[str]:
        """The outcome in words: the finding, each difference, what was not checked."""
        rows = sum(check.source == "rows" for check in self.checks)
        if self.altered:
            first = (
                f"{len(self.altered)} of {len(self.checks)} derived values do not agree with results.json."
            )
        else:
            first = (
                f"All {len(self.checks)} derived values agree ({rows} of them counted from the stored rows)."
            )
        rest = [check.sentence for check in self.altered] + list(self.notes)
        if self.unchecked:
            rest.append(f"Nothing stored says these again: {', '.join(self.unchecked)}.")
        return [first, *rest]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        altered = [
            {"path": c.path, "stored": c.stored, "derived": c.derived, "source": c.source}
            for c in self.altered
        ]
        return {
            "altered": altered,
            "checked": len(self.checks),
            "from_rows": sum(check.source == "rows" for check in self.checks),
            "unchecked": list(self.unchecked),
            "notes": list(self.notes),
            "exit_code": self.exit_code,
        }


def alike(stored: Any, derived: Any) -> bool:
    """Equal, with numbers equal to rounding (1e-9 relative): other processors round sums differently."""
    if isinstance(derived, bool) or isinstance(stored, bool) or derived is None or stored is None:
        return stored is derived
    if isinstance(derived, (int, float)) and isinstance(stored, (int, float)):
        return math.isclose(stored, derived, rel_tol=1e-9, abs_tol=1e-300)
    if isinstance(derived, list) and isinstance(stored, list):
        ours, theirs = cast(list[Any], derived), cast(list[Any], stored)
        return len(ours) == len(theirs) and all(map(alike, theirs, ours))
    return bool(stored == derived)


def first_difference(stored: Any, derived: Any) -> tuple[str, str]:
    """The two values, or the first entries that differ where both are lists of one length."""
    if isinstance(stored, list) and isinstance(derived, list):
        theirs, ours = cast(list[Any], stored), cast(list[Any], derived)
        if len(theirs) == len(ours):
            i = next(i for i, pair in enumerate(zip(theirs, ours, strict=True)) if not alike(*pair))
            return f"{_short(theirs[i])} at position {i}", _short(ours[i])
        return f"{len(theirs)} values", f"{len(ours)}"
    return _short(stored), _short(derived)


def _short(value: Any) -> str:
    text = f"{value:.10g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def verify(folder: Path | str) -> Verification:
    """Check a run folder: results.json against its own counts, the stored rows, and the files' hashes.

    Raises:
        InputError: there is no run, or results.json is missing, no JSON object or not of the schema.
    """
    folder = Path(folder)
    run, results = Run.read(folder), _results(folder / "results.json")
    rows = {purpose: run.rows(purpose) for purpose in [*PURPOSES.values(), *LIKELIHOODS.values()]}
    with _readable():
        checks = [*from_counts(results), *from_rows(results, rows), *from_files(folder, results, run.record)]
    missing = [p for part, p in PURPOSES.items() if not rows[p] and _at(results, part) is not None]
    notes = [
        f"The rows of {purpose} are not stored, so its counts were not counted again." for purpose in missing
    ]
    return _verification(results, checks, notes)


def verify_results(results: Mapping[str, Any]) -> Verification:
    """Check a lone results mapping from its own counts.

    Raises:
        InputError: it is not of the schema.
    """
    note = "Only results.json was given: its counts were taken as they stand."
    with _readable():
        checks = list(from_counts(results))
    return _verification(results, checks, [note])


@contextmanager
def _readable() -> Generator[None]:
    """One sentence where results.json is so far from its schema that it cannot be checked at all."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise InputError(f"results.json is not of schema latentprint/1: {error!r}") from error


def _verification(results: Mapping[str, Any], checks: Sequence[Check], notes: Sequence[str]) -> Verification:
    covered = [check.path for check in checks]
    leaves = dict.fromkeys(_numbers(results, ""))
    open_ = [path for path in leaves if not any(path == c or path.startswith(f"{c}.") for c in covered)]
    return Verification(tuple(checks), tuple(open_), tuple(notes))


def _results(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path.name} is missing in the run folder; has the audit finished?") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path.name} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path.name} must hold one object, got {type(value).__name__}")
    return cast(dict[str, Any], value)


def _at(source: Any, path: str) -> Any:
    for key in path.split("."):
        source = cast(Mapping[str, Any], source).get(key) if isinstance(source, Mapping) else None
    return source


def _numbers(value: Any, path: str) -> Iterator[str]:
    """Paths of all numbers; a list counts as one."""
    if isinstance(value, Mapping):
        for key, one in cast(Mapping[str, Any], value).items():
            yield from _numbers(one, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        if any(True for one in cast(list[Any], value) for _ in _numbers(one, path)):
            yield path
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path


# --- from counts -------------------------------------------------------------------------------------------


def from_counts(results: Mapping[str, Any]) -> Iterator[Check]:
    """Rates, intervals, tests, t' and the verdict from the counts that results.json states."""
    for part in ("q.monte_carlo", "q.control"):
        yield from _rates(results, part)
    yield from _search(results)
    judged = _at(results, "verdict.rule")
    rule = Rule(**judged) if isinstance(judged, dict) else None
    again = verdict(results, rule)
    for key in ("state", "reasons"):
        yield Check(f"verdict.{key}", _at(results, f"verdict.{key}"), again[key], "counts")


def _rates(results: Mapping[str, Any], part: str) -> Iterator[Check]:
    entry = _at(results, part)
    if not isinstance(entry, dict):
        return
    given = cast(dict[str, Any], entry)
    trials, level = Trials(given["hits"], given["samples"]), given["level"]
    share = min(1.0, _at(results, "target.copies") / _at(results, "data.images"))
    low, high = trials.interval(level)
    derived = {
        "rate": trials.rate,
        "low": low,
        "high": high,
        "expected": trials.n * share,
        "p_value": binomial_test_less(trials.k, trials.n, share),
        "missable": missable(trials.k, trials.n),
    }
    if "looks" in given:
        derived |= _on_sight(given, share)
    for key, value in derived.items():
        yield Check(f"{part}.{key}", given.get(key), value, "counts")
    if isinstance(given.get("corrected"), dict):
        through = _through(results, given, trials)
        for key in ("rate", "low", "high"):
            yield Check(f"{part}.corrected.{key}", given["corrected"][key], getattr(through, key), "counts")


def _looks(given: Mapping[str, Any]) -> list[Trials]:
    looked = given["looks"]
    return [Trials(k, n) for n, k in zip(looked["samples"], looked["hits"], strict=True)]


def _on_sight(given: Mapping[str, Any], share: float) -> dict[str, Any]:
    """What differs where sampling stopped on sight (``audit.counting``)."""
    counts, near = _looks(given), given["until"]
    low, high = running_interval(counts, given["level"], near)
    again = {"low": low, "high": high, "p_value": running_p_value(counts, share, near)}
    return again if counts[-1].k == 0 else again | {"missable": high}


def _through(results: Mapping[str, Any], given: Mapping[str, Any], trials: Trials) -> CorrectedRate:
    """The rate through the detectors' errors, from their counts and the control's."""
    fitted = [
        one for name in ("presence", "identity") if (one := _at(results, f"detectors.{name}")) is not None
    ]
    errors = [(Trials(**one["tpr"]), Trials(**one["fpr"])) for one in fitted]
    control = _at(results, "q.control")
    interval = trials.interval
    if "looks" in given:
        counts = _looks(given)
        interval = lambda level: running_interval(counts, level, given["until"])  # noqa: E731
    return corrected_interval(
        trials.rate,
        interval,
        errors,
        control=None if control is None else Trials(control["hits"], control["samples"]),
        level=given["corrected"]["level"],
    )


def _search(results: Mapping[str, Any]) -> Iterator[Check]:
    found = cast(dict[str, Any], results.get("t_prime") or {})
    for part, entry in (("t_prime", found), ("t_prime.control", found.get("control"))):
        # A sequential search ends at a share of the tries, not at the last hit.
        if isinstance(entry, dict) and "grid" in entry and found.get("method") != "sequential":
            one = cast(dict[str, Any], entry)
            alive = [t for t, k in zip(one["grid"], one["hits"], strict=True) if k]
            yield Check(f"{part}.value", one["value"], max(alive) if alive else None, "counts")
    baseline = found.get("baseline")
    if isinstance(baseline, dict) and cast(dict[str, Any], baseline).get("values"):
        law = NullLaw(tuple(baseline["values"]))
        yield Check(
            "t_prime.baseline.p_value", baseline.get("p_value"), law.p_value(found["value"]), "counts"
        )
        for i, row in enumerate(cast(list[dict[str, Any]], results.get("profile") or [])):
            yield Check(f"profile.{i}.p_value", row.get("p_value"), law.p_value(row["value"]), "counts")
    if found.get("method") == "exhaustive" and "threshold" in found:
        yield from _conclusions(results, found)


def _conclusions(results: Mapping[str, Any], found: dict[str, Any]) -> Iterator[Check]:
    """Band, interval and sentences of an exhaustive search, by the search's own rules (search.boundary)."""
    fitted = [name for name in ("presence", "identity") if _at(results, f"detectors.{name}") is not None]
    fpr = [Trials(**_at(results, f"detectors.{name}.fpr")) for name in fitted]
    plan = Plan(
        grid=tuple(found["grid"]),
        tries=found["tries"],
        horizon=max(found["grid"]),
        threshold=found["threshold"],
        level=found["band"]["level"],
        false_positives=max(fpr, key=lambda one: (one.upper(0.95), one.n)),
    )
    trials = [Trials(k, found["tries"]) for k in found["hits"]]
    again = conclude(plan, trials, found["network_evaluations"], "exhaustive", range(len(plan.grid)))
    derived: dict[str, Any] = {
        "low": again.interval.low,
        "high": again.interval.high,
        "statement": again.interval.sentence,
        "sentence": again.sentence,
        "certain": again.certain,
        "band.low": [low for low, _ in again.band],
        "band.high": [high for _, high in again.band],
        "falling.p_value": again.falling.p_value,
    }
    for key, value in derived.items():
        yield Check(f"t_prime.{key}", _at(found, key), value, "counts")


# --- from rows ---------------------------------------------------------------------------------------------


def from_rows(results: Mapping[str, Any], rows: Mapping[str, Rows]) -> Iterator[Check]:
    """The counts themselves, and what the rows say of errors, likelihoods and costs."""
    for part, purpose in PURPOSES.items():
        entry, kept = _at(results, part), rows.get(purpose)
        if not isinstance(entry, dict) or not kept:
            continue
        derived = _counted(kept) if part.startswith("q.") else _curve(kept)
        for key, value in derived.items():
            if key in entry:
                yield Check(f"{part}.{key}", entry[key], value, "rows")
        if isinstance(looked := _at(entry, "looks.samples"), list):
            hits = [int(np.count_nonzero(kept["hit"][:n])) for n in cast(list[int], looked)]
            yield Check(f"{part}.looks.hits", _at(entry, "looks.hits"), hits, "rows")
        both = kept["presence_hit"] & kept["identity_hit"]
        yield Check(f"{part}.hits", int(np.count_nonzero(kept["hit"])), int(np.count_nonzero(both)), "rows")
    samples = rows.get(PURPOSES["q.monte_carlo"])
    if samples and isinstance(results.get("memorised"), dict):
        yield from _memorised(results, samples)
    if isinstance(results.get("likelihood"), dict):
        yield from _likelihoods(results, rows)
    costs = cast(dict[str, Any], _at(results, "costs.network_evaluations") or {})
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
            yield Check(path, _at(results, path), value, "rows")
    if len(held) == len(LIKELIHOODS):
        cost = sum(int(kept["evaluations"].sum()) for kept in held.values())
        path = "likelihood.network_evaluations"
        yield Check(path, _at(results, path), cost, "rows")


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
    yield Check("memorised.count", _at(results, "memorised.count"), int(hit.sum()), "rows")
    if not hit.any():
        return
    for error in ("mse", "mae"):
        values = rows[error][hit]
        spread = {"min": values.min(), "median": np.median(values), "max": values.max()}
        for name, value in spread.items():
            path = f"memorised.{error}.{name}"
            yield Check(path, _at(results, path), float(value), "rows")


# --- from files --------------------------------------------------------------------------------------------


def from_files(folder: Path, results: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[Check]:
    """Settings, weights and detectors against what run.json and results.json say of them."""
    settings, noted = record.get("settings"), record.get("settings_sha256")
    yield Check("run.json settings", noted, sha256(to_json(settings, "settings")).hexdigest(), "files")
    for path, key in SETTINGS.items():
        wanted = _at(settings, key)
        if wanted is not None and _at(results, path) is not None:
            yield Check(path, _at(results, path), wanted, "files")
    payload = _at(record, "stages.data.payload")
    if isinstance(payload, dict):
        for path, key in (
            ("data.sha256", "manifest"),
            ("data.images", "images"),
            ("data.heldout", "heldout_images"),
            ("data.shape", "shape"),
            ("target.index", "target_index"),
            ("target.sha256", "target_sha256"),
            ("target.copies", "copies"),
        ):
            if key in payload:
                yield Check(path, _at(results, path), payload[key], "files")
    for name in ("model", "control"):
        weights = folder / name / "diffusion_pytorch_model.safetensors"
        noted = _at(record, f"stages.{name}.payload.weights_sha256")
        if weights.is_file() and noted is not None:
            yield Check(f"run.json {name} weights", noted, sha256(weights.read_bytes()).hexdigest(), "files")
    given = _at(settings, "given.weights_sha256")
    if given is not None:
        yield Check("model.weights_sha256", _at(results, "model.weights_sha256"), given, "files")
        yield Check(
            "run.json model weights", _at(record, "stages.model.payload.weights_sha256"), given, "files"
        )
    for name in ("presence", "identity"):
        for file in sorted((folder / "detectors" / name).glob("*.json")):
            note = _at(_results(file), "note")
            for key in ("tpr", "fpr", "threshold", "kinds"):
                if isinstance(note, dict) and key in note:
                    path = f"detectors.{name}.{key}"
                    yield Check(path, _at(results, path), note[key], "files")
