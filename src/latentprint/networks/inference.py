"""The same network, evaluated faster: a UNet2DModel in a form for sampling.

``inference_form`` returns a copy that shares no state with the original and differs from it only by rounding:

- arrays are channels last, which convolutions on a CPU (oneDNN) and a GPU take without reordering;
- group normalisation is written in whole passes over such arrays, because torch's own kernel for them takes
  ten times as long on a CPU, longer than the convolutions in between;
- a residual block activates and sums in place and does not divide by 1;
- "double each pixel, then convolve with a 3 x 3 kernel" is one transposed convolution with a 4 x 4 kernel. Of
  three neighbours on the doubled grid two are the same pixel, so that 4 products per output do the work of 9.
  Along an axis the kernel (w0, w1, w2) becomes (w2, w1 + w2, w0 + w1, w0). (Shi et al. 2016, sub-pixel
  convolution.)

Under autocast the convolutions multiply in bfloat16; normalisation stays float32.

It is only for evaluation; train the original.
"""

from __future__ import annotations

import copy
from typing import Literal, cast

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional

_CACHED = 2**18  # numbers processed at once in float32: 1 MiB, about a core's second-level cache


class _Space:
    """Reusable memory. It holds one array at a time, so a network must not run in two threads."""

    def __init__(self) -> None:
        self.memory = torch.empty(0)

    def like(self, x: Tensor) -> Tensor:
        """An array like ``x`` with any contents; it overwrites the one returned before."""
        old = self.memory
        fits = old.numel() >= x.numel() and old.dtype == x.dtype and old.device == x.device
        if not fits or old.is_inference() != torch.is_inference_mode_enabled():
            self.memory = old = torch.empty(x.numel(), dtype=x.dtype, device=x.device)
        return old[: x.numel()].view(x.shape)


class _GroupNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias, moments over a group of channels and all pixels.

    With ``activate`` silu is applied to the result while it is still in the cache. ``to`` says where the
    result is put. Fresh memory costs as much as the arithmetic, and none is needed if the input ("in place")
    or the last result of a norm with the same ``_Space`` is no longer used.
    """

    def __init__(
        self, norm: nn.GroupNorm, activate: bool = False, to: _Space | Literal["in place"] | None = None
    ) -> None:
        super().__init__()
        self.activate, self.to_space = activate, to
        self.groups, self.eps, self.weight, self.bias = norm.num_groups, norm.eps, norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            x = functional.group_norm(x, self.groups, self.weight, self.bias, self.eps)
            return functional.silu(x) if self.activate else x
        batch, channels, height, width = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        if x.is_cpu:  # rows are processed in parts, so that the passes find them in the cache
            out = self._place(pixels)
            part = max(1, _CACHED // pixels[0].numel())
            for i in range(0, batch, part):
                self._normalise(pixels[i : i + part], out[i : i + part])
        else:
            out = self._normalise(pixels, None)
        return out.reshape(batch, height, width, channels).permute(0, 3, 1, 2)

    def _place(self, pixels: Tensor) -> Tensor:
        if isinstance(self.to_space, _Space):
            return self.to_space.like(pixels)
        return torch.empty_like(pixels) if self.to_space is None else pixels

    def _normalise(self, pixels: Tensor, out: Tensor | None) -> Tensor:
        if out is not None and out.dtype != torch.float32:
            return out.copy_(self._normalise(pixels.float(), None))
        centred = pixels - self._spread(pixels.sum(1), pixels.shape[1])
        deviation = (self._spread(centred.square().sum(1), pixels.shape[1]) + self.eps).sqrt()
        out = torch.addcmul(self.bias, centred, self.weight / deviation, out=out)
        return functional.silu(out, inplace=True) if self.activate else out

    def _spread(self, sums: Tensor, pixels: int) -> Tensor:
        """Sums per channel (B, C) -> means per group, repeated for its channels, (B, 1, C)."""
        grouped = sums.reshape(len(sums), self.groups, -1)
        means = grouped.sum(-1, keepdim=True) / (pixels * grouped.shape[-1])
        return means.expand_as(grouped).reshape(len(sums), 1, -1)


class _Residual(nn.Module):
    """x + conv2(silu(norm2(conv1(silu(norm1(x))) + W silu(time)))), in as few arrays as possible."""

    def __init__(self, block: ResnetBlock2D, space: _Space) -> None:
        super().__init__()
        self.norm1, self.conv1 = _GroupNorm(block.norm1, True, space), block.conv1
        self.norm2, self.conv2 = _GroupNorm(block.norm2, True, "in place"), block.conv2
        self.time, self.shortcut = block.time_emb_proj, block.conv_shortcut

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        if self.time is not None:
            h += cast(Tensor, self.time(functional.silu(time)))[:, :, None, None]
        h = self.conv2(self.norm2(h))
        h += x if self.shortcut is None else self.shortcut(x)
        return h


class _Doubling(nn.Module):
    """Nearest-neighbour doubling followed by a 3 x 3 convolution, as one transposed 4 x 4 convolution."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = _joined(_joined(conv.weight.detach().double(), 2), 3).transpose(0, 1)
        self.weight = nn.Parameter(weight.to(conv.weight.dtype).contiguous(), requires_grad=False)
        self.bias = conv.bias

    def forward(self, x: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        height, width = x.shape[-2:]
        if output_size is not None and tuple(output_size) != (2 * height, 2 * width):
            raise ValueError(f"a doubled {height} x {width} has twice its size, got {tuple(output_size)}")
        return functional.conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1)


def _joined(w: Tensor, axis: int) -> Tensor:
    """(w0, w1, w2) -> (w2, w1 + w2, w0 + w1, w0) along an axis."""
    w0, w1, w2 = w.unbind(axis)
    return torch.stack([w2, w1 + w2, w0 + w1, w0], axis)


def _plain(block: ResnetBlock2D) -> bool:
    return (
        block.upsample is None
        and block.downsample is None
        and block.time_embedding_norm == "default"
        and not block.skip_time_act
        and block.output_scale_factor == 1.0
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.dropout.p == 0.0
    )


def inference_form(network: nn.Module) -> nn.Module:
    """A copy of ``network`` for sampling, in evaluation mode: same inputs, same outputs to rounding.

    Parts of a UNet2DModel that it does not know (attention, other norms) are not changed, and neither is any
    other network.
    """
    fast = copy.deepcopy(network).eval().requires_grad_(False)
    if not isinstance(fast, UNet2DModel):
        return fast
    space = _Space()
    for parent in list(fast.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ResnetBlock2D) and _plain(child):
                setattr(parent, name, _Residual(child, space))
            elif isinstance(child, Upsample2D) and _doubles(child):
                setattr(parent, name, _Doubling(cast(nn.Conv2d, child.conv)))
            elif isinstance(child, nn.GroupNorm) and child.affine:
                setattr(parent, name, _GroupNorm(child))
    last = cast(nn.Module, fast.conv_norm_out)
    if isinstance(last, _GroupNorm) and isinstance(cast(nn.Module, fast.conv_act), nn.SiLU):
        last.activate, last.to_space = True, space
        setattr(fast, "conv_act", nn.Identity())  # noqa: B010  the stubs know of SiLU only
    return fast.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _doubles(child: Upsample2D) -> bool:
    conv = getattr(child, "conv", None)
    plain = child.use_conv and not child.use_conv_transpose and child.interpolate and child.norm is None
    return plain and isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3) and conv.padding == (1, 1)
