"""The report's charts, from results to drawings with their numbers as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from latentprint import words
from latentprint.report import charts
from latentprint.report.blocks import Figure, Table
from latentprint.report.public import said
from latentprint.results import Results
from latentprint.results.counted import Counted, Estimate
from latentprint.results.searched import (
    Baseline,
    Checkpoint,
    Checkpoints,
    ProfileRow,
    Search,
    require_alike,
)
from latentprint.stats import Trials, simultaneous_band

POINT = "Point at the chart to read its values."


def estimator(name: str) -> str:
    """An estimator in words, from its key in the results."""
    return said(name, 40).replace("_", " ").capitalize()


@dataclass(frozen=True)
class _Line:
    """One series of counts over t with its simultaneous band."""

    curve: charts.Curve
    counts: dict[float, Trials]

    @classmethod
    def of(
        cls, name: str, css: str, grid: Sequence[float], counts: Sequence[Trials], level: float
    ) -> _Line | None:
        kept = [(t, one) for t, one in zip(grid, counts, strict=True) if one.n]
        if not kept:
            return None
        band = simultaneous_band([one for _, one in kept], level)
        x, y = [t for t, _ in kept], [one.rate for _, one in kept]
        return cls(charts.Curve(name, css, x, y, *zip(*band, strict=True)), dict(kept))

    def cell(self, t: float) -> str:
        """The count at t with its band."""
        if t not in self.counts:
            return words.NOTHING
        one, i = self.counts[t], list(self.curve.x).index(t)
        return f"{words.of(one.k, one.n)} ({100 * self.curve.low[i]:.0f}–{100 * self.curve.high[i]:.0f}%)"

    @property
    def spoken(self) -> str:
        """How far the image came back, in words, for readers who cannot see the chart."""
        alive = [t for t, one in self.counts.items() if one.k]
        until = f"came back up to t = {max(alive):.3g}" if alive else "never came back"
        return f"{self.curve.name}: {until}."


def curve_figure(found: Search) -> Figure | None:
    """q_M(p | x_t) of x_p and of the control, by the same recogniser, with exact bands (paper Fig. 6)."""
    level = found.band.level
    lines = [_Line.of("This image", "model", found.grid, found.counts, level)]
    if found.control is not None:
        require_alike(found.question, found.control.question)
        lines.append(_Line.of("Control", "control", found.control.grid, found.control.counts, level))
    title = "How far the image can be blurred by noise and still come back"
    return _curves("curve", title, [one for one in lines if one is not None], level)


def beside_figure(law: Baseline, level: float) -> Figure | None:
    """x_p beside images never trained on, all by the recogniser and the number of tries of the null law."""
    own = tuple(Trials(k, law.target.tries) for k in law.target.hits)
    others = tuple(Trials(k, n) for k, n in zip(law.hits, law.trials, strict=True))
    lines = (
        _Line.of("This image", "model", law.grid, own, level),
        _Line.of("Never trained on", "baseline", law.grid, others, level),
    )
    title = f"The same search on images never trained on, all judged by the {law.question.recogniser}"
    return _curves("beside", title, [one for one in lines if one is not None], level)


def _curves(name: str, title: str, lines: list[_Line], level: float) -> Figure | None:
    if not lines:
        return None
    grid = sorted({t for one in lines for t in one.counts})
    rows = [(t, [one.cell(t) for one in lines]) for t in grid]
    named = [one.curve.name for one in lines]
    tips = [
        (t, f"t = {t:.3g} · " + " · ".join(f"{n}: {c}" for n, c in zip(named, cells, strict=True)))
        for t, cells in rows
    ]
    spoken = " ".join(one.spoken for one in lines)
    label = f"Line chart: share of tries that came back, against the amount of noise t. {spoken}"
    x_label = "amount of noise t (0: none, 1: pure noise)"
    return Figure.drawn(
        name,
        title,
        lambda width: charts.curves([one.curve for one in lines], tips, label, width, x_label, "came back"),
        f"Points are shares of tries; shaded bands are exact and hold for all points at once ({level:.0%}).",
        Table(
            f"Times the image came back, with {level:.0%} bands that hold at all noise levels together",
            ("t", *named),
            [(f"{t:.3g}", *cells) for t, cells in rows],
            (True,) * (1 + len(lines)),
        ),
        [(one.curve.css, one.curve.name) for one in lines],
        POINT,
    )


def strip_figure(law: Baseline) -> Figure:
    """t' of x_p beside those of images never trained on: the null law, and the values ranked in it."""
    groups = [
        charts.Dots("This image", "model", [law.target.value]),
        charts.Dots(f"{len(law.values)} images never trained on", "baseline", law.values),
    ]
    rows = [(one.name, ", ".join(words.noise(v) for v in one.values)) for one in groups]
    label = "Dot chart of t', the largest amount of noise from which each image came back. " + " ".join(
        f"{one.name}: " + ", ".join(words.noise(v) for v in one.values[:30]) + "." for one in groups
    )
    return Figure.drawn(
        "strip",
        "The same limit for images the model has never seen",
        lambda width: charts.strips(groups, label, width, "t′: most noise from which it came back"),
        "An image that stands far to the right of those never trained on is known to the model. Every image"
        f" was judged by the {law.question.recogniser}, with {law.question.tries} tries at each level; t′"
        " is the largest level whose hits cannot all be false matches.",
        Table("t′ of each image", ("Image", "t′"), rows, (False, False)),
    )


def rates_figure(results: Results) -> Figure:
    """q by every estimator on one log axis with copies/N."""
    q, expected = results.q, results.expected_rate
    found = [(_counted("Counting generated images", "model", q.monte_carlo), q.monte_carlo)]
    found += [(_estimated(name, one), one) for name, one in q.estimates.items() if one.high is not None]
    if q.control is not None:
        found.append((_counted("Control: counting", "control", q.control), q.control))
    rows = [row for row, _ in found]
    reference = (expected, f"{results.target.copies}/N: {words.one_in(expected)}")
    label = (
        "Chart on a logarithmic axis: rate at which generated images are the private image. "
        + " ".join(f"{row.name}: {row.text}." for row in rows)
        + f" Reference {reference[1]}."
    )
    numbers = (words.number(one) for row in rows for one in (row.value, row.low, row.high))
    return Figure.drawn(
        "rates",
        "How often generated images are the private image",
        lambda width: charts.intervals(rows, reference, label, width),
        "Lines are intervals; an arrow to the left means that the interval reaches down to zero.",
        Table(
            "The rate by each estimator",
            ("Estimator", "Rate", "Low", "High", "In words", "Network evaluations"),
            [
                (row.name, next(numbers), next(numbers), next(numbers), row.text, _cost(one))
                for row, one in found
            ],
            (False, True, True, True, False, True),
        ),
    )


def _cost(one: Counted | Estimate) -> str:
    return words.amount(one.network_evaluations)


def _counted(name: str, css: str, one: Counted) -> charts.Interval:
    seen = words.of(one.hits, one.samples)
    if not one.hits:
        said = f"{seen}, {words.between(0.0, one.high)}"
        return charts.Interval(name, css, None, one.low, one.high, said)
    return charts.Interval(name, css, one.rate, one.low, one.high, f"{words.one_in(one.rate)} ({seen})")


def _estimated(name: str, one: Estimate) -> charts.Interval:
    low, high = one.low or 0.0, 1.0 if one.high is None else one.high
    said = words.one_in(one.rate) if one.rate else words.between(low, high)
    return charts.Interval(f"{estimator(name)} estimator", "model", one.rate, low, high, said)


def profile_figure(rows: Sequence[ProfileRow]) -> Figure:
    """How many training images have each t', and which of them the model knows."""
    labels = ["never"] + [f"{i / 10:g}–{(i + 1) / 10:g}" for i in range(10)]
    unknown, known = [0] * 11, [0] * 11
    for row in rows:
        place = 0 if row.value is None else 1 + min(9, int(row.value * 10 + 1e-9))
        (known if row.discovered else unknown)[place] += 1
    bars = [*zip(labels, known, unknown, strict=True)]
    label = "Bar chart: number of training images by t'. " + " ".join(
        f"{name}: {a + b:,}, of which {a:,} known." for name, a, b in bars if a + b
    )
    return Figure.drawn(
        "profile-chart",
        "Training images by the most noise from which they came back",
        lambda width: charts.bars(bars, label, width, "t′"),
        "The further to the right, the better the model knows an image.",
        Table(
            "Training images by t′",
            ("t′", "Known to the model", "Not known"),
            [(name, f"{a:,}", f"{b:,}") for name, a, b in bars],
            (False, True, True),
        ),
        [("model", "Known to the model"), ("baseline", "Not told from images never trained on")],
        POINT,
    )


def growth_figure(found: Checkpoints, control: float | None, with_control: bool) -> Figure:
    """t' of x_p over training; if ``with_control``, ``control`` is the control's t' with equally many
    tries."""
    steps = found.steps
    last = max(one.step for one in steps) or 1
    x = [one.step / last for one in steps]
    low, high = ([one.if_falling[end] or 0.0 for one in steps] for end in (0, 1))
    series = [charts.Curve("This image", "model", x, [one.value or 0.0 for one in steps], low, high)]
    if with_control:
        level = [control or 0.0] * len(x)
        series.append(charts.Curve("Control, fully trained", "control", x, level, level, level))
    told = [
        f"step {one.step:,}: {'never' if one.value is None else f't′ = {one.value:.3g}'},"
        f" {sum(one.hits):,} tries came back."
        for one in steps
    ]
    ticks = [(at, f"{one.step:,}") for at, one in zip(x, steps, strict=True)]
    label = f"Line chart: t' after several numbers of training steps. {' '.join(told)}"

    def draw(width: float) -> Markup:
        most = 12 if width > 500 else 5
        shown = ticks[::-1][:: max(1, -(-len(ticks) // most))]
        tips = [*zip(x, told, strict=True)]
        return charts.curves(series, tips, label, width, "training steps", "t′", x_ticks=shown, percent=False)

    return Figure.drawn(
        "growth-chart",
        "How much noise the image came back from, over training",
        draw,
        "Shaded: where t′ for a share of the tries lies if the share falls with noise. 0 stands for never.",
        Table(
            f"Each checkpoint, {found.tries} tries at each noise level",
            ("Step", "t′", "Between", "Came back", "p", "Smallest squared error", "Absolute error"),
            [_checkpoint(one) for one in steps],
            (True,) * 7,
            "p: against the control, or against the first checkpoint if there was no control. Errors are to"
            " the private image, pixels in [0, 1], of the closest image that came from t ="
            f" {found.closest_from:.3g} or more.",
        ),
        [(one.css, one.name) for one in series],
        POINT,
    )


def _checkpoint(one: Checkpoint) -> tuple[str, ...]:
    closest = one.closest
    return (
        f"{one.step:,}",
        words.noise(one.value),
        " – ".join(words.noise(end) for end in one.if_falling),
        f"{sum(one.hits):,}",
        words.number(one.p_value, 2),
        words.number(None if closest is None else closest.mse, 2),
        words.number(None if closest is None else closest.mae, 2),
    )
