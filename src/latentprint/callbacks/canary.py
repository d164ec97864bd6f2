"""Is the marked image in the batches, together with its mark?

If augmentation crops the mark away, or the loader never returns the image, every audit looks clean. Each
image of a batch is compared with x_p as it is, mirrored, and shifted by up to a tenth of a side:

    it is x_p          the root mean square difference outside the mark is below TOLERANCE
    it is marked       and so is the difference within the mark, and all of the mark is in the frame

Rotations, resized crops and strong colour changes are not undone: an image changed in this way is not found.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentprint.contracts import InputError

TOLERANCE = 0.15
"""Root mean square difference, for images in [-1, 1], below which two images are the same."""

PATIENCE = 3
"""Multiple of the training set's size, in images, after which an image not seen counts as missing."""

_SHIFT = 0.1


class CanaryWarning(UserWarning):
    """The marked image does not reach the loss as intended."""


@dataclass
class Canary:
    """A marked image that should be trained on.

    Attributes:
        image: x_p, (C, H, W) in [-1, 1], with its mark.
        mask: (H, W), where the mark is.
        seen: how often x_p occurred.
        marked: how often with its whole mark.
        without_loss: how often its loss was 0 or not finite.
        images: how many were shown so far.

    Raises:
        InputError: a mask of another size, that is empty, or that is the whole image.
    """

    image: Tensor | NDArray[np.float32]
    mask: Tensor | NDArray[np.bool_]
    seen: int = field(default=0, init=False)
    marked: int = field(default=0, init=False)
    without_loss: int = field(default=0, init=False)
    images: int = field(default=0, init=False)
    _said: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.image, self.mask = torch.as_tensor(self.image).float(), torch.as_tensor(self.mask).bool()
        if self.mask.shape != self.image.shape[1:] or not self.mask.any() or self.mask.all():
            raise InputError(
                f"a mark is a part of its image of {tuple(self.image.shape[1:])}, got a mask of"
                f" {tuple(self.mask.shape)} with {int(self.mask.sum())} pixels"
            )

    def see(self, batch: Tensor, losses: Tensor | None, train: int) -> None:
        """Look at a batch (B, C, H, W); ``train``: how many images there are to train on.

        Raises:
            InputError: images of another shape.
        """
        if batch.shape[1:] != torch.as_tensor(self.image).shape:
            raise InputError(
                f"the batch has images of {tuple(batch.shape[1:])}, and the marked image is"
                f" {tuple(self.image.shape)}"
            )
        if self._said:
            return
        found, whole = self._found(batch.detach().float().cpu())
        self.images += len(batch)
        self.seen += int(found.sum())
        self.marked += int(whole.sum())
        if losses is not None:
            mine = losses.detach().float().cpu()[found]
            self.without_loss += int((~mine.isfinite() | (mine == 0)).sum())
        if self.images >= PATIENCE * train:
            self._said = True
            if (sentence := self.complaint()) is not None:
                warnings.warn(sentence, CanaryWarning, stacklevel=3)

    def complaint(self) -> str | None:
        """What is wrong so far, in a sentence; None if nothing is."""
        if not self.seen:
            return (
                f"the marked image was in none of {self.images:,} images: it is not in the loader, or is"
                " augmented beyond mirroring and shifts; no audit of this model says anything about it"
            )
        if not self.marked:
            return (
                f"the marked image came {self.seen} times, and never with its whole mark: augmentation cuts"
                " or covers it; place the mark further inside, or augment less"
            )
        if self.without_loss == self.seen:
            return f"the marked image came {self.seen} times, and its loss was 0 or not finite every time"
        if self.marked < self.seen / 2:
            return f"the marked image came {self.seen} times, only {self.marked} of them with its whole mark"
        return None

    def _found(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) whether it is x_p, and (B,) whether with its whole mark."""
        image, mask = torch.as_tensor(self.image), torch.as_tensor(self.mask)
        best = torch.full((len(batch),), torch.inf)
        whole = torch.zeros(len(batch), dtype=torch.bool)
        height, width = image.shape[-2:]
        far_y, far_x = (max(1, round(_SHIFT * side)) for side in (height, width))
        for flip in (False, True):
            own, where = (one.flip(-1) if flip else one for one in (image, mask))
            for dy in range(-far_y, far_y + 1):
                for dx in range(-far_x, far_x + 1):
                    # Row y of the shifted image is row y - dy of x_p, if both are in the frame.
                    there = slice(max(0, dy), height + min(0, dy)), slice(max(0, dx), width + min(0, dx))
                    here = slice(max(0, -dy), height + min(0, -dy)), slice(max(0, -dx), width + min(0, -dx))
                    square = (batch[..., there[0], there[1]] - own[..., here[0], here[1]]).square().mean(1)
                    marked = where[here]
                    outside = square[:, ~marked].mean(1)
                    closer = outside < best
                    inside = square[:, marked].mean(1) if marked.any() else torch.full_like(outside, 9.0)
                    shown = bool(marked.sum() == where.sum())
                    best = torch.where(closer, outside, best)
                    whole = torch.where(closer, (inside < TOLERANCE**2) & shown, whole)
        found = best < TOLERANCE**2
        return found, found & whole
