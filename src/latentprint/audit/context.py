"""What every stage of an audit receives: the settings, the run on disk, noise, and where it runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from latentprint.config import AuditConfig
from latentprint.contracts import InputError, Map, require_device, shortened
from latentprint.denoiser import Codec, Denoiser, IdentityCodec
from latentprint.execute import Progress
from latentprint.progress import Report, silent
from latentprint.results.searched import Sampler as SamplerValue
from latentprint.results.value import Kind, Note
from latentprint.sampler import Sampler
from latentprint.store import Run
from latentprint.streams import Streams


@dataclass(frozen=True)
class Where:
    """Where an audit runs and what it may use. No result depends on it, except for rounding by ``processes``.

    Attributes:
        device: where networks run, as torch names it.
        batch: how many trajectories share a network call; more take more memory.
        root: where the MedMNIST files are.
        download: whether a missing one may be downloaded.
        say: receives the progress of each stage.
        map: executes units of trajectories, here or on many machines (``spread.executor``).
        processes: how many processes train one model together (``together``).
    """

    device: str = "cpu"
    batch: int = 256
    root: Path | str | None = None
    download: bool = False
    say: Report = silent
    map: Map = map
    processes: int = 1

    @cached_property
    def place(self) -> torch.device:
        """The device, after one operation on it succeeded.

        Raises:
            InputError: this machine has no such device.
        """
        return open_device(self.device)


@dataclass(frozen=True)
class Context:
    """The settings, the run, the models' spaces and the device of one audit.

    ``codec`` leads from images to the space the model works in, and ``space`` is that space's (C, *sides);
    None: that of the images. ``own`` is the sampler that a given model came with. ``condition`` is what else
    its q and t' belong to (prompt, guidance). Where images have prompts, ``under`` is the model under the
    prompt of the image of a number (`audit.comparison`), as it is sampled from or as it is.
    """

    config: AuditConfig
    run: Run
    where: Where = Where()
    codec: Codec = IdentityCodec()  # noqa: RUF009 (frozen and stateless)
    space: tuple[int, ...] | None = None
    own: Sampler | None = None
    condition: Mapping[str, object] = field(default_factory=dict[str, object])
    under: Callable[[int, bool], Denoiser] | None = None

    @property
    def device(self) -> torch.device:
        """Where networks run."""
        return self.where.place

    @property
    def batch(self) -> int:
        """How many trajectories share a network call."""
        return self.where.batch

    @property
    def map(self) -> Map:
        """What executes units of trajectories."""
        return self.where.map

    @property
    def say(self) -> Report:
        """Receives the progress of each stage."""
        return self.where.say

    @property
    def streams(self) -> Streams:
        """The noise of this run: everything random follows from its seed."""
        return Streams(self.config.seed)

    @property
    def sampler(self) -> Sampler:
        """The sampler whose q is measured."""
        return self.config.sampler.sampler(self.own)

    @property
    def sampler_value(self) -> SamplerValue:
        """The same sampler as results name it."""
        return SamplerValue.model_validate({**self.sampler.describe(), **self.condition})

    def progress(self, stage: str, unit: str) -> Progress:
        """A progress counter for one stage, for work that knows nothing of stages."""
        return lambda done, total: self.say(stage, done, total, unit)

    def finish(self, note: Note[Kind], value: Kind, **also: object) -> None:
        """The stage is finished with this value, and with plain facts such as ``network_evaluations``."""
        self.run.finish(note.name, also | note.of(value))

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Time a stage. The stage itself says when it is finished (``run.finish``)."""
        if not self.run.stage(name).done:
            self.run.begin(name)
        yield


def open_device(name: str) -> torch.device:
    """The torch device of that name, after one operation on it succeeded, and one in float64.

    Raises:
        InputError: this machine has no such device, or it has no float64, in which likelihoods and the
            densities of paths are computed.
    """
    try:
        device = torch.device(require_device(name))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = shortened(str(error).splitlines()[0].partition(". ")[0])
        raise InputError(f"the device {name!r} cannot be used here: {said}") from error
    try:
        torch.ones(1, dtype=torch.float64, device=device).mul(2).item()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise InputError(
            f"the device {name!r} computes nothing in float64, which an audit needs; use cpu or a cuda device"
        ) from error
    # By default torch lets convolutions round to TF32; here only the settings may allow it
    # (``config.speed``).
    torch.backends.cudnn.allow_tf32 = False
    return device


def describe(device: torch.device) -> dict[str, str | int]:
    """The device in words that may be published: its kind and model, and the number of threads."""
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device)}
    return {"type": device.type, "threads": torch.get_num_threads()}


def one_image(pixels: object, device: torch.device) -> Tensor:
    """An image as float32 tensor (C, H, W) on the device."""
    return torch.as_tensor(pixels, dtype=torch.float32, device=device)
