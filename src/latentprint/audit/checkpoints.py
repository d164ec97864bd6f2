"""t' over training: the search for x_p after several numbers of training steps (paper Fig. 3, Fig. 10).

    own training     weights kept during training (``stages.snapshot``), and the finished model
    a folder         checkpoints that somebody else kept, each a folder named with its step

Every checkpoint gets the same tries with the same noise. The search is exhaustive (Alg. 1) whatever method
searches the finished model, so that any two checkpoints can be compared try by try (``search.onset``).

The error to x_p is that of the closest image that came from t >= T / 2, hit or not. From little noise every
model restores every image, and a lower bound that follows t' would compare different noise levels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from glob import glob
from hashlib import sha256
from pathlib import Path

import torch

from latentprint.adapters import Opened, open_model, recognise
from latentprint.audit.context import Context
from latentprint.audit.given import Given, asked, in_unit_time
from latentprint.audit.stages import Audited, for_sampling, search, snapshot, snapshots_due
from latentprint.config import AuditConfig
from latentprint.contracts import InputError
from latentprint.data import Split
from latentprint.denoiser import Codec, Denoiser, IdentityCodec
from latentprint.networks import ModelError, load_model
from latentprint.results.model import MODEL
from latentprint.results.notes import (
    CHECKPOINT_SEARCH,
    CHECKPOINTS,
    CONTROL_SEARCH,
    SEARCH,
    Snapshots,
)
from latentprint.results.tprime import exhaustive
from latentprint.schedule import Schedule
from latentprint.store import RunError


class CheckpointError(InputError):
    """Checkpoints that cannot be audited, with the reason in one sentence."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights after ``step`` steps. ``open`` reads them from disk, so that only one checkpoint is in
    memory."""

    step: int
    weights_sha256: str
    open: Callable[[], tuple[Denoiser, Codec]]


def require_checkpoints(
    config: AuditConfig, named: Path | str | None, *, trains: bool, processes: int
) -> None:
    """Check that an audit that trains its model, or one of a given model, has the checkpoints asked for."""
    keep = config.checkpoints.keep
    if trains and named is not None:
        raise CheckpointError(
            "checkpoints of a training were named without the model that it ended in; name that too"
            " (--model), or say how many to keep of the training that this audit does (--checkpoints 5)"
        )
    if not trains and keep:
        raise CheckpointError(
            f"{keep} checkpoints cannot be kept of a training that is over; name the folder of those that it"
            " left"
        )
    if keep > 1 and processes > 1:
        raise CheckpointError(
            "checkpoints can only be kept if one process trains; leave out --checkpoints or --processes"
        )


def identified(checkpoints: Sequence[Checkpoint]) -> dict[str, object]:
    """The given checkpoints as the run's settings record them: the run can only be continued with the same
    weights."""
    if not checkpoints:
        return {}
    return {"checkpoints": [[one.step, one.weights_sha256] for one in checkpoints]}


def own_checkpoints(context: Context) -> tuple[Checkpoint, ...]:
    """The checkpoints of this audit's own training, the finished model last; empty if none were asked for."""
    steps, keep = context.config.model.training.steps, context.config.checkpoints.keep
    if not keep:
        return ()
    kept = [(step, snapshot(context, step)) for step in snapshots_due(steps, keep)]
    return tuple(_own(context, step, folder) for step, folder in [*kept, (steps, context.run.path / "model")])


def _own(context: Context, step: int, folder: Path) -> Checkpoint:
    weights = folder / "diffusion_pytorch_model.safetensors"
    if not weights.is_file():
        raise RunError(f"the weights after step {step} are missing in {folder}; start again with --fresh")

    def read() -> tuple[Denoiser, Codec]:
        return load_model(folder, context.device), IdentityCodec()

    return Checkpoint(step, sha256(weights.read_bytes()).hexdigest(), read)


def found_checkpoints(
    where: Path | str, given: Given, device: torch.device, config: AuditConfig, images: Callable[[], Split]
) -> tuple[Checkpoint, ...]:
    """The models that ``where`` names, by rising step: a folder of models, or a pattern such as
    ``out/step-*``.

    A checkpoint's step is the last number in its name. Each is opened once, so that one that must be refused
    is refused before the audit starts.
    """
    place = Path(where)
    inside = sorted(place.iterdir()) if place.is_dir() else [Path(one) for one in sorted(glob(str(where)))]
    models = [one for one in inside if one.is_dir() and _is_model(one)]
    if not models:
        raise CheckpointError(
            f"{str(where)!r} names no checkpoint: a folder of models is needed, each in a folder with its"
            " step in the name, or a pattern for such folders"
        )
    found: dict[int, Checkpoint] = {}
    for folder in models:
        step = _step(folder.name)
        if step in found:
            raise CheckpointError(f"two checkpoints are of step {step}, the second is {folder.name!r}")
        found[step] = _given(step, folder, given, device, config, images)
    return tuple(found[step] for step in sorted(found))


_PARTS = ("unet", "unet_ema", "transformer", "vae", "vqvae", "scheduler", "logs", "samples")
"""Names that training scripts leave beside checkpoints: parts of the finished pipeline, logs and images."""


def _is_model(folder: Path) -> bool:
    """Whether the folder is a checkpoint. One that will be refused counts, so that it is not skipped
    silently."""
    if folder.name in _PARTS:
        return False
    try:
        return recognise(folder) != "samples"
    except ModelError:
        return True


def _step(name: str) -> int:
    numbers = re.findall(r"\d+", name)
    if not numbers:
        raise CheckpointError(f"the checkpoint {name!r} has no number in its name, so its step is not known")
    return int(numbers[-1])


def _given(
    step: int,
    folder: Path,
    given: Given,
    device: torch.device,
    config: AuditConfig,
    images: Callable[[], Split],
) -> Checkpoint:
    def read() -> Opened:
        what = replace(asked(config, given.label, images), beside=given.folder)
        fresh = open_model(folder, asked=what)
        return in_unit_time(fresh.to(device))

    opened, model = read(), given.opened
    if (opened.image_shape, opened.shape) != (model.image_shape, model.shape):
        theirs, ours = ("x".join(map(str, one.image_shape)) for one in (opened, model))
        raise CheckpointError(f"the checkpoint {folder.name!r} makes images of {theirs}, the model of {ours}")
    if not alike(opened.denoiser.schedule, model.denoiser.schedule):
        raise CheckpointError(
            f"the checkpoint {folder.name!r} was trained on other noise than the model, so their t cannot be "
            "compared"
        )

    def again() -> tuple[Denoiser, Codec]:
        fresh = read()
        return fresh.sampled(config.sampler.own), fresh.codec

    return Checkpoint(step, opened.weights_sha256, again)


def alike(one: Schedule, other: Schedule) -> bool:
    """Whether t means the same noise under both schedules."""
    if one.start != other.start:
        return False
    t = torch.linspace(max(one.end, other.end), one.start, 9, dtype=torch.float64)
    return all(
        torch.allclose(getattr(one, name)(t), getattr(other, name)(t), rtol=1e-6)
        for name in ("alpha", "sigma")
    )


def over_training(
    context: Context,
    checkpoints: Sequence[Checkpoint],
    audited: Audited,
    control: Audited | None,
) -> None:
    """The search for x_p at each checkpoint, in place of the finished model.

    Rows are kept as ``search.step-N``. Where the search of the finished model and of the control was
    exhaustive, its rows are used.
    """
    if not checkpoints:
        return
    settings = exhaustive(context.config.search)
    shared = context.config.search.method == "exhaustive"
    finished = context.run.stage(MODEL.name).payload["weights_sha256"]
    purposes = list[str]()
    for one in checkpoints:
        own = shared and one.weights_sha256 == finished
        note = SEARCH if own else CHECKPOINT_SEARCH.at(f"step-{one.step:07d}")
        purposes.append(note.name)
        denoiser, codec = one.open()
        fast = for_sampling(denoiser, context.config.speed.sampling, context.batch)
        search(replace(context, codec=codec), note, replace(audited, model=fast), settings)
    of_control = None
    if control is not None:
        note = CONTROL_SEARCH if shared else CHECKPOINT_SEARCH.at("step-control")
        of_control = note.name
        search(context, note, control, settings)
    if not context.run.stage(CHECKPOINTS.name).done:
        noted = Snapshots(
            steps=tuple(one.step for one in checkpoints),
            weights_sha256=tuple(one.weights_sha256 for one in checkpoints),
            purposes=tuple(purposes),
            control=of_control,
        )
        context.finish(CHECKPOINTS, noted)
