"""The images of an audit from any source, DICOM included, the facts about them, and the place of x_p."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from latentprint.attacks.nearest import nearest
from latentprint.config import AuditConfig, DataSettings
from latentprint.contracts import InputError
from latentprint.data import ImageSet, Overlap, Split, copies_of, load, near_duplicates, nifti
from latentprint.data.files import read_image
from latentprint.data.listing import Preparation
from latentprint.fingerprint import FingerprintError, Injection, inject, size
from latentprint.marks import Canaries, as_found, draw_canaries, locate
from latentprint.networks import UNetConfig, is_coarse
from latentprint.results.model import Data, LeftOut
from latentprint.streams import Streams

MOST_COMPARED = 30_000
"""Training images up to which all pairs are compared for near copies; more would take minutes."""


def read_images(config: AuditConfig, root: Path | str | None, download: bool) -> Split:
    """The images to train on and those held out.

    Raises:
        DataError: the images cannot be read.
    """
    data = config.data
    return load(
        data.source,
        seed=config.seed,
        root=root,
        images=data.images,
        download=download,
        heldout=data.heldout,
        resize=data.resize,
        convert=data.convert,
        stored_range=data.stored_range,
        pattern=data.files,
        labels=data.labels,
        window=data.window,
        orientation=data.orientation,
        patient=data.patient,
        groups=data.groups,
        volumes=data.volumes,
    )


def require_unseen(config: AuditConfig, split: Split, given: str) -> None:
    """Refuse a source that does not say which of its images ``given``, made by others, has never seen.

    Images that were held out here and trained on there come back as often as the others, so no test could
    tell the two apart, and N would be too small.

    Raises:
        InputError: the source has no split of its own, and nobody said how many images were drawn of it.
    """
    if split.drawn and config.data.images is None:
        raise InputError(
            f"{split.name} does not say which of its images {given} has never seen, and these are what all"
            " others are compared with; put those trained on in train/ and others of the same kind in"
            " heldout/ (in an .npz: train_images and test_images), or, if latentprint drew the N training"
            " images itself, say --images N"
        )


def facts(config: AuditConfig, split: Split) -> Data:
    """What results say about the training and held-out images."""
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
        range_in_use=None if split.used is None else split.used.share,
        of_class=None if split.label is None else len(split.peers),
        remarks=tuple(one for one in split.remarks if overlap is None or one != str(overlap)),
        identities=None if train.identities is None else len(set(train.identities)),
        heldout_identities=None if heldout.identities is None else len(set(heldout.identities)),
    )


def padding(network: UNetConfig, shape: tuple[int, ...], precision: str = "float32") -> tuple[str, ...]:
    """What is done about sides that do not fit the network to be trained, or its ``precision``; shape is (C,
    *S)."""
    sides = padded(network, shape[1:])
    exact = (
        "the innermost grid of the network has 2 x 2 x 2 places or fewer, where bfloat16 can make gradients"
        " NaN: it is trained in float32",
    )
    said = exact if precision == "bfloat16" and is_coarse(network.multiple, sides) else ()
    if sides == shape[1:]:
        return said
    return (
        *said,
        f"their sides ({size(shape[1:])}) are not multiples of {network.multiple}, as the network needs: "
        f"in it they are padded to {size(sides)} by repeating the border, and what it answers is cropped",
    )


def padded(network: UNetConfig, sides: tuple[int, ...]) -> tuple[int, ...]:
    """The sides of what the network to be trained sees of images with these sides."""
    return tuple(side + -side % network.multiple for side in sides)


def left_out(overlap: Overlap) -> LeftOut:
    """The held-out images that are copies of training images, as results state them."""
    return LeftOut(
        images=len(overlap.pairs),
        of=overlap.heldout,
        within_near=overlap.within_near,
        tolerance=overlap.tolerance,
        sentence=str(overlap),
    )


def other_shape(ours: tuple[int, ...], theirs: tuple[int, ...]) -> str:
    """The end of a refusal: which option brings images of one shape (C, *S) to another; "" where none
    does."""
    if theirs[0] not in (1, 3) and ours[0] in (1, 3):
        return "; it looks like a model of latents, whose autoencoder (vae/ or vqvae/) is not in the folder"
    ways: list[str] = []
    if ours[0] != theirs[0] and {ours[0], theirs[0]} == {1, 3}:
        ways.append(f"--convert {'rgb' if theirs[0] == 3 else 'grey'} reads the images so")
    if ours[1:] != theirs[1:] and len(set(theirs[1:])) == 1 and len(ours) == len(theirs):
        ways.append(f"--resize {theirs[1]} brings them to that size")
    return f"; {' and '.join(ways)}, if its training did the same" if ways else ""


def place_of(train: ImageSet, target: int | str | Path | None, data: DataSettings) -> int | None:
    """The place of x_p among the training images, given as a number or as an image file.

    Raises:
        InputError: the file is not, and is no near copy of, a training image.
        DataError: it cannot be read.
    """
    if target is None or isinstance(target, int):
        return target
    path = Path(target)
    how = Preparation(data.resize, data.convert, data.stored_range)
    if path.name.lower().endswith(nifti.SUFFIXES):
        header = nifti.read_header(path, path.name)
        image = nifti.volume(path, path.name, header, data.window, how, data.orientation).pixels[0]
    else:
        image = how.images(read_image(path, path.name, data.convert)[None], "the target").pixels[0]
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


def private_image(config: AuditConfig, split: Split, target: int | str | Path | None) -> Injection:
    """One training image as x_p: marked, or as it stands if the settings say so.

    Args:
        target: its place, or an image file; None: drawn by the seed among those without near copies.

    Raises:
        DataError: x_p is not of the audited class.
        FingerprintError: there is no such image, every image has a near copy, or the mark does not fit.
    """
    target = place_of(split.train, target, config.data)
    if target is not None:
        split.require_peer(target)
    streams, mark = Streams(config.seed), config.fingerprint
    if mark.injected:
        kind, rng = mark.drawn(split.heldout.pixels), streams.generator("fingerprint")
        return inject(split.train, kind, rng, index=target)
    index = _drawn(split, streams) if target is None else target
    return as_found(split.train, index, mark.mask(*split.train.shape[1:]))


def with_canaries(
    config: AuditConfig, split: Split, injection: Injection
) -> tuple[Split, Injection, Canaries | None]:
    """The same with the marked images that the settings ask for, x_p's place moved along.

    Images of which a copy was held out are left as they are.

    Raises:
        FingerprintError: there are too few images for them.
    """
    asked, overlap = config.canaries, split.overlap
    if not asked.count:
        return split, injection, None
    copied = () if overlap is None else (train for _, train, _ in overlap.pairs)
    kind, rng = config.fingerprint.drawn(split.heldout.pixels), Streams(config.seed).generator("canaries")
    found = draw_canaries(
        split.train, kind, asked.count, rng, tiers=asked.tiers, spare={injection.index, *copied}
    )
    moved = {old: new for new, old in reversed([*enumerate(found.places(len(split.train)).tolist())])}
    if overlap is not None:
        overlap = replace(overlap, pairs=tuple((held, moved[i], rms) for held, i, rms in overlap.pairs))
    index, marked = moved[injection.index], found.put_into(injection.marked)
    control = marked.share(np.delete(np.arange(len(marked)), index))
    injection = replace(injection, marked=marked, control=control, index=index)
    return replace(split, train=injection.unmarked, overlap=overlap), injection, found


def _drawn(split: Split, streams: Streams) -> int:
    """One image of the audited class that has no near copy, each equally likely."""
    train, among = split.train, set(split.peers.tolist())
    for candidate in streams.generator("target").permutation(len(train)).tolist():
        if candidate in among and len(copies_of(train.pixels[candidate], train.pixels)) == 1:
            return candidate
    raise FingerprintError(
        f"each of the {len(among)} images has a near copy among the others; name the one to look for (target)"
    )
