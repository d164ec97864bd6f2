"""Generated images in place of a model, and what they leave open.

They are counted and compared with the training images like those of any model (`latentprint.attacks`).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from latentprint.adapters.files import refuse_pickle
from latentprint.contracts import InputError
from latentprint.data import ImageSet, Split
from latentprint.data.listing import Preparation
from latentprint.data.load import read_all
from latentprint.data.nifti import Orientation
from latentprint.data.split import NARROW

NAMES = ("samples", "images", "arr_0")
"""Names under which an .npz may hold samples."""

CANNOT = (
    "t' cannot be searched: no reverse process can be started without the model",
    "q is counted only: its estimators need the model or its sampler",
    "likelihood and membership scores need the model",
    "nothing is known about samples that were not drawn: a rate up to the upper end of its interval could"
    " have been missed",
)
"""What an audit of samples leaves open, for the report."""


def open_samples(
    path: str | os.PathLike[str],
    how: Preparation | None = None,
    window: str = "file",
    orientation: Orientation = "ras",
) -> ImageSet:
    """All generated images in a folder, .zip, .npz, .npy, Parquet file or saved dataset.

    ``how``, ``window`` and ``orientation``: see ``data.load.read_all``.

    Raises:
        ModelError: the path is a pickle.
        DataError: there is nothing there, or it is damaged, too large, of another type, or its images have
            different shapes.
    """
    place = Path(path)
    refuse_pickle(place.name)
    kind = "a folder" if os.path.isdir(place) else f"an {place.suffix.lower()} file"
    return read_all(place, NAMES, f"{kind} of samples", how, window, orientation)


_LOOKED_AT = 1000
"""Samples whose values are looked at."""


def require_like_range(given: ImageSet, split: Split, otherwise: str = "") -> None:
    """Refuse samples whose values were probably stored in another range than those of the training images.

    Exact copies among them would be far from what they copy, and nothing would be found. ``otherwise`` ends
    the sentence with what to do if the samples are as they should be.

    Raises:
        InputError: they use much less of the range.
    """
    used = split.used
    if used is None:
        return
    seen = np.asarray(given.pixels[:_LOOKED_AT])
    low, high = float(seen.min()), float(seen.max())
    if (high - low) / 2 >= NARROW * used.share:
        return
    raise InputError(
        f"the samples use {(high - low) / 2:.0%} of the range of their type, and the training images"
        f" {used.share:.0%} of theirs, so copies would not be recognised; store the samples in the same range"
        f" as the training images (uint8 from 0 to 255, floats from -1 to 1){otherwise}"
    )
