"""Charts as inline SVG: three forms, no dependency, colours from the page's custom properties.

Every chart is drawn at a width in CSS pixels. The page holds a wide and a narrow drawing of each, so that
text keeps its size on a phone. All strings are escaped here. Each mark has a ``<title>`` (shown on hover
without scripts) and ``data-tip`` (for the page's readout line, with scripts).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape


@dataclass(frozen=True)
class Curve:
    """Points (x, y) in [0, 1] x [0, 1] with an interval each. ``css`` names the colour class."""

    name: str
    css: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Interval:
    """One estimate on the log axis. ``value`` None: only an upper bound is known; ``low`` may be 0."""

    name: str
    css: str
    value: float | None
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Dots:
    """Values in [0, 1] on one line; None is drawn in the column "never"."""

    name: str
    css: str
    values: Sequence[float | None]


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _tag(name: str, body: str | Markup = "", **attributes: str | float) -> Markup:
    """One element, attributes and body escaped; ``_`` in attribute names becomes ``-``, ``class_`` class."""
    parts = [
        f'{key.rstrip("_").replace("_", "-")}="{escape(_n(v) if isinstance(v, float) else v)}"'
        for key, v in attributes.items()
    ]
    return Markup(f"<{' '.join([name, *parts])}>{escape(body)}</{name}>")


def _text(x: float, y: float, body: str, anchor: str = "start", css: str = "") -> Markup:
    return _tag("text", body, x=float(x), y=float(y), text_anchor=anchor, class_=f"t {css}".strip())


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    return _tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=css)


def _mark(x: float, y: float, shape: str, css: str, tip: str = "") -> Markup:
    """A point. Its shape tells three series apart without colour."""
    css = f"mark {css}"
    title = _tag("title", tip) if tip else Markup("")
    tips = {"data_tip": tip} if tip else {}
    if shape == "square":
        return _tag("rect", title, x=x - 3.4, y=y - 3.4, width=6.8, height=6.8, class_=css, **tips)
    if shape == "diamond":
        path = f"M{_n(x)} {_n(y - 5)}l5 5l-5 5l-5-5z"
        return _tag("path", title, d=path, class_=css, **tips)
    return _tag("circle", title, cx=float(x), cy=float(y), r=4.2, class_=css, **tips)


SHAPES = {"model": "circle", "control": "diamond", "baseline": "square"}


def _svg(width: float, height: float, label: str, body: Sequence[Markup]) -> Markup:
    return _tag(
        "svg",
        Markup("").join(body),
        viewBox=f"0 0 {_n(width)} {_n(height)}",
        width=_n(width),
        height=_n(height),
        role="img",
        aria_label=label,
        class_="chart",
    )


def curves(
    series: Sequence[Curve],
    tips: Sequence[tuple[float, str]],
    label: str,
    width: float,
    x_label: str,
    y_label: str,
    *,
    x_ticks: Sequence[tuple[float, str]] | None = None,
    percent: bool = True,
) -> Markup:
    """Shares over t with their bands. ``tips``: a readout text for each x, shown over its whole column.

    ``x_ticks``: (x, label) in place of tenths. Without ``percent`` the ticks of y are plain numbers.
    """
    left, right, top, bottom, height = 44.0, 12.0, 26.0, 46.0, 320.0 if width > 500 else 280.0
    inner_w, inner_h = width - left - right, height - top - bottom

    def px(x: float) -> float:
        return left + x * inner_w

    def py(y: float) -> float:
        return top + (1 - y) * inner_h

    body: list[Markup] = [_text(left - 36, 12, y_label, css="label")]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        body.append(_line(left, py(share), width - right, py(share), "grid" if share else "axis"))
        body.append(_text(left - 6, py(share) + 4, f"{share:.0%}" if percent else f"{share:g}", "end"))
    tenths = [(i / 10, f"{i / 10:g}") for i in range(0, 11, 1 if width > 500 else 2)]
    for x, name in tenths if x_ticks is None else x_ticks:
        body.append(_text(px(x), height - bottom + 18, name, "middle"))
        body.append(_line(px(x), py(0), px(x), py(0) + 4, "axis"))
    body.append(_text(left + inner_w / 2, height - 6, x_label, "middle", "label"))
    for one in series:
        edge = [*zip(one.x, one.high, strict=True), *reversed([*zip(one.x, one.low, strict=True)])]
        band = "M" + "L".join(f"{_n(px(x))} {_n(py(y))}" for x, y in edge) + "Z"
        body.append(_tag("path", d=band, class_=f"band {one.css}"))
    for one in series:
        points = [*zip(one.x, one.y, strict=True)]
        path = "M" + "L".join(f"{_n(px(x))} {_n(py(y))}" for x, y in points)
        body.append(_tag("path", d=path, class_=f"line {one.css}"))
        body += [_mark(px(x), py(y), SHAPES.get(one.css, "circle"), one.css) for x, y in points]
    body += _columns([(px(x), tip) for x, tip in tips], left, width - right, top, inner_h)
    return _svg(width, height, label, body)


def _columns(
    tips: Sequence[tuple[float, str]], left: float, right: float, top: float, height: float
) -> Iterator[Markup]:
    """Invisible hover columns, each reaching half-way to its neighbours."""
    centres = [x for x, _ in tips]
    for i, (x, tip) in enumerate(tips):
        start = left if i == 0 else (centres[i - 1] + x) / 2
        stop = right if i == len(tips) - 1 else (x + centres[i + 1]) / 2
        yield _tag(
            "rect",
            _tag("title", tip),
            x=start,
            y=top,
            width=max(stop - start, 0.0),
            height=height,
            class_="column",
            data_tip=tip,
        )


def decade(exponent: int) -> str:
    """The tick label of 10^exponent: "1 in 1,000"; from a million on "1 in 10⁹"."""
    if exponent >= 0:
        return "every one"
    if exponent > -6:
        return f"1 in {10**-exponent:,}"
    digits = str(-exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"1 in 10{digits}"


def intervals(
    rows: Sequence[Interval], reference: tuple[float, str] | None, label: str, width: float
) -> Markup:
    """Estimates and their intervals on one log axis, with a reference line (1/N)."""
    positive = [v for one in rows for v in (one.value, one.low, one.high) if v] + (
        [reference[0]] if reference else []
    )
    first = math.floor(math.log10(min(positive)) - 0.15) if positive else -6
    last = max(min(0, math.ceil(math.log10(max(positive)) + 0.12)), first + 1) if positive else 0
    left, right, top, each, foot = 8.0, 8.0, 34.0, 50.0, 34.0
    inset, height = left + 12, top + each * len(rows) + foot
    inner = width - 2 * inset

    def px(rate: float) -> float:
        return inset + (math.log10(rate) - first) / (last - first) * inner

    every = max(1, math.ceil((last - first) * 92 / inner))
    body: list[Markup] = []
    for exponent in range(last, first - 1, -every):
        x = px(10.0**exponent)
        body.append(_line(x, top - 4, x, height - foot, "grid"))
        anchor = "end" if x > width - 40 else "start" if x < 40 else "middle"
        body.append(_text(x, height - foot + 18, decade(exponent), anchor))
    if reference:
        x = px(reference[0])
        body.append(_line(x, top - 8, x, height - foot, "reference"))
        anchor = "end" if x > width * 0.7 else "start" if x < width * 0.3 else "middle"
        body.append(_text(x, top - 16, reference[1], anchor, "label"))
    for i, one in enumerate(rows):
        y = top + each * i
        body.append(_text(left, y + 16, one.name, css="name"))
        body.append(_text(width - right, y + 16, one.text, "end", one.css))
        body += _whisker(one, y + 32, px, left)
    return _svg(width, height, label, body)


def _whisker(one: Interval, y: float, px: Callable[[float], float], left: float) -> Iterator[Markup]:
    tip = f"{one.name}: {one.text}"
    if one.high <= 0:
        return
    start, stop = px(one.low) if one.low > 0 else left, px(one.high)
    if one.low > 0:
        yield _line(start, y - 5, start, y + 5, f"whisker {one.css}")
    else:  # the interval reaches zero, which a log axis does not show
        yield _tag("path", d=f"M{_n(left + 7)} {_n(y - 5)}l-7 5l7 5", class_=f"whisker open {one.css}")
    yield _line(start, y, stop, y, f"whisker {one.css}")
    yield _line(stop, y - 5, stop, y + 5, f"whisker {one.css}")
    if one.value:
        yield _mark(px(one.value), y, SHAPES.get(one.css, "circle"), one.css, tip)


def strips(groups: Sequence[Dots], label: str, width: float, x_label: str) -> Markup:
    """Values of t' side by side, one line for each group, equal values stacked."""
    left, right, top, each, foot = 66.0, 12.0, 0.0, 66.0, 46.0
    inner, height = width - left - right, top + each * len(groups) + foot

    def px(value: float | None) -> float:
        return left / 2 - 4 if value is None else left + value * inner

    floor = height - foot
    body: list[Markup] = [_line(left, floor, width - right, floor, "axis")]
    for tenth in range(0, 11, 1 if width > 500 else 2):
        body.append(_text(px(tenth / 10), floor + 18, f"{tenth / 10:g}", "middle"))
        body.append(_line(px(tenth / 10), floor, px(tenth / 10), floor + 4, "axis"))
    body.append(_text(px(None), floor + 18, "never", "middle"))
    body.append(_text(left + inner / 2, height - 6, x_label, "middle", "label"))
    for i, group in enumerate(groups):
        y = top + each * i
        body.append(_text(0, y + 16, group.name, css="name"))
        if i < len(groups) - 1:
            body.append(_line(0, y + 60, width - right, y + 60, "grid"))
        seen: dict[float | None, int] = {}
        for value in sorted(group.values, key=lambda v: -1.0 if v is None else v):
            stack = seen.get(value, 0)
            seen[value] = stack + 1
            tip = f"{group.name}: {'never came back' if value is None else f'came back from t = {value:.3g}'}"
            x, high = px(value), y + 54 - 6.2 * min(stack, 4)
            body.append(_mark(x, high, SHAPES.get(group.css, "circle"), group.css, tip))
    return _svg(width, height, label, body)


def bars(groups: Sequence[tuple[str, int, int]], label: str, width: float, x_label: str) -> Markup:
    """(name, known, unknown) as stacked bars with the total above each."""
    left, right, top, bottom, height = 4.0, 4.0, 22.0, 46.0, 240.0
    most = max([a + b for _, a, b in groups] + [1])
    step, inner = (width - left - right) / len(groups), height - top - bottom
    floor = height - bottom
    body: list[Markup] = [_line(left, floor, width - right, floor, "axis")]
    for i, (name, known, unknown) in enumerate(groups):
        x, middle = left + i * step + step * 0.14, left + (i + 0.5) * step
        tall, low = known / most * inner, unknown / most * inner
        tip = f"{name}: {known + unknown:,} images, {known:,} of them known"
        for css, y, size in (("baseline", floor - low, low), ("model", floor - low - tall, tall)):
            if size:
                body.append(_tag("rect", x=x, y=y, width=step * 0.72, height=size, class_=f"bar {css}"))
        if known + unknown:
            body.append(_text(middle, floor - low - tall - 6, f"{known + unknown:,}", "middle"))
        first = name.split("–")[0]
        body.append(_text(middle, floor + 18, name if width > 500 else first, "middle"))
        column = {"x": left + i * step, "y": top, "width": step, "height": inner}
        body.append(_tag("rect", _tag("title", tip), **column, class_="column", data_tip=tip))
    body.append(_text(width / 2, height - 6, x_label, "middle", "label"))
    return _svg(width, height, label, body)
