"""The space of a latent model: images to latents and back, by an autoencoder.

    encode   z = (mu(image) - shift) scale      mu: the mean of q(z | image) for an AutoencoderKL,
    decode   image = decoder(z / scale + shift)     the latents before quantisation for a VQModel,
                                                    which decode quantises; an AutoencoderDC's latents

The mean is used and not a draw. So x_p has one latent, and an audit does not depend on an unrecorded draw.

Source: Rombach et al. 2022, section 3.1 and appendix G; Chen et al. 2025 (AutoencoderDC); diffusers, the
three classes (scaling_factor, shift_factor).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from latentprint.denoiser import Codec, IdentityCodec
from latentprint.networks import ModelError

USUAL = (0.1, 10.0)
"""The standard deviations of latents that a model can have been trained on, with a margin on both sides."""


AUTOENCODERS: dict[str, Callable[[Any], Tensor]] = {
    "AutoencoderKL": lambda found: found.latent_dist.mean,
    "VQModel": lambda found: found.latents,
    "AutoencoderDC": lambda found: found.latent,
}
"""Classes of diffusers, and what each calls the latents of an image."""


def factor(config: Mapping[str, Any]) -> int:
    """Pixels per latent along a side, of an autoencoder with this configuration."""
    levels = config.get("encoder_block_out_channels") or config["block_out_channels"]
    return 2 ** (len(levels) - 1)


@dataclass(frozen=True, eq=False)
class LatentCodec:
    """An autoencoder as a ``Codec``.

    Attributes:
        autoencoder: of diffusers.
        scale, shift: of the formulas above.
        kind: its class, one of ``AUTOENCODERS``.
        image_shape: (C, H, W) of the images.
        latent_shape: (C, H, W) of the latents.
    """

    autoencoder: nn.Module
    scale: float
    shift: float
    kind: str
    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]

    @staticmethod
    def of(
        autoencoder: nn.Module, config: Mapping[str, Any], latent_shape: tuple[int, int, int]
    ) -> LatentCodec:
        """The codec of an autoencoder with its (checked) configuration, for a model of latents of this shape.

        Raises:
            ModelError: the autoencoder's latents and the model have different numbers of channels, or the
                autoencoder's input and output images do.
        """
        channels = config.get("vq_embed_dim") or config["latent_channels"]
        if channels != latent_shape[0]:
            raise ModelError(
                f"the autoencoder's latents have {channels} channels, the model's {latent_shape[0]}"
            )
        given, gives = config["in_channels"], config.get("out_channels", config["in_channels"])
        if given != gives:
            raise ModelError(f"the autoencoder takes images of {given} channels and gives {gives}")
        pixels = factor(config)
        _, height, width = latent_shape
        return LatentCodec(
            autoencoder,
            float(config["scaling_factor"]),
            float(config.get("shift_factor") or 0.0),
            config["_class_name"],
            (int(given), height * pixels, width * pixels),
            latent_shape,
        )

    def encode(self, images: Tensor, /) -> Tensor:
        """Images (n, C, H, W) in [-1, 1] -> latents (n, c, h, w).

        Raises:
            ValueError: the images do not have the model's shape.
        """
        _require(images, self.image_shape, "images")
        latents = AUTOENCODERS[self.kind](cast(Any, self.autoencoder).encode(images))
        return (latents - self.shift) * self.scale

    def decode(self, latents: Tensor, /) -> Tensor:
        """Latents (n, c, h, w) -> images (n, C, H, W), not clipped.

        Raises:
            ValueError: the latents do not have the model's shape.
        """
        _require(latents, self.latent_shape, "latents")
        return cast(Tensor, cast(Any, self.autoencoder).decode(latents / self.scale + self.shift).sample)


@torch.no_grad()
def require_spread(codec: Codec, images: Tensor) -> None:
    """Check that a codec's latents of training images have a spread that models are trained on.

    Args:
        codec: of a model of latents, or of any model.
        images: a few training images (n, C, H, W) in [-1, 1].

    Raises:
        ModelError: their standard deviation is far from 1, so their scale belongs to another model.
    """
    if isinstance(codec, IdentityCodec) or getattr(codec, "autoencoder", codec) is None:
        return
    spread = float(codec.encode(images).std())
    if not USUAL[0] <= spread <= USUAL[1]:
        scale = getattr(codec, "scale", None)
        stated = "" if scale is None else f" (its scale is {scale:.4g}; {scale / spread:.4g} would give 1)"
        raise ModelError(
            f"the latents of training images have a standard deviation of {spread:.3g}, and a model of "
            f"latents is trained at about 1{stated}: the scale factor, the autoencoder or the range of "
            "values is another model's"
        )


def _require(x: Tensor, shape: tuple[int, int, int], what: str) -> None:
    if tuple(x.shape[1:]) != shape:
        raise ValueError(
            f"the model's {what} have shape (n, {', '.join(map(str, shape))}), got {tuple(x.shape)}"
        )
