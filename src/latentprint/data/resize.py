"""Resize images and volumes to one size, on request.

An image is scaled by its shorter side, and the middle of the longer side is kept. Scaling is Pillow's
bilinear filter, whose support grows when an image shrinks, so that there is no aliasing. Values keep their
type; whole numbers are rounded. This is the usual preparation of training sets. A model that was trained on
images prepared in another way was not trained on these.

Each side of a volume is resized to the same number of voxels, so that nothing is cut away however few slices
it has. A voxel is the mean of the stored voxels that it covers ("area"); if there are fewer stored ones, they
are repeated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latentprint.data.images import MAX_SIDE, DataError, has_channels


def resized(image: NDArray[Any], side: int) -> NDArray[Any]:
    """An image (H, W) or (H, W, C) -> (side, side) or (side, side, C) of the same type."""
    _require_side(side)
    height, width = image.shape[:2]
    if (height, width) == (side, side):
        return image
    scale = side / min(height, width)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    planes = image[..., None] if image.ndim == 2 else image
    scaled = [
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
        for plane in np.moveaxis(planes, 2, 0)
    ]
    top, left = (size[1] - side) // 2, (size[0] - side) // 2
    out = np.stack([plane[top : top + side, left : left + side] for plane in scaled], axis=2)
    out = _as_type(out, image.dtype)
    return out[..., 0] if image.ndim == 2 else out


def averaged(volume: NDArray[Any], side: int) -> NDArray[Any]:
    """A volume (D, H, W) or (D, H, W, C) -> (side, side, side[, C]) of the same type, by areas."""
    _require_side(side)
    out = volume
    for axis, length in enumerate(volume.shape[:3]):
        if length != side:
            edges, at = np.arange(side + 1) * (length / side), np.arange(length)
            covered = np.minimum(edges[1:, None], at + 1) - np.maximum(edges[:-1, None], at)
            weights = np.clip(covered, 0, None) * (side / length)
            out = np.moveaxis(np.tensordot(weights, out.astype(np.float64), (1, axis)), 0, axis)
    return _as_type(out, volume.dtype)


def _as_type(values: NDArray[Any], kind: np.dtype[Any]) -> NDArray[Any]:
    if kind.kind == "u":
        limits = np.iinfo(kind)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(kind)


def _require_side(side: int) -> None:
    if not 1 <= side <= MAX_SIDE:
        raise DataError(f"images can be brought to sides from 1 to {MAX_SIDE} pixels, got {side}")


def all_resized(images: NDArray[Any], side: int | None) -> NDArray[Any]:
    """Images (N, *S) or (N, *S, C), each resized; unchanged if no side is asked for."""
    if side is None:
        return images
    one = averaged if images.ndim - has_channels(images) == 4 else resized
    return np.stack([one(image, side) for image in images])
