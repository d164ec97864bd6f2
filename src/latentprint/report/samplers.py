"""The report's section on several samplers of one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentprint import words
from latentprint.report.blocks import Section, Table
from latentprint.report.reading import at, confidence, count, items, mapping, number, trials
from latentprint.report.reading import words as text


def samplers_section(results: Mapping[str, Any]) -> Section | None:
    """t' and q by sampler; nothing where there is one alone."""
    others = items(results, "samplers")
    if not others:
        return None
    own = {
        "sampler": at(results, "q.monte_carlo.sampler"),
        "t_prime": at(results, "t_prime"),
        "q": at(results, "q.monte_carlo"),
    }
    rows = [_row(one) for one in (own, *others)]
    head = ("Sampler", "t′", "Seen", "Images made", "Rate, interval", "Evaluations an image")
    lead = (
        "One model, several ways of generating images. Each has its own rate: what one hardly shows another"
        " may. The first row is the one that the rest of this page is about."
    )
    table = Table("The same audit by sampler", head, rows, (False, True, True, True, True, True))
    return Section("samplers", "Other ways of generating images", lead, [table])


def _row(one: Any) -> tuple[str, ...]:
    q = mapping(one, "q")
    seen = trials({"x": {"k": at(q, "hits"), "n": at(q, "samples")}}, "x")
    value = number(one, "t_prime.value")
    cost = count(q, "network_evaluations")
    steps = count(one, "sampler.steps")
    name = ", ".join(
        part
        for part in (
            text(one, "sampler.step", 40),
            f"{steps} steps" if steps else None,
            text(one, "sampler.spacing", 40),
        )
        if part
    )
    if seen is None:
        return (name, *[words.NOTHING] * 5)
    low, high = seen.interval(confidence(q, "level"))
    return (
        name,
        "never" if value is None else words.number(value),
        f"{seen.k:,}",
        f"{seen.n:,}",
        words.between(low, high),
        words.NOTHING if cost is None else words.number(cost / seen.n),
    )
