"""Generated images in place of a model, and what they leave open.

They are counted and compared with the training images like those of any model (`latentprint.attacks`).
"""

from __future__ import annotations

import os
from pathlib import Path

from latentprint.adapters.files import refuse_pickle
from latentprint.data import ImageSet
from latentprint.data.listing import Preparation
from latentprint.data.load import read_all
from latentprint.data.nifti import Orientation

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
