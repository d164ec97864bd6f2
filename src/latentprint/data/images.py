"""A set of images with its manifest, and the one rule by which stored values become pixels.

    pixel = 2 v / maximum - 1    maximum = 255 for uint8, 65535 for uint16, or what the source documents
    pixel = v                    for floats, which must lie in [-1, 1] already

The rule looks at the type, never at the values: a dark 8-bit image stays dark. The manifest holds, for each
image,

    sha256( dtype, 0x00, shape, 0x00, bytes )

of the array as it was stored (little-endian, C order, shape (H, W) or (H, W, C)), so it does not depend on
this rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentprint.contracts import InputError

MAX_BYTES = 2**32
"""The most bytes of stored values read from one source (4 GiB; as float32 up to four times as much)."""

MAX_SIDE = 2**14
"""The longest side of an image, in pixels."""

_MAXIMUM = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}
_CHUNK = 2**22  # values converted at once, so that the float64 intermediate stays small


class DataError(InputError):
    """The images asked for cannot be had, for the reason given in one sentence."""


@dataclass(frozen=True)
class ImageSet:
    """Images and where they come from.

    Attributes:
        pixels: (N, C, H, W) float32 in [-1, 1].
        sha256: one hash per image, of the values as they were stored.
        source: what they are, in words that may be published (never a path or a file name).
        identities: who each image shows, where that is known (several images may show one person);
            confidential.
        bit_depth: log2 of the number of values a stored pixel can take, for bits per dimension: such values
            are spaced by 2 / (2**bit_depth - 1). None for floats.
        names: the file each image was read from, where there was one; confidential.

    Raises:
        DataError: ``pixels`` has another type or shape, NaN, infinities or values outside [-1, 1], or a list
            has another length.
    """

    pixels: NDArray[np.float32]
    sha256: tuple[str, ...]
    source: str
    identities: tuple[str, ...] | None = None
    bit_depth: float | None = None
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        x = self.pixels
        if x.dtype != np.float32 or x.ndim != 4:
            raise DataError(f"pixels must be float32 of shape (N, C, H, W), got {x.dtype} of shape {x.shape}")
        _require_range(x, self.source)
        for name in ("sha256", "identities", "names"):
            entries: tuple[str, ...] | None = getattr(self, name)
            if entries is not None and len(entries) != len(x):
                raise DataError(f"{name} needs one entry for each of {len(x)} images, got {len(entries)}")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    @cached_property
    def manifest(self) -> str:
        """One sha256 over the hashes of all images, in their order."""
        return sha256("\n".join(self.sha256).encode()).hexdigest()

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> ImageSet:
        """The images at these positions, in the order given."""
        rows = np.asarray(indices, dtype=np.int64)

        def pick(entries: tuple[str, ...] | None) -> tuple[str, ...] | None:
            return None if entries is None else tuple(entries[i] for i in rows.tolist())

        hashes = tuple(self.sha256[i] for i in rows.tolist())
        return ImageSet(
            self.pixels[rows], hashes, self.source, pick(self.identities), self.bit_depth, pick(self.names)
        )


def image_sha256(stored: NDArray[Any]) -> str:
    """The manifest's hash of one image as it was stored, shape (H, W) or (H, W, C)."""
    little = np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("<"))
    shape = ",".join(map(str, stored.shape))
    return sha256(f"{little.dtype.str}\0{shape}\0".encode() + little.tobytes()).hexdigest()


def stack(
    stored: NDArray[Any], source: str, *, maximum: int | None = None, names: tuple[str, ...] | None = None
) -> ImageSet:
    """Stored images (N, H, W) or (N, H, W, C) -> pixels and manifest.

    Args:
        maximum: the largest value the source documents, where it is not that of the type.

    Raises:
        DataError: a type other than uint8, uint16 and float, 0 images, channels other than 1 or 3, or floats
            that are not finite or leave [-1, 1].
    """
    if stored.ndim not in (3, 4) or 0 in stored.shape:
        raise DataError(f"{source}: images must have shape (N, H, W) or (N, H, W, C), got {stored.shape}")
    if stored.ndim == 4 and stored.shape[3] not in (1, 3):
        raise DataError(f"{source}: images must have 1 or 3 channels, got {stored.shape[3]}")
    pixels, bit_depth = _pixels(stored, source, maximum)
    channels_first = pixels[:, None] if stored.ndim == 3 else np.moveaxis(pixels, 3, 1)
    return ImageSet(
        pixels=np.ascontiguousarray(channels_first),
        sha256=tuple(image_sha256(image) for image in stored),
        source=source,
        bit_depth=bit_depth,
        names=names,
    )


def _pixels(
    stored: NDArray[Any], source: str, maximum: int | None
) -> tuple[NDArray[np.float32], float | None]:
    """Values by type -> ([-1, 1] in the stored shape, bit depth)."""
    native = stored.dtype.newbyteorder("=")
    out = np.empty(stored.shape, dtype=np.float32)
    step = max(1, _CHUNK // math.prod(stored.shape[1:]))
    chunks = [slice(i, i + step) for i in range(0, len(stored), step)]
    if native.kind == "f":
        for rows in chunks:
            _require_range(stored[rows], source)
            out[rows] = stored[rows]
        return out, None
    if native not in _MAXIMUM:
        raise DataError(
            f"{source}: images must be uint8, uint16 or floats in [-1, 1], got {stored.dtype.name}, "
            "whose range cannot be known"
        )
    top = _MAXIMUM[native] if maximum is None else maximum
    for rows in chunks:
        out[rows] = stored[rows].astype(np.float64) * (2.0 / top) - 1.0
    return out, math.log2(top + 1)


def _require_range(values: NDArray[Any], source: str) -> None:
    if values.size == 0:
        return
    low, high = float(values.min()), float(values.max())
    if math.isnan(low) or math.isnan(high) or math.isinf(low) or math.isinf(high):
        bad = next(i for i, image in enumerate(values) if not np.isfinite(image).all())
        raise DataError(
            f"{source}: image {bad} holds NaN or infinite values; every pixel must be a finite number"
        )
    if low < -1.0 or high > 1.0:
        raise DataError(f"{source}: float images must lie in [-1, 1], got values from {low:g} to {high:g}")
