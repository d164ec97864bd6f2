"""Copies made on purpose: would a criterion find them if a model gave them back like this?

    plain      as it is                             brightened  a fifth towards white
    flipped    left for right                       blurred     1, 4, 6, 4, 1 along each axis
    shifted    a fourteenth of each side, at least  repainted   half of each side from another image
               one pixel, in any direction          noisy       Gaussian, 5 % of the range
    rescaled   a tenth larger

The given generator draws every change, so the same generator plants the same copies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]


def _flipped(images: Pixels, rng: np.random.Generator) -> Pixels:
    del rng  # left for right is one change
    return images[..., ::-1]


def _moved(image: Pixels, by: tuple[int, ...]) -> Pixels:
    """One image (C, *size), shifted; the border is repeated."""
    for axis, move in enumerate(by, start=1):
        places = np.clip(np.arange(image.shape[axis]) + move, 0, image.shape[axis] - 1)
        image = np.take(image, places, axis)
    return image


def _shifted(images: Pixels, rng: np.random.Generator) -> Pixels:
    far = [max(1, round(side / 14)) for side in images.shape[2:]]
    signs = rng.choice([-1, 1], (len(images), len(far)))
    return np.stack(
        [_moved(one, tuple(np.multiply(far, s).tolist())) for one, s in zip(images, signs, strict=True)]
    )


def _rescaled(images: Pixels, rng: np.random.Generator) -> Pixels:
    del rng  # always a tenth larger
    for axis in range(2, images.ndim):
        side = images.shape[axis]
        at = np.clip((np.arange(side) + 0.5 - side / 2) / 1.1 + side / 2 - 0.5, 0, side - 1)
        low = np.floor(at).astype(np.int64)
        weight = (at - low).astype(np.float32).reshape(-1, *[1] * (images.ndim - 1 - axis))
        above = np.take(images, np.minimum(low + 1, side - 1), axis)
        images = np.take(images, low, axis) * (1 - weight) + above * weight
    return images


def _brightened(images: Pixels, rng: np.random.Generator) -> Pixels:
    del rng  # always by a fifth
    return images * np.float32(0.8) + np.float32(0.2)


def _blurred(images: Pixels, rng: np.random.Generator) -> Pixels:
    del rng  # one kernel
    for axis in range(2, images.ndim):
        side = images.shape[axis]
        out = np.zeros_like(images)
        for by, weight in zip(range(-2, 3), (1, 4, 6, 4, 1), strict=True):
            out += np.float32(weight / 16) * np.take(images, np.clip(np.arange(side) + by, 0, side - 1), axis)
        images = out
    return images


def _noisy(images: Pixels, rng: np.random.Generator) -> Pixels:
    return np.clip(images + rng.normal(0, 0.1, images.shape).astype(np.float32), -1, 1)


def _repainted(images: Pixels, rng: np.random.Generator) -> Pixels:
    out, others = images.copy(), np.roll(images, 1, axis=0)
    for image, other in zip(out, others, strict=True):
        first = [int(rng.integers(0, side - side // 2 + 1)) for side in image.shape[1:]]
        patch = (
            slice(None),
            *(slice(f, f + side // 2) for f, side in zip(first, image.shape[1:], strict=True)),
        )
        image[patch] = other[patch]
    return out


CHANGES: Mapping[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "plain": lambda images, rng: images,
    "flipped": _flipped,
    "shifted": _shifted,
    "noisy": _noisy,
    "rescaled": _rescaled,
    "brightened": _brightened,
    "blurred": _blurred,
    "repainted": _repainted,
}
"""By name: images (n, C, *size) in [-1, 1] and a generator -> their changed copies."""


def planted(images: Pixels, rng: np.random.Generator) -> dict[str, Pixels]:
    """Copies of images (n, C, *size) in [-1, 1], one set for each of ``CHANGES``.

    Raises:
        ValueError: fewer than 2 images, because one is repainted with another.
    """
    if len(images) < 2:
        raise ValueError(f"copies are planted of 2 images or more, got {len(images)}")
    return {
        name: np.ascontiguousarray(change(images, rng), dtype=np.float32) for name, change in CHANGES.items()
    }
