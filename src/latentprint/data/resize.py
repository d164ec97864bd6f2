"""Images and volumes brought to one size on request.

Of an image the shorter side is scaled and the middle of the longer one kept. Scaling is Pillow's bilinear
filter, whose support grows when an image shrinks, so that nothing is aliased. Values keep their type, rounded
where it is a whole one. This is the usual preparation of training sets; a
model that was trained on images prepared otherwise was not trained on these.

Of a volume each side is brought to the same number of voxels, so that nothing is cut away however few its
slices are. A voxel is the mean of what it covers of the stored ones ("area"); where there are fewer stored
ones it repeats them.
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
    """Images (N, *S) or (N, *S, C), each resized; as they are where no side is asked for."""
    if side is None:
        return images
    one = averaged if images.ndim - has_channels(images) == 4 else resized
    return np.stack([one(image, side) for image in images])
