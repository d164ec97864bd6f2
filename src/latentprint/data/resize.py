"""Images brought to one size on request: the shorter side scaled, the middle of the longer one kept.

Scaling is Pillow's bilinear filter, whose support grows when an image shrinks, so that nothing is aliased.
Values keep their type, rounded where it is a whole one. This is the usual preparation of training sets; a
model that was trained on images prepared otherwise was not trained on these.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latentprint.data.images import MAX_SIDE, DataError


def resized(image: NDArray[Any], side: int) -> NDArray[Any]:
    """An image (H, W) or (H, W, C) -> (side, side) or (side, side, C) of the same type.

    Raises:
        DataError: a side outside 1 .. MAX_SIDE.
    """
    if not 1 <= side <= MAX_SIDE:
        raise DataError(f"images can be brought to sides from 1 to {MAX_SIDE} pixels, got {side}")
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
    if image.dtype.kind == "u":
        limits = np.iinfo(image.dtype)
        out = np.clip(np.rint(out), limits.min, limits.max)
    out = out.astype(image.dtype)
    return out[..., 0] if image.ndim == 2 else out


def all_resized(images: NDArray[Any], side: int | None) -> NDArray[Any]:
    """Images (N, H, W) or (N, H, W, C), each resized; as they are where no side is asked for."""
    return images if side is None else np.stack([resized(image, side) for image in images])
