"""What follows from the counts that results.json states: rates, intervals, tests, t', the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from latentprint.report.reading import at
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
from latentprint.verdict import Rule, verdict
from latentprint.verify.check import Check


def from_counts(results: Mapping[str, Any]) -> Iterator[Check]:
    """Rates, intervals, tests, t' and the verdict from the counts that results.json states."""
    for part in ("q.monte_carlo", "q.control"):
        yield from _rates(results, part)
    yield from _search(results)
    judged = at(results, "verdict.rule")
    rule = Rule(**judged) if isinstance(judged, dict) else None
    again = verdict(results, rule)
    for key in ("state", "reasons"):
        yield Check(f"verdict.{key}", at(results, f"verdict.{key}"), again[key], "counts")


def _rates(results: Mapping[str, Any], part: str) -> Iterator[Check]:
    entry = at(results, part)
    if not isinstance(entry, dict):
        return
    given = cast(dict[str, Any], entry)
    trials, level = Trials(given["hits"], given["samples"]), given["level"]
    share = min(1.0, at(results, "target.copies") / at(results, "data.images"))
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
        one for name in ("presence", "identity") if (one := at(results, f"detectors.{name}")) is not None
    ]
    errors = [(Trials(**one["tpr"]), Trials(**one["fpr"])) for one in fitted]
    control = at(results, "q.control")

    def interval(level: float) -> tuple[float, float]:
        stopped = "looks" in given
        return running_interval(_looks(given), level, given["until"]) if stopped else trials.interval(level)

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
    fitted = [name for name in ("presence", "identity") if at(results, f"detectors.{name}") is not None]
    fpr = [Trials(**at(results, f"detectors.{name}.fpr")) for name in fitted]
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
        yield Check(f"t_prime.{key}", at(found, key), value, "counts")
