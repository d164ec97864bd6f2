"""Images that occur more than once: exact copies, and near copies by root-mean-square difference.

    rms(a, b) = sqrt( mean over channels and pixels of (a - b)^2 )        in the units of [-1, 1]

Within the training set they matter because a sampler that reproduces every training image equally often
returns one with c copies at the rate c / N, not 1 / N.

Between the two sets they matter more. Held-out images show what happens by chance: whatever resembles them is
an accident. An image of which the training set holds a copy cannot show that. Here a copy is an image within
an eighth of the usual difference, which is the median over pairs of training images:

    copy  <=>  min_j rms(heldout_i, train_j)  <=  median_{j < k} rms(train_j, train_k) / 8

The scale comes from the data, so the rule holds at any resolution, contrast and number of images, and it does
not change with the copies that it looks for. In sets without copies no image comes that near by chance: the
nearest of 359 held-out digits is at a sixth of the usual difference, the nearest of 512 phantoms at almost a
half.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentprint.data.images import DataError, Pixels, fits

NEAR = 0.02
"""The default tolerance: two and a half grey levels of 255, a difference that storing an image as JPEG can
cause."""

_VALUES = 2**22  # float64 values of images held at once (32 MiB)
_TILE = 256  # images compared with all others at once
_SLACK = 1e-6  # rms below which |a|^2 + |b|^2 - 2 a.b could misjudge a pair, which is then computed exactly


def copies_of(target: NDArray[np.float32], pixels: Pixels, tolerance: float = NEAR) -> NDArray[np.int64]:
    """Positions in ``pixels`` (N, C, H, W) of the images within ``tolerance`` of ``target`` (C, H, W),
    rising.

    Raises:
        DataError: shapes differ, or the tolerance is negative or not a number.
    """
    _require_tolerance(tolerance)
    if pixels.shape[1:] != target.shape:
        raise DataError(f"a target of shape {target.shape} cannot be compared with images {pixels.shape[1:]}")
    goal, near = target.reshape(-1), np.zeros(len(pixels), dtype=np.bool_)
    step = fits(target.shape, _VALUES)
    for start in range(0, len(pixels), step):
        some = pixels[start : start + step]
        near[start : start + step] = _rms(some.reshape(len(some), goal.size), goal) <= tolerance
    return np.flatnonzero(near)


@dataclass(frozen=True)
class Overlap:
    """Held-out images that are copies of training images, and so cannot show what happens by chance.

    Attributes:
        pairs: (held-out image, its nearest training image, their rms), by rising first entry.
        heldout: how many were compared.
        tolerance: the rms up to which an image counts as a copy.
    """

    pairs: tuple[tuple[int, int, float], ...]
    heldout: int
    tolerance: float

    @property
    def clean(self) -> NDArray[np.int64]:
        """Rising positions of the held-out images of which the training set holds no copy."""
        return np.setdiff1d(np.arange(self.heldout), [held for held, _, _ in self.pairs])

    @property
    def within_near(self) -> int:
        """How many lie within NEAR: no further than storing the same image again may move it."""
        return sum(rms <= NEAR for _, _, rms in self.pairs)

    def __str__(self) -> str:
        """One sentence for a reader; "" if there is no copy."""
        if not self.pairs:
            return ""
        return (
            f"{len(self.pairs)} of {self.heldout} held-out images are copies or near copies of training"
            f" images and were left out: they cannot show what comes back by chance. {self.within_near} of"
            f" them differ by {NEAR:g} at most, the others by up to {self.tolerance:.2g}, an eighth of what"
            " two training images usually do"
        )


def overlap(train: NDArray[np.float32], heldout: NDArray[np.float32]) -> Overlap:
    """The images of ``heldout`` (M, *shape) that are copies of an image of ``train`` (N, *shape).

    By exact rms in float64. Large images are first compared by sums of runs of their values. Their distance
    is never larger than that of the images (Cauchy-Schwarz), so nothing is missed.

    Raises:
        DataError: the shapes differ, or there is no training image.
    """
    if train.shape[1:] != heldout.shape[1:] or len(train) == 0:
        raise DataError(f"images {heldout.shape} cannot be compared with training images {train.shape}")
    size = math.prod(train.shape[1:])
    tolerance = usual_difference(train) / 8
    index, pairs = _index(_coarse(train)), list[tuple[int, int, float]]()
    for start in range(0, len(heldout), _TILE):
        tile = heldout[start : start + _TILE]
        far, near = index.radius_neighbors(_coarse(tile), (tolerance + _SLACK) * math.sqrt(size))
        for row, image in enumerate(tile.reshape(len(tile), size)):
            found = _nearest(image, train, near[row], far[row] / math.sqrt(size))
            if found is not None and found[1] <= tolerance:
                pairs.append((start + row, *found))
    return Overlap(tuple(pairs), len(heldout), tolerance)


def usual_difference(pixels: Pixels) -> float:
    """The median rms over pairs of images (N, *shape), from up to 512 of them evenly spaced; 0.0 for one
    image."""
    some = np.unique(np.linspace(0, len(pixels) - 1, min(len(pixels), 512)).round().astype(np.int64))
    if len(some) < 2:
        return 0.0
    from scipy.spatial.distance import pdist

    # A lower bound, slightly too small, for larger differences; one image at a time, for large volumes.
    coarse = np.concatenate([_coarse(pixels[i : i + 1], 2**16) for i in some])
    return float(np.median(pdist(coarse))) / math.sqrt(math.prod(pixels.shape[1:]))


def _coarse(images: Pixels, most: int = 1024) -> NDArray[np.float32]:
    """Images (N, *shape) -> (N, k), k <= most: sums of runs of values, each divided by the root of its
    length."""
    size = math.prod(images.shape[1:])
    run = -(-size // most)
    if run <= 1:
        return np.ascontiguousarray(images[:].reshape(len(images), size))
    out = np.empty((len(images), -(-size // run)), np.float32)
    step = fits(images.shape[1:], _VALUES)
    for first in range(0, len(images), step):
        tile = images[first : first + step].reshape(-1, size)
        sums = np.add.reduceat(tile, np.arange(0, size, run), axis=1, dtype=np.float64)
        out[first : first + step] = sums / math.sqrt(run)
    return out


def _nearest(
    image: NDArray[np.float32],
    train: NDArray[np.float32],
    candidates: NDArray[np.int64],
    bounds: NDArray[np.float64],
) -> tuple[int, float] | None:
    """The candidate nearest to an image, and their rms; no candidate is nearer than its bound."""
    best: tuple[int, float] | None = None
    for at in np.argsort(bounds, kind="stable"):
        if best is not None and bounds[at] > best[1] - _SLACK:
            break
        j = int(candidates[at])
        rms = float(_rms(train[j].reshape(1, -1), image)[0])
        if best is None or rms < best[1]:
            best = j, rms
    return best


def near_duplicates(pixels: Pixels, tolerance: float = NEAR) -> list[tuple[int, ...]]:
    """Groups of images that are copies of one another: rising positions in ``pixels`` (N, C, H, W).

    Groups are joined by single linkage: each member lies within ``tolerance`` of another member. 0.0 finds
    only exact copies. Memory is bounded whatever the number of copies. Images without a copy are in no group.

    Raises:
        DataError: the tolerance is negative or not a number.
    """
    _require_tolerance(tolerance)
    group = _exact(pixels)
    if tolerance > 0.0 and pixels.size > 0:
        group = _near(pixels, group, tolerance)
    members: dict[int, list[int]] = {}
    for i, g in enumerate(group.tolist()):
        members.setdefault(g, []).append(i)
    return [tuple(m) for m in members.values() if len(m) > 1]


def _rms(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    # Subtracted in float64: the difference of two equal pixels is exactly zero, so exact copies pass at
    # tolerance 0.
    return np.sqrt(np.mean((a.astype(np.float64) - b) ** 2, axis=1))


def _exact(pixels: Pixels) -> NDArray[np.int64]:
    """For each image, the position of the first one that equals it."""
    first: dict[bytes, int] = {}
    # Adding zero turns -0.0 into 0.0, which is equal but has other bytes.
    hashes = (
        blake2b((pixels[i] + np.float32(0.0)).tobytes(), digest_size=32).digest() for i in range(len(pixels))
    )
    return np.array([first.setdefault(h, i) for i, h in enumerate(hashes)], dtype=np.int64)


def _near(pixels: Pixels, group: NDArray[np.int64], tolerance: float) -> NDArray[np.int64]:
    """Join the groups of images within the tolerance; of exact copies only the first is compared.

    Sums of runs of values are no farther apart than the images, so comparing them first loses no pair.
    """
    distinct = np.unique(group)
    coarse, size = _coarse(pixels)[distinct], math.prod(pixels.shape[1:])
    index, whole = _index(coarse), coarse.shape[1] == size
    step = fits(pixels.shape[1:], _VALUES)
    far, sure = ((tolerance + slack) * math.sqrt(size) for slack in (_SLACK, -_SLACK))
    for start in range(0, len(distinct), _TILE):
        graph = index.radius_neighbors_graph(coarse[start : start + _TILE], far, mode="distance").tocoo()
        i, j = distinct[graph.row + start], distinct[graph.col]
        near = (graph.data <= sure) & whole
        group = _join(group, i[near], j[near])
        unsure = np.flatnonzero(~near & (i < j))
        while len(unsure := unsure[group[i[unsure]] != group[j[unsure]]]):
            some, unsure = unsure[:step], unsure[step:]
            a, b = (pixels[pair[some]].reshape(len(some), size) for pair in (i, j))
            near = _rms(a, b) <= tolerance
            group = _join(group, i[some][near], j[some][near])
    return group


def _index(flat: NDArray[np.float32]) -> Any:
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(algorithm="brute").fit(flat)


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
