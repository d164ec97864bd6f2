"""A copy descriptor that the user supplies, such as SSCD, as a further criterion; no weights are shipped.

    images in [-1, 1] -> side x side, ImageNet's mean and deviation -> ResNet-50
    -> GeM:  ( mean over places of max(x, 1e-6)^p )^(1/p),  p = 3 -> linear map -> vector of length one

The weights are a safetensors file, named by path and sha256: `latentprint convert` makes one of a pickle.
Layers have torchvision's names for its ResNet-50, the linear map is `fc` (or `embeddings.0`), and a leading
`backbone.` is removed.

Source: Pizzi, Roy, Ravindra, Goyal, Douze 2022, "A Self-Supervised Descriptor for Image Copy Detection".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

from latentprint.contracts import InputError
from latentprint.detector.model import three_channels
from latentprint.files import read_weights
from latentprint.settings import STRICT

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_POWER = 3.0


class DescriptorError(InputError):
    """A descriptor that cannot be used, with the reason in one sentence."""


@dataclass(frozen=True, config=STRICT)
class DescriptorSettings:
    """The file of a copy descriptor and its sha256; None: no descriptor. ``side`` is that of its images."""

    weights: str | None = None
    sha256: str | None = None
    side: Annotated[int, Field(ge=32, le=2048)] = 288

    def __post_init__(self) -> None:
        if (self.weights is None) != (self.sha256 is None):
            raise ValueError("a descriptor needs weights and sha256 together")


class _GeM(nn.Module):
    """Generalised mean over places, (n, d, h, w) -> (n, d, 1, 1)."""

    def forward(self, seen: Tensor) -> Tensor:
        return seen.clamp_min(1e-6).pow(_POWER).mean((2, 3), keepdim=True).pow(1 / _POWER)


def descriptor(settings: DescriptorSettings, device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """Images (n, C, H, W) in [-1, 1] -> unit vectors (n, d); None if no descriptor is asked for.

    Raises:
        FileError: the file cannot be read, or has another hash.
        DescriptorError: it has other layers.
    """
    if settings.weights is None:
        return None
    from torchvision.models import resnet50

    path = Path(settings.weights)
    content = read_weights(path, str(settings.sha256))
    try:
        tensors = {_named(name): value for name, value in load(content).items()}
        outputs, inputs = tensors["fc.weight"].shape
        with torch.random.fork_rng(devices=[]):  # weights that are replaced at once
            network = resnet50(weights=None)
            network.fc = nn.Linear(inputs, outputs, bias="fc.bias" in tensors)
        network.avgpool = _GeM()  # pyright: ignore[reportAttributeAccessIssue]
        network.load_state_dict(tensors)
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise DescriptorError(
            f"the descriptor {path.name!r} is not a safetensors file with the layers of a ResNet-50 and a"
            f" linear map fc: {str(error).splitlines()[0][:160]}"
        ) from error
    ready = network.to(device).eval().requires_grad_(False)
    mean, deviation = (torch.tensor(one, device=device)[:, None, None] for one in (_MEAN, _DEVIATION))

    def describe(images: Tensor) -> Tensor:
        size = (settings.side, settings.side)
        seen = functional.interpolate(three_channels(images), size, mode="bilinear", antialias=True)
        return functional.normalize(ready(((seen + 1) / 2 - mean) / deviation), dim=1)

    return describe


def _named(name: str) -> str:
    name = name.removeprefix("module.").removeprefix("backbone.")
    return name.replace("embeddings.0.", "fc.") if name.startswith("embeddings.0.") else name
