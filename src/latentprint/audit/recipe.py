"""The parts of the recipe in their order: what is audited, what is trained, searched and counted.

Each part is one function. ``run_audit`` calls them in order, and each reads from the run what an earlier call
has finished.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentprint.adapters import Opened
from latentprint.adapters.room import Room, room_for
from latentprint.attacks.nearest import nearest
from latentprint.audit import evidence, stages
from latentprint.audit.asking import measurable, require_none
from latentprint.audit.canaries import identities, search_canaries, which_canary
from latentprint.audit.checkpoints import (
    Checkpoint,
    found_checkpoints,
    identified,
    over_training,
    own_checkpoints,
)
from latentprint.audit.comparison import agreement, baseline, embedding, profile, require_targets
from latentprint.audit.context import Context, Where
from latentprint.audit.costs import require_memory
from latentprint.audit.distance import distance, extractor
from latentprint.audit.estimates import estimates
from latentprint.audit.given import Given, as_it_is, given_images, named, open_given, take_model
from latentprint.audit.images import padding, read_images, with_canaries
from latentprint.audit.likelihoods import likelihood
from latentprint.audit.membership import membership, require_scores
from latentprint.audit.memory import batch_of, require_room
from latentprint.audit.pool import pool
from latentprint.audit.prompts import for_base, prompts, under_prompts, with_prompts
from latentprint.audit.samplers import further_samplers
from latentprint.audit.stages import Audited
from latentprint.audit.whole_set import joined, whole_set
from latentprint.config import AuditConfig
from latentprint.contracts import InputError, Outcome
from latentprint.data import ImageSet, Split
from latentprint.denoiser import Denoiser
from latentprint.detector import Identities
from latentprint.detector.contrast import require_images
from latentprint.detector.embedding import EmbeddingDetector
from latentprint.execute import ids_held
from latentprint.files import read_weights
from latentprint.fingerprint import Injection
from latentprint.marks import Canaries
from latentprint.metrics.frechet import Extractor
from latentprint.networks import require_fit
from latentprint.report.evidence import Evidence
from latentprint.results import Results
from latentprint.results.model import MEMORISED, Nearest
from latentprint.results.notes import CONTROL_SEARCH, SEARCH
from latentprint.results.searched import CONTROL_SAMPLES, SAMPLES
from latentprint.results.stopping import Until
from latentprint.settings import plain


@dataclass(frozen=True)
class Subject:
    """What is audited: all that is read before the folder of a run exists.

    Attributes:
        settings: the run's settings, from which its numbers follow.
        given: the model that somebody else trained; None: the audit trains one.
        left: the checkpoints of that training.
        canaries: further marked images, some of them trained on.
        room: the memory of the given model.
    """

    config: AuditConfig
    settings: dict[str, object]
    split: Split
    injection: Injection
    given: Given | None
    left: tuple[Checkpoint, ...]
    canaries: Canaries | None
    room: Room | None = None

    def unmarked(self, images: ImageSet) -> ImageSet:
        """The images among these that are no canaries."""
        return images if self.canaries is None else self.canaries.without(images)


def subject(
    config: AuditConfig,
    where: Where,
    *,
    model: Path | str | Opened | None,
    label: int | None,
    target: int | str | Path | None,
    checkpoints: Path | str | None,
) -> Subject:
    """Read images, model and checkpoints; the arguments are those of ``run_audit``."""
    read, place = config, where.place
    reading = cache(lambda: read_images(read, where.root, where.download))
    given = open_given(model, label, target, place, config, reading)
    canaries = None
    if given is None:
        if config.sampler.own or config.sampler.guidance is not None:
            raise InputError('the sampler "own" and guidance belong to a model that is given (--model)')
        chosen = stages.images(config, where.root, where.download, target)
        split, injection, canaries = with_canaries(config, *chosen)
        own = config.model
        require_fit(own.network, split.train.shape)
        told = padding(own.network, split.train.shape, own.training.precision)
        split = replace(split, notes=(*split.notes, *told))
        require_scores(config)
        require_none(config, given=False)
        settings = plain(config) | ({} if target is None else {"target": named(target)})
        del settings["prompts"], settings["given"]
    else:
        config = as_it_is(config)
        split, injection = given_images(config, given, reading())
        given = under_prompts(config, given, split, injection)
        config = measurable(config, given.prompts)
        settings = given.settings(config)
        if given.prompts is not None and checkpoints is not None:
            raise InputError("--checkpoints is for models that take no prompts; audit each folder by itself")
    for named_in in (config.descriptor, config.fid):
        if named_in.weights is not None and named_in.sha256 is not None:
            read_weights(Path(named_in.weights), named_in.sha256)
    require_memory(config, split.train.shape, place, trains=given is None)
    counts = len(split.train), len(split.heldout)
    require_room(config, split.train.shape, *counts, place, trains=given is None)
    require_targets(config, len(split.train))
    if _compares(config):
        require_images(config.embedding, len(split.train) + len(split.heldout))
    left = (
        ()
        if given is None or checkpoints is None
        else found_checkpoints(checkpoints, given, place, config, reading)
    )
    room = None if given is None else room_for(given.opened, place, where.batch)
    return Subject(config, settings | identified(left), split, injection, given, left, canaries, room)


def in_its_space(context: Context, about: Subject) -> Context:
    """The context in the space of the model that is audited, its batches of a size that memory holds."""
    if about.given is None:
        batch = batch_of(about.split.train.shape, context.batch)
        return replace(context, where=replace(context.where, batch=batch))
    opened = about.given.opened
    own = None if opened.own is None else opened.own.sampler
    if about.room is not None:
        context = replace(context, where=replace(context.where, batch=about.room.batch))
    context = replace(context, codec=opened.codec, space=opened.shape, own=own)
    return with_prompts(context, about.given)


def _compares(config: AuditConfig) -> bool:
    """Whether the embedding searches for images other than x_p."""
    return config.baseline.images > 0 or config.profile.targets != 0


@dataclass(frozen=True)
class Prepared:
    """The models and recognisers that the measurements use.

    Attributes:
        main: the model in the form that samples, its detectors and x_p.
        control: the same for a model that was trained without x_p; None: there is no control.
        trained: the model with its gradients.
        matcher: the embedding that knows any image; None: no two images are compared.
        identities: the recogniser of all canaries; None: there are no canaries.
    """

    main: Audited
    control: Audited | None
    trained: Denoiser
    matcher: EmbeddingDetector | None
    identities: Identities | None


def prepare(context: Context, about: Subject) -> Prepared:
    """Fit c_p and c_id, the embedding if it is asked for, the model and its control."""
    config, pixels = context.config, about.injection.marked.pixels
    heldout = about.split.heldout.pixels
    # Detectors first: if there are too few images for them, the user learns it before an hour of training.
    unmarked = about.unmarked(about.injection.control)
    detectors = stages.detectors(context, about.split, about.injection, unmarked)
    originals = replace(about.split, train=about.unmarked(about.split.train))
    matcher = embedding(context, originals, config.embedding) if _compares(config) else None
    many = identities(context, about.split, about.injection, about.canaries)
    trained = (
        stages.score_model(context, "model", pixels, heldout)
        if about.given is None
        else take_model(context, about.given)
    )
    control = None
    if config.control:
        control = stages.score_model(context, "control", about.injection.control.pixels, heldout)
        control = stages.for_sampling(control, config.speed.sampling, context.batch)
    if about.given is not None and about.given.base is not None:
        control = about.given.base.sampled(config.sampler.own)
    main = stages.for_sampling(trained, config.speed.sampling, context.batch)
    audited = Audited(main, detectors, about.injection.target)
    other = None if control is None else replace(audited, model=control)
    return Prepared(audited, other, trained, matcher, many)


def search(context: Context, about: Subject, prepared: Prepared) -> None:
    """t' of x_p, of the control, over training, and of other images."""
    main, split, injection = prepared.main, about.split, about.injection
    stages.search(context, SEARCH, main)
    if prepared.control is not None:
        stages.search(for_base(context, about.given), CONTROL_SEARCH, prepared.control)
    along = own_checkpoints(context) if about.given is None else about.left
    over_training(context, along, main, prepared.control)
    if prepared.matcher is not None:
        baseline(context, main.model, prepared.matcher, split, injection, context.config.baseline)
        profile(context, main.model, prepared.matcher, split, injection, context.config.profile)
        agreement(context, main, prepared.matcher)


def count(context: Context, about: Subject, prepared: Prepared, extract: Extractor) -> Outcome:
    """Draw n samples from the prior, and as many from the control as from the model (paper section 5.3)."""
    asked, main = context.config.samples, prepared.main
    until = Until.of(asked, main.detectors.values)

    def stops(seen: Outcome) -> bool:
        return until is not None and until.answer(until.counts(seen.hit)) is not None

    every = whole_set(context, about.split, about.injection, prepared.matcher)
    many = None if prepared.identities is None else which_canary(prepared.identities)
    model = stages.sample(
        context,
        SAMPLES,
        main,
        asked.count,
        extract,
        None if until is None else stops,
        joined(pool(context, about.split, about.injection), every, many),
    )
    if prepared.control is not None:
        n = asked.control or len(model.hit)
        beside = for_base(context, about.given)
        stages.sample(beside, CONTROL_SAMPLES, prepared.control, n, None, compare=every)
    return model


def measure(context: Context, about: Subject, prepared: Prepared) -> Callable[[Results], Evidence]:
    """Run every stage that measures, each leaving rows and notes in the run. Returns what draws the
    pictures."""
    split, injection, given, main = about.split, about.injection, about.given, prepared.main
    search(context, about, prepared)
    extract = extractor(context, main.detectors, split.train.shape)
    counted = count(context, about, prepared, extract)
    plain = prepared.trained if given is None else given.opened.denoiser  # from T, whatever its sampler
    if given is None or given.pixels:  # a likelihood of latents is not one of images
        likelihood(context, plain, split, injection)
    prompts(context, given, split, injection, main)
    further_samplers(context, main)
    membership(context, plain, split, injection)
    if about.canaries is not None and prepared.identities is not None:
        search_canaries(context, main.model, plain, prepared.identities, injection, about.canaries)
    distance(context, injection.marked.pixels, split.heldout.pixels, extract)
    estimates(context, replace(main, model=prepared.trained), injection.control.pixels)

    noised = stages.noised_probe(context, main)
    prior = stages.prior_probe(context, main)
    hits = ids_held(context.run, SAMPLES.name)[counted.hit]
    detected = evidence.pictures(prior, stages.at(main.model.schedule.start, len(hits)), hits)
    memorised(context, detected, injection)
    asked = None if given is None else given.prompts

    def pictures(found: Results) -> Evidence:
        shown = evidence.collect(context.run, injection, noised, prior, found.whole_set)
        return shown if asked is None else replace(shown, prompts=asked.listed())

    return pictures


def memorised(context: Context, detected: NDArray[np.float32], injection: Injection) -> None:
    """Note how many of the detected samples (n, C, H, W) have x_p as the nearest training image."""
    if context.run.stage(MEMORISED.name).done:
        return
    found = Nearest(target=0, n=0)
    if len(detected):
        near = nearest(detected, injection.marked.pixels)
        found = Nearest(target=int((near.index[:, 0] == injection.index).sum()), n=len(detected))
    context.finish(MEMORISED, found)
