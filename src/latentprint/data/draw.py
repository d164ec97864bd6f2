"""Which images of a source train and which are held out: drawn by the seed. Only these are read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from latentprint import keys
from latentprint.data.images import DataError, ImageSet, ValueRange
from latentprint.data.listing import Listing, Rows, require_memory
from latentprint.data.split import Split

MOST_HELDOUT = 2**28
"""The most values of images that are held out only because they do not train (1 GiB as float32)."""


@dataclass(frozen=True)
class Source:
    """A source that can be read; ``heldout`` is None if it has no split of its own.

    Attributes:
        mapped, said: as in ``Split.of``.
        side: the side to which images are resized as they are read.
    """

    train: Listing
    heldout: Listing | None = None
    mapped: ValueRange | None = None
    said: bool = True
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    side: int | None = None


def drawn(found: Source, images: int | None, heldout: float, seed: int) -> Split:
    """Draw the training and held-out images, and read only these.

    Args:
        images: how many are trained on; None: all that are not held out.
        heldout: the share held out, if neither the source nor ``images`` decides.

    Raises:
        DataError: there are too few, they need too much memory, or they cannot be read.
    """
    train, notes = found.train, list(found.notes)
    shape = train.shape() if found.side is None else (1, found.side, found.side)
    kept = 0 if found.heldout is not None else max(1, round(heldout * train.count))
    wanted = min(images or train.count - kept, train.count)
    beside = train.count - wanted if found.heldout is None else found.heldout.count
    beside = min(beside, max(1, MOST_HELDOUT // math.prod(shape)))
    require_memory(wanted + beside, shape, train.source)
    if found.heldout is not None:
        rows = _choose(train.count, images, seed, train.source)
        rest, held = found.heldout, np.arange(found.heldout.count)
        _require_others(train, rest)
    elif train.identities is not None:
        rest = train
        rows, held = _persons(train, images, heldout, seed)
    else:
        rest = train
        rows, held = _divided(train, images, heldout, seed)
    most = max(1, MOST_HELDOUT // math.prod(rest.shape()))
    if len(held) > most:
        notes.append(f"of {len(held):,} images that are not trained on {most:,} were drawn as held out")
        order = keys.generator(seed, "data held-out subset").permutation(len(held))[:most]
        held = np.sort(held[order])
    both: tuple[ImageSet, ImageSet] = train.images(rows), rest.images(held)
    for listing, some in ((train, rows), (rest, held)):
        if listing.remark is not None and (text := listing.remark(some)) and text not in notes:
            notes.append(text)
    return Split.of(
        *both,
        train.source,
        mapped=found.mapped,
        said=found.said,
        classes=found.classes,
        notes=tuple(notes),
        drawn=found.heldout is None,
    )


def _require_others(train: Listing, held: Listing) -> None:
    both = set(train.identities or ()) & set(held.identities or ())
    if both:
        raise DataError(
            f"{len(both)} patients have images both to train on and held out, so that held-out images are "
            "not of others"
        )


def _divided(train: Listing, images: int | None, heldout: float, seed: int) -> tuple[Rows, Rows]:
    """A split of images from a source without one."""
    total = train.count
    if images is None:
        images = total - max(1, round(heldout * total))
        if images < 2:
            raise DataError(
                f"{train.source}: {total} images are too few to train on 2 and hold out {heldout:.0%}"
            )
    rows = _choose(total, images, seed, train.source)
    if len(rows) == total:
        raise DataError(
            f"{train.source}: of {total} images {images} would train, which leaves none to hold out"
        )
    return rows, np.setdiff1d(np.arange(total), rows)


def _persons(train: Listing, images: int | None, heldout: float, seed: int) -> tuple[Rows, Rows]:
    """Hold out whole persons, drawn by the seed, until they have at least the share ``heldout`` of the
    images."""
    persons = np.asarray(train.identities)
    names = sorted(set(persons.tolist()))
    held, wanted = np.zeros(len(persons), dtype=np.bool_), heldout * len(persons)
    for i in keys.generator(seed, "data held-out patients").permutation(len(names)).tolist():
        if held.sum() >= wanted:
            break
        held |= persons == names[i]
    rows = np.flatnonzero(~held)
    if images is not None:
        if images > len(rows):
            raise DataError(f"{images} images to train on were asked for; from 2 to {len(rows)} are possible")
        rows = np.sort(rows[keys.generator(seed, "data subset").permutation(len(rows))[:images]])
    if len(rows) < 2 or not held.any():
        raise DataError(
            "a model needs 2 images or more to train on and 1 held out of other patients, got "
            f"{len(rows)} and {int(held.sum())}"
        )
    return rows, np.flatnonzero(held)


def _choose(total: int, images: int | None, seed: int, source: str) -> Rows:
    """Rising positions of the images to train on: the first N of a permutation drawn by the seed."""
    if images is not None and images > total:
        raise DataError(
            f"{source}: {images} images were asked for, but there are {total}; ask for fewer by --images N,"
            " which replaces the number of a preset"
        )
    if total < 2:
        raise DataError(f"{source}: a model must be trained on 2 images or more, but there are {total}")
    if images is None:
        return np.arange(total)
    return np.sort(keys.generator(seed, "data subset").permutation(total)[:images])
