"""Training as a stream of states: optimiser steps, the average of the weights, checkpoints.

Every random number is a function of (seed, number of images seen before), and a checkpoint holds everything
that a step depends on. On one device, training that was stopped and resumed ends with the same bits as
training that was not.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from latentprint.contracts import quoted
from latentprint.data.images import Pixels, Selection, in_turn
from latentprint.denoiser import NetworkDenoiser
from latentprint.networks import FileError, commit, committed, is_coarse, label_of, multiple_of
from latentprint.networks.speed import laid_out, launched, layout, new_step, rounding
from latentprint.schedule import Schedule
from latentprint.settings import plain
from latentprint.streams import Streams
from latentprint.training.augment import moved
from latentprint.training.guided import Guide
from latentprint.training.objective import draw_indices, draw_times, loss_of
from latentprint.training.settings import TrainConfig, TrainingError
from latentprint.training.team import Alone, Team, averaged

REPORT = 10
"""Steps between two states: the loss leaves the device only this often."""

_NO_RESULT = ("checkpoint_seconds", "speed")
"""Settings that may change when a checkpoint is continued: they affect when it is written, and rounding."""


def _deciding(config: TrainConfig) -> dict[str, object]:
    """The settings on which a step depends. Where the rate does not fall, how many follow it is not one."""
    free = (*_NO_RESULT, *(["steps"] if config.decay == "none" and not config.guided else []))
    return {name: value for name, value in plain(config).items() if name not in free}


@dataclass(frozen=True)
class TrainState:
    """The state of training after ``step`` of ``steps`` optimiser steps.

    Attributes:
        step, steps: done so far, and in all.
        images: training images seen so far, repeats counted.
        loss: mean of Eq. 4 over the steps since the last state; None if no step was made.
        learning_rate: of the last step.
        denoiser: the model with averaged weights. It is not a copy: the next state changes its weights.
        known: the share of the last searched training images that is known; None if none is searched.
        stopped: whether the rule of a guided training ended it here.
    """

    step: int
    steps: int
    images: int
    loss: float | None
    learning_rate: float
    denoiser: NetworkDenoiser
    known: float | None = None
    stopped: bool = False


def train(
    images: Pixels,
    network: nn.Module,
    schedule: Schedule,
    config: TrainConfig,
    streams: Streams,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    *,
    heldout: Pixels | None = None,
    show_resumed: bool = False,
    team: Team = Alone(),  # noqa: B008 (frozen)
) -> Iterator[TrainState]:
    """Train ``network`` on images (N, C, H, W) in [-1, 1]; yields a state every 10 steps and after the last.

    With ``checkpoint``, a folder, training continues from the checkpoint in it, and writes one every
    ``config.checkpoint_seconds`` and at the end. A finished training yields its last state at once. At a
    constant rate, a checkpoint of fewer steps is the beginning of a longer training. With
    ``show_resumed`` the state from which it continues is yielded too, without a loss. The processes of a
    ``team`` each call this with the same arguments; the first of them saves. A guided training needs images
    ``heldout`` (m, C, H, W) to compare with, and may end early.

    Raises:
        ValueError: ``images`` has another shape or type, or is empty, or is not finite.
        TrainingError: the loss stopped being finite, ``checkpoint`` belongs to another training, or training
            cannot be guided.
    """
    pixels = _checked(images)
    if config.batch % team.size:
        raise TrainingError(f"a batch of {config.batch} images has no equal shares for {team.size} processes")
    strangers = _compared(pixels, heldout, team) if config.guided else None
    run = _Run.begin(pixels, strangers, network, schedule, config, streams, torch.device(device), team)
    if checkpoint is not None:
        run.resume(checkpoint)
    if run.over or (show_resumed and run.step):
        yield run.state(None)
    losses: list[Tensor] = []
    saved = time.monotonic()
    while not run.over:
        losses.append(run.advance())
        last = run.over
        if run.step % REPORT and not last:
            continue
        loss = run.mean_loss(losses)
        losses.clear()
        if (
            checkpoint is not None
            and team.rank == 0
            and (last or time.monotonic() - saved >= config.checkpoint_seconds)
        ):
            run.checkpoint(checkpoint)
            saved = time.monotonic()
        yield run.state(loss)


def _checked(images: Pixels) -> Pixels:
    if images.ndim < 4 or images.dtype != np.float32 or not len(images):
        raise ValueError(
            f"training needs float32 images of shape (N, C, *sides) with N of 1 or more, "
            f"got {images.dtype} of shape {images.shape}"
        )
    if not all(np.isfinite(part).all() for part in in_turn(images)):
        raise ValueError("training images must be finite, got NaN or infinity")
    return images if isinstance(images, Selection) else np.ascontiguousarray(images)


def _compared(pixels: Pixels, heldout: Pixels | None, team: Team) -> Pixels:
    if heldout is None or not len(heldout):
        raise TrainingError("guided training compares with images that are held out, and none were given")
    if heldout.shape[1:] != pixels.shape[1:]:
        raise TrainingError(
            f"held-out images must be {pixels.shape[1:]} like those trained on, got {heldout.shape[1:]}"
        )
    if team.size > 1:
        raise TrainingError(f"one process trains where training is guided, and {team.size} were asked for")
    return _checked(heldout)


@dataclass
class _Run:
    """What changes while training; ``step`` is the number of steps done."""

    identity: dict[str, object]
    pixels: Tensor | Selection
    device: torch.device
    config: TrainConfig
    streams: Streams
    denoiser: NetworkDenoiser
    average: NetworkDenoiser
    optimiser: torch.optim.AdamW
    team: Team
    forward: NetworkDenoiser
    guide: Guide | None
    step: int = 0

    @property
    def over(self) -> bool:
        return self.step == self.config.steps or (self.guide is not None and self.guide.stopped)

    @classmethod
    def begin(
        cls,
        pixels: Pixels,
        heldout: Pixels | None,
        network: nn.Module,
        schedule: Schedule,
        config: TrainConfig,
        streams: Streams,
        device: torch.device,
        team: Team,
    ) -> _Run:
        centre, spread = config.scale_of(pixels)
        network = network.to(device, memory_format=layout(network, config.speed)).train()  # pyright: ignore[reportCallIssue]
        mean = copy.deepcopy(network).eval().requires_grad_(False)
        optimiser = torch.optim.AdamW(
            network.parameters(),
            lr=config.learning_rate,
            betas=(0.9, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        # Constant images have no spread; any positive number can serve as their unit.
        denoiser = NetworkDenoiser(
            network,
            schedule,
            config.parametrisation,
            spread or 1.0,
            label_of(network),
            multiple=multiple_of(network),
            mean_data=centre,
        )
        identity: dict[str, object] = {
            "seed": streams.seed,
            "shape": list(pixels.shape),
            "images": _hash(pixels),
            "config": _deciding(config),
            "denoiser": dict(denoiser.config()),
        }
        if denoiser.label is not None and config.guided and config.guidance.variant == "augmentation":
            raise TrainingError(
                'guidance by "augmentation" changes images without saying so, and this network is told of'
                " every change: take another variant, or leave augment_labels false"
            )
        # Rows of other arrays stay where they are, unless another device or a guide needs them as a whole.
        data, guide = pixels, None
        if not isinstance(data, Selection) or device.type != "cpu" or heldout is not None:
            data = torch.from_numpy(pixels[:]).to(device)
        if heldout is not None:
            assert isinstance(data, Tensor)
            identity["heldout"] = _hash(heldout)
            guide = Guide.begin(config, schedule, streams, data, torch.from_numpy(heldout[:]).to(device))
        average = replace(denoiser, network=mean)
        # What is launched shares its weights with the one that is saved.
        fast = replace(denoiser, network=launched(network, config.speed))
        return cls(identity, data, device, config, streams, denoiser, average, optimiser, team, fast, guide)

    def advance(self) -> Tensor:
        """One optimiser step; its loss, on the device."""
        config, device = self.config, self.device
        first = self.step * config.batch
        # This process's share of the batch: all of it if it is alone.
        share = config.batch // self.team.size
        begin = share * self.team.rank
        own = slice(begin, begin + share)
        drawn = draw_indices(self.streams, first, config.batch, len(self.pixels))[own]
        rows = torch.from_numpy(drawn).to(device)
        # Times stay on the CPU: on a GPU a schedule's arithmetic would wait at every check.
        t = draw_times(config, self.denoiser.schedule, self.streams, first, config.batch)[own]
        shape, ids = tuple(self.pixels.shape[1:]), range(first + begin, first + begin + share)
        noise = self.streams.noise("train.noise", ids, 0, shape, device=device)
        for group in self.optimiser.param_groups:
            group["lr"] = config.rate(self.step)
        images = (
            self.pixels[rows] if isinstance(self.pixels, Tensor) else torch.from_numpy(self.pixels[drawn])
        )
        images, changes = moved(images, config.augment, self.streams, first + begin)
        told = self.forward if self.forward.label is None else replace(self.forward, label=changes)
        if self.guide is not None:
            images = self.guide.seen(rows, images, first)
        images = laid_out(images, config.speed)
        new_step(config.speed)
        with rounding(config.speed, device), self._precision():
            if self.guide is None:
                loss = loss_of(config, told, images, t, noise)
            else:
                self.guide.look(self.step, self.forward, self.average)
                loss = self.guide.loss(told, rows, images, t, noise)
        self.optimiser.zero_grad(set_to_none=True)
        with rounding(config.speed, device):
            loss.backward()
        parameters = list(self.denoiser.network.parameters())
        loss = averaged(self.team, parameters, loss.detach())
        torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        self.optimiser.step()
        keep = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            # All weights in a few kernels; on a CPU the same arithmetic, one by one.
            means, now = (
                tuple[Tensor, ...](each) for each in (self.average.network.parameters(), parameters)
            )
            torch._foreach_lerp_(means, now, 1 - keep)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        self.step += 1
        return loss

    def _precision(self) -> AbstractContextManager[Any]:
        exact = is_coarse(self.denoiser.multiple, tuple(self.pixels.shape[2:]))
        half = self.config.precision == "bfloat16" and not exact
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if half else nullcontext()

    def mean_loss(self, losses: list[Tensor]) -> float:
        values = torch.stack(losses).double().cpu()
        wrong = (~values.isfinite()).nonzero().flatten().tolist()
        if wrong:
            step = self.step - len(losses) + wrong[0]
            raise TrainingError(
                f"the loss became {float(values[wrong[0]])} at step {step} with learning rate "
                f"{self.config.rate(step):.2g}: lower the learning rate or raise the warm-up"
                f"{', or train in float32 (precision)' if self.config.precision == 'bfloat16' else ''}"
            )
        return float(values.mean())

    def state(self, loss: float | None) -> TrainState:
        seen, rate = self.step * self.config.batch, self.config.rate(self.step - 1)
        known = None if self.guide is None else self.guide.known_share
        stopped = self.guide is not None and self.guide.stopped
        return TrainState(self.step, self.config.steps, seen, loss, rate, self.average, known, stopped)

    def checkpoint(self, folder: Path) -> None:
        """Write weights, average and optimiser state; a crash leaves the previous checkpoint whole."""
        tensors = {f"network.{k}": v for k, v in self.denoiser.network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.network.state_dict().items()}
        if self.guide is not None:
            tensors |= {f"guide.{k}": v for k, v in self.guide.tensors().items()}
        for index, values in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{k}": v for k, v in values.items()}
        commit(folder, tensors, self.identity | {"step": self.step})

    def resume(self, folder: Path) -> None:
        """Continue from the checkpoint in ``folder``, if there is a complete one."""
        try:
            found = committed(folder)
        except FileError as error:
            raise TrainingError(f"{error}; delete that folder to train again") from error
        if found is None:
            return
        tensors, about = found
        step = about.pop("step", None)
        if not isinstance(step, int) or isinstance(step, bool) or step < 1:
            raise TrainingError(f"the checkpoint in {folder} names no step; delete it to train again")
        here, there = _flat(self.identity), _flat(about)
        for key, value in here.items():
            if there.get(key) != value:
                raise TrainingError(
                    f"the checkpoint in {folder} is of another training: "
                    f"its {key} is {quoted(there.get(key))}, not {quoted(value)}"
                )
        if step > self.config.steps:
            raise TrainingError(
                f"the checkpoint in {folder} is of {step:,} steps, and {self.config.steps:,} were asked for;"
                " delete that folder to train again"
            )
        try:
            self._load(tensors)
        except (KeyError, ValueError, RuntimeError) as error:  # as torch refuses names and shapes
            raise TrainingError(
                f"the checkpoint in {folder} does not fit this network; delete that folder to train again"
            ) from error
        self.step = step

    def _load(self, tensors: dict[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimiser": {}, "guide": {}}
        for key, value in tensors.items():
            part, name = key.split(".", 1)
            parts[part][name] = value
        self.denoiser.network.load_state_dict(parts["network"])
        self.average.network.load_state_dict(parts["average"])
        if self.guide is not None:
            self.guide.load(parts["guide"])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["optimiser"].items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})


def _hash(images: Pixels) -> str:
    digest = sha256()
    for part in in_turn(images):
        digest.update(part.tobytes())
    return digest.hexdigest()


def _flat(values: Mapping[str, object], path: str = "") -> dict[str, object]:
    """Flatten nested mappings: {"a": {"b": 1}} -> {"a.b": 1}."""
    out: dict[str, object] = {}
    for key, value in values.items():
        below = cast(Mapping[str, object], value) if isinstance(value, Mapping) else None
        out |= _flat(below, f"{path}{key}.") if below is not None else {f"{path}{key}": value}
    return out
