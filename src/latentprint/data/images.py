"""A set of images with its manifest, and the rule by which stored values become pixels.

    pixel = 2 (v - low) / (high - low) - 1

[low, high] is the range of the type, [0, 255] for uint8 and [0, 65535] for uint16, or the range that the
source documents or the user states. Floats must lie in [-1, 1] and stay as they are, unless a range is
stated. The rule looks at the type, never at the values: a dark 8-bit image stays dark. The manifest holds,
for each image,

    sha256( dtype, 0x00, shape, 0x00, bytes )

of the array as it was stored (little-endian, C order, shape (H, W) or (H, W, C)), so the hash does not depend
on this rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from latentprint.contracts import InputError

MAX_BYTES = 2**32
"""The most bytes of stored values of one array or file (4 GiB)."""

MAX_SIDE = 2**14
"""The longest side of an image, in pixels."""

ValueRange = tuple[float, float]
"""The stored values that become -1 and 1."""

_RANGES: dict[np.dtype[Any], ValueRange] = {np.dtype(np.uint8): (0, 255), np.dtype(np.uint16): (0, 65535)}
_CHUNK = 2**22  # values converted at once, so that the float64 intermediate stays small


class DataError(InputError):
    """The images cannot be read or used, with the reason in one sentence."""


@dataclass(frozen=True, eq=False)
class Selection:
    """Images (N, *shape) of one or more arrays, copied only when they are asked for by their rows.

    Attributes:
        parts: arrays of images of one shape.
        places: (N,) which image of the parts each one is, counted through all of them.
    """

    parts: tuple[NDArray[np.float32], ...]
    places: NDArray[np.int64]

    @classmethod
    def of(cls, *images: Pixels) -> Selection:
        """All images of all arguments, in their order."""
        parts, places, first = list[NDArray[np.float32]](), list[NDArray[np.int64]](), 0
        for one in images:
            several = one.parts if isinstance(one, Selection) else (one,)
            own = one.places if isinstance(one, Selection) else np.arange(len(one))
            parts += several
            places.append(own + first)
            first += sum(map(len, several))
        return cls(tuple(parts), np.concatenate(places).astype(np.int64))

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *shape), as of an array."""
        return (len(self.places), *self.parts[0].shape[1:])

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.parts[0].ndim

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """The type of the values."""
        return self.parts[0].dtype

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    def take(self, rows: NDArray[Any]) -> Selection:
        """The images in these rows (places or a mask), without a copy."""
        return Selection(self.parts, self.places[rows])

    def __getitem__(self, key: int | slice | NDArray[Any]) -> NDArray[np.float32]:
        """One image (*shape), or the images of several rows (n, *shape); a view where they lie together."""
        places = self.places[key]
        if places.ndim == 0:
            which = int(np.searchsorted(self._ends, places, side="right"))
            return self.parts[which][int(places) - self._starts[which]]
        which = np.searchsorted(self._ends, places, side="right")
        used = np.unique(which).tolist()
        if len(used) == 1:
            own = places - self._starts[used[0]]
            together = isinstance(key, slice) and bool((np.diff(own) == 1).all())
            return self.parts[used[0]][slice(int(own[0]), int(own[-1]) + 1) if together else own]
        out = np.empty((len(places), *self.shape[1:]), self.dtype)
        for i in used:
            here = np.flatnonzero(which == i)
            out[here] = self.parts[i][places[here] - self._starts[i]]
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.float32]:
        return np.array(self[:], dtype, copy=copy)

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum([len(part) for part in self.parts])

    @property
    def _starts(self) -> NDArray[np.int64]:
        return self._ends - [len(part) for part in self.parts]


Pixels = NDArray[np.float32] | Selection
"""Images (N, C, *sides) in [-1, 1]."""


def fits(shape: Sequence[int], values: int, most: int | None = None) -> int:
    """How many arrays of this shape hold at most so many values together; at least 1, at most ``most``."""
    count = max(1, values // max(1, math.prod(shape)))
    return count if most is None else min(count, most)


def in_turn(pixels: Pixels) -> Iterator[NDArray[np.float32]]:
    """The images a few at a time."""
    step = fits(pixels.shape[1:], _CHUNK)
    for first in range(0, len(pixels), step):
        yield pixels[first : first + step]


def mean_and_deviation(pixels: Pixels) -> tuple[float, float]:
    """Of all values, in float64; of large sets a few images at a time."""
    if pixels.size <= 16 * _CHUNK:
        whole = np.asarray(pixels)
        return float(whole.mean(dtype=np.float64)), float(whole.std(dtype=np.float64))
    mean = math.fsum(float(part.sum(dtype=np.float64)) for part in in_turn(pixels)) / pixels.size
    squares = (float(((part - np.float64(mean)) ** 2).sum()) for part in in_turn(pixels))
    return mean, math.sqrt(math.fsum(squares) / pixels.size)


@dataclass(frozen=True)
class ImageSet:
    """Images and their origin.

    Attributes:
        pixels: (N, C, H, W) or (N, C, D, H, W) float32 in [-1, 1]; a `Selection` if they are shared with
            another set.
        sha256: one hash per image, of the values as they were stored.
        source: what they are, in publishable words (never a path or a file name).
        identities: whom each image shows, if known (several images may show one person); confidential.
        bit_depth: log2 of the number of values a stored pixel can take, for bits per dimension: such values
            are spaced by 2 / (2**bit_depth - 1). None for floats.
        names: the file that each image was read from, if there was one; confidential.
        labels: the class of each image, if known.

    Raises:
        DataError: ``pixels`` has another type or shape, NaN, infinities or values outside [-1, 1], or a list
            has another length.
    """

    pixels: Pixels
    sha256: tuple[str, ...]
    source: str
    identities: tuple[str, ...] | None = None
    bit_depth: float | None = None
    names: tuple[str, ...] | None = None
    labels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        x = self.pixels
        if x.dtype != np.float32 or x.ndim not in (4, 5):
            raise DataError(
                "pixels must be float32 of shape (N, C, H, W) or (N, C, D, H, W), got "
                f"{x.dtype} of shape {x.shape}"
            )
        for part in x.parts if isinstance(x, Selection) else (x,):
            _require_range(part, self.source)
        for name in ("sha256", "identities", "names", "labels"):
            entries: tuple[Any, ...] | None = getattr(self, name)
            if entries is not None and len(entries) != len(x):
                raise DataError(f"{name} needs one entry for each of {len(x)} images, got {len(entries)}")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) or (C, D, H, W) of one image."""
        return self.pixels.shape[1:]

    @cached_property
    def manifest(self) -> str:
        """One sha256 over the hashes of all images, in their order."""
        return sha256("\n".join(self.sha256).encode()).hexdigest()

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> ImageSet:
        """The images at these positions, in the order given."""
        rows = np.asarray(indices, dtype=np.int64)
        return self._picked(self.pixels[rows], rows)

    def share(self, rows: NDArray[np.int64]) -> ImageSet:
        """The same as ``take``, whose pixels are those of this set and not a copy."""
        return self._picked(Selection.of(self.pixels).take(rows), rows)

    def _picked(self, pixels: Pixels, rows: NDArray[np.int64]) -> ImageSet:
        return ImageSet(
            pixels,
            picked(self.sha256, rows),
            self.source,
            picked(self.identities, rows),
            self.bit_depth,
            picked(self.names, rows),
            picked(self.labels, rows),
        )


Entries = TypeVar("Entries", bound=tuple[Any, ...] | None)


def picked(entries: Entries, rows: NDArray[np.int64]) -> Entries:
    """The entries at these positions; None stays None."""
    return cast(Entries, None if entries is None else tuple(entries[i] for i in rows.tolist()))


def image_sha256(stored: NDArray[Any]) -> str:
    """The manifest's hash of one image as it was stored, shape (H, W) or (H, W, C)."""
    little = np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("<"))
    shape = ",".join(map(str, stored.shape))
    return sha256(f"{little.dtype.str}\0{shape}\0".encode() + little.tobytes()).hexdigest()


def has_channels(stored: NDArray[Any]) -> bool:
    """Whether stored images (N, *S) or (N, *S, C) have channels: 1 or 3 of them, last."""
    return stored.ndim == 5 or (stored.ndim == 4 and stored.shape[3] in (1, 3))


def stack(
    stored: NDArray[Any],
    source: str,
    *,
    stored_range: ValueRange | None = None,
    names: tuple[str, ...] | None = None,
) -> ImageSet:
    """Stored images (N, *S) or (N, *S, C), S being (H, W) or (D, H, W) -> pixels and manifest.

    An array of four axes is (N, H, W, C) if the last has 1 or 3 entries, and (N, D, H, W) otherwise.

    Args:
        stored_range: the stored values that become -1 and 1, if they are not the type's limits.

    Raises:
        DataError: a type other than uint8, uint16 and float, no images, an unsupported shape, or values that
            are not finite or outside the range.
    """
    if (
        stored.ndim not in (3, 4, 5)
        or 0 in stored.shape
        or (stored.ndim == 5 and stored.shape[4] not in (1, 3))
    ):
        raise DataError(
            f"{source} holds an array of shape {stored.shape}. Images need (N, H, W) or (N, H, W, C), volumes"
            " (N, D, H, W) or (N, D, H, W, C), with 1 or 3 channels"
        )
    if stored.ndim == 4 and stored.shape[3] in (2, 4):
        raise DataError(f"{source}: images must have 1 or 3 channels, got {stored.shape[3]}")
    pixels, bit_depth = _pixels(stored, source, stored_range)
    return ImageSet(
        pixels=np.ascontiguousarray(np.moveaxis(pixels, -1, 1) if has_channels(stored) else pixels[:, None]),
        sha256=tuple(image_sha256(image) for image in stored),
        source=source,
        bit_depth=bit_depth,
        names=names,
    )


def _pixels(
    stored: NDArray[Any], source: str, stored_range: ValueRange | None
) -> tuple[NDArray[np.float32], float | None]:
    """Values by type -> ([-1, 1] in the stored shape, bit depth)."""
    native = stored.dtype.newbyteorder("=")
    whole = native in _RANGES
    if not whole and native.kind != "f":
        raise DataError(
            f"{source}: images must be uint8, uint16 or floats in [-1, 1], got {stored.dtype.name}, "
            "whose range cannot be known"
        )
    low, high = stored_range or _RANGES.get(native, (-1.0, 1.0))
    out = np.empty(stored.shape, dtype=np.float32)
    step = fits(stored.shape[1:], _CHUNK)
    for rows in (slice(i, i + step) for i in range(0, len(stored), step)):
        _require_range(stored[rows], source, low, high)
        if (low, high) == (-1.0, 1.0):
            out[rows] = stored[rows]
        else:
            out[rows] = (stored[rows].astype(np.float64) - low) * (2.0 / (high - low)) - 1.0
    return out, math.log2(high - low + 1) if whole else None


def _require_range(values: NDArray[Any], source: str, low: float = -1.0, high: float = 1.0) -> None:
    if values.size == 0:
        return
    least, most = float(values.min()), float(values.max())
    if not (math.isfinite(least) and math.isfinite(most)):
        bad = next(i for i, image in enumerate(values) if not np.isfinite(image).all())
        raise DataError(
            f"{source}: image {bad} holds NaN or infinite values; every pixel must be a finite number"
        )
    if least < low or most > high:
        what = "float images" if values.dtype.kind == "f" else "images"
        raise DataError(
            f"{source}: {what} must lie in [{low:g}, {high:g}], got values from {least:g} to {most:g}; "
            "--stored-range LOW,HIGH says which values are black and white"
        )
