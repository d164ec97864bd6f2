"""The networks of medfusion: a U-Net that receives a timestep and a class, and an autoencoder.

    unit     act(norm(conv(x)))
    block    x + unit(x) twice, e added between; if not ``residual``, unit(x) twice, e added after each
    U-Net    steps down and up, each way's outputs side by side; sides change by strided convolutions, and
             back by nearest neighbours and a convolution
    time     MLP(sin and cos of k 10000^(-i / (m - 1)), i < m),  plus the embedding of a class

Parts have their original names, so an original state dict fits. Attention (``use_attention``), pooling
instead of strided convolutions and self-conditioning are not supported.

Sources: Mueller-Franzes et al. 2023, "A multimodal comparison of latent denoising diffusion probabilistic
models and generative adversarial networks for medical image synthesis"; its published code (MIT) for names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Levels:
    """The settings that both networks share.

    Attributes:
        dims: 2 for images, 3 for volumes.
        widths: channels of each level, outermost first.
        kernels: side of each level's convolutions.
        strides: the factor by which each level's side is smaller than that of the level above.
        groups: of the normalisation.
        residual: whether blocks add their input.
    """

    dims: Literal[2, 3]
    widths: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    groups: int
    residual: bool = True

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.kernels) == len(self.strides):
            raise ValueError(
                f"{len(self.widths)} levels need as many kernels and strides, got {len(self.kernels)} and "
                f"{len(self.strides)}"
            )
        if rest := [one for one in self.widths if one % self.groups]:
            raise ValueError(f"{self.groups} groups must divide every level's channels, got {rest}")

    def conv(self, given: int, gives: int, kernel: int, stride: int = 1) -> nn.Module:
        """A convolution that keeps the side, or divides it by its stride."""
        kind = nn.Conv2d if self.dims == 2 else nn.Conv3d
        return kind(given, gives, kernel, stride, padding=(kernel - stride + 1) // 2)


class _Unit(nn.Module):
    """A convolution followed by normalisation and swish, unless it is a bare one."""

    def __init__(
        self, of: Levels, given: int, gives: int, kernel: int, stride: int = 1, bare: bool = False
    ) -> None:
        super().__init__()
        self.conv = of.conv(given, gives, kernel, stride)
        self.norm = None if bare else nn.GroupNorm(of.groups, gives)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.norm is None else functional.silu(self.norm(x))


class _Residual(nn.Module):
    def __init__(self, of: Levels, given: int, gives: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.basic_block = _Unit(of, given, gives, kernel, stride)
        self.conv_res = nn.Identity() if given == gives else of.conv(given, gives, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.basic_block(x) + self.conv_res(x)


class _Block(nn.Module):
    """Two units; if it receives time (``told`` channels), that is added between them."""

    def __init__(
        self, of: Levels, given: int, gives: int, kernel: int, told: int | None, stride: int = 1
    ) -> None:
        super().__init__()
        unit = _Residual if of.residual else _Unit
        self.block_seq = nn.ModuleList([unit(of, g, gives, kernel, stride) for g in (given, gives)])
        if told is not None:
            self.local_embedder = nn.Sequential(nn.SiLU(), nn.Linear(told, gives))
        self.to_last = not of.residual

    def forward(self, x: Tensor, e: Tensor | None) -> Tensor:
        told = None if e is None else self.local_embedder(e)
        for place, unit in enumerate(self.block_seq):
            x = unit(x)
            if told is not None and (place == 0 or self.to_last):
                x = x + told.reshape(*told.shape, *(1,) * (x.ndim - 2))
        return x


class _Down(nn.Module):
    """In the autoencoder: a convolution of the level's stride, then a block."""

    def __init__(self, of: Levels, level: int) -> None:
        super().__init__()
        given, gives, kernel, stride = _around(of, level)
        self.down_op = nn.Identity()
        if stride != 1:
            self.down_op = nn.ModuleDict({"down_op": of.conv(given, gives, kernel, stride)})
            given = gives
        self.conv_block = _Block(of, given, gives, kernel, None)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.down_op, nn.ModuleDict):
            x = self.down_op["down_op"](x)
        return self.conv_block(x, None)


class _Rise(nn.Module):
    """The nearest neighbours of a larger image, and a convolution."""

    def __init__(self, of: Levels, given: int, gives: int, factor: int) -> None:
        super().__init__()
        self.factor, self.up_op = factor, of.conv(given, gives, 3)

    def forward(self, x: Tensor) -> Tensor:
        size = [side * self.factor for side in x.shape[2:]]
        return self.up_op(functional.interpolate(x, size=size, mode="nearest-exact"))


class _Up(nn.Module):
    """In the autoencoder: the counterpart of ``_Down``."""

    def __init__(self, of: Levels, level: int) -> None:
        super().__init__()
        gives, given, kernel, factor = _around(of, level)
        self.up_op = nn.Identity() if factor == 1 else _Rise(of, given, gives, factor)
        self.conv_block = _Block(of, given if factor == 1 else gives, gives, kernel, None)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_block(self.up_op(x), None)


def _around(of: Levels, level: int) -> tuple[int, int, int, int]:
    """(channels above, channels of this level, its kernel, its stride)."""
    return of.widths[level - 1], of.widths[level], of.kernels[level], of.strides[level]


class _Time(nn.Module):
    """sin and cos of k at falling rates, and a network of two layers."""

    def __init__(self, waves: int, gives: int) -> None:
        super().__init__()
        self.waves = waves
        self.time_emb = nn.Sequential(
            nn.Identity(), nn.Linear(waves, gives), nn.SiLU(), nn.Linear(gives, gives)
        )

    def forward(self, k: Tensor) -> Tensor:
        half = self.waves // 2
        rates = torch.arange(half, dtype=torch.float32, device=k.device) * (-math.log(10_000) / (half - 1))
        angles = k.float()[:, None] * rates.exp()
        told = torch.cat([angles.sin(), angles.cos()], dim=1)
        return self.time_emb(functional.pad(told, (0, self.waves % 2)))


class _Step(nn.ModuleList):
    """A block, its attention (none here), and the change of side, under the original names."""

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        for part in self:
            x = part(x, e) if isinstance(part, _Block) else part(x)
        return x


class MedfusionUNet(nn.Module):
    """``network(x, timestep, class_labels)`` -> its prediction.

    Level 0 is a convolution; every further one has ``blocks`` blocks on the way down and one more on the way
    up, and all except the last end in a convolution of its stride.

    Args:
        in_channels: of its input.
        out_channels: of its prediction; twice as many with a learned variance.
        blocks: per level.
        waves: sines and cosines of time.
        told: channels of the embedding made from them.
        classes: how many it knows; the label after the last one means no class. None: unconditional.
        levels: settings of ``Levels`` by name.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int,
        waves: int,
        told: int,
        classes: int | None = None,
        **levels: Any,
    ) -> None:
        super().__init__()
        of = Levels(**levels)
        self.time_embedder = _Time(waves, told)
        if classes is not None:
            self.cond_embedder = nn.ModuleDict({"embedding": nn.Embedding(classes, told)})
        self.in_conv = _Unit(of, in_channels, of.widths[0], of.kernels[0], of.strides[0], bare=True)
        self.in_blocks, self.out_blocks = nn.ModuleList(), nn.ModuleList()
        depth = len(of.widths)
        for level in range(1, depth):
            above, wide, kernel, stride = _around(of, level)
            for k in range(blocks):
                self.in_blocks.append(_Step([_Block(of, wide if k else above, wide, kernel, told)]))
            if level < depth - 1:
                self.in_blocks.append(nn.ModuleDict({"down_op": of.conv(wide, wide, kernel, stride)}))
            for k in range(blocks + 1):
                gives = wide if k else above
                step = _Step([_Block(of, wide + gives, gives, kernel, told)])
                if level > 1 and k == 0:
                    step.extend([nn.Identity(), _Rise(of, gives, gives, stride)])
                self.out_blocks.append(step)
        last = of.widths[-1]
        ends = [_Block(of, last, last, of.kernels[-1], told) for _ in range(2)]
        self.middle_block = _Step([ends[0], nn.Identity(), ends[1]])
        # MONAI's block of one convolution, by its names
        self.outc = nn.ModuleDict({"conv": nn.ModuleDict({"conv": of.conv(of.widths[0], out_channels, 1)})})

    def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x (B, in_channels, ...), timestep (B,), class_labels (B,) if it knows classes."""
        e = self.time_embedder(timestep).to(x.dtype)
        if class_labels is not None:
            known = cast(nn.Embedding, self.cond_embedder["embedding"]).weight
            e = e + functional.pad(known, (0, 0, 0, 1))[class_labels]
        kept = [self.in_conv(x)]
        for part in self.in_blocks:
            down = isinstance(part, nn.ModuleDict)
            kept.append(part["down_op"](kept[-1]) if down else part(kept[-1], e))
        x = self.middle_block(kept[-1], e)
        for part in reversed(self.out_blocks):
            x = part(torch.cat([x, kept.pop()], dim=1), e)
        return cast(nn.ModuleDict, self.outc["conv"])["conv"](x)


class MedfusionAutoencoder(nn.Module):
    """An encoder to the mean of a Gaussian, or to values that a codebook of ``codes`` quantises, and its
    decoder.

    Args:
        channels: of the images.
        latents: channels of the latents.
        codes: entries of the codebook; None: a Gaussian.
        levels: settings of ``Levels`` by name.
    """

    def __init__(self, channels: int, latents: int, codes: int | None = None, **levels: Any) -> None:
        super().__init__()
        of, inner = Levels(**levels), range(1, len(levels["widths"]))
        self.inc = _Block(of, channels, of.widths[0], of.kernels[0], None, of.strides[0])
        self.encoders = nn.ModuleList([_Down(of, level) for level in inner])
        last, self.latents = of.widths[-1], latents
        self.quantizer = None
        if codes is None:
            first = _Unit(of, last, 2 * latents, 3, bare=True)
            self.out_enc = nn.Sequential(first, _Unit(of, 2 * latents, 2 * latents, 1, bare=True))
        else:
            self.out_enc = _Unit(of, last, latents, 1, bare=True)
            self.quantizer = nn.ModuleDict({"embedder": nn.Embedding(codes, latents)})
        self.inc_dec = _Block(of, latents, last, 3, None)
        self.decoders = nn.ModuleList([_Up(of, level) for level in inner])
        self.outc = _Unit(of, of.widths[0], channels, 1, bare=True)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, ...) -> latents: the mean, or the values before quantisation."""
        x = self.inc(images, None)
        for encoder in self.encoders:
            x = encoder(x)
        return self.out_enc(x)[:, : self.latents]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> images (B, C, ...)."""
        x = latents
        if self.quantizer is not None:
            codes = cast(nn.Embedding, self.quantizer["embedder"]).weight
            flat = x.movedim(1, -1)
            nearest = torch.cdist(flat.reshape(-1, self.latents), codes).argmin(dim=1)
            x = codes[nearest].view_as(flat).movedim(-1, 1)
        x = self.inc_dec(x, None)
        for decoder in reversed(self.decoders):
            x = decoder(x)
        return self.outc(x)
