"""The recipe on one page: the paper's Figure 2, from a folder of images to a verdict.

    images → fingerprint → c_p, c_id → score model, control → t' → samples → likelihood, FID → verdict

A model that others trained takes the place of all that is trained (``audit.given``): no fingerprint, no
control, no c_p.

Every line below is a stage that reads what the run already holds and does what is missing, so the same call
continues an audit that was interrupted and ends in the same results.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from latentprint.adapters import recognise
from latentprint.audit import evidence, stages
from latentprint.audit.agreement import agreement
from latentprint.audit.baseline import baseline, embedding
from latentprint.audit.checkpoints import (
    found_checkpoints,
    identified,
    over_training,
    own_checkpoints,
    require_checkpoints,
)
from latentprint.audit.counting import Question, counted_entry, seen
from latentprint.audit.distance import distance, extractor
from latentprint.audit.given import as_it_is, given_images, named, open_given, take_model
from latentprint.audit.images import facts
from latentprint.audit.likelihoods import likelihood
from latentprint.audit.membership import membership
from latentprint.audit.profile import Anonymity, profile, require_targets
from latentprint.audit.rare import rare
from latentprint.audit.results import memorised_entry, monte_carlo_entry, results, search_entry
from latentprint.audit.samplers import beside
from latentprint.audit.samples import run_samples_audit
from latentprint.audit.work import Work, describe, open_device
from latentprint.config import AuditConfig
from latentprint.contracts import InputError, Map
from latentprint.data import Split
from latentprint.denoiser import Denoiser
from latentprint.detector.embedding import EmbeddingDetector
from latentprint.execute import ids_held
from latentprint.fingerprint import Injection
from latentprint.progress import Report, silent
from latentprint.report import write_report
from latentprint.settings import plain
from latentprint.store import Run
from latentprint.verdict import verdict

__all__ = ["run_audit"]

BATCH = 256


def run_audit(
    config: AuditConfig,
    out: Path | str,
    *,
    device: str = "cpu",
    batch: int = BATCH,
    root: Path | str | None = None,
    download: bool = False,
    fresh: bool = False,
    authorised_by: str | None = None,
    model: Path | str | None = None,
    samples: Path | str | None = None,
    target: int | str | Path | None = None,
    label: int | None = None,
    checkpoints: Path | str | None = None,
    progress: Report = silent,
    map: Map = map,  # noqa: A002 (it is one)
    processes: int = 1,
) -> dict[str, Any]:
    """Audit a recipe: train on the images with one fingerprint among them, and see whether it comes back.

    Args:
        config: everything that decides the numbers; ``resolve`` makes one from a preset.
        out: folder of the run; the same call again continues it.
        device: where networks run.
        batch: trajectories that share a network call; memory only, no result depends on it.
        root: where the MedMNIST files are.
        download: whether a missing one may be fetched.
        fresh: put a run that ``out`` already holds aside and begin anew.
        authorised_by: who stated which authority for this audit; written into run.json and the report.
        model: a model that others trained on these images (``adapters.open_model``); None: one is trained.
        samples: images that a model generated (``adapters.samples.open_samples``), audited in its place:
            counts, nearest copies and FID; ``model`` may name them too.
        target: which training image to look for, its number or an image file; None: drawn by the seed among
            those without near copies.
        label: with ``model``, the class to audit of a model that is conditional on one.
        checkpoints: with ``model``, what its training left along the way (``audit.checkpoints``).
        progress: told how far each stage is.
        map: works through units of trajectories, here or on many machines (``spread.executor``).
        processes: how many train one model together; results differ from one's by rounding.

    Returns: what ``results.json`` holds.

    Raises:
        InputError: one sentence about the input, the settings, the folder or the disk; what was finished
            is kept.
    """
    place = open_device(device)
    if model is not None and samples is not None:
        raise InputError("a model and samples were given; audit one of them at a time")
    if model is not None and recognise(model) == "samples":
        model, samples = None, model
    if samples is not None:
        if label is not None:
            raise InputError("a label was given with samples; it says what of a model to audit")
        return run_samples_audit(
            config,
            out,
            samples,
            device=device,
            root=root,
            download=download,
            fresh=fresh,
            authorised_by=authorised_by,
            target=target,
            progress=progress,
        )
    require_checkpoints(config, checkpoints, trains=model is None, processes=processes)
    # Images first: a source that cannot be read must not leave the folder of a run behind.
    given = open_given(model, label, target, place)
    if given is None:
        split, injection = stages.images(config, root, download, target)
        settings = plain(config) | ({} if target is None else {"target": named(target)})
    else:
        config = as_it_is(config)
        split, injection = given_images(config, given, root, download)
        settings = given.settings(config)
    left = () if given is None or checkpoints is None else found_checkpoints(checkpoints, given, place)
    settings |= identified(left)
    require_targets(config, len(split.train))
    with Run.open(out, settings, fresh=fresh) as run:
        work = Work(config, run, place, batch, progress, map=map, processes=processes)
        if given is not None:
            work = replace(work, codec=given.opened.codec, space=given.opened.shape)
        run.note({"device": describe(place)})
        if authorised_by is not None:
            run.note({"authorised_by": authorised_by})
        stages.remember(work, split, injection)
        # Detectors first: where there are too few images for them, that is said before an hour of training.
        detectors = stages.detectors(work, split, injection)
        matcher = embedding(work, split, config.embedding) if compares(config) else None
        trained = (
            stages.score_model(work, "model", injection.marked.pixels)
            if given is None
            else take_model(work, given)
        )
        fast = config.speed.sampling
        main = stages.for_sampling(trained, fast, batch)
        control = (
            stages.for_sampling(stages.score_model(work, "control", injection.control.pixels), fast, batch)
            if config.control
            else None
        )

        private = injection.target
        found = stages.search(work, "model", main, detectors, private)
        found_control = (
            stages.search(work, "control", control, detectors, private) if control is not None else None
        )
        along = own_checkpoints(work) if given is None else left
        growth = over_training(work, along, detectors, private, control)
        null, ranks = against_others(work, main, matcher, split, injection)
        both = agreement(work, main, detectors, matcher, injection) if matcher is not None else None
        extract = extractor(work, detectors, split.train.shape)
        question = Question.of(config.samples, detectors)
        stops = None if question is None else question.answered
        most = config.samples.count
        counted = stages.sample(work, "model", main, detectors, private, most, extract, stops)
        count = config.samples.control or len(counted.hit)
        samples_control = (
            stages.sample(work, "control", control, detectors, private, count, None)
            if control is not None
            else None
        )
        # A likelihood of latents is none of images.
        bits = likelihood(work, trained, split, injection) if given is None or given.pixels else None
        several = beside(work, main, detectors, private, injection.copies / len(split.train))
        members = membership(work, trained, split, injection)
        fid = distance(work, injection.marked.pixels, split.heldout.pixels, extract)

        noised = stages.noised_probe(work, main, detectors, private, "search")
        prior = stages.prior_probe(work, main, detectors, private, "samples")
        hits = ids_held(run, "samples.model")[counted.hit]
        detected = evidence.pictures(prior, stages.at(main.schedule.start, len(hits)), hits)

        expected = injection.copies / len(split.train)
        sampler = work.sampler.describe()
        alarms = None if samples_control is None else seen(samples_control)
        answer = results(
            split,
            injection,
            detectors,
            facts(config, split),
            parts={
                **({} if given is None else {"model": given.entry(sampler)}),
                "t_prime": search_entry(found, found_control, run.rows("search.model")) | {"baseline": null},
                "q": {
                    "monte_carlo": counted_entry(counted, expected, sampler, question, detectors, alarms),
                    "control": monte_carlo_entry(samples_control, expected, sampler)
                    if samples_control is not None
                    else None,
                    **rare(work, trained, detectors, injection, counted, question, alarms),
                },
                "fid": fid,
                "likelihood": bits,
                "membership": members,
                **({} if several is None else {"samplers": several}),
                "memorised": memorised_entry(counted, detected, injection.marked, injection.index),
            }
            | ({} if growth is None else {"checkpoints": growth})
            | ({} if ranks is None else {"profile": ranks.entries, "profile_summary": ranks.summary}),
            costs=stages.costs(work),
        )
        if both is not None:
            answer["detectors"]["agreement"] = both
        answer["verdict"] = verdict(answer)
        run.write_json("results.json", answer)
        evidence.write_evidence(run.path, evidence.collect(run, injection, noised, prior))
        run.note({"weights_sha256": run.stage("model").payload["weights_sha256"]})
        run.complete()
        write_report(run.path)
        return answer


def compares(config: AuditConfig) -> bool:
    """Whether t' of other images is asked for, which needs the embedding."""
    return config.baseline.images > 0 or config.profile.targets != 0


def against_others(
    work: Work, model: Denoiser, matcher: EmbeddingDetector | None, split: Split, injection: Injection
) -> tuple[dict[str, Any] | None, Anonymity | None]:
    """The null law of t' over held-out images, and the anonymity profile; None for what is not asked for."""
    if matcher is None:
        return None, None
    config = work.config
    return (
        baseline(work, model, matcher, split, injection, config.baseline),
        profile(work, model, matcher, split, injection, config.profile),
    )
