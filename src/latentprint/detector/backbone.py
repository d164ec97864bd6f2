"""The networks inside the detectors: images (B, 3, *sides) in [-1, 1] -> features (B, d).

    "resnet50"   torchvision's, randomly initialised: the paper's (section 5.2), d = 2048
    "resnet18"   the same family, seven times cheaper, d = 512
    "small"      three convolutions, for small images on a CPU, d = 320 (volumes: 576)

The convolutions of volumes are three-dimensional; their ResNets are MONAI's.

Every result names its backbone; none is ever silently replaced by another. Sources: He et al. 2016; Chen, Ma,
Zheng 2019 (Med3D, the ResNets of MONAI).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from latentprint.contracts import InputError
from latentprint.streams import Streams

Backbone = Literal["resnet50", "resnet18", "small"]


_LAYERS: dict[int, tuple[Any, Any, Any]] = {
    2: (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d),
    3: (nn.Conv3d, nn.BatchNorm3d, nn.AdaptiveAvgPool3d),
}


class Small(nn.Module):
    """Three convolutions. Features say where something is (averages of halves) and what is anywhere (a
    maximum)."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        convolution, norm, pool = _LAYERS[axes]
        stages: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 32, 1), (32, 64, 2), (64, 64, 2)):
            stages.append(convolution(inputs, outputs, 3, stride=stride, padding=1, bias=False))
            stages += [norm(outputs), nn.ReLU()]
        self.stages, self.halves = nn.Sequential(*stages), pool(2)
        self.width = 64 * (2**axes + 1)

    def forward(self, images: Tensor) -> Tensor:
        seen = self.stages(images)
        anywhere = seen.amax(dim=tuple(range(2, seen.ndim)))
        return torch.cat([self.halves(seen).flatten(1), anywhere], dim=1)


class Headed(nn.Module):
    """A backbone followed by one linear map: images (B, 3, H, W) -> (B, outputs)."""

    def __init__(self, backbone: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.ending(self.backbone(images))

    def ending(self, seen: Tensor) -> Tensor:
        """The layers after the backbone: features (B, w) -> (B, outputs)."""
        return self.head(seen)


class Classifier(Headed):
    """One output: images (B, 3, H, W) -> logits (B,)."""

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__(backbone, width, 1)

    def ending(self, seen: Tensor) -> Tensor:
        return self.head(seen)[:, 0]


class Embedder(Headed):
    """Outputs of length one: images (B, 3, H, W) -> unit vectors (B, d)."""

    def ending(self, seen: Tensor) -> Tensor:
        return nn.functional.normalize(self.head(seen), dim=1)


def build_backbone(name: Backbone, streams: Streams, purpose: str, axes: int = 2) -> Classifier:
    """A randomly initialised classifier of images with ``axes`` sides; seed and purpose draw its weights.

    Raises:
        InputError: a ResNet for volumes was asked for, and MONAI is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(streams.generator(f"{purpose}.weights").integers(2**63)))
        if name == "small":
            small = Small(axes)
            return Classifier(small, small.width)
        network = _flat(name) if axes == 2 else _resnet(name)
        width = network.fc.in_features
        network.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        return Classifier(network, width)


def _flat(name: Backbone) -> Any:
    from torchvision import models  # seconds, and settings do not need it

    return getattr(models, name)(weights=None)


def _resnet(name: Backbone) -> Any:
    try:
        nets = import_module("monai.networks.nets")
    except ImportError as error:
        raise InputError(
            f"the recogniser {name} of volumes is MONAI's, which is not installed: pip install "
            "'latentprint[monai]', or take backbone = \"small\""
        ) from error
    return getattr(nets, name)(spatial_dims=3, n_input_channels=3, num_classes=1)


Outputs = TypeVar("Outputs", bound=Headed)


def build_headed(
    kind: type[Outputs], name: Backbone, outputs: int, streams: Streams, purpose: str, axes: int = 2
) -> Outputs:
    """One of ``outputs`` outputs, randomly initialised; its weights follow from seed and purpose alone."""
    classifier = build_backbone(name, streams, purpose, axes)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(streams.generator(f"{purpose}.head").integers(2**63)))
        return kind(classifier.backbone, classifier.head.in_features, outputs)
