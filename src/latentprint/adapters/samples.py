"""Samples only: an audit of generated images when the model itself cannot be had.

What can be done with n samples and the N images the model was trained on:

    hits            how many samples both detectors call positive, as counts: q with its interval, and what
    was missable nearest copies  the samples nearest to a training image, as ranked pairs
    background      the same distance from training image to training image, and from held-out image to
    training image FID             of the samples against both sets (latentprint.metrics.frechet)

A sample is called a copy when it is nearer to a training image than all but a share of the held-out images
are to theirs (which no model could have copied): the threshold is that quantile, and the share of samples
below it is compared with the share that chance gives. The distances between training images say whether the
data are so alike that this means little.

Pixel distances are small between smooth images too, so each pair also tells how much nearer its training
image is than
the nearest ten are on average: the count errs towards alarm, the pairs are there to be looked at.

What cannot be done without the model, and is not: t' and its curve, the bridge and splitting, likelihood,
membership scores, and any statement about samples that were not drawn.

Sources: Meehan, Chaudhuri, Dasgupta 2020 (held-out distances as the background of copies); Carlini et al.
2023 and Somepalli et al. 2023 (nearest copies of diffusion models); paper section 5.3 for the counts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentprint.adapters.files import refuse_pickle
from latentprint.data import ImageSet, stack
from latentprint.data.archive import channels_last, read_archive
from latentprint.data.files import image_files, read_folder
from latentprint.data.images import MAX_BYTES, MAX_SIDE, DataError
from latentprint.metrics.neighbours import nearest
from latentprint.networks import ModelError
from latentprint.stats import Trials

NAMES = ("samples", "images", "arr_0")
"""Names under which an .npz may hold samples."""

_NEAREST = 10

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
    """Generated images from a folder of PNG, JPEG or TIFF files, an .npz or an .npy file.

    Arrays are (n, H, W), (n, H, W, C) or (n, C, H, W) of uint8, uint16 or floats in [-1, 1].

    Raises:
        ModelError: the path is a pickle.
        DataError: there is nothing there, or it is damaged, too large, of unlike images or of another type.
    """
    place = Path(path)
    refuse_pickle(place.name)
    if place.is_dir():
        files = image_files(place)
        if not files:
            raise DataError(f"the folder {os.fspath(path)!r} holds no PNG, JPEG or TIFF images")
        folder = read_folder(place, files)
        return stack(folder.stored, "a folder of samples", names=folder.names)
    where = repr(place.name)
    if place.suffix.lower() == ".npz":
        arrays = read_archive(place, NAMES)
        if len(arrays) != 1:
            raise DataError(
                f"{where} must hold its images under one of {', '.join(NAMES)}, got {sorted(arrays)}"
            )
        (stored,) = arrays.values()
        return stack(channels_last(stored, where), "an .npz file of samples")
    if place.suffix.lower() == ".npy":
        return stack(channels_last(_read_npy(place, where), where), "an .npy file of samples")
    raise DataError(f"samples are a folder of images, an .npz or an .npy file, got {where}")


def _read_npy(path: Path, where: str) -> NDArray[np.generic]:
    """An .npy file, its header checked before its values are read."""
    if not path.is_file():
        raise DataError(f"there is no file {where}")
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # the header's parser lets errors of several types through
        raise DataError(
            f"{where} cannot be read as an .npy file of plain numbers: {_brief(error)}"
        ) from error
    if mapped.dtype.kind not in "uif" or mapped.ndim not in (3, 4) or 0 in mapped.shape:
        raise DataError(
            f"{where} holds {mapped.dtype} of shape {mapped.shape}; samples are (n, H, W), (n, H, W, C) or "
            "(n, C, H, W) of uint8, uint16 or floats in [-1, 1]"
        )
    if max(mapped.shape[1:]) > MAX_SIDE or mapped.nbytes > MAX_BYTES:
        raise DataError(
            f"{where} is of shape {mapped.shape}; sides to {MAX_SIDE} and {MAX_BYTES} bytes are read"
        )
    return np.array(mapped)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


@dataclass(frozen=True)
class Pair:
    """A sample and the training image nearest to it.

    Attributes:
        sample, training: positions in their sets.
        distance: root mean squared difference in [0, 1] units.
        relative: the distance as a share of the mean distance to the nearest ten. Near 1, the sample is
            merely smooth, and close to many images; far below 1, it is close to this one (or its few copies).
        copy: whether it is below the threshold.
    """

    sample: int
    training: int
    distance: float
    relative: float
    copy: bool


@dataclass(frozen=True)
class SamplesAudit:
    """What samples alone tell.

    Attributes:
        hits: samples on which every detector fired (Omega_p); None without detectors.
        fired: the same for each detector alone.
        pairs: the nearest pairs, nearest first.
        threshold: the distance below which a sample counts as a copy.
        copies: samples below it.
        expected: the share of samples below it if the model copied nothing: that of the held-out images.
        train_to_train, heldout_to_train: distances of each image to the nearest other training image.
        sample_to_train: distances of each sample, (n,).
        distinct: how many training images the copies are of.
        leaks: whether the share of copies exceeds the expected one, both with their intervals.
        level: of the intervals.
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
    distinct: int
    leaks: bool
    level: float
    cannot: tuple[str, ...] = CANNOT


def audit_samples(
    samples: ImageSet,
    train: ImageSet,
    heldout: ImageSet,
    *,
    detectors: Sequence[Detects] = (),
    share: float = 0.01,
    level: float = 0.95,
    ranked: int = 20,
    device: torch.device | str = "cpu",
    batch: int = 256,
) -> SamplesAudit:
    """Counts, nearest copies and their background.

    Args:
        samples, train, heldout: of one shape; ``heldout`` must not have been trained on.
        detectors: c_p and c_id, or c_id alone; a sample is a hit where all fire.
        share: of the held-out images that the copy threshold lets through; with fewer than 1 / share of
            them the threshold is the smallest distance of any.
        level: of the intervals.
        ranked: pairs to give back.
        batch: images at a time through the detectors.

    Raises:
        DataError: a set is too small, the shapes differ, or a number is out of range.
    """
    _require(samples, train, heldout, share, level, ranked)
    train_pixels = torch.from_numpy(train.pixels).to(device)
    found = nearest(torch.from_numpy(samples.pixels).to(device), train_pixels, min(_NEAREST, len(train)))
    own = nearest(train_pixels, train_pixels, same=True).distance[:, 0].cpu().numpy()
    background = (
        nearest(torch.from_numpy(heldout.pixels).to(device), train_pixels).distance[:, 0].cpu().numpy()
    )
    distances, index = found.distance.cpu().numpy(), found.index[:, 0].cpu().numpy()
    distance, several = distances[:, 0], distances.mean(1)
    threshold = copy_threshold(background, share)
    copies = distance < threshold
    order = np.argsort(distance, kind="stable")[:ranked]
    count = Trials(int(copies.sum()), len(copies))
    expected = Trials(int((background < threshold).sum()), len(background))
    fired = {d.name: _fired(d, samples, device, batch) for d in detectors}
    both = np.logical_and.reduce(list(fired.values())) if fired else None
    return SamplesAudit(
        hits=None if both is None else Trials(int(both.sum()), len(both)),
        fired={name: Trials(int(f.sum()), len(f)) for name, f in fired.items()},
        pairs=tuple(_pair(i, index, distance, several, copies) for i in order.tolist()),
        threshold=threshold,
        copies=count,
        expected=expected,
        train_to_train=own,
        heldout_to_train=background,
        sample_to_train=distance,
        distinct=len(np.unique(index[copies])),
        leaks=count.interval(level)[0] > expected.interval(level)[1],
        level=level,
    )


def _pair(
    i: int,
    index: NDArray[np.int64],
    distance: NDArray[np.float64],
    several: NDArray[np.float64],
    copies: NDArray[np.bool_],
) -> Pair:
    # where all ten are exact copies of the sample, it is as close to the others as to the first
    relative = float(distance[i] / several[i]) if several[i] > 0 else 1.0
    return Pair(i, int(index[i]), float(distance[i]), relative, bool(copies[i]))


def copy_threshold(heldout_to_train: NDArray[np.float64], share: float) -> float:
    """The distance below which lie no more than floor(share m) of the m held-out images.

    Raises:
        DataError: no held-out images, or a share outside (0, 1).
    """
    if len(heldout_to_train) == 0 or not 0 < share < 1:
        have = len(heldout_to_train)
        raise DataError(
            f"a copy threshold needs held-out images and a share between 0 and 1, got {have} and {share}"
        )
    rank = math.floor(share * len(heldout_to_train) + 1e-9)
    return float(np.sort(heldout_to_train)[rank])


def _fired(detector: Detects, samples: ImageSet, device: torch.device | str, batch: int) -> NDArray[np.bool_]:
    parts = list[NDArray[np.bool_]]()
    with torch.no_grad():
        for first in range(0, len(samples), batch):
            images = torch.from_numpy(samples.pixels[first : first + batch]).to(device)
            parts.append((detector(images) >= detector.threshold).cpu().numpy())
    return np.concatenate(parts)


def _require(
    samples: ImageSet, train: ImageSet, heldout: ImageSet, share: float, level: float, ranked: int
) -> None:
    if not samples.shape == train.shape == heldout.shape:
        shapes = (samples.shape, train.shape, heldout.shape)
        raise DataError(f"samples, training and held-out images must have one shape, got {shapes}")
    if len(samples) < 1 or len(train) < 2 or len(heldout) < 1:
        sizes = (len(samples), len(train), len(heldout))
        raise DataError(
            f"an audit of samples needs 1 sample, 2 training and 1 held-out image or more, got {sizes}"
        )
    if not (0 < share < 1 and 0 < level < 1 and ranked >= 0):
        raise DataError(f"share and level lie between 0 and 1, got {share} and {level}, with {ranked} pairs")


__all__ = [
    "CANNOT",
    "DataError",
    "Detects",
    "ModelError",
    "Pair",
    "SamplesAudit",
    "audit_samples",
    "copy_threshold",
    "open_samples",
]
