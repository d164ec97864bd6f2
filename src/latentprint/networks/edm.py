"""The networks that Karras et al. (2022) trained: SongUNet (DDPM++ and NCSN++) and DhariwalUNet (ADM).

    block    h = conv(silu(norm(x)));  h = norm(h (+) e);  x = (skip(x) + conv(silu(h))) s,  then attention
             (+) is norm(h) (1 + a) + b for DhariwalUNet (s = 1), norm(h + b) for SongUNet (s = 1/sqrt(2))
    side     changes in the first convolution of a block and in its skip, by a filter of ``filter``
    skips    all of the way down are joined on the way up, each once; NCSN++ ("residual") also adds the
    image's own
             filtered halves along the way down

A level's parts are named by its side ("16x16_block0"), as in the published networks, so their state dicts
fit.

Sources: Karras et al. 2022, appendix F (tables 7 and 8); Song et al. 2021, appendix H; Dhariwal and Nichol
2021; NVIDIA PhysicsNeMo (Apache-2.0) for names.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

_HALF = 1 / math.sqrt(2)
_HEAD = 64  # channels per head of DhariwalUNet


@dataclass(frozen=True)
class EDMConfig:
    """The network's shape.

    Attributes:
        kind: which of the two it is.
        sample_size: the side of its images, in pixels.
        in_channels, out_channels: of its input and output.
        model_channels: the unit of ``mults``, which give each level's width, outermost first.
        mult_noise: sines and cosines of time, in model channels (SongUNet).
        mult_emb: channels of the embedding, in model channels.
        blocks: on the way down of each level; one more on the way up.
        attention: sides at which blocks attend.
        fourier: whether time enters by random frequencies and not by positional ones.
        residual: whether halves of the image itself are added on the way down (NCSN++).
        filter: the filter that is applied where sides change.
        classes: how many it knows; the label after the last one means no class. None: unconditional.
        augmented: settings of an augmentation that was an input in training; here that input is zero.
    """

    kind: Literal["SongUNet", "DhariwalUNet"]
    sample_size: int
    in_channels: int
    out_channels: int
    model_channels: int
    mults: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    mult_noise: int = 1
    mult_emb: int = 4
    fourier: bool = False
    residual: bool = False
    filter: tuple[float, ...] = (1.0, 1.0)
    classes: int | None = None
    augmented: int | None = None

    @property
    def song(self) -> bool:
        """Whether it is a SongUNet."""
        return self.kind == "SongUNet"


def _norm(channels: int, eps: float) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, min(32, channels // 4)), channels, eps=eps)


class _Conv(nn.Module):
    """A convolution (none where the kernel is 0); before it a filter may double (1) or halve (-1) the side.

    With ``first`` the convolution comes first, at the larger side.
    """

    def __init__(
        self,
        given: int,
        gives: int,
        kernel: int,
        side: int = 0,
        taps: tuple[float, ...] = (1.0, 1.0),
        first: bool = False,
    ) -> None:
        super().__init__()
        self.side, self.first = side, first
        if kernel:
            self.weight = nn.Parameter(torch.empty(gives, given, kernel, kernel))
            self.bias = nn.Parameter(torch.empty(gives))
        else:
            self.weight = self.bias = None
        if side:
            taps_ = torch.tensor(taps, dtype=torch.float32)
            self.register_buffer("resample_filter", taps_.outer(taps_)[None, None] / taps_.sum() ** 2)

    def forward(self, x: Tensor) -> Tensor:
        around = 0 if self.weight is None else self.weight.shape[-1] // 2
        taps = cast(Tensor, self.resample_filter).to(x.dtype) if self.side else None
        pad = 0 if taps is None else (taps.shape[-1] - 1) // 2
        if self.first and self.weight is not None:
            x, around = functional.conv2d(x, self.weight, padding=around + pad), None
            pad = 0
        if taps is not None:
            each = (taps * (4 if self.side > 0 else 1)).tile(x.shape[1], 1, 1, 1)
            change = functional.conv_transpose2d if self.side > 0 else functional.conv2d
            x = change(x, each, stride=2, padding=pad, groups=x.shape[1])
        if self.weight is None or self.bias is None:
            return x
        if around is None:
            return x + self.bias[:, None, None]
        return functional.conv2d(x, self.weight, self.bias, padding=around)


class _Block(nn.Module):
    """A residual block that receives time; it may attend, and may change the side."""

    def __init__(self, of: EDMConfig, given: int, gives: int, attends: bool, side: int = 0) -> None:
        super().__init__()
        eps, told = (1e-6 if of.song else 1e-5), of.mult_emb * of.model_channels
        self.gives, self.song, self.scale = gives, of.song, (_HALF if of.song else 1.0)
        self.given = given
        self.norm0, self.conv0 = _norm(given, eps), _Conv(given, gives, 3, side, of.filter)
        self.affine = nn.Linear(told, gives if of.song else 2 * gives)
        self.norm1, self.conv1 = _norm(gives, eps), _Conv(gives, gives, 3)
        changes = gives != given
        self.skip = None
        if changes or side:
            self.skip = _Conv(given, gives, 1 if changes or of.song else 0, side, of.filter)
        self.heads = (1 if of.song else gives // _HEAD) if attends else 0
        if self.heads:
            self.norm2, self.qkv = _norm(gives, eps), _Conv(gives, 3 * gives, 1)
            self.proj = _Conv(gives, gives, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv0(functional.silu(self.norm0(x)))
        told = self.affine(e)[:, :, None, None]
        if self.song:
            h = self.norm1(h + told)
        else:
            scale, shift = told.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), 1 + scale)
        h = self.conv1(functional.silu(h))
        x = (h + (x if self.skip is None else self.skip(x))) * self.scale
        if not self.heads:
            return x
        # in each head, every third channel belongs to q, to k and to v
        qkv = self.qkv(self.norm2(x)).flatten(2).unflatten(1, (self.heads, -1, 3))
        q, k, v = (one.transpose(-1, -2) for one in qkv.unbind(3))
        out = functional.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(x.shape)
        return (x + self.proj(out)) * self.scale


class _Frequencies(nn.Module):
    """The random frequencies of time, which were drawn once."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.zeros(count))


class EDMUNet(nn.Module):
    """``network(x, time, class_labels)`` -> F of the preconditioned network, which receives log(sigma) / 4 as
    time.

    Args:
        config: an ``EDMConfig``, or in its place the settings of one by name.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        of = self.settings = EDMConfig(**config)
        waves = of.model_channels * (of.mult_noise if of.song else 1)
        told = of.mult_emb * of.model_channels
        if of.fourier:
            self.map_noise = _Frequencies(waves // 2)
        if of.classes is not None:
            self.map_label = nn.Linear(of.classes, waves if of.song else told, bias=of.song)
        if of.augmented is not None:
            self.map_augment = nn.Linear(of.augmented, waves, bias=False)
        self.map_layer0, self.map_layer1 = nn.Linear(waves, told), nn.Linear(told, told)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        widths = [of.model_channels * one for one in of.mults]
        kept = self._down(of, widths)
        self._up(of, widths, kept)

    @property
    def config(self) -> dict[str, Any]:
        """The settings, by name."""
        return asdict(self.settings)

    def _down(self, of: EDMConfig, widths: list[int]) -> list[int]:
        """Build the way down; returns the widths of its outputs for the way up."""
        wide, aside, kept = of.in_channels, of.in_channels, list[int]()
        for level, gives in enumerate(widths):
            side = of.sample_size >> level
            name = f"{side}x{side}"
            if level == 0:
                wide = of.model_channels if of.song else gives
                self.enc[f"{name}_conv"] = _Conv(of.in_channels, wide, 3)
            else:
                self.enc[f"{name}_down"] = _Block(of, wide, wide, False, -1)
                if of.residual:
                    self.enc[f"{name}_aux_residual"] = _Conv(aside, wide, 3, -1, of.filter, first=True)
                    aside = wide
            kept.append(wide)
            for k in range(of.blocks):
                self.enc[f"{name}_block{k}"] = _Block(of, wide, gives, side in of.attention)
                wide = gives
                kept.append(wide)
        return kept

    def _up(self, of: EDMConfig, widths: list[int], kept: list[int]) -> None:
        wide = widths[-1]
        for level, gives in reversed(list(enumerate(widths))):
            side = of.sample_size >> level
            name = f"{side}x{side}"
            if level == len(widths) - 1:
                self.dec[f"{name}_in0"] = _Block(of, wide, wide, True)
                self.dec[f"{name}_in1"] = _Block(of, wide, wide, False)
            else:
                self.dec[f"{name}_up"] = _Block(of, wide, wide, False, 1)
            for k in range(of.blocks + 1):
                attends = side in of.attention and (k == of.blocks or not of.song)
                self.dec[f"{name}_block{k}"] = _Block(of, wide + kept.pop(), gives, attends)
                wide = gives
        if of.song:
            name = f"{of.sample_size}x{of.sample_size}"
            self.dec[f"{name}_aux_norm"] = _norm(wide, 1e-6)
            self.dec[f"{name}_aux_conv"] = _Conv(wide, of.out_channels, 3)
        else:
            self.out_norm, self.out_conv = _norm(wide, 1e-5), _Conv(wide, of.out_channels, 3)

    def _embedding(self, time: Tensor, class_labels: Tensor | None) -> Tensor:
        """(B, told) of time (B,) and class_labels (B,)."""
        of = self.settings
        half = self.map_layer0.in_features // 2
        if of.fourier:
            rates = 2 * math.pi * cast(Tensor, self.map_noise.freqs).to(time.dtype)
        else:
            at = torch.arange(half, dtype=torch.float32, device=time.device) / (half - (1 if of.song else 0))
            rates = (1 / 10_000) ** at
        angles = time[:, None] * rates
        both = (angles.sin(), angles.cos()) if of.song else (angles.cos(), angles.sin())
        e, label = torch.cat(both, dim=1), None
        if of.classes is not None and class_labels is not None:  # the label after the last one is all zeros
            one_hot = functional.one_hot(class_labels, of.classes + 1)[:, :-1].to(e.dtype)
            label = self.map_label(one_hot * (math.sqrt(of.classes) if of.song else 1.0))
        if of.song:
            e = e if label is None else e + label
            return functional.silu(self.map_layer1(functional.silu(self.map_layer0(e))))
        e = self.map_layer1(functional.silu(self.map_layer0(e)))
        return functional.silu(e if label is None else e + label)

    def forward(self, x: Tensor, time: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x (B, in_channels, H, W), time (B,), class_labels (B,) if it knows classes."""
        e = self._embedding(time, class_labels).to(x.dtype)
        kept, aside = list[Tensor](), x
        for name, part in self.enc.items():
            if "aux_residual" in name:
                x = kept[-1] = aside = (x + part(aside)) * _HALF
                continue
            x = part(x, e) if isinstance(part, _Block) else part(x)
            kept.append(x)
        for part in self.dec.values():
            if not isinstance(part, _Block):
                continue
            if part.given != x.shape[1]:
                x = torch.cat([x, kept.pop()], dim=1)
            x = part(x, e)
        if self.settings.song:
            name = f"{self.settings.sample_size}x{self.settings.sample_size}"
            return self.dec[f"{name}_aux_conv"](functional.silu(self.dec[f"{name}_aux_norm"](x)))
        return self.out_conv(functional.silu(self.out_norm(x)))
