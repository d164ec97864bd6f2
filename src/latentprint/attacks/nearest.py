"""The nearest training images of each image: an exact comparison of all pairs in bounded memory.

    distance(a, b) = sqrt( mean (a - b)^2 ),   pixels in [0, 1], so it lies in [0, 1]: the root of `error.mse`

A distance alone says little. It must be compared with the distances between training images (``same=True``),
and with those of images that were never trained on.

Candidates come from |b|^2 / 2 - a.b in float32, block by block, with the mean subtracted from the images;
there are a few more candidates than asked for. Their distances are then computed from the differences in
float64. The products err by at most ``_SURE sqrt(d) 2^-24`` of their size with probability 1 - 4e-22 (Higham
and Mary 2019, Theorem 3.1 with lambda = 10). A row whose candidates may lack a nearer image by that bound is
searched again in float64. So the answer is that of the slow method, whatever the block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentprint.data.images import Pixels, Selection, fits

Images = Tensor | Pixels

BLOCK = 4096
"""Most rows of either side that are compared at once: 64 MiB of products."""

TEN = 10
"""Nearest images whose mean distance measures how dense the training images are there (Carlini et al.
2023)."""

_VALUES = 2**24
"""Most pixels of either side that are held as float32 at once (64 MiB)."""

_MORE = 5
_SURE = 10.0


@dataclass(frozen=True)
class Neighbours:
    """The k nearest reference images of each query, nearest first.

    Attributes:
        distance: (n, k) float64, root mean squared difference in [0, 1] units.
        index: (n, k) int64, into the reference set; of equally near ones the lowest.
    """

    distance: Tensor
    index: Tensor


def nearest(
    queries: Images, reference: Images, k: int = 1, *, same: bool = False, block: int = BLOCK
) -> Neighbours:
    """The ``k`` nearest of ``reference`` (m, *shape) to each of ``queries`` (n, *shape), both in [-1, 1].

    Time is linear in n, m and pixels; all threads that torch has are used.

    Args:
        queries: the images asked about, an array (memory-mapped too) or a tensor.
        reference: the images searched, an array or a tensor; compared where the queries are.
        k: how many neighbours.
        same: both are the same set in the same order; an image is not its own neighbour.
        block: most rows of either side that are compared at once; it only bounds memory.

    Raises:
        ValueError: images of different shapes, fewer than k candidates, or ``same`` with different sizes.
    """
    candidates = len(reference) - same
    if queries.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"both sets need images of one shape, got {tuple(queries.shape[1:])} "
            f"and {tuple(reference.shape[1:])}"
        )
    if same and len(queries) != len(reference):
        raise ValueError(f"a set has one size, got {len(queries)} and {len(reference)}")
    if not 1 <= k <= candidates:
        raise ValueError(f"k must lie between 1 and the {candidates} candidates, got {k}")
    step = fits(reference.shape[1:], _VALUES, most=block)
    place = queries.device if isinstance(queries, Tensor) else torch.device("cpu")
    centre = _flat(reference[:step]).to(place).mean(0)
    parts = [
        _of_block(_flat(queries[first : first + step]), reference, centre, k, first if same else None, step)
        for first in range(0, len(queries), step)
    ]
    if not parts:
        return Neighbours(torch.empty((0, k), dtype=torch.float64), torch.empty((0, k), dtype=torch.int64))
    return Neighbours(torch.cat([p.distance for p in parts]), torch.cat([p.index for p in parts]))


def columns(images: Images, reference: Images) -> Mapping[str, NDArray[Any]]:
    """Rows to keep of each image (n, *shape), compared with the reference (m, *shape), m at least 2.

    Columns (n,): ``nearest`` and ``second``, places of the two nearest; ``distance`` and ``second_distance``,
    how far they are; ``ten``, the mean distance of the ten nearest, or of all.

    Raises:
        ValueError: see ``nearest``.
    """
    found = nearest(images, reference, min(TEN, len(reference)))
    distance, index = found.distance.cpu().numpy(), found.index.cpu().numpy()
    return {
        "nearest": index[:, 0],
        "second": index[:, 1],
        "distance": distance[:, 0],
        "second_distance": distance[:, 1],
        "ten": distance.mean(1),
    }


def as_tensor(images: Images) -> Tensor:
    """The same as a tensor; read-only arrays (memory-mapped ones) are copied, as torch needs it."""
    if isinstance(images, Selection):
        images = images[:]
    return (
        images
        if isinstance(images, Tensor)
        else torch.from_numpy(np.require(images, requirements=["C", "W"]))
    )


def _flat(images: Images) -> Tensor:
    return as_tensor(images).flatten(1)


def _of_block(
    queries: Tensor, reference: Images, centre: Tensor, k: int, own: int | None, step: int
) -> Neighbours:
    """``own`` is the place of the first query in the reference set; no query may choose itself."""
    count, size = len(reference), queries.shape[1]
    more = min(count - (own is not None), k + _MORE)
    q = queries.float() - centre.float()
    best, index = _none(len(q), torch.float32, q.device)
    largest = torch.zeros((), device=q.device)
    for first in range(0, count, step):
        r = _flat(reference[first : first + step]).to(q.device).float() - centre.float()
        half = r.square().sum(1) / 2
        largest = torch.maximum(largest, half.max())
        best, index = _merged(best, index, torch.addmm(half, q, r.T, alpha=-1), first, own, more)
    exact = _exact(queries, reference, index)
    found = Neighbours(*_least(exact, index, k))
    if more < count - (own is not None):
        # A reference image left out has a product no less than that of the last one kept. Minus the error of
        # both, this bounds its distance from below.
        norm = q.double().square().sum(1)
        top = (2.0 * largest.double()).sqrt()
        error = _SURE * size**0.5 * 2.0**-24 * top * (norm.sqrt() + top)
        bound = norm + 2 * (best[:, -1].double() - 2 * error)
        unsure = (found.distance[:, -1] * 2).square() * size >= bound
        if bool(unsure.any()):
            rows = unsure.nonzero()[:, 0]
            mine = None if own is None else rows + own
            again = _slow(queries[rows], reference, k, mine, step)
            found.distance[rows], found.index[rows] = again.distance, again.index
    return found


def _slow(queries: Tensor, reference: Images, k: int, own: Tensor | None, step: int) -> Neighbours:
    """The k nearest, by differences in float64 alone; ``own`` (n,): what each query may not choose."""
    best, index = _none(len(queries), torch.float64, queries.device)
    flat = queries.double()
    for first in range(0, len(reference), step):
        other = _flat(reference[first : first + step]).to(flat.device).double()
        apart = torch.cdist(flat, other, compute_mode="donot_use_mm_for_euclid_dist")
        places = torch.arange(first, first + len(other), device=flat.device).expand_as(apart)
        if own is not None:
            apart = apart.masked_fill(places == own[:, None], torch.inf)
        best, index = _least(torch.cat([best, apart], 1), torch.cat([index, places], 1), k)
    return Neighbours(*_least(_exact(queries, reference, index), index, k))


def _none(rows: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    return (
        torch.empty((rows, 0), dtype=dtype, device=device),
        torch.empty((rows, 0), dtype=torch.int64, device=device),
    )


def _merged(
    best: Tensor, index: Tensor, products: Tensor, first: int, own: int | None, k: int
) -> tuple[Tensor, Tensor]:
    """The k least products of each row, among those so far and the block that begins at ``first``."""
    if own is not None:
        rows = torch.arange(len(products), device=products.device)
        place = rows + own - first
        inside = (place >= 0) & (place < products.shape[1])
        products[rows[inside], place[inside]] = torch.inf
    value, place = products.topk(min(k, products.shape[1]), dim=1, largest=False)
    return _least(torch.cat([best, value], 1), torch.cat([index, place + first], 1), k)


def _exact(queries: Tensor, reference: Images, index: Tensor) -> Tensor:
    """Distances (n, k) of each query to the reference images ``index`` (n, k), from their differences."""
    flat = queries.double()
    out = torch.empty(index.shape, dtype=torch.float64, device=flat.device)
    places = index.cpu()  # once: on a GPU each copy waits for what was asked of it before
    for j in range(index.shape[1]):
        at = places[:, j]
        taken = reference[at] if isinstance(reference, Tensor) else reference[at.numpy()]
        other = _flat(taken).to(flat.device)
        out[:, j] = ((flat - other.double()) / 2).square().mean(1).sqrt()
    return out


def _least(distance: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k least distances of each row, in order; among equal ones the lowest index first."""
    by_place = index.argsort(dim=1)
    distance, index = distance.gather(1, by_place), index.gather(1, by_place)
    order = distance.argsort(dim=1, stable=True)[:, :k]
    return distance.gather(1, order), index.gather(1, order)
