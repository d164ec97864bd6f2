"""Images that occur more than once: exact copies, and near copies by root-mean-square difference.

    rms(a, b) = sqrt( mean over channels and pixels of (a - b)^2 )        in the units of [-1, 1]

They matter because a sampler that reproduces every training image equally often returns one with c copies at
the rate c / N, not 1 / N. By the Cauchy-Schwarz inequality |mean a - mean b| <= rms(a, b): sorted by their
means, images further apart than the tolerance need not be compared, and nothing is missed.
"""

from __future__ import annotations

import math
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from latentprint.data.images import DataError

NEAR = 0.02
"""The default tolerance: two and a half grey levels of 255, as storing an image again as JPEG may cause."""

_VALUES = 2**22  # float64 values of images held at once (32 MiB)
_TILE = 1024  # images compared with as many others at once


def copies_of(
    target: NDArray[np.float32], pixels: NDArray[np.float32], tolerance: float = NEAR
) -> NDArray[np.int64]:
    """Positions in ``pixels`` (N, C, H, W) of the images within ``tolerance`` of ``target`` (C, H, W),
    rising.

    Raises:
        DataError: shapes differ, or the tolerance is negative or not a number.
    """
    _require_tolerance(tolerance)
    if pixels.shape[1:] != target.shape:
        raise DataError(f"a target of shape {target.shape} cannot be compared with images {pixels.shape[1:]}")
    flat, goal = pixels.reshape(len(pixels), target.size), target.reshape(-1)
    near = np.zeros(len(flat), dtype=np.bool_)
    step = max(1, _VALUES // max(1, flat.shape[1]))
    for start in range(0, len(flat), step):
        near[start : start + step] = _rms(flat[start : start + step], goal) <= tolerance
    return np.flatnonzero(near)


def near_duplicates(pixels: NDArray[np.float32], tolerance: float = NEAR) -> list[tuple[int, ...]]:
    """Groups of images that are copies of one another: rising positions in ``pixels`` (N, C, H, W).

    A group is joined by single linkage: each member lies within ``tolerance`` of another member. 0.0 finds
    exact copies alone. Memory is bounded whatever the number of copies; images without a copy appear in no
    group.

    Raises:
        DataError: the tolerance is negative or not a number.
    """
    _require_tolerance(tolerance)
    flat = np.ascontiguousarray(pixels.reshape(len(pixels), math.prod(pixels.shape[1:])))
    group = _exact(flat)
    if tolerance > 0.0 and flat.size > 0:
        group = _near(flat, group, tolerance)
    members: dict[int, list[int]] = {}
    for i, g in enumerate(group.tolist()):
        members.setdefault(g, []).append(i)
    return [tuple(m) for m in members.values() if len(m) > 1]


def _rms(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    # Subtracted in float64: the difference of two equal pixels is exactly zero, so exact copies pass at
    # tolerance 0.
    return np.sqrt(np.mean((a.astype(np.float64) - b) ** 2, axis=1))


def _exact(flat: NDArray[np.float32]) -> NDArray[np.int64]:
    """For each row, the position of the first row that equals it."""
    first: dict[bytes, int] = {}
    # Adding zero turns -0.0 into 0.0, which is equal but has other bytes.
    hashes = (blake2b((row + np.float32(0.0)).tobytes(), digest_size=32).digest() for row in flat)
    return np.array([first.setdefault(h, i) for i, h in enumerate(hashes)], dtype=np.int64)


def _near(flat: NDArray[np.float32], group: NDArray[np.int64], tolerance: float) -> NDArray[np.int64]:
    """Joins the groups of rows within the tolerance, tile by tile along the images sorted by their means."""
    distinct = np.unique(group)
    means = flat[distinct].mean(axis=1, dtype=np.float64)
    order, means = distinct[np.argsort(means, kind="stable")], np.sort(means)
    # The slack covers the rounding of two means, so that a pair exactly at the tolerance is still compared.
    ends = np.searchsorted(means, means + tolerance + 1e-12, side="right")
    tile = max(1, min(_TILE, _VALUES // flat.shape[1]))
    for top in range(0, len(order), tile):
        rows = order[top : top + tile]
        for left in range(top, int(ends[top + len(rows) - 1]), tile):
            columns = order[left : left + tile]
            i, j = _pairs(flat[rows].astype(np.float64), flat[columns].astype(np.float64), tolerance)
            group = _join(group, rows[i], columns[j])
    return group


def _pairs(
    a: NDArray[np.float64], b: NDArray[np.float64], tolerance: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions (i, j) with rms(a_i, b_j) <= tolerance.

    |a|^2 + |b|^2 - 2 a.b decides all but the pairs at the edge of the tolerance, which its rounding could
    misjudge; those are measured again by their difference.
    """
    bound, size = tolerance**2 * a.shape[1], (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None]
    excess = size - 2.0 * (a @ b.T) - bound
    slack = 8 * a.shape[1] * np.finfo(np.float64).eps * (size + bound)
    inside = excess < -slack
    for i, j in np.argwhere(np.abs(excess) <= slack).tolist():
        inside[i, j] = np.sqrt(np.mean((a[i] - b[j]) ** 2)) <= tolerance
    found = np.nonzero(inside)
    return found[0], found[1]


def _join(group: NDArray[np.int64], i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.int64]:
    """Group numbers (N,) after the groups of rows i and j became one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(i), dtype=np.bool_)
    links = coo_array((ones, (group[i], group[j])), shape=(len(group), len(group)))
    _, component = connected_components(links, directed=False)
    return np.asarray(component, dtype=np.int64)[group]


def _require_tolerance(tolerance: float) -> None:
    if not tolerance >= 0.0:
        raise DataError(f"a tolerance must be a root-mean-square difference of 0 or more, got {tolerance}")
