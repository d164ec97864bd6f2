"""The images of an audit: from any source, DICOM too, what must be known of them, and the place of x_p."""

from __future__ import annotations

import os
from pathlib import Path

from latentprint.attacks.nearest import nearest
from latentprint.config import AuditConfig
from latentprint.contracts import InputError
from latentprint.data import ImageSet, Overlap, Split, load, near_duplicates, stack
from latentprint.data.files import image_files, read_image
from latentprint.data.resize import all_resized
from latentprint.dicom import dicom_files, load_dicom
from latentprint.marks import locate
from latentprint.results.model import Data, LeftOut

MOST_COMPARED = 30_000
"""Training images up to which near copies are looked for among all of them: beyond, it takes minutes."""


def read_images(config: AuditConfig, root: Path | str | None, download: bool) -> Split:
    """The images to train on and those held out; a folder of DICOM files is known by them.

    Raises:
        DataError: the images cannot be had; a folder holds both DICOM and other images.
    """
    data = config.data
    if os.path.isdir(data.source) and dicom_files(folder := Path(data.source)):
        if image_files(folder):
            raise InputError(
                f"the folder {data.source!r} holds DICOM files and other images; put each kind in a folder of"
                " its own"
            )
        return load_dicom(
            folder,
            seed=config.seed,
            images=data.images,
            heldout=data.heldout,
            window=data.window,
            resize=data.resize,
        )
    return load(
        data.source,
        seed=config.seed,
        root=root,
        images=data.images,
        download=download,
        heldout=data.heldout,
        resize=data.resize,
    )


def facts(config: AuditConfig, split: Split) -> Data:
    """What results say of the images that were trained on and held out."""
    train, heldout, overlap = split.train, split.heldout, split.overlap
    few = len(train) <= MOST_COMPARED
    return Data(
        source=split.name,
        sha256=train.manifest,
        images=len(train),
        shape=tuple(train.shape),
        heldout=len(heldout),
        near_copies=sum(map(len, near_duplicates(train.pixels))) if few else None,
        left_out=None if overlap is None or not overlap.pairs else left_out(overlap),
        resized=config.data.resize,
        identities=None if train.identities is None else len(set(train.identities)),
        heldout_identities=None if heldout.identities is None else len(set(heldout.identities)),
    )


def left_out(overlap: Overlap) -> LeftOut:
    """The held-out images that are copies of training images, as results state them."""
    return LeftOut(
        images=len(overlap.pairs),
        of=overlap.heldout,
        within_near=overlap.within_near,
        tolerance=overlap.tolerance,
        sentence=str(overlap),
    )


def place_of(train: ImageSet, target: int | str | Path | None, resize: int | None) -> int | None:
    """The place of x_p among the training images: as a number, or that of an image file.

    Raises:
        InputError: the file is not, and is no near copy of, an image that was trained on.
        DataError: it cannot be read.
    """
    if target is None or isinstance(target, int):
        return target
    path = Path(target)
    stored = all_resized(read_image(path, path.name)[None], resize)
    image = stack(stored, "the target").pixels[0]
    if image.shape != train.shape:
        ours, theirs = ("x".join(map(str, shape)) for shape in (image.shape, train.shape))
        raise InputError(f"the target {path.name!r} is {ours}, the training images are {theirs}")
    found = locate(train, image)
    if not found:
        near = nearest(image[None], train.pixels)
        raise InputError(
            f"the target {path.name!r} is not among the {len(train)} training images, nor a near copy of one"
            f" (the nearest, number {int(near.index[0, 0])}, differs by {float(near.distance[0, 0]):.3g} of"
            " the range): whether a model gives back what it was not trained on is another question"
        )
    return found[0]
