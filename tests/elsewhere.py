"""A second device, for machines that have none: tensors on "cuda" that may not meet those of the processor.

Inside ``elsewhere`` what is asked for on "cuda" is computed on the processor and marked as ``Far``. As on a
GPU, an operation on a marked and an unmarked tensor is refused, unless one of them is a single number, and so
are ``numpy()`` of a marked one and a marked index into an unmarked one. Autocast to "cuda" does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)

MAY_MIX = {"copy_", "__setitem__", "__set__"}
"""What copies from one device to the other."""


class Far(Tensor):
    """A tensor that stands for one on a GPU."""


def _cuda(value: object) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.split(":")[0] == "cuda"


def _cpu(value: object) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cpu"
    return isinstance(value, str) and value == "cpu"


def _values(given: Iterable[Any]) -> Iterator[Any]:
    """What is in sequences and mappings, at any depth."""
    for one in given:
        if isinstance(one, (list, tuple)):
            yield from _values(one)
        elif isinstance(one, dict):
            yield from _values(one.values())
        else:
            yield one


def _near(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, Far) else value


def _far(value: Any) -> Any:
    return value.as_subclass(Far) if type(value) is Tensor else value


def _parameter(one: Tensor) -> Tensor:
    """A weight that stands for one on a GPU."""
    out = one.detach().as_subclass(Far).requires_grad_(one.requires_grad)
    out._is_param = True  # as torch tells parameters of other classes
    return out


def _moved(to: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """``nn.Module.to`` that knows of the device."""

    def moved(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        asked = any(_cuda(one) for one in (*args, *kwargs.values()))
        given, named = tree_map(lambda one: CPU if _cuda(one) else one, (args, kwargs))
        was_far = any(isinstance(one, Far) for one in self.parameters())
        away = asked or (was_far and not any(_cpu(one) for one in (*args, *kwargs.values())))
        with torch._C.DisableTorchFunction():
            to(self, *given, **named)
            for module in self.modules():
                for name, one in module._parameters.items():
                    if one is not None:
                        near = nn.Parameter(one.as_subclass(Tensor).detach(), one.requires_grad)
                        module._parameters[name] = _parameter(one) if away else near  # type: ignore[assignment]
                for name, one in module._buffers.items():
                    if one is not None:
                        module._buffers[name] = one.as_subclass(Far if away else Tensor)
        return self

    return moved


class Elsewhere(TorchFunctionMode):
    """While it is active there is a device "cuda"."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        flat = list(_values((*args, *kwargs.values())))
        if func is torch.device or not any(isinstance(one, Far) or _cuda(one) for one in flat):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        tensors = [one for one in flat if isinstance(one, Tensor)]
        marked = [one for one in tensors if isinstance(one, Far)]
        with torch._C.DisableTorchFunctionSubclass():
            if name == "__get__" and marked:
                if func == Tensor.device.__get__:  # type: ignore[attr-defined]
                    return CUDA
                if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
                    return True
            if name == "__deepcopy__" and marked:
                return self._copied(args[0], args[1])
            if name in ("numpy", "__array__") and marked:
                raise TypeError("a tensor on cuda:0 has no NumPy array; use Tensor.cpu() first")
            to_cuda = name == "cuda" or any(_cuda(one) for one in flat)
            to_cpu = name == "cpu" or any(_cpu(one) for one in flat)
            if name in ("to", "type_as") and len(tensors) == 2:  # x.to(other)
                to_cuda, to_cpu = isinstance(tensors[1], Far), not isinstance(tensors[1], Far)
            elif marked and not (to_cpu or to_cuda):
                self._require_one_device(name, tensors, args)
            given, named = tree_map(lambda one: CPU if _cuda(one) else one, (args, kwargs))
            if name == "cuda":
                return _far(given[0])
            out = func(*given, **named)
            if name == "__set__":
                return out
            stays = bool(marked) and not to_cpu
            kept = {id(one) for one in marked}
            if not (stays or to_cuda):
                return tree_map(_near, out) if to_cpu else out
            return tree_map(lambda one: one if id(one) in kept else _far(one), out)

    @staticmethod
    def _copied(one: Any, memo: Any) -> Any:
        if id(one) in memo:
            return memo[id(one)]
        out = one.detach().clone().as_subclass(Far).requires_grad_(one.requires_grad)
        if isinstance(one, nn.Parameter):
            out._is_param = True
        memo[id(one)] = out
        return out

    @staticmethod
    def _require_one_device(name: str, tensors: list[Tensor], args: Any) -> None:
        if name in MAY_MIX or (name == "__getitem__" and isinstance(args[0], Far)):
            return
        alone = [one for one in tensors if not isinstance(one, Far) and one.dim() > 0]
        if alone:
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, found cuda:0 and cpu")


@contextmanager
def elsewhere(patch: pytest.MonkeyPatch) -> Generator[None]:
    """There is a device "cuda", and what asks torch about it is told so."""
    near = torch.autocast
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: 1)
    patch.setattr(torch.cuda, "synchronize", lambda *_: None)
    patch.setattr(torch.cuda, "current_device", lambda: 0)
    patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    patch.setattr(torch.cuda, "get_device_name", lambda *_: "a device that is not there")
    patch.setattr(torch.cuda, "mem_get_info", lambda *_: (2**34, 2**34))
    patch.setattr(torch, "autocast", lambda on, **how: nullcontext() if on == "cuda" else near(on, **how))
    patch.setattr(nn.Module, "to", _moved(nn.Module.to))
    with Elsewhere():
        yield
