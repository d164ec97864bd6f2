"""Images that can be read one by one: their number, and what is known before any is read.

A source is listed first and read afterwards; only the images that are drawn are read. The expanded size of a
source is compared with the free memory before any is allocated.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentprint.contracts import quoted
from latentprint.data.images import MAX_SIDE, DataError, ImageSet, ValueRange, fits, picked, stack
from latentprint.data.resize import all_resized
from latentprint.data.tree import persons

Rows = NDArray[np.int64]

CHUNK = 2**24
"""Stored values read at once."""

_SHARE = 0.6  # share of the free memory that the images of an audit may take
_LUMA = np.array([19595, 38470, 7471])  # of 65536: ITU-R BT.601, rounded as Pillow's convert("L") does


@dataclass(frozen=True)
class Preparation:
    """How stored images are prepared before they become pixels, as in the training script.

    Attributes:
        resize: resizes each to a square of that side (``data.resize``).
        convert: "rgb" repeats grey three times, "grey" weighs colours as Pillow's ``convert("L")`` does.
        stored_range: the stored values that become -1 and 1; None: the range of their type.

    Raises:
        DataError: an impossible side or range.
    """

    resize: int | None = None
    convert: Literal["rgb", "grey"] | None = None
    stored_range: ValueRange | None = None

    def __post_init__(self) -> None:
        if self.resize is not None and not 1 <= self.resize <= MAX_SIDE:
            raise DataError(f"images can be brought to sides from 1 to {MAX_SIDE} pixels, got {self.resize}")
        if self.stored_range is not None:
            low, high = self.stored_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise DataError(f"a range of values is LOW,HIGH with LOW below HIGH, got {low:g},{high:g}")

    def images(self, stored: NDArray[Any], source: str) -> ImageSet:
        """Stored images (k, *S) or (k, *S, C) as pixels."""
        prepared = all_resized(converted(stored, self.convert), self.resize)
        return stack(prepared, source, stored_range=self.stored_range)


def converted(stored: NDArray[Any], to: str | None) -> NDArray[Any]:
    """Images (k, *S) or (k, *S, C), C being 1 or 3, as grey or in colour; of the same type."""
    channels = stored.shape[-1] if stored.ndim > 3 else 1
    if to == "rgb" and channels != 3:
        grey = stored if stored.ndim == 3 or channels != 1 else stored[..., 0]
        return np.repeat(grey[..., None], 3, axis=-1)
    if to == "grey" and channels == 3:
        if stored.dtype.kind == "f":
            return np.asarray(stored @ (_LUMA / 65536), dtype=stored.dtype)
        return (((stored.astype(np.int64) * _LUMA).sum(axis=-1) + 32768) >> 16).astype(stored.dtype)
    return stored


@dataclass(frozen=True)
class Listing:
    """Images of one source.

    Attributes:
        source: what they are, in publishable words.
        count: how many.
        read: rising positions -> their images in that order, a few at a time.
        names, labels, identities: of each, if known (see ``ImageSet``).
        remark: positions -> a remark on how these were read, or "".
    """

    source: str
    count: int
    read: Callable[[Rows], Iterable[ImageSet]] = field(repr=False)
    names: tuple[str, ...] | None = None
    labels: tuple[int, ...] | None = None
    identities: tuple[str, ...] | None = None
    remark: Callable[[Rows], str] | None = field(default=None, repr=False)

    def shape(self) -> tuple[int, ...]:
        """The shape of the first image, which is read to find out."""
        return next(iter(self.read(np.zeros(1, np.int64)))).shape

    def images(self, rows: Rows) -> ImageSet:
        """The images at rising positions."""
        shape = self.shape()
        require_memory(len(rows), shape, self.source)
        pixels = np.empty((len(rows), *shape), np.float32)
        hashes, depths = list[str](), set[float | None]()
        for part in self.read(rows):
            if part.shape != shape:
                raise DataError(f"{self.source}: images must be alike, but are {shape} and {part.shape}")
            pixels[len(hashes) : len(hashes) + len(part)] = part.pixels
            hashes += part.sha256
            depths.add(part.bit_depth)
        return ImageSet(
            pixels,
            tuple(hashes),
            self.source,
            picked(self.identities, rows),
            depths.pop() if len(depths) == 1 else None,
            picked(self.names, rows),
            picked(self.labels, rows),
        )

    def of_persons(self, pattern: str) -> Listing:
        """The same with identities from the file names: the match of a regular expression's group.

        Raises:
            DataError: it is not a regular expression, there are no names, or it does not match one of them.
        """
        try:
            sought = re.compile(pattern)
        except re.error as error:
            raise DataError(
                f"--group-pattern is a regular expression, got {quoted(pattern)}: {error}"
            ) from error
        if self.names is None:
            raise DataError("--group-pattern looks in the names of files, and these images have none")
        found = [(name, sought.search(name)) for name in self.names]
        if lacking := next((name for name, match in found if match is None), None):
            raise DataError(f"--group-pattern {quoted(pattern)} finds nothing in the name {quoted(lacking)}")
        whose = (match[1] if sought.groups else match[0] for _, match in found if match is not None)
        return replace(self, identities=tuple(map(str, whose)))

    def in_groups(self, table: str) -> Listing:
        """The same with identities from a CSV (``tree.persons``).

        Raises:
            DataError: it cannot be read or lacks one of the files, or there are no names.
        """
        if self.names is None:
            raise DataError("--groups names the persons of files, and these images have no names")
        return replace(self, identities=persons(self.names, table))


def of_array(stored: NDArray[Any], source: str, how: Preparation, labels: tuple[int, ...] | None) -> Listing:
    """Stored images (N, ...), in memory or mapped from a file, as a listing."""

    def chunks(rows: Rows) -> Iterator[ImageSet]:
        for some in in_chunks(rows, math.prod(stored.shape[1:])):
            yield how.images(stored[some], source)

    return Listing(source, len(stored), chunks, labels=labels)


def in_chunks(rows: Rows, values: int) -> list[Rows]:
    """Positions in chunks of so many images, of ``values`` stored values each, that a chunk can be read at
    once."""
    step = fits((values,), CHUNK)
    return [rows[i : i + step] for i in range(0, len(rows), step)]


def require_memory(count: int, shape: Sequence[int], source: str) -> None:
    """Compare the memory that images take as float32 with the memory that is free."""
    needed, free = 4 * count * math.prod(shape), free_memory()
    if needed > _SHARE * free:
        raise DataError(
            f"{source}: {count:,} images of {' x '.join(map(str, shape))} need {needed / 2**30:,.1f} GiB of "
            f"memory, and {free / 2**30:,.1f} GiB are free; --images N reads only those that are drawn, "
            "--resize N makes them smaller"
        )


def free_memory() -> int:
    """Bytes that this process may still allocate: by the system, its control group and its own limit."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    found += [int(limit) for limit in _lines("/sys/fs/cgroup/memory.max") if limit.isdecimal()]
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        pages = _lines("/proc/self/statm")
        found.append(soft - (int(pages[0].split()[0]) * os.sysconf("SC_PAGE_SIZE") if pages else 0))
    return max(0, min(found))


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []
