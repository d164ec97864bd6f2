"""How much memory a model takes for an image, and how many images share a call of its network.

    held(n) = a + b n       the most bytes that tensors hold at once, of network or decoder, at 1 and 2 images

Kernels take some memory of their own, which is not seen. So half of what is free is used.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as trees
from torch.utils._python_dispatch import TorchDispatchMode

from latentprint.adapters.fields import short
from latentprint.adapters.opened import Opened
from latentprint.contracts import InputError
from latentprint.data.listing import free_memory
from latentprint.networks import ModelError

SHARE = 0.5
"""Of the free memory, for tensors."""


class MemoryLack(InputError):
    """The request needs more memory than this machine has free; said before any of it is allocated."""


@dataclass(frozen=True)
class Room:
    """The memory of one model on one machine.

    Attributes:
        weights: bytes of its networks.
        each: bytes for each image that is generated at the same time.
        free: bytes beside the weights.
        batch: images that share a call of the network.
        sliced: whether attention is computed in slices, without which one image did not fit.
    """

    weights: int
    each: int
    free: int
    batch: int
    sliced: bool = False

    @property
    def words(self) -> str:
        """For `latentprint check`."""
        sliced = "; attention in slices" if self.sliced else ""
        return (
            f"{_size(self.weights)} of weights, {_size(self.each)} for each image made at the same time,"
            f" {_size(self.free)} free: batches of {self.batch:,}{sliced}"
        )


def room_for(opened: Opened, place: torch.device, most: int, free: int | None = None) -> Room:
    """Measure a model on 1 and 2 images, and say how many fit.

    Args:
        opened: the model; its attention is sliced where one image does not fit otherwise and the network can.
        place: where it runs.
        most: images that share a call at most.
        free: bytes; None: what this machine has.

    Raises:
        MemoryLack: not even one image fits.
        ModelError: network or decoder does not answer, as their parts do not fit together.
    """
    if free is None:
        free = torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else free_memory()
    weights = sum(one.numel() * one.element_size() for n in opened.networks for one in n.parameters())
    first, each = _measured(opened, place)
    sliced = False
    if first + each > SHARE * free and (networks := [one for one in opened.networks if _slices(one)]):
        before = [cast(Any, one).attn_processors for one in networks]
        for one in networks:
            cast(Any, one).set_attention_slice("max")
        now = _measured(opened, place)
        sliced = sum(now) < first + each
        if sliced:
            first, each = now
        else:  # torch's own attention needs less without slices
            for one, own in zip(networks, before, strict=True):
                cast(Any, one).set_attn_processor(own)
    fits = int((SHARE * free - first) // max(1, each))
    if fits < 1:
        raise MemoryLack(
            f"the model needs {_size(first + each)} of memory to make one image, beside its weights, and"
            f" {_size(int(SHARE * free))} of the {_size(free)} that are free can be used: take a machine with"
            " more memory, or audit images that were generated elsewhere (--samples FOLDER)"
        )
    return Room(weights, each, free, min(most, fits), sliced)


def _slices(network: nn.Module) -> bool:
    return hasattr(network, "set_attention_slice") and hasattr(network, "attn_processors")


def _measured(opened: Opened, place: torch.device) -> tuple[int, int]:
    """(a, b) of the larger of network and decoder."""
    denoiser, codec = opened.denoiser, opened.codec

    def denoise(x: Tensor) -> object:
        return denoiser(x, torch.full((len(x),), denoiser.schedule.start, dtype=torch.float64))

    try:
        return max((_line(work, opened.shape, place) for work in (denoise, codec.decode)), key=sum)
    except torch.OutOfMemoryError as error:
        raise MemoryLack(
            f"the device's memory does not hold two images at the same time: {short(error)}"
        ) from error
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelError(
            f"the model does not answer for an image of its own shape {opened.image_shape}, so its parts or "
            f"settings are not of one model: {short(error)}"
        ) from error


@torch.no_grad()
def _line(work: Callable[[Tensor], object], shape: tuple[int, ...], place: torch.device) -> tuple[int, int]:
    one, two = (held(lambda n=n: work(torch.zeros(n, *shape, device=place))) for n in (1, 2))
    each = max(two - one, one // 2)  # another kernel for two images must not make an image look free
    return max(0, one - each), each


def held(work: Callable[[], object]) -> int:
    """The most bytes that tensors made by ``work`` hold at once."""
    with _Held() as mode:
        work()
    return mode.most


class _Held(TorchDispatchMode):
    """Follows the storages that operations make, from their first use until they are given back."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most, self.known = 0, 0, set[int]()

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for one in trees.tree_leaves((args, kwargs)):
            self._see(one, made=False)
        out = func(*args, **(kwargs or {}))
        for one in trees.tree_leaves(out):
            self._see(one, made=True)
        return out

    def _see(self, one: object, *, made: bool) -> None:
        if not isinstance(one, Tensor):
            return
        storage = one.untyped_storage()
        key, size = id(storage), storage.nbytes() if made else 0
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size).atexit = False

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def _size(count: int) -> str:
    unit, name = (2**30, "GiB") if count >= 2**30 else (2**20, "MiB")
    return f"{count / unit:,.1f} {name}"
