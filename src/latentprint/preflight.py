"""What an audit will do and cost, before any of it runs.

Counts follow exactly from the settings: optimiser steps, and network evaluations of the search and of
sampling. Times follow from the counts and from a few seconds of measurement on this machine with this
network:

    seconds = steps x seconds per step + evaluations x seconds per evaluation

Fits of detectors stop early, so the time of all their epochs is an upper bound.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from latentprint.adapters import Opened
from latentprint.adapters.truth import Denoising, answer, beaten, denoising, recognised
from latentprint.audit.context import Where
from latentprint.audit.costs import planned
from latentprint.audit.memory import memory_of
from latentprint.audit.prompts import asks_of, conditions
from latentprint.audit.recipe import Subject, subject
from latentprint.audit.stages import snapshots_due
from latentprint.config import AuditConfig
from latentprint.data import ImageSet, Split, near_duplicates
from latentprint.data.images import Pixels
from latentprint.denoiser import Denoiser, NetworkDenoiser
from latentprint.detector import DetectorConfig, build_backbone
from latentprint.files import real
from latentprint.judge import Design
from latentprint.networks import build_unet, parameters
from latentprint.progress import duration
from latentprint.results.prompts import named
from latentprint.stats import samples_to_decide
from latentprint.streams import Streams
from latentprint.training import train

MEASURE_SECONDS = 1.5
"""For each of three measurements: training, evaluation, detector."""

TRACE = 60
"""Bytes of a stored row of a trajectory, measured on finished runs with room to spare."""


@dataclass(frozen=True)
class Cost:
    """One stage: how many units of what, and for how long on this machine.

    Attributes:
        evaluations: passes of one image through the score network; None if the stage makes none.
        about: the evaluations are a bound or an order of magnitude (`audit.costs`).
        seconds: estimated from a measurement on this machine.
    """

    stage: str
    amount: int
    unit: str
    evaluations: int | None
    seconds: float
    about: bool = False


@dataclass(frozen=True)
class Preflight:
    """What `check` found.

    Attributes:
        facts: the data, in numbers.
        costs: stage by stage.
        disk: bytes that the run needs, and bytes that are free in its folder.
        warnings: what deserves attention before the audit is started, in sentences.
    """

    facts: dict[str, object]
    costs: tuple[Cost, ...]
    disk: tuple[int, int]
    warnings: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0: nothing to remark; 1: it can run, but read the warnings first."""
        return 1 if self.warnings else 0

    @property
    def seconds(self) -> float:
        """Estimated time of all that is listed; reading data and writing pages take seconds more."""
        return sum(cost.seconds for cost in self.costs)

    def to_dict(self) -> dict[str, object]:
        """Plain values for ``--json``."""
        return {
            "facts": self.facts,
            "costs": [vars(cost) for cost in self.costs],
            "seconds": self.seconds,
            "network_evaluations": sum(cost.evaluations or 0 for cost in self.costs),
            "disk": {"needed": self.disk[0], "free": self.disk[1]},
            "warnings": list(self.warnings),
            "exit_code": self.exit_code,
        }

    def lines(self) -> list[str]:
        """The findings as lines of text."""
        out = [f"{name}: {value}" for name, value in self.facts.items()]
        for cost in self.costs:
            about = "about " if cost.about else ""
            passes = "" if cost.evaluations is None else f", {about}{cost.evaluations:,} network evaluations"
            out.append(f"{cost.stage}: {cost.amount:,} {cost.unit}{passes}, about {duration(cost.seconds)}")
        out.append(f"in all about {duration(self.seconds)} on this machine as busy as it is now")
        out.append(f"disk: {self.disk[0] / 1e6:,.0f} MB of {self.disk[1] / 1e6:,.0f} MB free")
        return out + [f"Warning: {one}" for one in self.warnings]


def check(
    config: AuditConfig,
    out: Path,
    *,
    device: str = "cpu",
    root: Path | None = None,
    download: bool = False,
    model: Path | Opened | None = None,
    label: int | None = None,
    target: int | str | Path | None = None,
) -> Preflight:
    """Read the data, count the work and measure this machine for a few seconds; nothing is written.

    Args:
        config: everything that would decide the numbers.
        out: the run's folder, whose disk is checked for free space.
        device: as for ``run_audit``, and so are ``root`` and ``download``.
        root: where the MedMNIST files are.
        download: whether a missing one may be fetched.
        model: with one, nothing is trained but c_id.
        label: the class to audit if the model is class-conditional.
        target: the training image to look for, its number or an image file.

    Raises:
        InputError: the audit itself would refuse these images, this model, these settings or device.
    """
    where = Where(device, root=root, download=download)
    about = subject(config, where, model=model, label=label, target=target, checkpoints=None)
    config, split, injection, given = about.config, about.split, about.injection, about.given
    place = where.place
    trained: tuple[float | None, float]
    levels: tuple[Denoising, ...] = ()
    if given is None:
        schedule = config.model.schedule()
        size, trained = _own(config, injection.marked.pixels, place)
    else:
        schedule = given.opened.sampled(config.sampler.own).schedule
        size = sum(parameters(network) for network in given.opened.networks)
        trained = (None, _evaluation(given.opened.denoiser, given.opened.shape, 16, place))
    step, evaluation = trained
    sampler = config.sampler.sampler(given and given.opened.own and given.opened.own.sampler)
    models = 2 if config.control else 1
    costs = [
        *(_fit(name, one, split.heldout, len(split.train), place) for name, one in _detectors(config)),
        *(
            Cost(one.stage, one.amount, one.unit, one.evaluations, one.evaluations * evaluation, one.about)
            for one in planned(
                config,
                sampler,
                schedule,
                images=len(split.train),
                heldout=len(split.heldout),
                bits=split.train.bit_depth is not None and (given is None or given.pixels),
                checkpoints=snapshots_due(config.model.training.steps, config.checkpoints.keep),
                asks=asks_of(config, given, split, injection),
            )
        ),
    ]
    if step is not None:
        steps = models * config.model.training.steps
        costs.insert(0, Cost("training", steps, "steps", None, steps * step))
    repeated = sum(len(group) for group in near_duplicates(split.train.pixels))
    facts: dict[str, object] = {
        "source": split.name,
        "images to train on": len(split.train),
        "images held out": len(split.heldout),
        "shape": "x".join(map(str, split.train.shape)),
        **({} if not split.classes else {"classes": split.named_classes}),
        "images with a near copy among them": repeated,
        "copies of the private image": injection.copies,
        "memory": _memory(about),
    }
    if given is None:
        facts["network parameters"] = size
    else:
        if given.prompts is not None:
            notes = [note for note, _ in conditions(config, given.prompts, injection.index)]
            said = zip(notes, named(notes), strict=True)
            facts |= {one.name: f"{words}, guidance {one.guidance:g}" for one, words in said}
        train, heldout = (np.asarray(one.pixels) for one in (split.train, split.heldout))
        levels = denoising(given.opened, train, heldout, place)
        facts |= recognised(given.opened) | {"does it take noise off these images": answer(levels)}
        facts |= {f"error at noise {one.ratio:.2g}": _error(one) for one in levels}
    rows = sum(cost.amount for cost in costs if cost.evaluations is not None)
    kept = models * size * 4 * 6 if given is None else 0
    needed = kept + rows * TRACE + config.fid.samples * 4 * 2048
    free = shutil.disk_usage(_existing(out)).free
    warnings = [*split.remarks, *_warnings(config, split, injection.copies, repeated, needed, free)]
    if lost := beaten(levels):
        warnings.insert(0, _no_denoiser(lost, len(levels)))
    return Preflight(facts, tuple(costs), (needed, free), tuple(warnings))


def _memory(about: Subject) -> str:
    split = about.split
    counts = len(split.train), len(split.heldout)
    held = memory_of(about.config, split.train.shape, *counts, trains=about.given is None)
    return held.words if about.room is None else f"{held.words}; the model: {about.room.words}"


def _no_denoiser(lost: tuple[float, ...], count: int) -> str:
    where = "every noise level" if len(lost) == count else f"noise {', '.join(f'{one:.2g}' for one in lost)}"
    return (
        f"at {where} a plain blur takes more noise off these images than the model does: what it predicts,"
        " its noise, its time or the range of its images is probably not what was understood, or it was"
        " trained on very different images; an audit of it would mean little"
    )


def _error(one: Denoising) -> str:
    return (
        f"{one.train:.2g} on training images, {one.heldout:.2g} on held-out ones, {one.blur:.2g} by a plain"
        " blur (shares of the images' variance)"
    )


def _own(config: AuditConfig, pixels: Pixels, place: torch.device) -> tuple[int, tuple[float, float]]:
    """(parameters of the network that would be trained, its seconds of a training step and an evaluation)."""
    network = build_unet(config.model.network, pixels.shape[1], pixels.shape[2:], Streams(config.seed))
    return parameters(network), _speeds(config, pixels, place)


def _detectors(config: AuditConfig) -> tuple[tuple[str, DetectorConfig], ...]:
    """The recognisers that are fitted, including the embedding if images are compared."""
    marked = () if config.fingerprint.kind == "none" else (("c_p", config.presence),)
    compared = config.baseline.images > 0 or config.profile.targets != 0
    embedding = (("embedding", config.embedding),) if compared else ()
    many = (("one recogniser of all marked images", config.identities),) if config.canaries.count else ()
    return (*marked, ("c_id", config.identity), *embedding, *many)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(real(path).parent)


def _paced(work: Callable[[], object]) -> float:
    """Seconds of one call: the median of those that fit into MEASURE_SECONDS, after one to warm up."""
    work()
    times: list[float] = []
    began = time.perf_counter()
    while not times or time.perf_counter() - began < MEASURE_SECONDS:
        at = time.perf_counter()
        work()
        times.append(time.perf_counter() - at)
    return float(np.median(times))


def _speeds(config: AuditConfig, pixels: Pixels, place: torch.device) -> tuple[float, float]:
    """(seconds of a training step, seconds of one evaluation of one image) on this machine."""
    settings, schedule = config.model, config.model.schedule()
    network = build_unet(settings.network, pixels.shape[1], pixels.shape[2:], Streams(config.seed))
    torch.nn.Module.to(network, place)
    states = iter(train(pixels, network, schedule, settings.training, Streams(config.seed), place))
    # A state is yielded every ten steps; short trainings end before that.
    at = time.perf_counter()
    first = next(states)
    step = (time.perf_counter() - at) / first.step
    denoiser: NetworkDenoiser = first.denoiser
    return step, _evaluation(denoiser, pixels.shape[1:], min(128, max(16, len(pixels))), place)


def _evaluation(denoiser: Denoiser, shape: tuple[int, ...], batch: int, place: torch.device) -> float:
    """Seconds of one evaluation of one image (C, H, W), in batches of that size."""
    x = torch.zeros((batch, *shape), device=place).normal_(generator=torch.Generator(place).manual_seed(0))
    t = torch.full((batch,), denoiser.schedule.start / 2, dtype=torch.float64, device=place)
    with torch.no_grad():
        return _paced(lambda: denoiser(x, t).sum().item()) / batch


def _fit(name: str, config: DetectorConfig, heldout: ImageSet, count: int, place: torch.device) -> Cost:
    network = build_backbone(config.backbone, Streams(0), name, len(heldout.shape) - 1).to(place).train()
    shape = (config.batch, 3, *heldout.shape[1:])
    x = torch.zeros(shape, device=place).normal_(generator=torch.Generator(place).manual_seed(0))
    draws = config.draws or count + len(heldout)
    each = _paced(lambda: network(x).sum().backward()) / config.batch
    return Cost(f"fitting {name}", config.epochs, "epochs at most", None, config.epochs * draws * each)


def _warnings(
    config: AuditConfig, split: Split, copies: int, repeated: int, needed: int, free: int
) -> list[str]:
    out: list[str] = []
    if repeated:
        out.append(
            f"{repeated} training images are copies or near copies of others; "
            "a repeated image is memorised sooner, and comes back more often, than its share suggests"
        )
    drawn = config.samples.count
    control = (config.samples.control or drawn) if config.control else 0
    out += Design(len(split.train), len(split.heldout), copies, drawn, control).sentences
    until = config.samples.until
    if until is not None and (enough := samples_to_decide(until)) > config.samples.count:
        out.append(
            f"{config.samples.count:,} samples are too few to show that the image comes back less often than "
            f"{until:g} (samples.until), even if none does; {enough:,} or somewhat more would be enough"
        )
    if needed > free:
        out.append(f"the run needs about {needed / 1e6:,.0f} MB of disk and {free / 1e6:,.0f} MB are free")
    return out
