"""The U-Net of openai's improved- and guided-diffusion, which CompVis' latent diffusion also uses.

Level k works at size / 2^k, on ``widths[k]`` channels. A level has n residual blocks on the way down and n +
1 on the way up, each followed by attention if ``attention`` says so. The output of each stage on the way down
is concatenated on the way up. Parts have their original names, so an original state dict fits.

    time     e = MLP(cos and sin of k 10000^(-i/m), i < m = model_channels / 2),  plus that of the class
    block    h = conv(silu(norm(x)));  h = norm(h) (1 + a) + b  or  norm(h + b),  (a, b) linear in silu(e)
    heads    of qkv's channels each head has its own q, k, v (as first published), or all q come first ("new")
    context  instead of attention, transformers that also attend to the embedding of a class

Sources: Nichol and Dhariwal 2021, Dhariwal and Nichol 2021 (appendix), Rombach et al. 2022 (context); their
published code (MIT) for names.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

_GROUPS = 32


@dataclass(frozen=True)
class OpenAIConfig:
    """The network's shape, and how it receives time.

    Attributes:
        sample_size: the side of its images, in pixels.
        model_channels: the width from which the embedding of time follows.
        widths: channels of each level, outermost first.
        attention: of each level, whether its blocks attend.
        heads: (on the way down and in the middle, on the way up) if a head has no fixed width.
        head_channels: the width of a head; None: ``heads`` says how many there are.
        new_order: the order of q, k and v, see above.
        scale_shift: whether time also scales the activations that it is added to.
        resample_blocks: sides change within residual blocks and not by convolutions between them.
        timestep_scale: timesteps are multiplied by this.
        context: the width of a class's embedding that transformers look at; None: attention alone, and the
            class goes in with time.
        depth: blocks of a transformer.
        null_class: the class that stands for none, where there is one.

    Raises:
        ValueError: widths, groups and heads that do not divide evenly.
    """

    sample_size: int
    in_channels: int
    out_channels: int
    model_channels: int
    widths: tuple[int, ...]
    num_res_blocks: int
    attention: tuple[bool, ...]
    heads: tuple[int, int] = (4, 4)
    head_channels: int | None = None
    new_order: bool = False
    scale_shift: bool = True
    resample_blocks: bool = False
    num_class_embeds: int | None = None
    timestep_scale: float = 1.0
    context: int | None = None
    depth: int = 1
    null_class: int | None = None

    def __post_init__(self) -> None:
        if len(self.attention) != len(self.widths):
            raise ValueError(f"attention needs one entry for each of {len(self.widths)} levels")
        if rest := [one for one in self.widths if one % _GROUPS]:
            raise ValueError(f"{_GROUPS} groups must divide every level's channels, got {rest}")
        attending = [w for w, on in zip(self.widths, self.attention, strict=True) if on]
        divisors = self.heads if self.head_channels is None else (self.head_channels,)
        if rest := [one for one in (*attending, self.widths[-1]) if any(one % d for d in divisors)]:
            raise ValueError(f"heads must divide the levels that attend, got {rest} for {divisors}")


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, channels)


class _Resample(nn.Module):
    """Half or twice the side, by a convolution; without channels there is no convolution."""

    def __init__(self, up: bool, channels: int | None = None) -> None:
        super().__init__()
        self.up = up
        if channels is not None and up:
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        elif channels is not None:
            self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, e: Tensor | None = None) -> Tensor:
        if self.up:
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            return self.conv(x) if hasattr(self, "conv") else x
        return self.op(x) if hasattr(self, "op") else functional.avg_pool2d(x, 2)


class _Residual(nn.Module):
    """A residual block that receives time; with ``resample`` it also changes the side."""

    def __init__(
        self, given: int, gives: int, time: int, scale_shift: bool, resample: _Resample | None = None
    ) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(_norm(given), nn.SiLU(), nn.Conv2d(given, gives, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * gives if scale_shift else gives))
        # the place of its dropout, which evaluation leaves out
        last = nn.Conv2d(gives, gives, 3, padding=1)
        self.out_layers = nn.Sequential(_norm(gives), nn.SiLU(), nn.Identity(), last)
        self.skip_connection = nn.Identity() if given == gives else nn.Conv2d(given, gives, 1)
        self.scale_shift, self.resample = scale_shift, resample

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.in_layers[:2](x)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.in_layers[2](h)
        told = self.emb_layers(e)[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = self.out_layers[1:](torch.addcmul(shift, self.out_layers[0](h), 1 + scale))
        else:
            h = self.out_layers(h + told)
        return self.skip_connection(x) + h


class _Attention(nn.Module):
    """Self-attention between all places of an image."""

    def __init__(self, channels: int, heads: int, new_order: bool) -> None:
        super().__init__()
        self.norm, self.qkv = _norm(channels), nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        self.heads, self.new_order = heads, new_order

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        flat = x.flatten(2)
        both = (3, self.heads) if self.new_order else (self.heads, 3)
        qkv = self.qkv(self.norm(flat)).unflatten(1, (*both, -1)).transpose(-1, -2)
        q, k, v = qkv.unbind(1 if self.new_order else 2)
        out = functional.scaled_dot_product_attention(q, k, v).transpose(-1, -2).flatten(1, 2)
        return x + self.proj_out(out).view_as(x)


class _Look(nn.Module):
    """Attention of tokens to themselves, or to others of width ``context``."""

    def __init__(self, channels: int, heads: int, context: int | None = None) -> None:
        super().__init__()
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context or channels, channels, bias=False)
        self.to_v = nn.Linear(context or channels, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))
        self.heads = heads

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        pairs = ((self.to_q, x), (self.to_k, other), (self.to_v, other))
        q, k, v = (to(one).unflatten(-1, (self.heads, -1)).transpose(1, 2) for to, one in pairs)
        return self.to_out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Gated(nn.Module):
    """a gelu(b), (a, b) linear in x."""

    def __init__(self, given: int, gives: int) -> None:
        super().__init__()
        self.proj = nn.Linear(given, 2 * gives)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * functional.gelu(gate)


class _Block(nn.Module):
    """Attention to itself, to the context, and a gated layer, each added to what came in."""

    def __init__(self, channels: int, heads: int, context: int) -> None:
        super().__init__()
        self.attn1, self.attn2 = _Look(channels, heads), _Look(channels, heads, context)
        wide = nn.Linear(4 * channels, channels)
        self.ff = nn.ModuleDict({"net": nn.Sequential(_Gated(channels, 4 * channels), nn.Identity(), wide)})
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        own = self.norm1(x)
        x = x + self.attn1(own, own)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff["net"](self.norm3(x))


class _Transformer(nn.Module):
    """Blocks on the places of an image as tokens."""

    def __init__(self, channels: int, heads: int, context: int, depth: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, channels, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([_Block(channels, heads, context) for _ in range(depth)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:]))


class _Stage(nn.ModuleList):
    """Parts one after another, each told time, or what it looks at."""

    def forward(self, x: Tensor, e: Tensor, context: Tensor | None) -> Tensor:
        for part in self:
            told = context if isinstance(part, _Transformer) else e
            x = part(x) if isinstance(part, nn.Conv2d) else part(x, told)
        return x


class OpenAIUNet(nn.Module):
    """``network(x, timestep, class_labels)`` -> its prediction, (B, out_channels, H, W).

    Args:
        config: an ``OpenAIConfig``, or in its place the settings of one by name.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        one = self.settings = OpenAIConfig(**config)
        time, n = 4 * one.model_channels, one.num_res_blocks
        self.time_embed = nn.Sequential(nn.Linear(one.model_channels, time), nn.SiLU(), nn.Linear(time, time))
        if one.num_class_embeds is not None and one.context is None:
            self.label_emb = nn.Embedding(one.num_class_embeds, time)
        elif one.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(one.num_class_embeds, one.context or 1)
        width = one.widths[0]
        self.input_blocks = nn.ModuleList([_Stage([nn.Conv2d(one.in_channels, width, 3, padding=1)])])
        kept = [width]
        for level, wide in enumerate(one.widths):
            for _ in range(n):
                self.input_blocks.append(self._stage(width, wide, level, 0))
                width = wide
                kept.append(width)
            if level < len(one.widths) - 1:
                self.input_blocks.append(_Stage([self._resample(width, up=False)]))
                kept.append(width)
        middle = self._stage(width, width, None, 0)
        middle.append(_Residual(width, width, time, one.scale_shift))
        self.middle_block = middle
        self.output_blocks = nn.ModuleList()
        for level, wide in reversed(list(enumerate(one.widths))):
            for place in range(n + 1):
                stage = self._stage(width + kept.pop(), wide, level, 1)
                width = wide
                if level and place == n:
                    stage.append(self._resample(width, up=True))
                self.output_blocks.append(stage)
        last = nn.Conv2d(width, one.out_channels, 3, padding=1)
        self.out = nn.Sequential(_norm(width), nn.SiLU(), last)

    @property
    def config(self) -> dict[str, Any]:
        """The settings, by name."""
        return asdict(self.settings)

    def _stage(self, given: int, gives: int, level: int | None, way: int) -> _Stage:
        """A residual block with the attention of its level; the middle (no level) always attends."""
        one = self.settings
        parts: list[nn.Module] = [_Residual(given, gives, 4 * one.model_channels, one.scale_shift)]
        if level is None or one.attention[level]:
            heads = one.heads[way] if one.head_channels is None else gives // one.head_channels
            if one.context is not None:
                parts.append(_Transformer(gives, heads, one.context, one.depth))
            else:
                parts.append(_Attention(gives, heads, one.new_order))
        return _Stage(parts)

    def _resample(self, channels: int, up: bool) -> nn.Module:
        one = self.settings
        if not one.resample_blocks:
            return _Resample(up, channels)
        return _Residual(channels, channels, 4 * one.model_channels, one.scale_shift, _Resample(up))

    def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x (B, in_channels, H, W), timestep (B,), class_labels (B,) where it knows classes."""
        half = self.settings.model_channels // 2
        rates = torch.arange(half, dtype=torch.float32, device=x.device) * (-math.log(10_000) / half)
        angles = timestep.float()[:, None] * self.settings.timestep_scale * rates.exp()
        told = torch.cat([angles.cos(), angles.sin()], dim=1)
        e = self.time_embed(functional.pad(told, (0, self.settings.model_channels % 2)).to(x.dtype))
        context = None
        if class_labels is not None and self.settings.context is not None:
            context = self.class_embedding(class_labels)[:, None]
        elif class_labels is not None:
            e = e + self.label_emb(class_labels)
        kept = list[Tensor]()
        for stage in self.input_blocks:
            x = cast(Tensor, stage(x, e, context))
            kept.append(x)
        x = self.middle_block(x, e, context)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, kept.pop()], dim=1), e, context)
        return cast(Tensor, self.out(x))
