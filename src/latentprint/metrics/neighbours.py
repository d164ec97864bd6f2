"""The nearest training images of each sampled image.

    distance(a, b) = sqrt( mean (a - b)^2 ),   pixels in [0, 1], so it lies in [0, 1]: the root of `error.mse`

By itself a distance says little; it needs its background. ``nearest(train, train, same=True)`` is how far
training images are from each other, ``nearest(heldout, train)`` how far an image is that was never trained
on.

Candidates come from |a|^2 + |b|^2 - 2 a.b in float64, block by block, so that memory is bounded whatever
the sizes; the distances of the chosen ones are then taken from the differences, because that formula
cancels where a = b.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Images = Tensor | NDArray[np.float32]

BLOCK = 2048
"""Rows of either side that are compared at once: 32 MiB of distances, with the images as float64 beside."""


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
    """The ``k`` nearest of ``reference`` (m, C, H, W) to each of ``queries`` (n, C, H, W), both in [-1, 1].

    Args:
        queries: the images asked about, an array or a tensor.
        reference: the images searched, an array or a tensor on the same device.
        k: how many neighbours.
        same: both are the same set in the same order, and no image is its own neighbour.
        block: rows of either side that are compared at once; it bounds memory only.

    Raises:
        ValueError: images of different shapes, fewer than k candidates, or ``same`` with different sizes.
    """
    queries, reference = torch.as_tensor(queries), torch.as_tensor(reference)
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
    parts = [
        _of_block(queries[first : first + block], reference, k, first if same else None, block)
        for first in range(0, len(queries), block)
    ]
    if not parts:
        empty = torch.empty((0, k), device=queries.device)
        return Neighbours(empty.double(), empty.long())
    return Neighbours(torch.cat([p.distance for p in parts]), torch.cat([p.index for p in parts]))


def _of_block(queries: Tensor, reference: Tensor, k: int, own: int | None, block: int) -> Neighbours:
    """``own`` is the place of the first query in the reference set, which no query may choose for itself."""
    flat = queries.flatten(1).double()
    norms = flat.square().sum(1, keepdim=True)
    best = torch.full((len(flat), 0), torch.inf, dtype=torch.float64, device=flat.device)
    index = torch.zeros((len(flat), 0), dtype=torch.int64, device=flat.device)
    for first in range(0, len(reference), block):
        other = reference[first : first + block].flatten(1).double()
        squared = norms + other.square().sum(1) - 2 * flat @ other.T
        places = torch.arange(first, first + len(other), device=flat.device).expand_as(squared)
        if own is not None:
            mine = torch.arange(own, own + len(flat), device=flat.device)[:, None]
            squared = torch.where(places == mine, torch.inf, squared)
        best, index = _least(torch.cat([best, squared], 1), torch.cat([index, places], 1), k)
    exact = torch.stack(
        [((flat - reference[index[:, j]].flatten(1).double()) / 2).square().mean(1).sqrt() for j in range(k)],
        1,
    )
    return Neighbours(*_least(exact, index, k))


def _least(distance: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k least distances of each row, in order, earlier columns first where they are equal."""
    order = distance.argsort(dim=1, stable=True)[:, :k]
    return distance.gather(1, order), index.gather(1, order)
