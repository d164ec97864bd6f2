"""Samples only: an audit of generated images when the model itself cannot be had.

What can be done with n samples and the N images the model was trained on:

    hits            how many samples the detectors call positive, as counts: q with its interval
    nearest copies  the samples nearest to a training image, as ranked pairs
    background      the same distance from training image to training image, and from held-out to training
    FID             of the samples against both sets (latentprint.metrics.frechet)

A pixel distance alone misleads: smooth images are near to everything. So a sample is scored by two at once,

    score = max( d / D, r / R )      d  distance to the nearest training image
                                     r  d as a share of the mean distance to the nearest ten

with D and R the medians of d and r among the training images themselves (each against the others; of near
copies one is kept, else ten copies of an image would hide an eleventh). A sample is called a copy when its
score is below that of all but a share of the held-out images, which no model could have copied. Whether the
samples hold more such scores than held-out images do is an exact test: if samples and held-out images were
draws of one population, any order of their n + m scores would be as likely as any other, so

    P(k or more samples below the (j + 1)-th smallest of m held-out scores)
        = P(Hypergeometric(n + m, m, k + j) <= j)

taken at j = 0 and at j = floor(share m), the smaller doubled (Bonferroni). A few perfect copies among many
samples escape such a test; they need none: a sample within ``data.NEAR`` of a training image is that image
stored again, and counts wherever no held-out image is that near to one.

What cannot be done without the model, and is not: t' and its curve, the bridge and splitting, likelihood,
membership scores, and any statement about samples that were not drawn.

Sources: Meehan, Chaudhuri, Dasgupta 2020 (held-out distances as the background of copies); Carlini et al.
2023 (distance relative to the nearest others) and Somepalli et al. 2023; paper section 5.3 for the counts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats as scipy_stats  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from latentprint.adapters.files import refuse_pickle
from latentprint.attacks.nearest import nearest
from latentprint.data import NEAR, ImageSet, near_duplicates
from latentprint.data.images import DataError
from latentprint.data.load import read_all
from latentprint.networks import ModelError
from latentprint.stats import Trials

NAMES = ("samples", "images", "arr_0")
"""Names under which an .npz may hold samples."""

MIN_DISTINCT = 4
"""Distinct training images that a background needs: below, nearest neighbours say nothing."""

_NEAREST = 10
_hypergeometric = cast(Any, scipy_stats).hypergeom

CANNOT = (
    "t' cannot be searched: no reverse process can be started without the model",
    "q is counted only: the bridge and splitting need the model or its sampler",
    "likelihood and membership scores need the model",
    "nothing is known of samples that were not drawn: a rate up to the upper end of its interval could have "
    "been missed",
)
"""What an audit of samples leaves open, for the report."""


class Detects(Protocol):
    """A detector: images (B, C, H, W) -> probability (B,), firing from ``threshold`` on."""

    @property
    def name(self) -> str: ...

    @property
    def threshold(self) -> float: ...

    def __call__(self, images: Tensor, /) -> Tensor: ...


def open_samples(path: str | os.PathLike[str]) -> ImageSet:
    """Generated images, every one that a folder, .zip, .npz, .npy, Parquet file or saved dataset holds.

    Raises:
        ModelError: the path is a pickle.
        DataError: there is nothing there, or it is damaged, too large, of unlike images or of another type.
    """
    place = Path(path)
    refuse_pickle(place.name)
    kind = "a folder" if os.path.isdir(place) else f"an {place.suffix.lower()} file"
    return read_all(place, NAMES, f"{kind} of samples")


@dataclass(frozen=True)
class Pair:
    """A sample and the training image nearest to it.

    Attributes:
        sample, training: positions in their sets.
        distance: root mean squared difference in [0, 1] units.
        relative: the distance as a share of the mean distance to the nearest ten. Near 1, the sample is
            merely smooth, and close to many images; far below 1, it is close to this one.
        score: of the module's formula; 1 is what training images are to each other.
        copy: whether the score is below the threshold.
    """

    sample: int
    training: int
    distance: float
    relative: float
    score: float
    copy: bool


@dataclass(frozen=True)
class SamplesAudit:
    """What samples alone tell.

    Attributes:
        hits: samples on which every detector fired (Omega_p); None without detectors.
        fired: the same for each detector alone.
        pairs: the nearest pairs, smallest score first.
        threshold: the score below which a sample counts as a copy.
        copies: samples below it.
        expected: the share of samples below it if the model copied nothing: that of the held-out images.
        train_to_train, heldout_to_train: distances of each image to the nearest other training image.
        sample_to_train: distances of each sample, (n,).
        nearest: the training image nearest to each sample, (n,).
        distinct: how many training images the copies are of.
        repeated: training images that are near copies of others, of which one each was kept.
        same: samples within NEAR of a training image.
        same_expected: held-out images within NEAR of one.
        p_value: of the module's test of "samples are to training images as held-out images are".
        leaks: whether it is at most ``alpha``, or samples are training images and no held-out image is.
        alpha: see ``leaks``.
        cannot: what was not done, and why.
    """

    hits: Trials | None
    fired: Mapping[str, Trials]
    pairs: tuple[Pair, ...]
    threshold: float
    copies: Trials
    expected: Trials
    train_to_train: NDArray[np.float64]
    heldout_to_train: NDArray[np.float64]
    sample_to_train: NDArray[np.float64]
    nearest: NDArray[np.int64]
    distinct: int
    repeated: int
    same: Trials
    same_expected: Trials
    p_value: float
    leaks: bool
    alpha: float
    cannot: tuple[str, ...] = CANNOT


def audit_samples(
    samples: ImageSet,
    train: ImageSet,
    heldout: ImageSet,
    *,
    detectors: Sequence[Detects] = (),
    share: float = 0.01,
    alpha: float = 0.01,
    ranked: int = 20,
    device: torch.device | str = "cpu",
    batch: int = 256,
) -> SamplesAudit:
    """Counts, nearest copies and their background.

    Args:
        samples: what a model generated, of the shape of the images it was trained on.
        train: the images it was trained on.
        heldout: images that it was not trained on: how near an image comes by chance.
        detectors: c_p and c_id, or c_id alone; a sample is a hit where all fire.
        share: of the held-out images that the copy threshold lets through; with fewer than 1 / share of
            them the threshold is the smallest score of any.
        alpha: the chance, at most, with which a model that copies nothing is said to leak.
        ranked: pairs to give back.
        device: where distances are computed.
        batch: images at a time through the detectors.

    Raises:
        DataError: a set is too small, the shapes differ, or a number is out of range.
    """
    _require(samples, train, heldout, share, alpha, ranked)
    kept = _distinct(train)
    own = _Near.of(train.pixels[kept], train.pixels[kept], device, same=True)
    unit = (float(np.median(own.distance)), float(np.median(own.relative)))
    found = _Near.of(samples.pixels, train.pixels[kept], device)
    held = _Near.of(heldout.pixels, train.pixels[kept], device)
    score, background = found.score(unit), held.score(unit)
    threshold = copy_threshold(background, share)
    copies, index = score < threshold, kept[found.index]
    order = np.argsort(score, kind="stable")[:ranked].tolist()
    p_value = nearness_p_value(score, background, share)
    same, never = (Trials(int((one.distance <= NEAR / 2).sum()), len(one.distance)) for one in (found, held))
    fired = {d.name: _fired(d, samples, device, batch) for d in detectors}
    both = np.logical_and.reduce(list(fired.values())) if fired else None
    every = nearest(torch.from_numpy(train.pixels), torch.from_numpy(train.pixels), same=True)
    return SamplesAudit(
        hits=None if both is None else Trials(int(both.sum()), len(both)),
        fired={name: Trials(int(f.sum()), len(f)) for name, f in fired.items()},
        pairs=tuple(
            Pair(
                i,
                int(index[i]),
                float(found.distance[i]),
                float(found.relative[i]),
                float(score[i]),
                bool(copies[i]),
            )
            for i in order
        ),
        threshold=threshold,
        copies=Trials(int(copies.sum()), len(copies)),
        expected=Trials(int((background < threshold).sum()), len(background)),
        train_to_train=every.distance[:, 0].numpy(),
        heldout_to_train=held.distance,
        sample_to_train=found.distance,
        nearest=index,
        distinct=len(np.unique(index[copies])),
        repeated=len(train) - len(kept),
        same=same,
        same_expected=never,
        p_value=p_value,
        leaks=p_value <= alpha or (same.k > 0 and never.k == 0),
        alpha=alpha,
    )


@dataclass(frozen=True)
class _Near:
    """Of each image: the nearest reference, its distance, and that as a share of the nearest ten; (n,)."""

    index: NDArray[np.int64]
    distance: NDArray[np.float64]
    relative: NDArray[np.float64]

    @staticmethod
    def of(
        images: NDArray[np.float32],
        reference: NDArray[np.float32],
        device: torch.device | str,
        *,
        same: bool = False,
    ) -> _Near:
        k = min(_NEAREST, len(reference) - 1)  # one less: a training image is no neighbour of its own
        given, others = torch.from_numpy(images).to(device), torch.from_numpy(reference).to(device)
        found = nearest(given, others, k, same=same)
        distance = found.distance.cpu().numpy()
        mean = distance.mean(1)
        # reference images are distinct, so that no two of them can be at distance 0
        relative = np.divide(distance[:, 0], mean, out=np.ones(len(mean)), where=mean > 0)
        return _Near(found.index[:, 0].cpu().numpy(), distance[:, 0], relative)

    def score(self, unit: tuple[float, float]) -> NDArray[np.float64]:
        return np.maximum(self.distance / unit[0], self.relative / unit[1])


def _distinct(train: ImageSet) -> NDArray[np.int64]:
    """Positions of the training images, of each group of near copies the first alone.

    Raises:
        DataError: fewer than MIN_DISTINCT are left.
    """
    later = [i for group in near_duplicates(train.pixels) for i in group[1:]]
    kept = np.setdiff1d(np.arange(len(train)), later)
    if len(kept) < MIN_DISTINCT:
        raise DataError(
            f"nearest copies need {MIN_DISTINCT} training images that are no copies of each other, got"
            f" {len(kept)}"
        )
    return kept


def nearness_p_value(
    samples: NDArray[np.float64], heldout: NDArray[np.float64], share: float = 0.01
) -> float:
    """The module's exact test on the scores (n,) of samples and (m,) of held-out images; ties count against.

    Raises:
        DataError: see ``copy_threshold``.
    """
    n, m = len(samples), len(heldout)
    found = list[float]()
    for j in {0, _rank(m, share)}:
        k = int((samples < np.sort(heldout)[j]).sum())
        found.append(float(_hypergeometric.cdf(j, n + m, m, k + j)) if k else 1.0)
    return min(1.0, 2 * min(found))


def _rank(count: int, share: float) -> int:
    """floor(share count), with room for the rounding of the product.

    Raises:
        DataError: no images, or a share outside (0, 1).
    """
    if count == 0 or not 0 < share < 1:
        raise DataError(
            f"a copy threshold needs held-out images and a share between 0 and 1, got {count} and {share}"
        )
    return math.floor(share * count + 1e-9)


def copy_threshold(heldout: NDArray[np.float64], share: float) -> float:
    """The score below which lie no more than floor(share m) of the m held-out images.

    Raises:
        DataError: no held-out images, or a share outside (0, 1).
    """
    rank = _rank(len(heldout), share)
    return float(np.sort(heldout)[rank])


def _fired(detector: Detects, samples: ImageSet, device: torch.device | str, batch: int) -> NDArray[np.bool_]:
    parts = list[NDArray[np.bool_]]()
    with torch.no_grad():
        for first in range(0, len(samples), batch):
            images = torch.from_numpy(samples.pixels[first : first + batch]).to(device)
            parts.append((detector(images) >= detector.threshold).cpu().numpy())
    return np.concatenate(parts)


def _require(
    samples: ImageSet, train: ImageSet, heldout: ImageSet, share: float, alpha: float, ranked: int
) -> None:
    if not samples.shape == train.shape == heldout.shape:
        shapes = (samples.shape, train.shape, heldout.shape)
        raise DataError(f"samples, training and held-out images must have one shape, got {shapes}")
    if len(samples) < 1 or len(train) < 2 or len(heldout) < 1:
        sizes = (len(samples), len(train), len(heldout))
        raise DataError(
            f"an audit of samples needs 1 sample, 2 training and 1 held-out image or more, got {sizes}"
        )
    if not (0 < share < 1 and 0 < alpha < 1 and ranked >= 0):
        raise DataError(f"share and alpha lie between 0 and 1, got {share} and {alpha}, with {ranked} pairs")


__all__ = [
    "CANNOT",
    "DataError",
    "Detects",
    "ModelError",
    "Pair",
    "SamplesAudit",
    "audit_samples",
    "copy_threshold",
    "nearness_p_value",
    "open_samples",
]
