"""How t' was searched, in words, and t' over training: when the image began to stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentprint import words
from latentprint.report import charts
from latentprint.report.blocks import Block, Figure, Note, Section, Table
from latentprint.report.reading import at, count, items, mapping, number, numbers, rate
from latentprint.report.reading import words as text

METHODS = {
    "exhaustive": "every noise level was asked",
    "bisection": "by halving the range of noise above which it no longer comes back",
    "subsample": "at noise levels drawn at random",
    "reduced_range": "at the noise levels of a chosen range",
    "sequential": "by halving, with as many tries at a level as decided it",
}


def method(results: Mapping[str, Any]) -> str | None:
    """How t' was searched, and with how many tries; None where the results do not say."""
    name, each = text(results, "t_prime.method", 40), count(results, "t_prime.tries")
    asked = len(items(results, "t_prime.grid"))
    if name not in METHODS or not each or not asked:
        return None
    tries = [one for one in numbers(results, "t_prime.trials") if one is not None]
    total, levels = int(sum(tries)) if tries else asked * each, count(results, "t_prime.levels") or asked
    return f"Search: {METHODS[name]}; {total:,} tries at {asked} of {levels} noise levels."


def growth(results: Mapping[str, Any]) -> Section | None:
    """``checkpoints`` of results.json as a plot, its numbers and the finding; None where there are none."""
    source = mapping(results, "checkpoints")
    rows = [one for one in items(source, "steps") if count(one, "step") is not None]
    if not rows:
        return None
    lead = (
        "The same search after several numbers of training steps, with the same tries each time: what changes"
        " from step to step is the model's memory, and its skill."
    )
    said, onset = text(source, "sentence"), count(source, "onset")
    plain = "It is not shown that the model began to memorise the image."
    if onset is not None:
        beside = "a model never given it" if at(source, "against") == "control" else "the first checkpoint"
        plain = f"The model knows the image better than {beside} from step {onset:,} on."
    blocks: list[Block] = [Note(plain), *([Note(said)] if said else []), _figure(results, rows)]
    return Section("growth", "When the model began to remember it", lead, blocks)


def _figure(results: Mapping[str, Any], rows: list[Any]) -> Figure:
    last = max(count(one, "step") or 0 for one in rows) or 1
    x = [(count(one, "step") or 0) / last for one in rows]

    def heights(path: str) -> list[float]:
        """Of each checkpoint; "never" is drawn at 0."""
        return [rate(one, path) or 0.0 for one in rows]

    series = [
        charts.Curve(
            "This image", "model", x, heights("value"), heights("if_falling.low"), heights("if_falling.high")
        )
    ]
    if mapping(results, "t_prime.control"):
        level = [rate(results, "t_prime.control.value") or 0.0] * len(x)
        series.append(charts.Curve("Control, fully trained", "control", x, level, level, level))
    tips = [(at_x, _tip(one)) for at_x, one in zip(x, rows, strict=True)]
    ticks = [(at_x, f"{count(one, 'step'):,}") for at_x, one in zip(x, rows, strict=True)]
    label = "Line chart: t' after several numbers of training steps. " + " ".join(_tip(one) for one in rows)

    def draw(width: float) -> Any:
        shown = _sparse(ticks, 12 if width > 500 else 5)
        return charts.curves(series, tips, label, width, "training steps", "t′", x_ticks=shown, percent=False)

    tries = count(results, "checkpoints.tries")
    lowest = number(results, "checkpoints.closest_from")
    table = Table(
        "Each checkpoint" + (f", {tries} tries at each noise level" if tries else ""),
        ("Step", "t′", "Between", "Came back", "p", "Smallest squared error", "Absolute error"),
        [_row(one) for one in rows],
        (True,) * 7,
        "p: against the control, or the first checkpoint where there is none. Errors are to the private"
        " image, pixels in [0, 1], of the closest image"
        + (f" that came from t = {lowest:.3g} or more." if lowest is not None else "."),
    )
    return Figure(
        "growth-chart",
        "How much noise the image came back from, over training",
        draw(charts.WIDE),
        draw(charts.NARROW),
        [(one.css, one.name) for one in series],
        "Shaded: where t′ for a share of the tries lies if the share falls with noise. 0 stands for never.",
        table,
        "Point at the chart to read its values.",
    )


def _sparse(ticks: list[tuple[float, str]], most: int) -> list[tuple[float, str]]:
    """At most about ``most`` of them, the last among them."""
    every = max(1, -(-len(ticks) // most))
    return ticks[::-1][::every][::-1]


def _tip(one: Any) -> str:
    value = rate(one, "value")
    told = "never" if value is None else f"t′ = {value:.3g}"
    return f"step {count(one, 'step'):,}: {told}, {_hits(one):,} tries came back."


def _hits(one: Any) -> int:
    return sum(int(k) for k in numbers(one, "hits") if k is not None)


def _row(one: Any) -> tuple[str, ...]:
    value, low, high = (rate(one, path) for path in ("value", "if_falling.low", "if_falling.high"))
    ends = ("never" if end is None else f"{end:.3g}" for end in (low, high))
    return (
        f"{count(one, 'step'):,}",
        "never" if value is None else f"{value:.3g}",
        " – ".join(ends),
        f"{_hits(one):,}",
        words.number(rate(one, "p_value"), 2),
        words.number(number(one, "closest.mse"), 2),
        words.number(number(one, "closest.mae"), 2),
    )
