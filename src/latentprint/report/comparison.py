"""The comparison page: several runs side by side, from the plain values that ``compare`` gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentprint import words
from latentprint.contracts import InputError
from latentprint.report import charts
from latentprint.report.blocks import Block, Figure, Points, Section, Table
from latentprint.report.page import page
from latentprint.report.reading import count, items, number, rate
from latentprint.report.reading import words as text


def render_comparison(comparison: Mapping[str, Any]) -> str:
    """One HTML page from ``Comparison.to_dict()``. Run names are shown as given; paths in them are withheld.

    Raises:
        InputError: it holds fewer than two runs.
    """
    runs = items(comparison, "runs")
    if len(runs) < 2:
        raise InputError(f"a comparison page needs at least two runs, got {len(runs)}")
    differences = items(comparison, "differences")
    answers = [said for one in differences if (said := text(one, "sentence"))]
    cautions = [said for i in range(len(items(comparison, "cautions"))) if (said := _caution(comparison, i))]
    sections = [
        Section("answer", "The answer", "", [Points(answers)]),
        Section("rates", "The runs", "Rates with exact intervals.", [_figure(runs), _table(runs)]),
        Section("differences", "The differences", _joint(differences), [_differences(differences)]),
    ]
    if cautions:
        sections.insert(1, Section("cautions", "Not like with like", "", [Points(cautions)]))
    return page(
        "comparison.html.j2", "Comparison of audits", scripted=True, sections=sections, number=len(runs)
    )


def _caution(comparison: Mapping[str, Any], index: int) -> str | None:
    return text({"c": items(comparison, "cautions")[index]}, "c")


def _name(run: Any) -> str:
    return text(run, "name", 60) or words.NOTHING


def _joint(differences: Any) -> str:
    level = words.percent(rate(differences[0], "level")) if differences else "95%"
    return f"Against the first run. All intervals hold together with a confidence of {level}."


def _said(run: Any) -> str:
    hits, samples, value = count(run, "hits"), count(run, "samples"), rate(run, "rate")
    return f"{words.one_in(value)} ({hits:,} of {samples:,})" if hits and value else f"0 of {samples or 0:,}"


def _figure(runs: Any) -> Figure:
    rows = [
        charts.Interval(
            _name(run),
            "model" if i else "control",
            rate(run, "rate") or None,
            rate(run, "low") or 0.0,
            rate(run, "high") or 0.0,
            _said(run),
        )
        for i, run in enumerate(runs)
    ]
    label = "Chart on a logarithmic axis: rate of each run. " + " ".join(
        f"{row.name}: {row.text}." for row in rows
    )
    table = Table(
        "Rates",
        ("Run", "Rate", "Low", "High"),
        [
            (row.name, words.number(row.value or 0.0), words.number(row.low), words.number(row.high))
            for row in rows
        ],
        (False, True, True, True),
    )
    return Figure(
        "runs",
        "How often generated images are the private image",
        charts.intervals(rows, None, label, charts.WIDE),
        charts.intervals(rows, None, label, charts.NARROW),
        [("control", "Reference"), ("model", "Compared with it")],
        "Lines are intervals; an arrow to the left means that the interval reaches down to zero.",
        table,
    )


def _table(runs: Any) -> Block:
    rows = [
        (
            _name(run),
            words.whole(count(run, "images")),
            _said(run),
            words.number(number(run, "times_expected")),
            words.one_in(value) if (value := rate(run, "missable")) is not None else words.NOTHING,
            "never" if (t := rate(run, "t_prime")) is None else f"{t:.3g}",
            text(run, "state", 40) or words.NOTHING,
        )
        for run in runs
    ]
    head = ("Run", "Images N", "Rate", "Times 1/N", "Could have been missed", "t′", "Verdict")
    return Table("The runs", head, rows, (False, True, True, True, True, True, False))


def _differences(differences: Any) -> Block:
    rows = [
        (
            _name(one),
            words.number(number(one, "difference")),
            f"{words.number(number(one, 'low'))} to {words.number(number(one, 'high'))}",
            words.number(number(one, "ratio")),
            f"{words.number(number(one, 'ratio_low'))} to {_bound(number(one, 'ratio_high'))}",
            words.number(number(one, "p_value"), 2),
        )
        for one in differences
    ]
    head = ("Run", "Difference of rates", "Interval", "Ratio", "Interval", "p-value")
    return Table("Each run against the first", head, rows, (False, True, True, True, True, True))


def _bound(value: float | None) -> str:
    return "unbounded" if value is None else words.number(value)
