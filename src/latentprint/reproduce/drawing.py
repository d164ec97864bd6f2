"""Line charts as SVG files that stand alone: for a page that is read on a code host, without style sheets.

Colours are those of the report's light palette on its paper, so that they hold in a dark page too; series
differ by their mark as well as by their colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from latentprint.report.palette import PALETTE

WIDTH, HEIGHT = 720.0, 360.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 16.0, 20.0, 52.0
_INKS = ("#1f4e79", "#94580a", "#1c6140", "#9a1f1c", "#6b675d", "#5b3a8c", "#2f6f73", "#7a4f00")


@dataclass(frozen=True)
class Line:
    """Points (x, y) and, where there are any, an interval around each y."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis from ``low`` to ``high`` (low > 0 where it is logarithmic)."""

    label: str
    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"an axis needs low < high, positive on a log axis, got {self.low} to {self.high}"
            )

    def place(self, value: float) -> float:
        """Where a value lies between 0 (low) and 1 (high); outside values at the ends."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, share))

    def ticks(self) -> list[float]:
        """Round values within the axis: powers of ten, or five to ten even steps of 1, 2 or 5."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            return [10.0**n for n in range(first, last + 1)]
        rough = (self.high - self.low) / 8
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [n * step for n in range(first, last + 1)]


def chart(lines: Sequence[Line], x: Axis, y: Axis, label: str) -> str:
    """The chart; ``label`` says in words what it shows.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not any(len(line.x) for line in lines):
        raise ValueError("a chart needs at least one point")
    if len(lines) > len(_INKS):
        raise ValueError(f"a chart holds up to {len(_INKS)} lines, got {len(lines)}")

    def px(value: float) -> float:
        return _LEFT + x.place(value) * (WIDTH - _LEFT - _RIGHT)

    def py(value: float) -> float:
        return HEIGHT - _BOTTOM - y.place(value) * (HEIGHT - _TOP - _BOTTOM)

    body = [*_frame(x, y, px, py)]
    for at, line in enumerate(lines):
        body += _drawn(line, at, px, py)
    body += [_legend(line.name, at, len(lines)) for at, line in enumerate(lines)]
    light = PALETTE["light"]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {HEIGHT + _foot(len(lines)):g}" '
        f'width="{WIDTH:g}" role="img" aria-label="{escape(label)}" '
        f'font-family="system-ui, sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="{light["paper"]}"/>{"".join(body)}</svg>\n'
    )


def _foot(count: int) -> float:
    return 20.0 * math.ceil(count / 4)


def _frame(x: Axis, y: Axis, px: Callable[[float], float], py: Callable[[float], float]) -> list[str]:
    light, floor = PALETTE["light"], HEIGHT - _BOTTOM
    ink, rule, axis = light["ink"], light["rule"], light["axis"]
    out: list[str] = []
    for value in y.ticks():
        at = py(value)
        out.append(f'<path d="M{_LEFT:g} {at:.1f}H{WIDTH - _RIGHT:g}" stroke="{rule}"/>')
        out.append(
            f'<text x="{_LEFT - 8:g}" y="{at + 4:.1f}" text-anchor="end" fill="{ink}">{value:g}</text>'
        )
    for value in x.ticks():
        at = px(value)
        out.append(f'<path d="M{at:.1f} {floor:g}v5" stroke="{axis}"/>')
        out.append(
            f'<text x="{at:.1f}" y="{floor + 19:g}" text-anchor="middle" fill="{ink}">{value:,g}</text>'
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    out.append(f'<path d="M{_LEFT:g} {floor:g}H{WIDTH - _RIGHT:g}" stroke="{axis}"/>')
    out.append(
        f'<text x="{middle:g}" y="{floor + 40:g}" text-anchor="middle" fill="{ink}">{escape(x.label)}</text>'
    )
    out.append(f'<text x="8" y="13" fill="{ink}">{escape(y.label)}</text>')
    return out


def _drawn(line: Line, at: int, px: Callable[[float], float], py: Callable[[float], float]) -> list[str]:
    ink = _INKS[at]
    points = [(px(a), py(b)) for a, b in zip(line.x, line.y, strict=True)]
    path = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
    out = [f'<path d="M{path}" fill="none" stroke="{ink}" stroke-width="1.8"/>'] if points else []
    for a, low, high in zip(line.x, line.low, line.high, strict=False):
        out.append(f'<path d="M{px(a):.1f} {py(low):.1f}V{py(high):.1f}" stroke="{ink}" opacity="0.55"/>')
    for (a, b), value, place in zip(points, line.y, line.x, strict=True):
        title = f"<title>{escape(line.name)}: {place:g}, {value:.4g}</title>"
        out.append(f'<path d="{_mark(at, a, b)}" fill="{ink}">{title}</path>')
    return out


def _mark(at: int, x: float, y: float) -> str:
    """Circle, diamond, square and triangle in turn."""
    shapes = (
        f"M{x - 3.5:.1f} {y:.1f}a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
        f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5-5z",
        f"M{x - 3.2:.1f} {y - 3.2:.1f}h6.4v6.4h-6.4z",
        f"M{x:.1f} {y - 4.5:.1f}l4.5 8h-9z",
    )
    return shapes[at % len(shapes)]


def _legend(name: str, at: int, count: int) -> str:
    x, y = _LEFT + (at % 4) * 160.0, HEIGHT + 4 + 20.0 * (at // 4)
    assert at < count
    text = f'<text x="{x + 12:g}" y="{y + 4:g}" fill="{PALETTE["light"]["ink"]}">{escape(name)}</text>'
    return f'<path d="{_mark(at, x, y)}" fill="{_INKS[at]}"/>{text}'
