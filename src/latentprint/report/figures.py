"""The report's three charts, from results.json to drawings with their numbers as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from latentprint import words
from latentprint.report import charts
from latentprint.report.blocks import Figure, Table
from latentprint.report.reading import at, confidence, count, items, mapping, number, numbers, rate
from latentprint.stats import Trials, simultaneous_band

Draw = Callable[[float], Markup]


def curve_figure(results: Mapping[str, Any]) -> Figure | None:
    """q_M(p | x_t) with exact simultaneous bands, control and baseline (paper Fig. 6); or None."""
    found = mapping(results, "t_prime")
    level = confidence(found, "band.level")
    lines = [
        _line("This image", "model", _counts(found), level, mapping(found, "band")),
        _line("Control", "control", _counts(mapping(found, "control")), level, {}),
        _line("Never trained on", "baseline", _counts(mapping(found, "baseline")), level, {}),
    ]
    drawn = [(curve, trials) for one in lines if one is not None for curve, trials in (one,)]
    if not drawn:
        return None
    grid = sorted({t for curve, _ in drawn for t in curve.x})
    rows = [(t, [_cell(curve, trials, t) for curve, trials in drawn]) for t in grid]
    tips = [
        (
            t,
            f"t = {t:.3g} · "
            + " · ".join(f"{c.name}: {cell}" for (c, _), cell in zip(drawn, cells, strict=True)),
        )
        for t, cells in rows
    ]
    label = (
        "Line chart: share of tries in which the image came back, against the amount of noise t. "
        + " ".join(_spoken(curve) for curve, _ in drawn)
    )
    draw: Draw = lambda width: charts.curves(  # noqa: E731
        [curve for curve, _ in drawn],
        tips,
        label,
        width,
        "amount of noise t (0: none, 1: pure noise)",
        "came back",
    )
    table = Table(
        f"Times the image came back of tries, with {level:.0%} bands that hold at all noise levels together",
        ("t", *(curve.name for curve, _ in drawn)),
        [(f"{t:.3g}", *cells) for t, cells in rows],
        (True,) * (1 + len(drawn)),
    )
    return Figure(
        "curve",
        "How far the image can be blurred by noise and still come back",
        draw(charts.WIDE),
        draw(charts.NARROW),
        [(curve.css, curve.name) for curve, _ in drawn],
        f"Points are shares of tries; shaded bands are exact and hold for all points at once ({level:.0%}).",
        table,
        "Point at the chart to read its values.",
    )


def _counts(source: Mapping[str, Any]) -> list[tuple[float, Trials]]:
    """(t, hits of tries) on the source's own grid; a baseline carries its tries per t in ``trials``."""
    grid, hits = numbers(source, "grid"), numbers(source, "hits")
    each = numbers(source, "trials") or [number(source, "tries")] * len(grid)
    if not len(grid) == len(hits) == len(each):
        return []
    points = [
        (t, Trials(int(k), int(n)))
        for t, k, n in zip(grid, hits, each, strict=True)
        if t is not None and k is not None and n and n >= 1 and 0 <= k <= n and 0 <= t <= 1
    ]
    return sorted(points, key=lambda point: point[0])


def _line(
    name: str, css: str, counts: list[tuple[float, Trials]], level: float, band: Mapping[str, Any]
) -> tuple[charts.Curve, dict[float, Trials]] | None:
    if not counts:
        return None
    x, trials = [t for t, _ in counts], [one for _, one in counts]
    edges = simultaneous_band(trials, level)
    low, high = numbers(band, "low"), numbers(band, "high")
    if len(low) == len(high) == len(x) == len(items(band, "low")) and None not in (*low, *high):
        order = sorted(range(len(x)), key=lambda i: x[i])
        if x == [x[i] for i in order]:
            edges = [(low[i] or 0.0, high[i] or 0.0) for i in order]
    y = [one.rate for one in trials]
    curve = charts.Curve(name, css, x, y, [e[0] for e in edges], [e[1] for e in edges])
    return curve, dict(counts)


def _cell(curve: charts.Curve, trials: Mapping[float, Trials], t: float) -> str:
    if t not in trials:
        return words.NOTHING
    one, i = trials[t], list(curve.x).index(t)
    return f"{one.k:,} of {one.n:,} ({100 * curve.low[i]:.0f}–{100 * curve.high[i]:.0f}%)"


def _spoken(curve: charts.Curve) -> str:
    alive = [t for t, y in zip(curve.x, curve.y, strict=True) if y > 0]
    if not alive:
        return f"{curve.name}: never came back."
    return f"{curve.name}: came back up to t = {max(alive):.3g}."


def rates_figure(results: Mapping[str, Any]) -> Figure | None:
    """q by every estimator on one log axis with copies/N."""
    rows = [
        one
        for one in (
            _counted(results, "monte_carlo", "Counting generated images", "model"),
            _estimated(results, "bridge", "Bridge estimator", "model"),
            _estimated(results, "splitting", "Splitting estimator", "model"),
            _counted(results, "control", "Control: counting", "control"),
        )
        if one is not None
    ]
    if not rows:
        return None
    images, copies = count(results, "data.images"), count(results, "target.copies") or 1
    expected = copies / images if images else None
    reference = None if expected is None else (expected, f"{copies}/N: {words.one_in(min(1.0, expected))}")
    label = (
        "Chart on a logarithmic axis: rate at which generated images are the private image. "
        + " ".join(f"{row.name}: {row.text}." for row in rows)
        + (f" Reference {reference[1]}." if reference else "")
    )
    draw: Draw = lambda width: charts.intervals(rows, reference, label, width)  # noqa: E731
    table = Table(
        "The rate by each estimator",
        ("Estimator", "Rate", "Low", "High", "In words", "Network evaluations"),
        [
            (row.name, words.number(row.value), words.number(row.low), words.number(row.high), row.text, cost)
            for row, cost in zip(rows, [_cost(results, row.name) for row in rows], strict=True)
        ],
        (False, True, True, True, False, True),
    )
    return Figure(
        "rates",
        "How often generated images are the private image",
        draw(charts.WIDE),
        draw(charts.NARROW),
        (),
        "Lines are intervals; an arrow to the left means that the interval reaches down to zero.",
        table,
    )


NAMES = {
    "Counting generated images": "monte_carlo",
    "Bridge estimator": "bridge",
    "Splitting estimator": "splitting",
    "Control: counting": "control",
}


def _cost(results: Mapping[str, Any], name: str) -> str:
    return words.amount(number(results, f"q.{NAMES[name]}.network_evaluations"))


def _counted(results: Mapping[str, Any], key: str, name: str, css: str) -> charts.Interval | None:
    source = mapping(results, f"q.{key}")
    hits, n = count(source, "hits"), count(source, "samples")
    if hits is None or not n or hits > n:
        return None
    one, level = Trials(hits, n), confidence(source, "level")
    low, high = rate(source, "low"), rate(source, "high")
    if low is None or high is None:
        low, high = one.interval(level)
    value = one.rate if hits else None
    text = (
        f"{words.one_in(one.rate)} ({hits:,} of {n:,})" if hits else f"0 of {n:,}, {words.between(0.0, high)}"
    )
    return charts.Interval(name, css, value, low, high, text)


def _estimated(results: Mapping[str, Any], key: str, name: str, css: str) -> charts.Interval | None:
    source = mapping(results, f"q.{key}")
    value, low, high = rate(source, "rate"), rate(source, "low"), rate(source, "high")
    if low is None or high is None:
        return None
    firm = at(source, "reliable") is True
    text = words.one_in(value) if value else words.between(low, high)
    return charts.Interval(name, css, value, low, high, text if firm else f"{text}, not reliable", firm)


def strip_figure(results: Mapping[str, Any]) -> Figure | None:
    """t' of the image beside the control's and the never-trained-on images'."""
    found = mapping(results, "t_prime")
    if not items(found, "grid"):
        return None
    groups = [charts.Dots("This image", "model", [rate(found, "value")])]
    if mapping(found, "control"):
        groups.append(charts.Dots("Control: trained without it", "control", [rate(found, "control.value")]))
    others = [
        value if value is None or 0 <= value <= 1 else None for value in numbers(found, "baseline.values")
    ]
    if others:
        groups.append(charts.Dots(f"{len(others)} images never trained on", "baseline", others))
    title = (
        "The same limit for images the model has never seen" if others else "The same limit in the control"
    )
    beside = "those never trained on" if others else "the control's"
    label = "Dot chart of t', the largest amount of noise from which each image came back. " + " ".join(
        f"{g.name}: " + ", ".join("never" if v is None else f"{v:.3g}" for v in g.values[:30]) + "."
        for g in groups
    )
    draw: Draw = lambda width: charts.strips(groups, label, width, "t′: most noise from which it came back")  # noqa: E731
    rows = [(g.name, ", ".join("never" if v is None else f"{v:.3g}" for v in g.values)) for g in groups]
    return Figure(
        "strip",
        title,
        draw(charts.WIDE),
        draw(charts.NARROW),
        (),
        f"An image that stands far to the right of {beside} is known to the model.",
        Table("t′ of each image", ("Image", "t′"), rows, (False, False)),
    )


def profile_figure(values: Sequence[tuple[float | None, bool]]) -> Figure:
    """How many training images lie at each t', and which of them the model knows; (t', known) each."""
    labels = ["never"] + [f"{i / 10:g}–{(i + 1) / 10:g}" for i in range(10)]
    unknown, known = [0] * 11, [0] * 11
    for value, found in values:
        place = 0 if value is None else 1 + min(9, int(value * 10 + 1e-9))
        (known if found else unknown)[place] += 1
    bars = [*zip(labels, known, unknown, strict=True)]
    label = "Bar chart: number of training images by t'. " + " ".join(
        f"{name}: {a + b:,}, of which {a:,} known." for name, a, b in bars if a + b
    )
    draw: Draw = lambda width: charts.bars(bars, label, width, "t′")  # noqa: E731
    table = Table(
        "Training images by t′",
        ("t′", "Known to the model", "Not known"),
        [(name, f"{a:,}", f"{b:,}") for name, a, b in bars],
        (False, True, True),
    )
    return Figure(
        "profile-chart",
        "Training images by the most noise from which they came back",
        draw(charts.WIDE),
        draw(charts.NARROW),
        [("model", "Known to the model"), ("baseline", "Not told from images never trained on")],
        "The further to the right, the better the model knows an image.",
        table,
        "Point at the chart to read its values.",
    )
