"""What was recognised of a model, and a first test: does it denoise these images?

At five noise levels r = sigma / alpha a few images are noised, and the squared error of E[x_0 | x_t] is
measured, as a share of the images' own variance. It is compared with a plain blur of x_t / alpha, by the
Gaussian whose width is best for the training images at that level, shrunk towards their mean by the best
factor. A network that receives the wrong time, whose prediction has another sign or meaning, or whose images
have another range, loses against the blur at some levels or all of them. A trained network wins at every
level. Errors on training images far below those on held-out ones are memorisation, which the audit measures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from latentprint.adapters.discrete import DiscreteSchedule
from latentprint.adapters.function import FunctionDenoiser
from latentprint.adapters.latent import LatentCodec
from latentprint.adapters.monai import MonaiCodec
from latentprint.adapters.opened import Opened
from latentprint.adapters.timesteps import DiscreteDenoiser
from latentprint.denoiser import IdentityCodec, NetworkDenoiser
from latentprint.schedule import Schedule, expand
from latentprint.streams import Streams

RATIOS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""sigma / alpha, in standard deviations of the network's input."""

_IMAGES = 8
_WIDTHS = (0.0, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)


@dataclass(frozen=True)
class Denoising:
    """Errors at one noise level, as shares of the images' variance.

    Attributes:
        ratio: sigma / alpha.
        train: of the network on training images.
        heldout: of the network on held-out images.
        blur: of the best blur, on the training images.
    """

    ratio: float
    train: float
    heldout: float
    blur: float


@torch.no_grad()
def denoising(
    opened: Opened, train: NDArray[np.float32], heldout: NDArray[np.float32], device: torch.device
) -> tuple[Denoising, ...]:
    """The errors at five noise levels, or fewer if the model's schedule does not reach all of them.

    Args:
        opened: the model.
        train: training images (n, C, H, W) in [-1, 1], of which a few are used.
        heldout: images that it was not trained on, of the same shape.
        device: where the model is.
    """
    schedule = opened.denoiser.schedule
    clean = [
        opened.codec.encode(torch.from_numpy(np.ascontiguousarray(one[:_IMAGES])).to(device))
        for one in (train, heldout)
    ]
    spread = float(clean[0].std())
    low, high = float(schedule.ratio(schedule.end)), float(schedule.ratio(schedule.start))
    streams, out = Streams(0), list[Denoising]()
    for place, share in enumerate(RATIOS):
        ratio = share * spread
        if not low <= ratio <= high:
            continue
        t = schedule.time(torch.tensor(ratio, dtype=torch.float64)).cpu()
        errors, noisy = list[float](), list[Tensor]()
        for purpose, images in zip(("truth.train", "truth.heldout"), clean, strict=True):
            ids = torch.arange(len(images))
            shape = tuple(images.shape[1:])
            noise = streams.noise(purpose, ids, place, shape, device=device, dtype=images.dtype)
            x = expand(schedule.alpha(t), images) * images + expand(schedule.sigma(t), images) * noise
            found = opened.denoiser(x, t.expand(len(x)))
            errors.append(float((found - images).square().mean()) / spread**2)
            noisy.append(x / expand(schedule.alpha(t), x))
        best = min(_fitted(_blurred(noisy[0], width), clean[0]) for width in _WIDTHS)
        out.append(Denoising(ratio, errors[0], errors[1], best / spread**2))
    return tuple(out)


MEMORY = 4.0
"""How many times better training images come out than held-out ones, where that is said to be memory."""


def answer(levels: tuple[Denoising, ...]) -> str:
    """Whether the model takes noise off these images, in words."""
    won, lost = len(levels) - len(beaten(levels)), beaten(levels)
    said = f"{'no' if not won else 'yes' if not lost else 'in part'}: better than a plain blur at {won} of "
    said += f"{len(levels)} noise levels"
    known = [one for one in levels if one.train * MEMORY < one.heldout and one.ratio not in lost]
    if known:
        most = max(known, key=lambda one: one.heldout / one.train)
        said += (
            f"; at noise {most.ratio:.2g} training images come out {most.heldout / most.train:.0f} times "
            "better than held-out ones: it remembers them"
        )
    return said


def beaten(levels: tuple[Denoising, ...]) -> tuple[float, ...]:
    """The noise levels at which a blur is better than the model, on training and held-out images alike."""
    return tuple(one.ratio for one in levels if min(one.train, one.heldout) >= one.blur)


def _fitted(blurred: Tensor, clean: Tensor) -> float:
    """The squared error of a blur, shrunk towards the mean of the images by the best factor."""
    mean = clean.mean()
    shown, asked = blurred - mean, clean - mean
    factor = (shown * asked).sum() / shown.square().sum()
    return float((factor * shown - asked).square().mean())


def _blurred(x: Tensor, width: float) -> Tensor:
    """Images (n, C, H, W) through a Gaussian of ``width`` pixels."""
    if width == 0.0:
        return x
    reach = max(1, math.ceil(3 * width))
    at = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-(at**2) / (2 * width**2))
    kernel = (kernel / kernel.sum()).reshape(1, 1, -1)
    for axis in range(2, x.ndim):
        rows = x.movedim(axis, -1)
        flat = functional.pad(rows.reshape(-1, 1, rows.shape[-1]), (reach, reach), mode="replicate")
        x = functional.conv1d(flat, kernel).reshape(rows.shape).movedim(-1, axis)
    return x


def _named(schedule: Schedule) -> str:
    """A schedule in words."""
    if isinstance(schedule, DiscreteSchedule):
        return f"{schedule.timesteps:,} timesteps"
    return type(schedule).__name__


def recognised(opened: Opened) -> dict[str, str]:
    """What was recognised of a model, by name, in words."""
    denoiser, codec = opened.denoiser, opened.codec
    schedule = denoiser.schedule
    count = sum(one.numel() for network in opened.networks for one in network.parameters())
    networks = ", ".join(type(network).__name__ for network in opened.networks) or type(denoiser).__name__
    said = {
        "model": opened.kind,
        "network": f"{networks}, {count:,} parameters" if count else networks,
        "weights sha256": opened.weights_sha256,
        "noise": f"{_named(schedule)}, sigma/alpha from {float(schedule.ratio(schedule.end)):.3g} to "
        f"{float(schedule.ratio(schedule.start)):.3g}",
    }
    predicts = getattr(denoiser, "predicts", None) or getattr(denoiser, "parametrisation", None)
    if isinstance(denoiser, DiscreteDenoiser | FunctionDenoiser | NetworkDenoiser):
        said["it predicts"] = str(predicts)
    unit = isinstance(codec, MonaiCodec) and codec.unit
    said["range of its images"] = "[0, 1]" if unit else "[-1, 1]"
    if isinstance(codec, LatentCodec | MonaiCodec) and not isinstance(codec, IdentityCodec):
        said["scale of its latents"] = f"{codec.scale:.4g}"
    label = getattr(denoiser, "label", None)
    guidance = getattr(denoiser, "guidance", 1.0)
    guided = "" if guidance == 1.0 else f", guidance {guidance:g}"
    said["conditioned on"] = "nothing" if label is None else f"class {label}{guided}"
    if opened.text is not None:
        said["conditioned on"] = f"prompts, guidance {opened.text.guidance:g}"
    if opened.own is not None:
        sampler = opened.own.sampler
        exact = "" if opened.own.exact else " (ours nearest to it)"
        said["its own sampler"] = (
            f"{sampler.of or sampler.step.name}, {sampler.steps + sampler.denoise} steps{exact}"
        )
    return said
