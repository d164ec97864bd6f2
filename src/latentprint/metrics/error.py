"""How far an image is from x_p, pixel by pixel (paper appendix D, figure 10).

    MSE = mean (a - b)^2      MAE = mean |a - b|      PSNR = -10 log10 MSE

for pixels a, b in [0, 1]. Our images lie in [-1, 1], so differences are halved first: an MAE of 1e-4, the
paper's best, is a fortieth of an 8-bit grey level. Everything is accumulated in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mse(images: Tensor, target: Tensor) -> Tensor:
    """Mean squared error in [0, 1] units: images (n, C, H, W), target (C, H, W) in [-1, 1] -> float64 (n,).

    Raises:
        ValueError: the target has another shape than one image.
    """
    return _difference(images, target).square().mean(dim=1)


def mae(images: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error in [0, 1] units, otherwise as ``mse``.

    Raises:
        ValueError: the target has another shape than one image.
    """
    return _difference(images, target).abs().mean(dim=1)


def psnr(images: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, float64 (n,); infinity where an image equals the target.

    Raises:
        ValueError: the target has another shape than one image.
    """
    return -10 * torch.log10(mse(images, target))


def _difference(images: Tensor, target: Tensor) -> Tensor:
    """(a - b) for pixels in [0, 1]: float64 (n, C * H * W)."""
    if images.shape[1:] != target.shape:
        raise ValueError(
            f"a target (C, H, W) must be shaped as each image of (n, C, H, W), "
            f"got {tuple(target.shape)} for {tuple(images.shape)}"
        )
    return ((images.double() - target.double()) / 2).flatten(1)
