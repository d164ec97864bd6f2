"""The comparison page: several runs side by side, from what ``compare`` found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from latentprint import words
from latentprint.report import charts
from latentprint.report.blocks import Figure, Points, Section, Table
from latentprint.report.page import page
from latentprint.report.public import said

if TYPE_CHECKING:
    from latentprint.compare import Comparison, Line


def render_comparison(comparison: Comparison) -> str:
    """One HTML page. Run names are shown as given; paths in them are withheld."""
    level = words.percent(comparison.differences[0].level)
    joint = f"Against the first run. All intervals hold together with a confidence of {level}."
    lines = comparison.lines
    answers = Points([said(one.sentence) for one in comparison.differences])
    sections = [
        Section("answer", "The answer", "", [answers]),
        Section("rates", "The runs", "Rates with exact intervals.", [_figure(lines), _table(lines)]),
        Section("differences", "The differences", joint, [_differences(comparison)]),
    ]
    if comparison.cautions:
        cautions = Points([said(one) for one in comparison.cautions])
        sections.insert(1, Section("cautions", "Not like with like", "", [cautions]))
    return page(
        "comparison.html.j2",
        "Comparison of audits",
        scripted=True,
        sections=sections,
        number=len(lines),
    )


def _seen(line: Line) -> str:
    seen = words.of(line.hits, line.samples)
    return f"{words.one_in(line.rate)} ({seen})" if line.hits else seen


def _figure(lines: Sequence[Line]) -> Figure:
    colours = ["control"] + ["model"] * (len(lines) - 1)
    rows = [
        charts.Interval(
            said(line.name, 60),
            css,
            line.rate or None,
            line.low,
            line.high,
            _seen(line),
        )
        for css, line in zip(colours, lines, strict=True)
    ]
    told = " ".join(f"{row.name}: {row.text}." for row in rows)
    return Figure.drawn(
        "runs",
        "How often generated images are the private image",
        lambda width: charts.intervals(
            rows, None, f"Chart on a logarithmic axis: rate of each run. {told}", width
        ),
        "Lines are intervals; an arrow to the left means that the interval reaches down to zero.",
        Table(
            "Rates",
            ("Run", "Rate", "Low", "High"),
            [(row.name, *(words.number(v) for v in (row.value or 0.0, row.low, row.high))) for row in rows],
            (False, True, True, True),
        ),
        [("control", "Reference"), ("model", "Compared with it")],
    )


def _table(lines: Sequence[Line]) -> Table:
    rows = [
        (
            said(line.name, 60),
            f"{line.images:,}",
            _seen(line),
            words.number(line.times_expected),
            words.one_in(line.missable),
            words.noise(line.t_prime),
            words.NOTHING if line.copies is None else words.percent(line.copies),
            words.NOTHING if line.epsilon is None else words.number(line.epsilon),
            line.state,
        )
        for line in lines
    ]
    head = (
        "Run",
        "Images N",
        "Rate",
        "Times 1/N",
        "Could have been missed",
        "t′",
        "Copies",
        "Epsilon ≥",
        "Verdict",
    )
    return Table("The runs", head, rows, (False, *[True] * 7, False))


def _differences(comparison: Comparison) -> Table:
    rows = [
        (
            said(one.name, 60),
            words.number(one.difference),
            f"{words.number(one.low)} to {words.number(one.high)}",
            words.number(one.ratio),
            f"{words.number(one.ratio_low)} to"
            f" {'unbounded' if one.ratio_high is None else words.number(one.ratio_high)}",
            words.number(one.p_value, 2),
        )
        for one in comparison.differences
    ]
    head = ("Run", "Difference of rates", "Interval", "Ratio", "Interval", "p-value")
    return Table("Each run against the first", head, rows, (False, True, True, True, True, True))
