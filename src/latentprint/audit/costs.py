"""What each stage of an audit costs in network evaluations, predicted from its settings.

A stage has the same name here as in run.json, where it notes what it spent. ``check`` shows the numbers of
this module, the report those of run.json. One evaluation is one image passed once through the network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from latentprint.adapters.room import MemoryLack
from latentprint.audit.asking import Asks
from latentprint.audit.images import padded
from latentprint.config import AuditConfig
from latentprint.contracts import quoted
from latentprint.data.listing import free_memory
from latentprint.networks import UNetConfig
from latentprint.results.notes import (
    AGREEMENT,
    BASELINE,
    CANARIES,
    CANARY_SEARCH,
    CHECKPOINT_SEARCH,
    CONTROL_SEARCH,
    LIKELIHOOD,
    MEMBERSHIP,
    PROFILE,
    SEARCH,
    SIGNS,
)
from latentprint.results.prompts import PROMPTS
from latentprint.results.searched import CONTROL_SAMPLES, SAMPLES
from latentprint.sampler import Sampler, own_times
from latentprint.schedule import Schedule
from latentprint.search.settings import BaselineSettings, CanarySettings, ProfileSettings, SearchSettings

ADAPTIVE = 200
"""Evaluations of a trajectory whose sampler chooses its steps, and of a likelihood: an order of magnitude."""


ROW = 200
"""Bytes of memory that a trajectory takes while its rows are assembled: a dozen columns, twice."""


DRAW = 24
"""Bytes of memory that an image of an epoch takes while the order is drawn: its index, three times."""


def least_weights(network: UNetConfig, axes: int) -> int:
    """How many weights the network has at least, in its convolutions of 3^axes places alone.

    A level of c channels has L = layers_per_block blocks of two convolutions on the way down and L + 1 on
    the way up, whose first one also takes what the way down left; one more convolution changes the side. The
    middle has two blocks.
    """
    each = 5 * network.layers_per_block + 3
    squares = [channels**2 for channels in network.channels]
    return 3**axes * (each * sum(squares) + 4 * squares[-1])


def require_memory(config: AuditConfig, shape: tuple[int, ...], place: torch.device, *, trains: bool) -> None:
    """Refuse a training or rows that do not fit into the free memory, by an estimate on the low side.

    A training step keeps the output of each residual block in float32, a handful of times (convolutions,
    normalisations, gradients). The output has its level's channels at the level's size. Of a weight it
    keeps five numbers: itself, its gradient, two moments of Adam, its average.
    """
    free = free_memory()
    room = torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else free
    network, batch = config.model.network, config.model.training.batch
    sides = [side // network.patch_size for side in padded(network, shape[1:])]
    pixels = [
        math.prod(sides) // 2 ** (len(sides) * level) * channels
        for level, channels in enumerate(network.channels)
    ]
    weights = least_weights(network, len(sides))
    if trains and 4 * 5 * weights > room:
        raise MemoryLack(
            f"training a network of model.network.channels = {quoted(list(network.channels))} needs at least"
            f" {4 * 5 * weights / 2**30:,.1f} GiB of memory for its {weights:,} weights, and"
            f" {room / 2**30:,.1f} GiB are free: fewer channels or levels need less"
        )
    image = 4 * 4 * network.layers_per_block * sum(pixels)
    if trains and batch * image > room:
        raise MemoryLack(
            f"a training step on model.training.batch = {batch:,} images needs at least"
            f" {batch * image / 2**30:,.1f} GiB of memory, and {room / 2**30:,.1f} GiB are free; a batch of"
            f" {max(1, room // (4 * image)):,} would fit"
        )
    base = config.baseline
    rows = {
        "samples.count": (config.samples.count, ROW),
        "samples.control": (config.samples.control or 0, ROW),
        "search.levels x search.tries": (config.search.levels * config.search.tries, ROW),
        "baseline.images x levels x tries": (base.images * base.levels * base.tries, ROW),
        "rare.most": (config.rare.most if config.rare.asked else 0, ROW),
        "presence.draws": (config.presence.draws or 0, DRAW),
        "identity.draws": (config.identity.draws or 0, DRAW),
        "embedding.draws": (config.embedding.draws or 0, DRAW),
    }
    for name, (count, each) in rows.items():
        if count * each > free:
            raise MemoryLack(
                f"{name} = {count:,} needs about {count * each / 2**30:,.1f} GiB of memory, and"
                f" {free / 2**30:,.1f} GiB are free; {free // (4 * each):,} would fit"
            )


@dataclass(frozen=True)
class Planned:
    """One stage: how many units of what, and the evaluations they take.

    Attributes:
        stage: its name in run.json.
        about: the number is a bound or an order of magnitude, as the stage decides how much it does.
    """

    stage: str
    amount: int
    unit: str
    evaluations: int
    about: bool = False


def planned(
    config: AuditConfig,
    sampler: Sampler,
    schedule: Schedule,
    *,
    images: int,
    heldout: int,
    bits: bool,
    checkpoints: Sequence[int] = (),
    asks: Asks | None = None,
) -> tuple[Planned, ...]:
    """Every stage that evaluates the score network, in the order in which they run.

    Args:
        config: the settings.
        sampler: the audit's sampler.
        schedule: the model's noise schedule.
        images: how many images are trained on.
        heldout: how many are held out.
        bits: whether the images have a bit depth, without which they have no likelihood.
        checkpoints: the steps after which further models are kept and searched.
        asks: what a text-to-image model is asked.
    """
    return tuple(_planned(config, sampler, schedule, images, heldout, bits, checkpoints, asks))


def _planned(
    config: AuditConfig,
    sampler: Sampler,
    schedule: Schedule,
    images: int,
    heldout: int,
    bits: bool,
    checkpoints: Sequence[int],
    asks: Asks | None,
) -> Iterator[Planned]:
    own = _search(SEARCH.name, sampler, config.search, schedule)
    control = config.control or (asks is not None and asks.base)
    yield own
    if control:
        yield replace(own, stage=CONTROL_SEARCH.name)
    for step in checkpoints:
        yield replace(own, stage=CHECKPOINT_SEARCH.part(f"step-{step:07d}"))
    null = min(config.baseline.images, heldout)
    if null:
        yield _many(BASELINE.name, sampler, config.baseline, schedule, null + 1)
    if config.profile.targets != 0:
        asked = config.profile.targets
        targets = images if asked == "all" else asked if isinstance(asked, int) else len(asked)
        each = targets + min(config.profile.null, heldout)
        yield _many(PROFILE.name, sampler, config.profile, schedule, each)
    if null or config.profile.targets != 0:
        yield replace(own, stage=AGREEMENT.name)
    yield _samples(SAMPLES.name, sampler, config.samples.count, schedule, config)
    if control:
        count = config.samples.control or config.samples.count
        yield _samples(CONTROL_SAMPLES.name, sampler, count, schedule, config)
    if config.likelihood.images and bits:
        n = min(config.likelihood.images, images - 1) + min(config.likelihood.images, heldout) + 1
        yield Planned(LIKELIHOOD.name, n, "images", n * ADAPTIVE, about=True)
    if asks is not None:
        yield from _prompts(config, sampler, schedule, asks)
    for other in config.sampler.others():
        yield _search(SEARCH.part(other.label), other.sampler(), config.search, schedule)
        count = config.samples.count
        yield _samples(SAMPLES.part(other.label), other.sampler(), count, schedule, config)
    if config.membership.images and heldout >= 2:
        n = min(config.membership.images, images - 1) + min(config.membership.images, heldout) + 1
        yield Planned(MEMBERSHIP.name, n, "images", n * config.membership.scores.evaluations())
    if count := 2 * config.canaries.count:
        yield Planned(CANARIES.name, count, "images", count * config.membership.scores.loss_times)
        yield _many(CANARY_SEARCH.name, sampler, config.canaries, schedule, count + 1)
    for one in config.rare.asked:
        each, _ = _evaluations(sampler, schedule)
        yield Planned(one.name, config.rare.most, "samples", config.rare.most * each, about=True)


def _prompts(config: AuditConfig, sampler: Sampler, schedule: Schedule, asks: Asks) -> Iterator[Planned]:
    settings = config.prompts
    for number in range(asks.conditions):
        name = f"prompt-{number}"
        yield _search(SEARCH.at(name).name, sampler, config.search, schedule)
        for stage in (SAMPLES, CONTROL_SAMPLES) if asks.base else (SAMPLES,):
            yield _samples(stage.at(name).name, sampler, settings.count, schedule, config)
    each, about = _evaluations(sampler, schedule)
    sides = {"train": asks.train, "heldout": asks.heldout}
    for name, count in sides.items():
        if count and settings.signs:
            one = settings.signs * ((3 + each) if asks.attention else 2)
            yield Planned(SIGNS.part(name), count, "prompts", count * one, about and asks.attention)
    sides |= {"further": asks.further}
    sides |= {"base": asks.train, "base_further": asks.further} if asks.base else {}
    for name, count in sides.items():
        if count:
            yield _samples(PROMPTS.part(name), sampler, count * settings.samples, schedule, config)


def _search(stage: str, sampler: Sampler, settings: SearchSettings, schedule: Schedule) -> Planned:
    """The cost of as many tries at every level, which bounds the methods that stop early or ask elsewhere."""
    tries = settings.cap if settings.method == "sequential" else settings.tries
    plan = settings.plan(schedule.start)
    total, about = _along(sampler, plan.grid, schedule)
    about = about or settings.method != "exhaustive"
    return Planned(stage, tries * len(plan.grid), "trajectories", tries * total, about)


def _many(
    stage: str,
    sampler: Sampler,
    settings: BaselineSettings | CanarySettings | ProfileSettings,
    schedule: Schedule,
    images: int,
) -> Planned:
    plan = settings.plan(schedule.start)
    total, about = _along(sampler, plan.grid, schedule)
    count = images * settings.tries
    return Planned(stage, count * len(plan.grid), "trajectories", count * total, about)


def _samples(stage: str, sampler: Sampler, count: int, schedule: Schedule, config: AuditConfig) -> Planned:
    each, about = _evaluations(sampler, schedule)
    until = config.samples.until is not None and stage == SAMPLES.name
    return Planned(stage, count, "images", count * each, about or until)


def _along(sampler: Sampler, grid: tuple[float, ...], schedule: Schedule) -> tuple[int, bool]:
    """Evaluations of one trajectory from each level of a grid, together."""
    times, each = sampler.grid(schedule), sampler.step.evaluations
    if each is None:
        return ADAPTIVE * len(grid), True
    return sum((len(own_times(times, t)) - 1) * each + sampler.denoise for t in grid), False


def _evaluations(sampler: Sampler, schedule: Schedule) -> tuple[int, bool]:
    """Evaluations of one trajectory from the prior, and whether that is only an order of magnitude."""
    each = sampler.evaluations(schedule)
    return (ADAPTIVE, True) if each is None else (each, False)
