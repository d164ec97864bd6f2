"""The networks inside the detectors: images (B, 3, H, W) in [-1, 1] -> features (B, d).

    "resnet50"   torchvision's, randomly initialised: the paper's (section 5.2), d = 2048
    "resnet18"   the same family, seven times cheaper, d = 512
    "small"      three convolutions, for small images on a CPU, d = 320

Which one was used is written beside every result; none ever stands in for another.
Source: He et al. 2016.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from latentprint.streams import Streams

Backbone = Literal["resnet50", "resnet18", "small"]


class Small(nn.Module):
    """Three convolutions; what is where (a 2 x 2 average) beside what is anywhere (a maximum)."""

    width = 320

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 32, 1), (32, 64, 2), (64, 64, 2)):
            convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
            stages += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.stages = nn.Sequential(*stages)

    def forward(self, images: Tensor) -> Tensor:
        seen = self.stages(images)
        where = nn.functional.adaptive_avg_pool2d(seen, 2).flatten(1)
        return torch.cat([where, seen.amax(dim=(2, 3))], dim=1)


class Headed(nn.Module):
    """A backbone and one linear map after it: images (B, 3, H, W) -> (B, outputs)."""

    def __init__(self, backbone: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.ending(self.backbone(images))

    def ending(self, seen: Tensor) -> Tensor:
        """What comes after the backbone: features (B, w) -> (B, outputs)."""
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


def build_backbone(name: Backbone, streams: Streams, purpose: str) -> Classifier:
    """A randomly initialised classifier; its weights are a function of the seed and the purpose alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(streams.generator(f"{purpose}.weights").integers(2**63)))
        if name == "small":
            return Classifier(Small(), Small.width)
        network = (resnet50 if name == "resnet50" else resnet18)(weights=None)
        width = network.fc.in_features
        network.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        return Classifier(network, width)


Outputs = TypeVar("Outputs", bound=Headed)


def build_headed(
    kind: type[Outputs], name: Backbone, outputs: int, streams: Streams, purpose: str
) -> Outputs:
    """One of ``outputs`` outputs, randomly initialised; its weights follow from seed and purpose alone."""
    classifier = build_backbone(name, streams, purpose)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(streams.generator(f"{purpose}.head").integers(2**63)))
        return kind(classifier.backbone, classifier.head.in_features, outputs)
