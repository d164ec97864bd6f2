"""What every adapter gives back: a model that somebody else trained, ready to be audited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from latentprint.denoiser import Codec, Denoiser


@dataclass(frozen=True)
class Opened:
    """A model from outside.

    Attributes:
        denoiser: E[x_0 | x_t] in the space the model works in, with its schedule.
        codec: from images (n, C, H, W) in [-1, 1] to that space and back; the identity for a model of pixels.
        shape: (C, H, W) of that space: noise is drawn, and added to ``codec.encode(images)``, in this shape.
        image_shape: (C, H, W) of the images.
        sampler_hint: the sampler nearest to what the model came with, as ``sampler_from`` reads it.
        weights_sha256: of the file of weights; of several, that of the lines "sha256  name" of each.
        kind: "latentprint", "diffusers", "diffusers latent" or "edm".
        notes: sentences for the report: what was assumed, and what of the original was left out.
        networks: the modules behind denoiser and codec.
    """

    denoiser: Denoiser
    codec: Codec
    shape: tuple[int, int, int]
    image_shape: tuple[int, int, int]
    sampler_hint: Mapping[str, Any]
    weights_sha256: str
    kind: str
    notes: tuple[str, ...]
    networks: tuple[nn.Module, ...]

    def to(self, device: torch.device | str) -> Opened:
        """This model, with its networks moved (in place) to a device."""
        for network in self.networks:
            network.to(device)
        return self
