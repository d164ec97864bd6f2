"""The parts of the recipe in their order: what is audited, what is trained, searched and counted.

Each part is one function; ``run_audit`` calls them one after the other, and each reads from the run what a
former call has finished.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from latentprint.adapters import Opened
from latentprint.audit import evidence, stages
from latentprint.audit.agreement import agreement
from latentprint.audit.baseline import baseline, embedding
from latentprint.audit.checkpoints import (
    Checkpoint,
    found_checkpoints,
    identified,
    over_training,
    own_checkpoints,
)
from latentprint.audit.counting import Question, counted_entry, seen
from latentprint.audit.distance import distance, extractor
from latentprint.audit.given import Given, as_it_is, given_images, named, open_given, take_model
from latentprint.audit.images import facts
from latentprint.audit.likelihoods import likelihood
from latentprint.audit.membership import membership
from latentprint.audit.profile import profile, require_targets
from latentprint.audit.rare import rare
from latentprint.audit.results import memorised_entry, monte_carlo_entry, results, search_entry
from latentprint.audit.samplers import beside
from latentprint.audit.stages import Detectors
from latentprint.audit.work import Work
from latentprint.config import AuditConfig
from latentprint.contracts import Outcome
from latentprint.data import Split
from latentprint.denoiser import Denoiser
from latentprint.detector.embedding import EmbeddingDetector
from latentprint.execute import ids_held
from latentprint.fingerprint import Injection
from latentprint.metrics.frechet import Extractor
from latentprint.report.evidence import Evidence
from latentprint.settings import plain


@dataclass(frozen=True)
class Subject:
    """What is audited: all that is read before the folder of a run exists.

    Attributes:
        settings: of the run, from which its numbers follow.
        given: the model that others trained; None: one is trained.
        left: what its training left along the way.
    """

    config: AuditConfig
    settings: dict[str, Any]
    split: Split
    injection: Injection
    given: Given | None
    left: tuple[Checkpoint, ...]

    @property
    def expected(self) -> float:
        """Eq. 11 for one sample: copies / N, the share that a model which repeats its images would show."""
        return self.injection.copies / len(self.split.train)


def subject(
    config: AuditConfig,
    place: torch.device,
    *,
    root: Path | str | None,
    download: bool,
    model: Path | str | Opened | None,
    label: int | None,
    target: int | str | Path | None,
    checkpoints: Path | str | None,
) -> Subject:
    """Read images, model and checkpoints; see ``run_audit`` for the arguments.

    Raises:
        InputError: one of them cannot be had or does not fit the others.
    """
    given = open_given(model, label, target, place)
    if given is None:
        split, injection = stages.images(config, root, download, target)
        settings = plain(config) | ({} if target is None else {"target": named(target)})
    else:
        config = as_it_is(config)
        split, injection = given_images(config, given, root, download)
        settings = given.settings(config)
    left = () if given is None or checkpoints is None else found_checkpoints(checkpoints, given, place)
    require_targets(config, len(split.train))
    return Subject(config, settings | identified(left), split, injection, given, left)


def in_its_space(work: Work, about: Subject) -> Work:
    """The work in the space of the model that is audited."""
    if about.given is None:
        return work
    return replace(work, codec=about.given.opened.codec, space=about.given.opened.shape)


@dataclass(frozen=True)
class Made:
    """Detectors and models. ``main`` and ``control`` are the forms that sample; ``trained`` has gradients."""

    detectors: Detectors
    matcher: EmbeddingDetector | None
    trained: Denoiser
    main: Denoiser
    control: Denoiser | None


def make(work: Work, about: Subject) -> Made:
    """c_p, c_id, the embedding where it is asked for, the model and its control."""
    config, pixels = work.config, about.injection.marked.pixels
    # Detectors first: where there are too few images for them, that is said before an hour of training.
    detectors = stages.detectors(work, about.split, about.injection)
    compares = config.baseline.images > 0 or config.profile.targets != 0
    matcher = embedding(work, about.split, config.embedding) if compares else None
    trained = (
        stages.score_model(work, "model", pixels) if about.given is None else take_model(work, about.given)
    )
    control = None
    if config.control:
        control = stages.score_model(work, "control", about.injection.control.pixels)
        control = stages.for_sampling(control, config.speed.sampling, work.batch)
    main = stages.for_sampling(trained, config.speed.sampling, work.batch)
    return Made(detectors, matcher, trained, main, control)


@dataclass(frozen=True)
class Searched:
    """Entries of results.json: ``t_prime``; checkpoints and profile; and what belongs to ``detectors``."""

    t_prime: dict[str, Any]
    others: dict[str, Any]
    agreement: dict[str, Any]


def search(work: Work, about: Subject, made: Made) -> Searched:
    """t' of x_p, of the control, over training, and of other images."""
    private, split, injection = about.injection.target, about.split, about.injection
    found = stages.search(work, "model", made.main, made.detectors, private)
    of_control = None
    if made.control is not None:
        of_control = stages.search(work, "control", made.control, made.detectors, private)
    along = own_checkpoints(work) if about.given is None else about.left
    growth = over_training(work, along, made.detectors, private, made.control)
    others, null, both = ({} if growth is None else {"checkpoints": growth}), None, {}
    if made.matcher is not None:
        null = baseline(work, made.main, made.matcher, split, injection, work.config.baseline)
        ranks = profile(work, made.main, made.matcher, split, injection, work.config.profile)
        if ranks is not None:
            others |= {"profile": ranks.entries, "profile_summary": ranks.summary}
        both = {"agreement": agreement(work, made.main, made.detectors, made.matcher, injection)}
    entry = search_entry(found, of_control, work.run.rows("search.model"))
    return Searched(entry | {"baseline": null}, others, both)


@dataclass(frozen=True)
class Counted:
    """Samples of the model and of its control, and the question that may have ended them early."""

    model: Outcome
    control: Outcome | None
    question: Question | None


def count(work: Work, about: Subject, made: Made, extract: Extractor) -> Counted:
    """n samples from the prior, as many of the control as were drawn (paper section 5.3)."""
    asked, private = work.config.samples, about.injection.target
    question = Question.of(asked, made.detectors)
    stops = None if question is None else question.answered
    model = stages.sample(work, "model", made.main, made.detectors, private, asked.count, extract, stops)
    control = None
    if made.control is not None:
        n = asked.control or len(model.hit)
        control = stages.sample(work, "control", made.control, made.detectors, private, n, None)
    return Counted(model, control, question)


def of_the_samples(work: Work, about: Subject, made: Made, counted: Counted) -> dict[str, Any]:
    """The entry ``q``: the count, the control's, and the estimators for what counting cannot see."""
    sampler, control, question = work.sampler.describe(), counted.control, counted.question
    alarms = None if control is None else seen(control)
    entry = counted_entry(counted.model, about.expected, sampler, question, made.detectors, alarms)
    return {
        "monte_carlo": entry,
        "control": None if control is None else monte_carlo_entry(control, about.expected, sampler),
        **rare(work, made.trained, made.detectors, about.injection, counted.model, question, alarms),
    }


def measure(work: Work, about: Subject, made: Made) -> tuple[dict[str, Any], Evidence]:
    """All of results.json but its verdict, and the pictures that show it."""
    split, injection, given = about.split, about.injection, about.given
    searched = search(work, about, made)
    extract = extractor(work, made.detectors, split.train.shape)
    counted = count(work, about, made, extract)
    # A likelihood of latents is none of images.
    likely = given is None or given.pixels
    bits = likelihood(work, made.trained, split, injection) if likely else None
    several = beside(work, made.main, made.detectors, injection.target, about.expected)
    members = membership(work, made.trained, split, injection)
    fid = distance(work, injection.marked.pixels, split.heldout.pixels, extract)

    noised = stages.noised_probe(work, made.main, made.detectors, injection.target, "search")
    prior = stages.prior_probe(work, made.main, made.detectors, injection.target, "samples")
    hits = ids_held(work.run, "samples.model")[counted.model.hit]
    detected = evidence.pictures(prior, stages.at(made.main.schedule.start, len(hits)), hits)
    parts = {
        **({} if given is None else {"model": given.entry(work.sampler.describe())}),
        "t_prime": searched.t_prime,
        "q": of_the_samples(work, about, made, counted),
        "fid": fid,
        "likelihood": bits,
        "membership": members,
        **({} if several is None else {"samplers": several}),
        "memorised": memorised_entry(counted.model, detected, injection.marked, injection.index),
        **searched.others,
    }
    known = facts(work.config, split)
    answer = results(split, injection, made.detectors, known, parts, stages.costs(work))
    answer["detectors"] |= searched.agreement
    return answer, evidence.collect(work.run, injection, noised, prior)
