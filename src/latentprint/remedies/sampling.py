"""Sampling guided away from training images, after anti-memorisation guidance.

    D'(x, t) = x_near + (D - x_near) max(1, r / |D - x_near|)       x_near the training image nearest to D

At no step may the denoiser's answer come nearer than r to its nearest training image, so the final image
cannot either. All but a small share of held-out images keep the distance r from their nearest training image.
Chen et al. guide by the gradient of a similarity, with a threshold chosen by hand; here the answer is moved
to the border in one step, and the border is calibrated. An answer that equals x_near is moved towards the
noisy image itself, x / alpha.

Source: Chen, Liu, Xu 2024, "Towards memorization-free diffusion models", CVPR.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentprint.attacks.nearest import nearest
from latentprint.denoiser import Denoiser
from latentprint.schedule import Schedule, expand

SHARE = 0.05
"""Share of held-out images that are nearer to a training image than the border."""


@dataclass(frozen=True, eq=False)
class Away:
    """A denoiser kept at a distance of ``radius`` (Euclidean) from the images ``train`` (N, *shape)."""

    model: Denoiser
    train: Tensor
    radius: float

    @staticmethod
    def of(model: Denoiser, train: NDArray[np.float32], heldout: NDArray[np.float32]) -> Away:
        """With the radius that all except SHARE of the held-out images keep."""
        apart = nearest(heldout, train).distance[:, 0].numpy()
        # ``nearest`` measures the root mean square in units of [0, 1].
        unit = 2 * float(np.prod(train.shape[1:])) ** 0.5
        return Away(model, torch.from_numpy(train), float(np.quantile(apart, SHARE)) * unit)

    @property
    def schedule(self) -> Schedule:
        """Of the model."""
        return self.model.schedule

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """D'(x, t), shaped as x."""
        found = self.model(x, t).flatten(1)
        images = self.train.to(found).flatten(1)
        place = torch.cdist(found, images).argmin(1)
        away = found - images[place]
        seen = x.flatten(1) / expand(self.schedule.alpha(t), x.flatten(1)) - images[place]
        same = away.norm(dim=1, keepdim=True) < 1e-3 * self.radius
        away = torch.where(same, seen, away)
        far = away.norm(dim=1, keepdim=True).clamp(min=1e-9)
        pushed = images[place] + away * torch.where(same, self.radius / far, (self.radius / far).clamp(min=1))
        return pushed.reshape(x.shape)
