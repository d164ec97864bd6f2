"""Drawn images that look like axial slices through a chest: any number of them, all different, none of a
person.

Image i is a pure function of (seed, i). With coordinates (x, y) in [-1, 1]^2 it is painted from back to front
with soft-edged ellipses,

    v <- v + m (g - v),   m = smoothstep of (1 - r) over the edge's width,   r^2 = (u / a)^2 + (w / b)^2,

where (u, w) is (x, y) relative to the ellipse's centre, rotated by its angle. The ellipses are body, rim of
fat, two lungs, heart, vessel, spine, organs below the lungs and a ring of ribs. Smooth and fine texture is
added, and the result is stored in 8 bits, so that these images are treated like real ones.

A volume is painted in the same way with ellipsoids in [-1, 1]^3: body, two lungs, heart, spine and organs.

Source: ours; the idea of an ellipse phantom is that of Shepp and Logan 1974.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentprint import keys

SIDE, SIDE3D = 28, 16
HELDOUT = 512
"""The number of held-out phantoms, whatever the number trained on."""

_RIBS = 12
_EDGE = 0.12  # width of the soft edge, in units of r


@dataclass(frozen=True)
class _Ellipse:
    x: float
    y: float
    a: float
    b: float
    angle: float
    grey: float  # 0 black, 1 white


def phantoms(count: int, side: int, seed: int, purpose: str) -> NDArray[np.uint8]:
    """Images 0 .. count - 1 of one purpose ("train" or "heldout"): (count, side, side) uint8."""
    images = np.empty((count, side, side), dtype=np.uint8)
    for i in range(count):
        images[i] = phantom(side, keys.generator(seed, f"phantom {purpose}", i))
    return images


def phantom(side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One image (side, side)."""
    centres: NDArray[np.float64] = np.arange(1.0, 2.0 * side, 2.0) / side - 1.0
    y, x = centres[:, None], centres[None]
    image = np.full((side, side), 0.02)
    for ellipse in _anatomy(rng):
        mask = _cover(ellipse, x, y)
        image += mask * (ellipse.grey - image)
    image += 0.05 * image * _smooth(rng.standard_normal((5, 5)), side)
    image += 0.015 * rng.standard_normal((side, side))
    return np.rint(255.0 * np.clip(image, 0.0, 1.0)).astype(np.uint8)


def phantom3d(side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One volume (side, side, side): slices from the feet to the head, rows from front to back."""
    centres: NDArray[np.float64] = np.arange(1.0, 2.0 * side, 2.0) / side - 1.0
    z, y, x = np.meshgrid(centres, centres, centres, indexing="ij")

    def draw(*ranges: tuple[float, float]) -> NDArray[np.float64]:
        return np.array([rng.uniform(low, high) for low, high in ranges])

    body, at = draw((1.1, 1.5), (0.56, 0.8), (0.74, 0.94)), draw((-0.06, 0.06), (-0.06, 0.06), (-0.06, 0.06))
    tissue = float(rng.uniform(0.4, 0.6))
    parts = [(at, body, tissue)]
    for lung in (-1, 1):
        where = draw((0.1, 0.3), (-0.1, 0.04), (0.36, 0.44)) * (1, 1, lung)
        parts.append((at + where, draw((0.5, 0.7), (0.28, 0.5), (0.2, 0.32)), float(rng.uniform(0.05, 0.18))))
    heart = at + draw((0.0, 0.2), (-0.18, 0.08), (-0.02, 0.2))
    parts.append(
        (heart, draw((0.2, 0.3), (0.16, 0.26), (0.16, 0.28)), tissue + float(rng.uniform(0.08, 0.2)))
    )
    spine = at + np.array([0.0, 0.62 * body[1], 0.0])
    parts.append((spine, np.array([2.0, *draw((0.1, 0.16), (0.1, 0.16))]), float(rng.uniform(0.8, 0.95))))
    for _ in range(4):
        organ = at + draw((-0.9, -0.3), (-0.3, 0.4), (-0.5, 0.5)) * (1, body[1], body[2])
        size = draw((0.12, 0.3), (0.12, 0.3), (0.12, 0.3))
        parts.append((organ, size, tissue + float(rng.uniform(-0.18, 0.24))))
    volume = np.full((side, side, side), 0.02)
    for centre, radii, grey in parts:
        away = ((one - c) / r for one, c, r in zip((z, y, x), centre, radii, strict=True))
        volume += _soft(np.sqrt(sum(one**2 for one in away))) * (grey - volume)
    volume += 0.015 * rng.standard_normal(volume.shape)
    return np.rint(255.0 * np.clip(volume, 0.0, 1.0)).astype(np.uint8)


def _anatomy(rng: np.random.Generator) -> list[_Ellipse]:
    def draw(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    x, y, tilt = draw(-0.06, 0.06), draw(-0.06, 0.06), draw(-0.12, 0.12)
    width, height, tissue = draw(0.74, 0.94), draw(0.56, 0.8), draw(0.4, 0.6)
    parts = [
        _Ellipse(x, y, width, height, tilt, draw(0.2, 0.34)),  # fat
        _Ellipse(x, y, width - draw(0.05, 0.12), height - draw(0.05, 0.12), tilt, tissue),
    ]
    vessel = draw(0.05, 0.08)
    air, lung_x = draw(0.05, 0.18), draw(0.36, 0.44) * width
    for side in (-1, 1):
        parts.append(
            _Ellipse(
                x + side * lung_x,
                y + draw(-0.1, 0.04),
                draw(0.26, 0.36) * width,
                draw(0.5, 0.68) * height,
                side * draw(0.0, 0.3) + tilt,
                air,
            )
        )
    parts.append(
        _Ellipse(
            x + draw(-0.02, 0.2),
            y + draw(-0.18, 0.08),
            draw(0.16, 0.28),
            draw(0.14, 0.26),
            draw(0, 3),
            tissue + draw(0.08, 0.2),
        )
    )
    parts.append(_Ellipse(x + draw(-0.14, 0.0), y + draw(0.12, 0.22), vessel, vessel, 0.0, tissue + 0.25))
    parts += [
        _Ellipse(
            x + draw(-0.5, 0.5) * width,
            y + draw(0.3, 0.7) * height,
            draw(0.08, 0.2),
            draw(0.06, 0.16),
            draw(0, 3),
            tissue + draw(-0.18, 0.24),
        )
        for _ in range(3)
    ]
    turn = draw(0.0, 2 * math.pi / _RIBS)
    for rib in range(_RIBS):
        at = turn + rib * 2 * math.pi / _RIBS
        parts.append(
            _Ellipse(
                x + 0.83 * width * math.cos(at),
                y + 0.83 * height * math.sin(at),
                draw(0.07, 0.12),
                draw(0.035, 0.05),
                at + math.pi / 2,
                draw(0.75, 0.9),
            )
        )
    parts.append(
        _Ellipse(x, y + 0.62 * height, draw(0.09, 0.14), draw(0.09, 0.14), 0.0, draw(0.8, 0.95))
    )  # spine
    return parts


def _cover(ellipse: _Ellipse, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of each pixel that the ellipse covers, 0 to 1."""
    cos, sin = math.cos(ellipse.angle), math.sin(ellipse.angle)
    dx, dy = x - ellipse.x, y - ellipse.y
    r = np.sqrt(((cos * dx + sin * dy) / ellipse.a) ** 2 + ((cos * dy - sin * dx) / ellipse.b) ** 2)
    return _soft(r)


def _soft(r: NDArray[np.float64]) -> NDArray[np.float64]:
    s = np.clip((1.0 - r) / _EDGE + 0.5, 0.0, 1.0)
    return s * s * (3.0 - 2.0 * s)


def _smooth(grid: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """A coarse square grid -> (side, side), bilinearly."""
    at = np.linspace(0.0, len(grid) - 1.0, side)
    weights = np.clip(1.0 - np.abs(at[:, None] - np.arange(len(grid))), 0.0, None)
    return weights @ grid @ weights.T
