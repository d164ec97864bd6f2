"""The nearest training images after alignment, which finds copies that were changed.

    A(g, x) = sqrt( 1 - max_v corr(v g, x) )        v a flip, a shift, a change of size; corr over the overlap
    P(g, x) = sqrt( trimmed mean (x - a - b v g)^2 / var x )      at the best v, trimmed by 30 % of the pixels

Correlation ignores brightness and contrast; smoothing images to at most 16 pixels per side removes blur and
noise; trimming ignores a patch that was repainted. Neither value is small or large by itself. What counts is
the nearest training image compared with the fifth nearest (the fifth person's, if persons are known): an
image that was never trained on is not much nearer to one training image than to others.

Aligning with all N images would take too long, so candidates are selected first: by correlation without
alignment, in every flip, and by the size of the Fourier coefficients of the windowed image, which a shift
does not change.

Sources: Lewis 1995 (normalised cross-correlation); Rousseeuw 1984 (least trimmed squares); Carlini et al.
2023, section 4 (nearness relative to the nearest others).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from latentprint.attacks.nearest import Images, as_tensor
from latentprint.data.images import fits

FIFTH = 5
"""The rank of the training image with which the nearest is compared."""

_CANDIDATES = 12  # by each of the two ways; and the side below which one way is enough
_SMOOTH = 16  # images with more pixels per side are smoothed
_PATCHED = 8  # candidates for which the trimmed fit is computed
_TRIMMED = 0.3
_ZOOMS = (1.0, 0.9, 0.95, 1.05, 1.1)
_SHIFT = 0.1  # of the side
_GREY = 2 * (2 / 255) ** 2  # variance of two grey levels of 255; below it there is no picture
_VALUES = 2**24
_BLOCK = 1024
_SMALL: dict[int, tuple[int, Any]] = {
    2: (32, functional.adaptive_avg_pool2d),
    3: (16, functional.adaptive_avg_pool3d),
}


@dataclass(frozen=True)
class Aligned:
    """Training images prepared for alignment.

    Attributes:
        train: (N, C, *size), size of two or three dimensions, in [-1, 1].
        groups: (N,) numbers of the persons; None: each image is its own group.
    """

    train: Images
    groups: NDArray[np.int64] | None = None

    def columns(self, images: Images) -> Mapping[str, NDArray[Any]]:
        """Rows to keep of images (n, C, *size), (n,) each.

        ``aligned`` and ``patches`` are A and P divided by their values for the fifth nearest image, or by
        half of the usual values if that is larger. ``aligned_of`` and ``patches_of`` name the image.
        """
        prepared = _small(images, self._device)
        parts = [self._of_block(part) for part in prepared.split(_BLOCK)] or [self._of_block(prepared)]
        rows = {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}
        return {
            key: value
            for name, usual in self._usual.items()
            for key, value in (
                (name, _against(rows[name], np.maximum(rows[f"{name}_fifth"], usual / 2))),
                (f"{name}_of", rows[f"{name}_of"]),
            )
        }

    @cached_property
    def _usual(self) -> dict[str, float]:
        """The usual A and P to the fifth nearest: of up to 256 training images, each without itself."""
        some = np.unique(
            np.linspace(0, len(self.train) - 1, min(len(self.train), 256)).round().astype(np.int64)
        )
        found = self._of_block(_small(self.train[some], self._device), FIFTH + 1)
        return {name: float(np.median(found[f"{name}_fifth"])) for name in ("aligned", "patches")}

    @property
    def _device(self) -> torch.device:
        return self.train.device if isinstance(self.train, Tensor) else torch.device("cpu")

    @cached_property
    def _pooled(self) -> Tensor:
        return _pool(_smooth(_small(self.train, self._device)))

    @cached_property
    def _flat(self) -> Tensor:
        return _unit(self._pooled.flatten(1))

    @cached_property
    def _spectra(self) -> Tensor:
        return _unit(_spectrum(_small(self.train, self._device)))

    def _of_block(self, images: Tensor, rank: int = FIFTH) -> dict[str, NDArray[Any]]:
        smooth = _smooth(images)
        candidates = self._candidates(images, smooth)
        a, p = torch.empty(candidates.shape), torch.empty(candidates.shape)
        for rows, bank, mask in _banks(smooth):
            a[rows], p[rows] = _fitted(bank, mask, self._pooled.flatten(1)[candidates[rows]])
        index = candidates.cpu().numpy()
        group = index if self.groups is None else self.groups[index]
        return _ranked("aligned", a.numpy(), index, group, rank) | _ranked(
            "patches", p.numpy(), index, group, rank
        )

    def _candidates(self, images: Tensor, smooth: Tensor) -> Tensor:
        """Places (n, k) of training images that may be the nearest after alignment; one may occur twice."""
        flips = _flips(images.dim() - 2)
        few = max(images.shape[2:]) <= _CANDIDATES
        # Images of a dozen pixels per side have hardly any spectrum; their shifts are few enough to try.
        dimensions = images.dim() - 2
        shifts = list(itertools.product(range(-2, 3), repeat=dimensions)) if few else [(0,) * dimensions]
        stand = (_unit(_pool(_shifted(smooth, by).flip(over)).flatten(1)) for over in flips for by in shifts)
        if few:
            return self._best(stand, self._flat, 2 * _CANDIDATES)
        # A spectrum is the same after a flip over all axes: half of the flips are enough.
        moved = (_unit(_spectrum(images.flip(over))) for over in flips[: len(flips) // 2])
        first = self._best(stand, self._flat, _CANDIDATES)
        return torch.cat([first, self._best(moved, self._spectra, _CANDIDATES)], 1)

    def _best(self, variants: Iterator[Tensor], reference: Tensor, k: int) -> Tensor:
        """The k places (n, k) in ``reference`` (N, d) most similar to the best of the variants (n, d)."""
        every = torch.stack(list(variants))
        step = fits(every.shape[1:2], _VALUES)
        value = torch.empty((every.shape[1], 0), device=every.device)
        place = torch.empty((every.shape[1], 0), dtype=torch.int64, device=every.device)
        for first in range(0, len(reference), step):
            part = reference[first : first + step].T
            alike = every[0] @ part
            for one in every[1:]:
                alike = torch.maximum(alike, one @ part)
            top = alike.topk(min(k, alike.shape[1]), dim=1)
            value, place = torch.cat([value, top.values], 1), torch.cat([place, top.indices + first], 1)
            order = value.topk(min(k, value.shape[1]), dim=1).indices
            value, place = value.gather(1, order), place.gather(1, order)
        return place


def _small(images: Images, device: torch.device) -> Tensor:
    """(n, C, *size) of at most 32 pixels per side (16 in three dimensions), float32, by averaging."""
    sides = images.shape[2:]
    most, pool = _SMALL[len(sides)]
    if max(sides) <= most:
        return as_tensor(images).to(device, torch.float32)
    by = -(-max(sides) // most)
    size = [max(1, side // by) for side in sides]
    step = fits(images.shape[1:], _VALUES, most=_BLOCK)
    parts = (images[first : first + step] for first in range(0, max(1, len(images)), step))
    return torch.cat([pool(as_tensor(part).to(device, torch.float32), size) for part in parts])


def _smooth(images: Tensor) -> Tensor:
    """Smooth each axis of more than 16 pixels by 1/4, 1/2, 1/4; the border is repeated."""
    for axis in range(2, images.dim()):
        side = images.shape[axis]
        if side > _SMOOTH:
            before, after = (
                images.index_select(axis, (torch.arange(side, device=images.device) + by).clamp(0, side - 1))
                for by in (-1, 1)
            )
            images = (before + after) / 4 + images / 2
    return images


def _pool(images: Tensor) -> Tensor:
    """Halve sides above 16 (8 in three dimensions)."""
    if max(images.shape[2:]) <= (16 if images.dim() == 4 else 8):
        return images
    return functional.avg_pool2d(images, 2) if images.dim() == 4 else functional.avg_pool3d(images, 2)


def _unit(rows: Tensor) -> Tensor:
    """Rows minus their mean, with length 1; nearly zero for constant ones."""
    rows = rows - rows.mean(1, keepdim=True)
    return rows / (rows.square().sum(1, keepdim=True) + _GREY * rows.shape[1]).sqrt()


def _spectrum(images: Tensor) -> Tensor:
    """Square roots of the sizes of the 7 lowest Fourier coefficients per side, channels averaged: (n, d)."""
    grey = images.mean(1)
    axes = tuple(range(1, grey.dim()))
    window = torch.ones((), device=grey.device)
    for side in grey.shape[1:]:
        window = window[..., None] * torch.hann_window(side + 2, periodic=False, device=grey.device)[1:-1]
    mean = (grey * window).sum(axes, keepdim=True) / window.sum()
    sizes = torch.fft.rfftn((grey - mean) * window, dim=axes).abs().sqrt()
    for axis in axes[:-1]:
        low = min(7, (grey.shape[axis] - 1) // 2)
        kept = torch.arange(-low, low + 1, device=grey.device) % grey.shape[axis]
        sizes = sizes.index_select(axis, kept)
    return sizes[..., : min(8, sizes.shape[-1])].flatten(1)


def _flips(dimensions: int) -> list[tuple[int, ...]]:
    """All sets of spatial axes to flip; a set and its complement are half the list apart."""
    sets = [s for k in range(dimensions + 1) for s in itertools.combinations(range(-dimensions, 0), k)]
    half = [s for s in sets if -1 not in s]
    return [*half, *(tuple(a for a in range(-dimensions, 0) if a not in s) for s in half)]


def _shifted(images: Tensor, by: tuple[int, ...]) -> Tensor:
    """Shifted by so many pixels along each spatial axis, filled with 0."""
    if not any(by):
        return images
    out, to, source = torch.zeros_like(images), [slice(None)] * 2, [slice(None)] * 2
    for side, move in zip(images.shape[2:], by, strict=True):
        to.append(slice(max(0, -move), side + min(0, -move)))
        source.append(slice(max(0, move), side + min(0, move)))
    out[tuple(to)] = images[tuple(source)]
    return out


def _zoomed(images: Tensor, zoom: float) -> Tensor:
    """Enlarged by ``zoom``, filled with 0 from outside."""
    if zoom == 1.0:
        return images
    dimensions = images.dim() - 2
    rows = torch.eye(dimensions, dimensions + 1, device=images.device) / zoom
    grid = functional.affine_grid(rows.expand(len(images), -1, -1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _banks(images: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(rows, their variants (n, v, d), where these hold a picture (v, d)), as many as memory allows."""
    dimensions, reach = images.dim() - 2, max(2, round(_SHIFT * max(images.shape[2:])))
    flips = _flips(dimensions)
    moves = [
        (zoom, by)
        for zoom in _ZOOMS
        for by in itertools.product(
            range(-reach, reach + 1) if zoom == 1.0 else (-1, 0, 1), repeat=dimensions
        )
    ]
    ones = images.new_ones((1, *images.shape[1:]))
    step = fits((_pool(ones).numel(), len(moves), len(flips)), _VALUES)
    for first in range(0, len(images), step):
        rows = slice(first, first + step)
        bank, mask = list[Tensor](), list[Tensor]()
        for zoom, shifts in itertools.groupby(moves, key=lambda move: move[0]):
            whole = (_zoomed(ones, zoom) > 0.999).float()
            larger = _zoomed(images[rows], zoom) * whole
            for _, by in shifts:
                seen = (_pool(_shifted(whole, by)) > 0.999).float()
                moved = _pool(_shifted(larger, by)) * seen
                bank += [moved.flip(over).flatten(1) for over in flips]
                mask += [seen.flip(over).flatten(1) for over in flips]
        yield rows, torch.stack(bank, 1), torch.cat(mask)


def _fitted(bank: Tensor, mask: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """A and P (n, k) of variants (n, v, d), a picture where ``mask`` (v, d) is 1, with others (n, k, d)."""
    count = mask.sum(1)
    total, squares = bank.sum(2), bank.square().sum(2)
    other, others_squares = others @ mask.T, others.square() @ mask.T
    product = others @ bank.transpose(1, 2)
    shared = product - other * (total / count)[:, None]
    own = squares - total.square() / count + _GREY * count
    theirs = others_squares - other.square() / count + _GREY * count
    best, variant = (shared / (own[:, None] * theirs).sqrt()).max(2)
    patches = torch.full_like(best, torch.inf)
    _, few = best.topk(min(_PATCHED, best.shape[1]), dim=1)
    variant = variant.gather(1, few)
    rows = torch.arange(len(bank), device=bank.device)[:, None]
    patches.scatter_(1, few, _trimmed(bank[rows, variant], mask[variant], others[rows, few]))
    return (1 - best).clamp_min(0).sqrt(), patches


def _trimmed(variant: Tensor, mask: Tensor, other: Tensor) -> Tensor:
    """P (n, k) of (n, k, d): gain and offset by least trimmed squares, two steps of concentration."""
    keep, kept = mask, (mask.sum(2) * (1 - _TRIMMED)).long().clamp_min(1)
    residual = torch.zeros_like(other)
    for _ in range(2):
        n = keep.sum(2, keepdim=True)
        x = variant - (variant * keep).sum(2, keepdim=True) / n
        y = other - (other * keep).sum(2, keepdim=True) / n
        slope = (x * y * keep).sum(2, keepdim=True) / ((x.square() * keep).sum(2, keepdim=True) + _GREY * n)
        # A gain near zero would fit a flat patch of any image.
        residual = (y - slope.clamp(0.3, 3.0) * x).square()
        inside = residual.masked_fill(mask == 0, torch.inf)
        limit = inside.sort(2).values.gather(2, (kept - 1)[..., None])
        keep = (inside <= limit).float()
    n = mask.sum(2, keepdim=True)
    spread = ((other - (other * mask).sum(2, keepdim=True) / n).square() * mask).sum(2) / n[..., 0]
    return ((residual * keep).sum(2) / keep.sum(2) / (spread + _GREY)).sqrt()


def _ranked(
    name: str, values: NDArray[np.float32], index: NDArray[np.int64], group: NDArray[np.int64], wanted: int
) -> dict[str, NDArray[Any]]:
    """The nearest of each row, and the value of the ``wanted``-th group, or of the last; ties by index."""
    order = np.lexsort((index, values), axis=1)
    value = np.take_along_axis(values, order, 1)
    places, group = np.take_along_axis(index, order, 1), np.take_along_axis(group, order, 1)
    earlier = np.tril(np.ones((value.shape[1],) * 2, np.bool_), -1)
    new = ~((group[:, :, None] == group[:, None, :]) & earlier).any(2) & np.isfinite(value)
    rank = np.cumsum(new, 1)
    at = (rank == np.minimum(wanted, rank[:, -1:])).argmax(1)
    fifth = value[np.arange(len(value)), at]
    return {
        name: value[:, 0].astype(np.float64),
        f"{name}_of": places[:, 0].astype(np.int64),
        f"{name}_fifth": fifth.astype(np.float64),
    }


def _against(nearest: NDArray[np.float64], usual: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(nearest, usual, out=np.ones_like(nearest), where=usual > 0)
