"""Settings that make a processor faster: reduced mantissas, memory layout, compilation, CUDA graphs.

They change rounding, but not what is computed. The state of a sampler, its noise and its coefficients keep
their own precision (``denoiser``, ``sampler``); only the inside of a network is affected. Everything is off
by default. There is no fallback: an impossible setting is an error of torch.

    tf32       products of 10-bit mantissas, summed in float32         (convolutions and matrix products)
    bfloat16   products of 7-bit mantissas, summed in float32          (autocast; normalisation stays float32)

Compiled networks, and those launched as graphs, see one batch shape. Smaller batches are padded with copies
of the first row, whose answers are dropped, and larger ones are split. So a row's answer does not depend on
how many rows came with it.

A step of a small network is a thousand launches that the processor makes one by one while the GPU waits. A
CUDA graph is one launch of them all. ``compile`` fuses them too, and takes minutes to do so; a graph of the
network as it is takes seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from latentprint.settings import STRICT


@dataclass(frozen=True, config=STRICT)
class Speed:
    """What a GPU may do to be faster; ``benchmarks/gpu.py`` measures each setting.

    Everything is off: a training is then repeatable bit by bit on one device.

    Attributes:
        tf32: convolutions and matrix products multiply with 10 bits of mantissa.
        channels_last: weights and images are stored with their channels together.
        compile: ``torch.compile``; half a minute and more before the first step.
        autotune: cuDNN tries its algorithms and takes the fastest, which may differ between runs.
        graphs: the network is launched as one CUDA graph, compiled or as it is; no effect on a CPU.
    """

    tf32: bool = False
    channels_last: bool = False
    compile: bool = False
    autotune: bool = False
    graphs: bool = False


@dataclass(frozen=True, config=STRICT)
class Evaluation(Speed):
    """How a network is evaluated: ``Speed``, and the type in which it multiplies."""

    precision: Literal["float32", "bfloat16"] = "float32"


@contextmanager
def rounding(speed: Speed, device: torch.device) -> Generator[None]:
    """Inside this context cuDNN and cuBLAS do what ``speed`` allows and nothing else; no effect on a CPU."""
    # ``flags`` would switch cuDNN off if ``enabled`` were not given.
    with torch.backends.cudnn.flags(
        enabled=True, deterministic=not speed.autotune, benchmark=speed.autotune, allow_tf32=speed.tf32
    ):
        if device.type != "cuda":
            yield
            return
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if speed.tf32 else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


@contextmanager
def arithmetic(how: Evaluation, device: torch.device) -> Generator[None]:
    """``rounding``, and autocast to ``how.precision``."""
    with rounding(how, device):
        if how.precision == "float32":
            yield
        else:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                yield


def launched(network: nn.Module, speed: Speed) -> nn.Module:
    """``network`` with its weights, compiled or captured if ``speed`` says so, for batches of one shape."""
    if speed.compile:
        mode = "reduce-overhead" if speed.graphs else None
        return cast(nn.Module, torch.compile(network, mode=mode, dynamic=False))
    return Captured(network) if speed.graphs else network


def new_step(speed: Speed) -> None:
    """Tell the compiler's CUDA graphs that earlier answers are no longer used; no other effect."""
    if speed.graphs and speed.compile:
        torch.compiler.cudagraph_mark_step_begin()


class Captured(nn.Module):
    """``network`` as CUDA graphs, its gradients too; a CPU calls it as it is.

    The first call with a batch of some shape captures one, under the autocast and the flags of that call.
    An answer is overwritten by the next one, and so is what the gradient needs: after each forward pass
    that is differentiated comes its backward pass.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._graphs: dict[object, Callable[..., Tensor]] = {}

    def forward(self, x: Tensor, *rest: Tensor, **named: Tensor) -> Tensor:
        """What ``network`` answers to the same arguments, tensors all."""
        if x.device.type != "cuda":
            return _tensor(self.network(x, *rest, **named))
        given = (x, *rest, *named.values())
        kind = (
            tuple(named),
            self.network.training,
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cuda"),
            *((tuple(one.shape), one.dtype, one.requires_grad) for one in given),
        )
        if kind not in self._graphs:
            self._graphs[kind] = self._capture(tuple(named), given)
        return self._graphs[kind](*given)

    def _capture(self, names: tuple[str, ...], given: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        own = tuple(one.detach().clone().requires_grad_(one.requires_grad) for one in given)
        # Capturing calls the network a few times, which must leave no trace in a batch norm's means.
        before = [(each, each.clone()) for each in self.network.buffers()]
        # The cache of autocast would keep weights of the step in which they were captured.
        half = torch.is_autocast_enabled("cuda")
        with torch.autocast("cuda", torch.get_autocast_dtype("cuda"), enabled=half, cache_enabled=False):
            graph = torch.cuda.make_graphed_callables(
                _Flat(self.network, names), own, allow_unused_input=True
            )
        for each, value in before:
            each.copy_(value)
        return cast(Callable[..., Tensor], graph)


class _Flat(nn.Module):
    """A network with tensors alone as its arguments, the last of which have names, and as its answer."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names
        self.training = network.training

    def forward(self, *given: Tensor) -> Tensor:
        first = len(given) - len(self.names)
        return _tensor(self.network(*given[:first], **dict(zip(self.names, given[first:], strict=True))))


def _tensor(answer: Any) -> Tensor:
    return answer if isinstance(answer, Tensor) else answer.sample


_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def laid_out(images: Tensor, speed: Speed) -> Tensor:
    """Images (B, C, *sides) in the layout that ``speed`` asks for."""
    return images.contiguous(memory_format=_LAST[images.ndim]) if speed.channels_last else images


def layout(network: nn.Module, speed: Speed) -> torch.memory_format:
    """The memory layout of a network's weights; those of convolutions over volumes have five axes."""
    axes = max([4, *(weight.ndim for weight in network.parameters())])
    return _LAST[axes] if speed.channels_last else torch.contiguous_format


class Evaluated(nn.Module):
    """A network for evaluation, as ``how`` says; what is compiled or captured sees batches of ``batch`` rows.

    It compiles at its first call, and again in each process that it is sent to. Answers are float32.
    """

    def __init__(self, network: nn.Module, how: Evaluation, batch: int) -> None:
        super().__init__()
        if batch < 1:
            raise ValueError(f"a batch holds at least 1 row, got {batch}")
        self.network, self.how, self.batch = network, how, batch
        self._call: Callable[..., Any] | None = None

    def __getstate__(self) -> dict[str, object]:
        # Compiled code belongs to its process.
        return {**self.__dict__, "_call": None}

    def forward(self, x: Tensor, time: Tensor | None = None, class_labels: Tensor | None = None) -> Tensor:
        """Rows x (B, C, H, W) and, if the network takes them, their times (B,) and labels (B,)."""
        whole = self.how.compile or (self.how.graphs and x.device.type == "cuda")
        if not whole or not len(x):
            return self._answer(self.network, x, time, class_labels)
        parts = range(0, len(x), self.batch)
        answers = [
            self._padded(
                x[i : i + self.batch],
                None if time is None else time[i : i + self.batch],
                None if class_labels is None else class_labels[i : i + self.batch],
            )
            for i in parts
        ]
        return torch.cat(answers) if len(answers) > 1 else answers[0]

    def _padded(self, x: Tensor, time: Tensor | None, labels: Tensor | None) -> Tensor:
        if self._call is None:
            # Without __setattr__, which would make it a submodule and rename the weights.
            self.__dict__["_call"] = launched(self.network, self.how)
        call = cast(Callable[..., Any], self._call)
        full = _filled(x, self.batch)
        times = None if time is None else _filled(time, self.batch)
        kinds = None if labels is None else _filled(labels, self.batch)
        # A CUDA graph writes every answer to the same memory.
        return self._answer(call, full, times, kinds)[: len(x)].clone()

    def _answer(
        self, call: Callable[..., Any], x: Tensor, time: Tensor | None, labels: Tensor | None
    ) -> Tensor:
        rest = () if time is None else (time,)
        named = {} if labels is None else {"class_labels": labels}
        with arithmetic(self.how, x.device):
            new_step(self.how)
            out = call(laid_out(x, self.how), *rest, **named)
        out = _tensor(out)
        return out.float() if out.dtype == torch.bfloat16 else out


def _filled(rows: Tensor, count: int) -> Tensor:
    """Rows, then copies of the first one, ``count`` in all; in one memory layout, whatever that of the
    rows."""
    full = rows.new_empty((count, *rows.shape[1:]))
    full[: len(rows)] = rows
    full[len(rows) :] = rows[0]
    return full


def for_evaluation(network: nn.Module, how: Evaluation, batch: int) -> Evaluated:
    """A copy of ``network`` that is evaluated as ``how`` says.

    An uncompiled network gets ``inference_form``, but a U-Net in bfloat16 only on a CPU. Otherwise it is the
    network as it was trained: the compiler itself fuses what that form joins by hand, and so do a GPU's own
    kernels in bfloat16.
    """
    from diffusers.models.unets.unet_2d import UNet2DModel

    from latentprint.networks.inference import inference_form

    on_cpu = isinstance(network, UNet2DModel) and network.device.type == "cpu"
    if not how.compile and (how.precision == "float32" or on_cpu):
        return Evaluated(inference_form(network), how, batch)
    still = copy.deepcopy(network).eval().requires_grad_(False)
    return Evaluated(still.to(memory_format=layout(network, how)), how, batch)  # pyright: ignore[reportCallIssue, reportArgumentType]
