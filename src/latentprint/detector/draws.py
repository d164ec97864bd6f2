"""What the detectors are shown: images with and without a mark, as a sampler would return them.

    x' = clip( (1 - w) x + w y + s e ),   w up to 0.1, y another image, s up to the noise set, e ~ N(0, I)

is what a reverse diffusion that comes close to x returns: a little of its neighbours and a little noise. True
positives are counted on such images. Images of the fit are also augmented with AugMix (Hendrycks et al. 2020,
torchvision's), and for c_id x_p and its rivals are put under random circular masks (paper section 5.2 and
appendix A).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentprint.data import ImageSet, near_duplicates
from latentprint.data.images import Pixels, Selection
from latentprint.detector.model import DetectorError
from latentprint.fingerprint import Fingerprint, FingerprintKind
from latentprint.stats import Unit

Rng = np.random.Generator

AUGMENTED_TOGETHER = 16
"""AugMix draws its operations once for so many images; a call per image would take most of the fit's time."""

_BLEND = 0.1

KEPT = 2**24
"""Values of images with noise that are kept and not made again (64 MiB)."""

MOST_COMPARED = 30_000
"""Images up to which all pairs are compared for near copies; more would take minutes."""


@dataclass(frozen=True)
class Parts:
    """Indices of the four disjoint parts of a set of images."""

    fit: NDArray[np.int64]
    validation: NDArray[np.int64]
    calibration: NDArray[np.int64]
    test: NDArray[np.int64]


def units_of(*sets: ImageSet) -> tuple[NDArray[np.int64], Unit]:
    """To whom each image of the sets belongs, (n,), and the unit: a person if all are known, otherwise an
    image.

    Near copies count as one image. Above MOST_COMPARED images they are not looked for.
    """
    known = [one.identities for one in sets if one.identities is not None]
    persons = len(known) == len(sets)
    pixels = Selection.of(*(one.pixels for one in sets))
    whose = np.arange(len(pixels))
    if persons:
        whose = np.unique([name for names in known for name in names], return_inverse=True)[1]
    for group in near_duplicates(pixels) if len(pixels) <= MOST_COMPARED else ():
        together = whose[list(group)]
        whose[np.isin(whose, together)] = together.min()
    return whose.astype(np.int64), "person" if persons else "image"


def split(units: NDArray[np.int64], rng: Rng, test: float = 0.20) -> Parts:
    """10 % to stop on, 15 % for the threshold, ``test`` to count errors on, the rest to fit on; none empty.

    ``units`` (n,) says to whom each image belongs. Shares are of units, and all images of a unit are in one
    part.
    """
    names, whose = np.unique(units, return_inverse=True)
    if len(names) < 4:
        raise DetectorError(
            f"the {len(units)} images are of {len(names)} different persons or near copies of each other; 4"
            " or more are needed to fit a recogniser and to count its errors on others"
        )
    sizes = [max(1, round(share * len(names))) for share in (0.10, 0.15, test)]
    ends = np.cumsum([*sizes[:2], min(sizes[2], len(names) - sum(sizes[:2]) - 1)])
    place = np.empty(len(names), np.int64)
    order = rng.permutation(len(names))
    place[order] = np.searchsorted(ends, np.arange(len(names)), side="right")
    # In the order of the draw, so that the order of the file has no influence.
    rows = np.argsort(np.argsort(order)[whose], kind="stable").astype(np.int64)
    validation, calibration, tested, fit = (rows[place[whose[rows]] == i] for i in range(4))
    return Parts(fit, validation, calibration, tested)


Look = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Places (n,) -> the images there, (n, C, *sides), as an array of their own."""


@dataclass(frozen=True, eq=False)
class Shown:
    """Images as a recogniser sees them, made from others whenever they are looked at.

    A set of large images is never in memory as a whole. Each look at images with noise draws the same noise
    again; what takes little memory is kept.

    Attributes:
        look: the images that these are made from.
        shape: (C, *sides) of one.
        places: (n,) which of them.
        marks: those under a fingerprint, by their number from 0 to n - 1.
    """

    look: Look
    shape: tuple[int, ...]
    places: NDArray[np.int64]
    marks: Mapping[int, Fingerprint] = field(default_factory=dict[int, Fingerprint])

    @classmethod
    def of(cls, images: Pixels, places: NDArray[np.int64] | None = None) -> Shown:
        """The images (m, C, *sides) at these places, or all of them."""
        chosen = np.arange(len(images)) if places is None else places.astype(np.int64)
        return cls(lambda rows: images[rows], images.shape[1:], chosen)

    def __len__(self) -> int:
        return len(self.places)

    def at(self, numbers: NDArray[np.int64]) -> Shown:
        """The images of these numbers, in that order."""
        marks = {i: self.marks[n] for i, n in enumerate(numbers.tolist()) if n in self.marks}
        return replace(self, places=self.places[numbers], marks=marks)

    def marked(self, kind: FingerprintKind, rng: Rng, numbers: NDArray[np.int64] | None = None) -> Shown:
        """Those of these numbers, or all, under a fingerprint of their own."""
        chosen = range(len(self)) if numbers is None else numbers.tolist()
        return replace(self, marks={**self.marks, **{i: kind.draw(self.shape[1:], rng) for i in chosen}})

    def masked(self, share: float, kind: FingerprintKind, rng: Rng) -> Shown:
        """About ``share`` of them under a fingerprint, drawn separately for each."""
        return self.marked(kind, rng, np.flatnonzero(rng.random(len(self)) < share))

    def __getitem__(self, numbers: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """The images of these numbers, (n, C, *sides)."""
        chosen = np.arange(len(self))[numbers]
        out = self.look(self.places[chosen])
        for i, n in enumerate(chosen.tolist()):
            if n in self.marks:
                out[i] = self.marks[n].apply(out[i])
        return out

    def together(self, most: int) -> Iterator[NDArray[np.float32]]:
        """All images in their order, ``most`` at a time."""
        for first in range(0, max(1, len(self)), most):
            yield self[first : first + most]


@dataclass(frozen=True, eq=False)
class Perturbed:
    """Images with noise, which is drawn in their order.

    Attributes:
        shown: the images before.
        spread: (n,) the deviation of the noise of each.
        rng: draws the noise; it stays at the first image.
        blend: the images (m, C, *sides) that are blended in, which one into each (n,), and its weights (n,).
    """

    shown: Shown
    spread: NDArray[np.float64]
    rng: Rng
    blend: tuple[Pixels, NDArray[np.int64], NDArray[np.float64]] | None = None
    kept: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.shown)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *sides) of one image."""
        return self.shown.shape

    def together(self, most: int) -> Iterator[NDArray[np.float32]]:
        """All images in their order, ``most`` at a time."""
        if self.kept is not None:
            yield from (self.kept[first : first + most] for first in range(0, max(1, len(self)), most))
            return
        yield from self._made(copy.deepcopy(self.rng), most)

    def once(self, most: int) -> Iterator[NDArray[np.float32]]:
        """The same for images that are looked at once; the generator moves on with them."""
        return self._made(self.rng, most)

    def fixed(self) -> Perturbed:
        """The same for images that are looked at again; the generator moves on as if they were seen."""
        before = copy.deepcopy(self.rng)
        few = len(self) * math.prod(self.shape) <= KEPT
        kept = np.empty((len(self), *self.shape), np.float32) if few else None
        for first, image in enumerate(self._made(self.rng, 1) if len(self) else ()):
            if kept is not None:
                kept[first] = image[0]
        return replace(self, rng=before, kept=kept)

    def _made(self, rng: Rng, most: int) -> Iterator[NDArray[np.float32]]:
        for first in range(0, max(1, len(self)), most):
            out = self.shown[first : first + most]
            for i, image in enumerate(out):  # in float64, one at a time
                n = first + i
                base: NDArray[Any] = image
                if self.blend is not None:
                    others, rival, weight = self.blend
                    base = (1 - weight[n]) * image + weight[n] * others[int(rival[n])]
                noise = self.spread[n] * rng.standard_normal(image.shape)
                out[i] = np.clip(base + noise, -1, 1)
            yield out


Seen = Shown | Perturbed


def returned(shown: Shown, others: Pixels, noise: float, rng: Rng) -> Perturbed:
    """Images as reverse diffusion would return them; ``others`` are blended in."""
    n = len(shown)
    weight = rng.uniform(0, _BLEND, n)
    rival = rng.integers(len(others), size=n) if n else np.zeros(0, np.int64)
    return Perturbed(shown, rng.uniform(0, noise, n), rng, (others, rival, weight)).fixed()


def noisy(shown: Shown, noise: float, rng: Rng) -> Perturbed:
    """Additive Gaussian noise of a deviation uniform in [0, noise] per image; not drawn yet."""
    return Perturbed(shown, rng.uniform(0, noise, len(shown)), rng)


def half_marked(
    shown: Shown, share: float, kind: FingerprintKind, rng: Rng
) -> tuple[Shown, NDArray[np.float32]]:
    """``share`` of the images marked, at least one and not all; and which ones, as labels (n,)."""
    count = min(max(1, round(share * len(shown))), max(1, len(shown) - 1))
    labels = np.zeros(len(shown), np.float32)
    labels[rng.permutation(len(shown))[:count]] = 1
    return shown.marked(kind, rng, np.flatnonzero(labels == 1)), labels


def augmix(shown: Shown, rng: Rng) -> Shown:
    """AugMix, in random groups of images that share their operations; the result is kept as bytes.

    The slices of a volume are all in one group.

    torchvision draws from torch's global generator, which is seeded here from ``rng`` and restored
    afterwards.
    """
    from torchvision.transforms import AugMix

    kept = np.empty((len(shown), *shown.shape), np.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        transform = AugMix()
        for group in _groups(rng.permutation(len(shown))):
            stored = np.round((shown[group] + 1) * 127.5).astype(np.uint8)
            planes = np.moveaxis(stored, 1, -3)
            flat = np.ascontiguousarray(planes.reshape(-1, *planes.shape[-3:]))
            changed = transform(torch.from_numpy(flat)).numpy().reshape(planes.shape)
            kept[group] = np.moveaxis(changed, -3, 1)
    return Shown(lambda rows: kept[rows].astype(np.float32) / 127.5 - 1, shown.shape, np.arange(len(kept)))


def _groups(order: NDArray[np.int64]) -> Sequence[NDArray[np.int64]]:
    return [order[first : first + AUGMENTED_TOGETHER] for first in range(0, len(order), AUGMENTED_TOGETHER)]
