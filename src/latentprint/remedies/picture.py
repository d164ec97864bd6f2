"""Risk against quality, as one self-contained SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from latentprint.remedies.rows import Row
from latentprint.report.palette import PALETTE

_WIDTH, _HEIGHT, _LEFT, _BELOW, _EDGE = 720, 440, 70, 56, 24


def picture(rows: Sequence[Row]) -> str:
    """Rows of ``remedies.run`` as points: fewer copies to the left, a smaller Fréchet distance below."""
    shown = [(row, ends) for row in rows if (ends := _distance(row)) is not None]
    ink, rule, model, leak = (PALETTE["light"][name] for name in ("ink", "rule", "model", "leak"))
    least = min((1 / (2 * row.samples) for row, _ in shown), default=1e-3)
    first, last = math.floor(math.log10(least)), 0
    high = 1.1 * max((most for _, (_, _, most) in shown), default=1.0)

    def x(share: float) -> float:
        place = (math.log10(max(share, 10.0**first)) - first) / (last - first)
        return _LEFT + place * (_WIDTH - _LEFT - _EDGE)

    def y(fid: float) -> float:
        return _HEIGHT - _BELOW - fid / high * (_HEIGHT - _BELOW - _EDGE)

    body = [
        Markup('<rect width="{}" height="{}" fill="{}"/>').format(_WIDTH, _HEIGHT, PALETTE["light"]["paper"])
    ]
    for exponent in range(first, last + 1):
        at = x(10.0**exponent)
        label = "every sample" if exponent == 0 else f"1 in {10**-exponent:,}"
        body.append(_line(at, _EDGE, at, _HEIGHT - _BELOW, rule))
        body.append(_text(at, _HEIGHT - _BELOW + 18, label, ink, "end" if exponent == 0 else "middle"))
    for i in range(5):
        value = high * i / 4
        body.append(_line(_LEFT, y(value), _WIDTH - _EDGE, y(value), rule))
        body.append(_text(_LEFT - 8, y(value) + 4, f"{value:.2g}", ink, "end"))
    below = "share of samples that are copies of training images"
    body.append(_text(_WIDTH / 2, _HEIGHT - 12, below, ink, "middle"))
    body.append(_text(8, 15, "Frechet distance to held-out images", ink, "start"))
    for row, (fid, fid_low, fid_high) in shown:
        colour = leak if row.name == "none" else model
        share = row.copies / row.samples if row.samples else 0.0
        body.append(_line(x(row.copies_low), y(fid), x(row.copies_high), y(fid), colour))
        body.append(_line(x(share), y(fid_low), x(share), y(fid_high), colour))
        dot = '<circle cx="{:.1f}" cy="{:.1f}" r="4" fill="{}"/>'
        body.append(Markup(dot).format(x(share), y(fid), colour))
        right = x(share) > 0.75 * _WIDTH
        body.append(
            _text(
                x(share) + (-7 if right else 7),
                y(fid) - 6,
                row.name,
                ink,
                "end" if right else "start",
            )
        )
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img" font-family="sans-serif"'
        ' font-size="12" aria-label="Remedies: copies against quality">'
    )
    return str(Markup(head).format(_WIDTH, _HEIGHT) + Markup("\n").join(body) + Markup("</svg>\n"))


def _distance(row: Row) -> tuple[float, float, float] | None:
    """The Frechet distance and its interval; None where too few samples were left."""
    if row.fid is None or row.fid_low is None or row.fid_high is None:
        return None
    return row.fid, row.fid_low, row.fid_high


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> Markup:
    shape = '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="{}"/>'
    return Markup(shape).format(x1, y1, x2, y2, colour)


def _text(x: float, y: float, body: str, colour: str, anchor: str) -> Markup:
    shape = '<text x="{:.1f}" y="{:.1f}" fill="{}" text-anchor="{}">{}</text>'
    return Markup(shape).format(x, y, colour, anchor, escape(body))
