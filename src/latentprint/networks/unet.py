"""The network of the score model: a U-Net that sees the noisy image or volume and the time.

Level k works at size / 2^k; a level has ``layers_per_block`` residual blocks on the way down and one more
on the way up. The paper (§5.2, appendix A) takes diffusers' ``UNet2DModel`` of 128-128-256-... channels and
keeps its three outermost levels, because 28 can be halved only twice: 28 -> 14 -> 7.

Images use diffusers' ``UNet2DModel``, volumes MONAI's ``DiffusionModelUNet`` (extra ``latentprint[monai]``).

Sources: von Platen et al. 2022 (diffusers); Cardoso et al. 2022 (MONAI); Ho et al. 2020 for the architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, cast

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from latentprint.contracts import InputError
from latentprint.settings import STRICT
from latentprint.streams import Streams

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel  # seconds, and settings do not need it

Width = Annotated[int, Field(ge=1, le=8192)]


@dataclass(frozen=True, config=STRICT)
class UNetConfig:
    """The network's shape; the defaults are the paper's.

    Attributes:
        channels: channels of each level, outermost first; there are as many levels as entries.
        layers_per_block: residual blocks of a level on the way down; on the way up there is one more.
        attention: for each level, whether its blocks attend; empty means nowhere.
        middle_attention: whether the innermost, middle block attends; MONAI's, for volumes, always does.
        norm_groups: groups of the group normalisation; divides every entry of ``channels``.
        head_channels: channels of one attention head, if there is attention.
        patch_size: of volumes, the side of the cubes whose voxels are channels inside the network. Its
            outermost level then has fewer places and is cheaper.
        augment_labels: whether the network is told how an image it learns from was shifted or mirrored
            (`training.augment`). Its samples are of images as they are (Karras et al. 2020, non-leaky).

    Raises:
        ValueError: ``attention`` has another length, or numbers that do not divide evenly.
    """

    channels: Annotated[tuple[Width, ...], Field(min_length=1, max_length=12)] = (128, 128, 256)
    layers_per_block: Annotated[int, Field(ge=1, le=64)] = 2
    attention: tuple[bool, ...] = ()
    middle_attention: bool = True
    norm_groups: Width = 32
    head_channels: Width = 8
    patch_size: Annotated[int, Field(ge=1, le=16)] = 1
    augment_labels: bool = False

    def __post_init__(self) -> None:
        if self.attention and len(self.attention) != len(self.channels):
            raise ValueError(
                f"attention needs one entry for each of the {len(self.channels)} levels, "
                f"got {len(self.attention)}"
            )
        if rest := [c for c in self.channels if c % self.norm_groups]:
            raise ValueError(f"{self.norm_groups} norm groups must divide every level's channels, got {rest}")
        attending = [
            c
            for c, on in zip(self.channels, self.attention or (False,) * len(self.channels), strict=True)
            if on
        ] + [self.channels[-1]] * self.middle_attention
        if rest := [c for c in attending if c % self.head_channels]:
            raise ValueError(
                f"heads of {self.head_channels} channels must divide the levels that attend, got {rest}"
            )

    @property
    def multiple(self) -> int:
        """The number of which the network's sides must be multiples; ``multiple_of`` of the built network."""
        return self.patch_size * 2 ** (len(self.channels) - 1)


PAPER = UNetConfig()
"""The paper's network for 28 x 28 images (17.3 million parameters)."""

DIGITS = UNetConfig((32, 64), layers_per_block=1, middle_attention=False, norm_groups=8)
"""For the 8 x 8 digits of the demo: 0.6 million parameters, 0.09 s of a CPU core for a step of 64 images."""

SMALL28 = UNetConfig((32, 64, 64), layers_per_block=1, middle_attention=False, norm_groups=8)
"""For 28 x 28 images on two CPU cores: 1.0 million parameters, 0.6 s of one core for a step of 32 images."""


class VolumeUNet(nn.Module):
    """MONAI's three-dimensional ``DiffusionModelUNet``, with the settings that it does not store itself.

    It sees cubes of ``patch_size`` voxels a side as channels: its first level has a place for each cube
    (sub-pixel convolution, Shi et al. 2016).
    """

    def __init__(self, patch_size: int = 1, **config: Any) -> None:
        super().__init__()
        try:
            from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
        except ImportError as error:
            raise InputError(
                "volumes are learnt by MONAI's network, which is not installed: pip install "
                "'latentprint[monai]'"
            ) from error
        self.config, self.patch_size = config, patch_size
        self.inner = DiffusionModelUNet(**config)

    def forward(self, x: torch.Tensor, time: torch.Tensor, class_labels: torch.Tensor | None = None) -> Any:
        """Volumes (B, C, D, H, W) and times (B,) -> (B, C, D, H, W)."""
        from monai.networks.utils import pixelshuffle, pixelunshuffle

        out = self.inner(pixelunshuffle(x, 3, self.patch_size), time, class_labels=class_labels)
        return pixelshuffle(out, 3, self.patch_size)

    @property
    def channels(self) -> int:
        """The channels of a volume."""
        return self.config["in_channels"] // self.patch_size**3


Network: TypeAlias = "UNet2DModel | VolumeUNet"
"""The networks that this library trains."""


AUGMENT_LABELS = 10
"""An image as it is (0), mirrored, or shifted in one of eight directions: `training.augment`."""


def label_of(network: nn.Module) -> int | None:
    """The label of images as they are, for a network that is told how images were augmented."""
    config: Mapping[str, object] = getattr(network, "config", {})
    return 0 if config.get("num_class_embeds") is not None else None


def volume_settings(config: UNetConfig, channels: int) -> dict[str, object]:
    """MONAI's names for the network's shape."""
    if not config.middle_attention:
        raise InputError(
            "the network for volumes, MONAI's, attends in its middle: leave middle_attention true"
        )
    inside = channels * config.patch_size**3
    settings: dict[str, object] = {
        "spatial_dims": 3,
        "in_channels": inside,
        "out_channels": inside,
        "channels": list(config.channels),
        "num_res_blocks": config.layers_per_block,
        "attention_levels": list(config.attention or (False,) * len(config.channels)),
        "norm_num_groups": config.norm_groups,
        "num_head_channels": config.head_channels,
    }
    return settings | ({"num_class_embeds": AUGMENT_LABELS} if config.augment_labels else {})


def multiple_of(network: nn.Module) -> int:
    """The number of which a network's sides must be multiples: a U-Net halves them at each level except one.

    28 = 4 x 7 can be halved twice; other sides are padded (``NetworkDenoiser``, ``multiple``).
    """
    from diffusers.models.unets.unet_2d import UNet2DModel

    if isinstance(network, VolumeUNet):
        return network.patch_size * 2 ** (len(network.config["channels"]) - 1)
    halves = isinstance(network, UNet2DModel)
    return 2 ** (len(network.config["block_out_channels"]) - 1) if halves else 1


def is_coarse(multiple: int, sides: tuple[int, ...]) -> bool:
    """Whether the innermost grid of a network of volumes has 2 x 2 x 2 places or fewer.

    There the gradients of torch's bfloat16 convolutions were NaN in 1 of 40 trials on a CPU (torch 2.11).
    """
    return len(sides) == 3 and max(-(-side // multiple) for side in sides) <= 2


def require_fit(config: UNetConfig, shape: tuple[int, ...]) -> None:
    """Refuse settings that a network for images (C, *S) cannot have.

    Raises:
        InputError: of volumes, see ``VolumeUNet`` and ``volume_settings``; of images, a patch size over 1.
    """
    if len(shape) == 4:
        volume_settings(config, shape[0])
    elif config.patch_size > 1:
        raise InputError("the network for images takes single pixels: leave patch_size at 1")


def build_unet(config: UNetConfig, channels: int, size: int | tuple[int, ...], streams: Streams) -> Network:
    """A freshly initialised network for images (B, channels, *size), on the CPU, in float32.

    Args:
        config: the network's shape.
        channels: channels of the images, 1 or more.
        size: the side of square images, or (height, width), or (depth, height, width), in pixels.
        streams: the weights are a function of their seed alone; torch's global generator is not changed.

    Raises:
        ValueError: ``channels`` or a side is not positive.
        InputError: of volumes, see ``VolumeUNet`` and ``volume_settings``; of images, a patch size over 1.
    """
    from diffusers.models.unets.unet_2d import UNet2DModel

    sides = (size, size) if isinstance(size, int) else size
    if channels < 1 or min(sides) < 1:
        raise ValueError(f"images need positive channels and sides, got {channels} channels of {sides}")
    require_fit(config, (channels, *sides))
    attention = config.attention or (False,) * len(config.channels)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(streams.generator("network.weights").integers(2**63)))
        if len(sides) == 3:
            return VolumeUNet(config.patch_size, **volume_settings(config, channels))
        return UNet2DModel(
            sample_size=cast(tuple[int, int], size),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=config.channels,
            layers_per_block=config.layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if on else "DownBlock2D" for on in attention),
            up_block_types=tuple("AttnUpBlock2D" if on else "UpBlock2D" for on in reversed(attention)),
            add_attention=config.middle_attention,
            attention_head_dim=config.head_channels,
            norm_num_groups=config.norm_groups,
            num_class_embeds=AUGMENT_LABELS if config.augment_labels else None,
            downsample_type="conv",
            upsample_type="conv",
        )


def parameters(network: torch.nn.Module) -> int:
    """How many trainable numbers a network has."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
