"""The most memory that an audit holds at once, known before any of it is allocated.

    most = process + images + max( a copy of the training images, the largest part of the work )

The images are float32: training images and held-out images once each. While one is marked there is a second
copy of the training images; the control and the recognisers share the first. What a part of the work holds
is counted by passing a batch through its network on torch's device "meta", which has shapes and no values
(`adapters.room.held`). Kernels take some memory of their own, which is not seen; attention is counted as
if all its weights were held, which not every kernel does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentprint.adapters.room import MemoryLack, held
from latentprint.audit.images import padded
from latentprint.config import AuditConfig
from latentprint.data.listing import free_memory
from latentprint.detector import DetectorConfig
from latentprint.detector.draws import KEPT
from latentprint.detector.model import at_once
from latentprint.networks import build_unet
from latentprint.streams import Streams

PROCESS = 2**29
"""Bytes of Python, torch and the other libraries: measured, 0.45 GiB."""

TOGETHER = 2**22
"""Most values of images in one call of the network that the audit trains: 16 volumes of 64^3."""

_PER_VALUE = 2**12
"""Bytes that a network may keep for a value of an image; only where this is much is more looked at."""

_SETS = 8
"""Sets of images with noise that a fit keeps, at most `detector.draws.KEPT` values of each."""


def batch_of(shape: tuple[int, ...], most: int) -> int:
    """How many images (C, *S) share a call of the network that the audit trains, ``most`` at most."""
    return max(1, min(most, TOGETHER // math.prod(shape)))


@dataclass(frozen=True)
class Part:
    """One part of the work.

    Attributes:
        name: what it does, in words.
        size: bytes that it holds at most.
        setting: of a recogniser's fit, what would make it smaller; "" of other parts.
    """

    name: str
    size: int
    setting: str = ""


@dataclass(frozen=True)
class Memory:
    """What an audit holds.

    Attributes:
        images: bytes of training images and of held-out images.
        parts: the parts of the work, one after the other.
    """

    images: tuple[int, int]
    parts: tuple[Part, ...]

    @property
    def largest(self) -> Part:
        """The part that holds most."""
        marking = Part("marking one image", self.images[0])
        return max((marking, *self.parts), key=lambda part: part.size)

    @property
    def most(self) -> int:
        """Bytes that are held at most."""
        return PROCESS + sum(self.images) + self.largest.size

    @property
    def words(self) -> str:
        """For `latentprint check`."""
        images, largest = sum(self.images) / 2**30, self.largest
        return (
            f"about {self.most / 2**30:.1f} GiB at most: {images:.1f} GiB of images,"
            f" {largest.size / 2**30:.1f} GiB for {largest.name}, {PROCESS / 2**30:.1f} GiB for the program"
        )

    def require(self, place: torch.device) -> None:
        """Refuse a fit that ``place`` has no room for; the images are held already.

        A training is refused by a lower bound (`audit.costs.require_memory`): attention may take less than
        is counted here.

        Raises:
            MemoryLack: a fit needs more than is free.
        """
        free, largest = _free(place), max(self.parts, key=lambda part: part.size if part.setting else 0)
        if largest.setting and largest.size > free:
            raise MemoryLack(
                f"{largest.name} needs about {largest.size / 2**30:,.1f} GiB of memory, and"
                f" {free / 2**30:,.1f} GiB are free: a smaller {largest.setting} needs less"
            )


def _free(place: torch.device) -> int:
    return torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else free_memory()


def require_room(
    config: AuditConfig,
    shape: tuple[int, ...],
    train: int,
    heldout: int,
    place: torch.device,
    *,
    trains: bool,
) -> None:
    """``Memory.require`` for images (C, *S) so large that their batches may fill the memory.

    Raises:
        MemoryLack: one part of the work needs more than is free.
    """
    fits = (config.model.training, config.presence, config.identity, config.embedding)
    most = max(one.batch for one in fits) * math.prod(shape) * _PER_VALUE
    if 4 * most > _free(place):
        memory_of(config, shape, train, heldout, trains=trains).require(place)


def memory_of(
    config: AuditConfig, shape: tuple[int, ...], train: int, heldout: int, *, trains: bool
) -> Memory:
    """What an audit of images (C, *S) holds.

    Args:
        train: how many are trained on.
        heldout: how many are held out.
        trains: whether the audit trains its model; the memory of a given one is another (`adapters.room`).
    """
    parts: list[Part] = []
    if trains:
        parts += _of_training(config, shape)
    compared = config.baseline.images > 0 or config.profile.targets != 0
    marked = config.fingerprint.kind != "none"
    fits: list[tuple[str, str, DetectorConfig, int]] = [("c_id", "identity", config.identity, 1)]
    fits += [("c_p", "presence", config.presence, 1)] if marked else []
    fits += [("the embedding", "embedding", config.embedding, 2)] if compared else []
    for name, setting, one, views in fits:
        parts += _of_fit(name, setting, one, views, shape, train + heldout)
    values = 4 * math.prod(shape)
    return Memory((train * values, heldout * values), tuple(parts))


def _of_training(config: AuditConfig, shape: tuple[int, ...]) -> list[Part]:
    settings = config.model
    sides = padded(settings.network, shape[1:])
    with torch.device("meta"):
        network = build_unet(settings.network, shape[0], sides, Streams(0))
        x, t = torch.zeros(settings.training.batch, shape[0], *sides), torch.zeros(settings.training.batch)
        labels = {"class_labels": t.long()} if settings.network.augment_labels else {}
    weights = 4 * sum(one.numel() for one in network.parameters())
    learnt = _held(network, lambda: _answer(network, x, t, labels), learns=True)
    n = batch_of(shape, 256)
    drawn, times = x[:1].expand(n, *x.shape[1:]).clone(), t[:1].expand(n)
    more = {"class_labels": times.long()} if labels else {}
    sampled = _held(network, lambda: _answer(network, drawn, times, more), learns=False)
    # A state of the sampler, its noise and a few steps before: six times the images.
    batch = 6 * 4 * n * math.prod(shape)
    return [
        Part("a training step", 4 * weights + learnt),
        Part("a batch of samples", 2 * weights + sampled + batch),
    ]


def _answer(network: nn.Module, x: Tensor, t: Tensor, labels: dict[str, Tensor]) -> Tensor:
    out = network(x, t, **labels)
    return out if isinstance(out, Tensor) else out.sample


def _of_fit(
    name: str, setting: str, config: DetectorConfig, views: int, shape: tuple[int, ...], images: int
) -> list[Part]:
    with torch.device("meta"):
        network = config.network(setting, Streams(0), len(shape) - 1)
        shown = torch.zeros(views * config.batch, 3, *shape[1:])
        judged = torch.zeros(min(images, at_once(shape)), 3, *shape[1:])
    values = math.prod(shape)
    kept = _SETS * 4 * min(images * values, KEPT)
    # An epoch is kept as bytes in each view.
    epoch = views * values * (config.draws or images) if config.augmix else 0
    step = _held(network, lambda: network(shown), learns=True)
    test = _held(network, lambda: network(judged), learns=False)
    return [
        Part(f"a step of fitting {name}", kept + epoch + step, f"{setting}.batch"),
        Part(f"judging images by {name}", kept + test),
    ]


def _held(network: nn.Module, work: Callable[[], Tensor], *, learns: bool) -> int:
    network.train(learns)
    with torch.set_grad_enabled(learns):
        return held(lambda: work().square().mean().backward() if learns else work())
