"""What the detectors are shown: images with and without a mark, as a sampler would return them.

    x' = clip( (1 - w) x + w y + s e ),   w up to 0.1, y another image, s up to the noise set, e ~ N(0, I)

is what a reverse diffusion that comes close to x returns: a little of its neighbours and a little noise. True
positives are counted on such images. Images of the fit are also augmented with AugMix (Hendrycks et al. 2020,
torchvision's), and for c_id x_p and its rivals are put under random circular masks (paper section 5.2 and
appendix A).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from latentprint.data import ImageSet, near_duplicates
from latentprint.detector.model import DetectorError
from latentprint.fingerprint import FingerprintKind
from latentprint.stats import Unit

Pixels = NDArray[np.float32]
Rng = np.random.Generator

AUGMENTED_TOGETHER = 16
"""AugMix draws its operations once for so many images; a call per image would take most of the fit's time."""

_BLEND = 0.1

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
    pixels = np.concatenate([one.pixels for one in sets])
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


def marked(images: Pixels, kind: FingerprintKind, rng: Rng) -> Pixels:
    """Every image (n, C, *sides) with its own fingerprint."""
    out = np.empty_like(images)
    for place, image in enumerate(images):
        out[place] = kind.draw(images.shape[2:], rng).apply(image)
    return out


def half_marked(
    images: Pixels, share: float, kind: FingerprintKind, rng: Rng
) -> tuple[Pixels, NDArray[np.float32]]:
    """``share`` of the images marked, at least one and not all; and which ones, as labels (n,)."""
    count = min(max(1, round(share * len(images))), max(1, len(images) - 1))
    labels = np.zeros(len(images), np.float32)
    labels[rng.permutation(len(images))[:count]] = 1
    out = images.copy()
    out[labels == 1] = marked(images[labels == 1], kind, rng)
    return out, labels


def masked(images: Pixels, share: float, kind: FingerprintKind, rng: Rng) -> Pixels:
    """About ``share`` of the images under a fingerprint, drawn separately for each."""
    out, chosen = images.copy(), rng.random(len(images)) < share
    out[chosen] = marked(images[chosen], kind, rng)
    return out


def returned(images: Pixels, others: Pixels, noise: float, rng: Rng) -> Pixels:
    """Images (n, C, *sides) as reverse diffusion would return them; ``others`` are blended in."""
    if not len(images):
        return images
    weight = rng.uniform(0, _BLEND, len(images))
    rival = rng.integers(len(others), size=len(images))
    spread, out = rng.uniform(0, noise, len(images)), np.empty_like(images)
    for place, (w, y, s, image) in enumerate(zip(weight, rival, spread, images, strict=True)):
        out[place] = np.clip((1 - w) * image + w * others[y] + s * rng.standard_normal(image.shape), -1, 1)
    return out


def noisy(images: Pixels, noise: float, rng: Rng) -> Pixels:
    """Additive Gaussian noise of a deviation uniform in [0, noise] per image."""
    spread, out = rng.uniform(0, noise, len(images)), np.empty_like(images)
    for place, (s, image) in enumerate(zip(spread, images, strict=True)):  # in float64, one at a time
        out[place] = np.clip(image + s * rng.standard_normal(image.shape), -1, 1)
    return out


def augmix(images: Pixels, rng: Rng) -> Pixels:
    """AugMix on images (n, C, *sides) in [-1, 1], in random groups that share their operations.

    The slices of a volume are all in one group.

    torchvision draws from torch's global generator, which is seeded here from ``rng`` and restored
    afterwards.
    """
    from torchvision.transforms import AugMix

    out = np.empty_like(images)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        transform = AugMix()
        for group in _groups(rng.permutation(len(images))):
            stored = np.round((images[group] + 1) * 127.5).astype(np.uint8)
            planes = np.moveaxis(stored, 1, -3)
            flat = np.ascontiguousarray(planes.reshape(-1, *planes.shape[-3:]))
            changed = transform(torch.from_numpy(flat)).numpy().reshape(planes.shape)
            out[group] = np.moveaxis(changed, -3, 1).astype(np.float32) / 127.5 - 1
    return out


def _groups(order: NDArray[np.int64]) -> Sequence[NDArray[np.int64]]:
    return [order[first : first + AUGMENTED_TOGETHER] for first in range(0, len(order), AUGMENTED_TOGETHER)]
