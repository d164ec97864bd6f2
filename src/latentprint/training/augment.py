"""Images shifted by a pixel or mirrored, for training. To the model they look like additional images.

A mirrored or shifted training image that a model gives back is still that image. Augmentation makes copies
rarer, not harmless (the criteria of ``attacks`` align images before they compare).

A network may be told what was done to each image; it then learns the images as they are beside the changed
ones, and gives only the first (Karras et al. 2020 and 2022: augmentation that does not leak).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentprint.streams import Streams

_MOVES = ((0, 0, True), *((dy, dx, False) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx))
"""(rows, columns, mirrored): a mirror image, and shifts by a pixel in the eight directions."""


def moved(images: Tensor, share: float, streams: Streams, first: int) -> tuple[Tensor, Tensor]:
    """Images (B, C, *size), each changed with probability ``share``; the border is repeated.

    With them comes what was done to each: 0, nothing; 1, mirrored; 2 to 9, shifted; int64 (B,).
    ``first`` counts the images seen before: an image's change is a function of (seed, its number).
    """
    if share == 0:
        return images, torch.zeros(len(images), dtype=torch.int64, device=images.device)
    ids = range(first, first + len(images))
    u = streams.uniform("train.augment", ids, 0, (2,), dtype=torch.float64)
    which = torch.where(u[:, 0] < share, (u[:, 1] * len(_MOVES)).long(), -1)
    out = images.clone()
    for i, (dy, dx, mirrored) in enumerate(_MOVES):
        rows = (which == i).nonzero()[:, 0].to(images.device)
        if len(rows):
            out[rows] = images[rows].flip(-1) if mirrored else _shifted(images[rows], dy, dx)
    return out, (which + 1).to(images.device)


def _shifted(images: Tensor, dy: int, dx: int) -> Tensor:
    height, width = images.shape[-2:]
    flat = images.flatten(0, -3)[:, None]
    wide = nn.functional.pad(flat, (1, 1, 1, 1), mode="replicate")
    return wide[..., 1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width].reshape(images.shape)
