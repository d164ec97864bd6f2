"""The stages of an audit, in the order of the paper's Figure 2. Each is idempotent: it reads what the run
already holds, and computes the rest.

Stages pass their numbers on through the run (rows by id, small payloads). An audit that was killed at any
moment therefore continues where it was, and ends in the same results.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentprint.audit.context import Context, one_image
from latentprint.audit.features import Features, Keeping
from latentprint.audit.images import facts, private_image, read_images
from latentprint.audit.recognisers import last_of, recogniser
from latentprint.config import AuditConfig
from latentprint.contracts import InputError, Outcome
from latentprint.data import ImageSet, Split
from latentprint.data.images import Pixels, Selection
from latentprint.denoiser import Denoiser, NetworkDenoiser
from latentprint.detector import (
    Fitted,
    NetworkDetector,
    fit_identity,
    fit_presence,
    load_detector,
)
from latentprint.detector.draws import units_of
from latentprint.execute import Stored, run_probe
from latentprint.fingerprint import Injection
from latentprint.marks import Natural, Unmarked, was_injected
from latentprint.metrics.frechet import Extractor
from latentprint.networks import build_unet, load_model, save_model
from latentprint.networks.speed import Evaluation, for_evaluation
from latentprint.probe import Begin, Compare, ModelProbe, from_image, from_prior
from latentprint.results import model as results
from latentprint.results.model import DATA, FID, IDENTITY, PRESENCE, TARGET
from latentprint.results.notes import Searched
from latentprint.results.searched import Sampler as SamplerValue
from latentprint.results.stopping import FIRST_LOOK
from latentprint.results.tprime import false_positives
from latentprint.results.value import Note
from latentprint.search import SearchSettings, TPrime
from latentprint.stats import Trials, looks
from latentprint.store import RunError
from latentprint.together import ELSEWHERE, TogetherError, in_memory, launch, packed, start_with, write_job
from latentprint.training import REPORT, TrainingError, TrainState, train

UNIT = FIRST_LOOK
"""Trajectories between two writes to disk: a kill loses at most these."""


@dataclass(frozen=True)
class Detectors:
    """c_p and c_id, and an upper bound on the rate of joint hits on anything but x_p.

    ``presence`` is None where x_p carries no mark: then a hit is c_id's alone.
    """

    presence: NetworkDetector | None
    identity: NetworkDetector

    @property
    def values(self) -> results.Detectors:
        """Thresholds and error counts, as results state them."""
        presence = None if self.presence is None else detector_value(self.presence)
        return results.Detectors(presence=presence, identity=detector_value(self.identity))

    @property
    def false_positives(self) -> Trials:
        """The false-positive counts of the weaker detector."""
        return false_positives(self.values)


def detector_value(detector: Fitted[Any, Any]) -> results.Detector:
    """Threshold and error counts of a fitted detector."""
    return results.Detector(
        tpr=detector.rates.tpr,
        fpr=detector.rates.fpr,
        threshold=float(detector.threshold),
        backbone=detector.config.backbone,
        kinds=dict(detector.rates.kinds),
    )


def images(
    config: AuditConfig, root: Path | str | None, download: bool, target: int | str | Path | None = None
) -> tuple[Split, Injection]:
    """The images, with the fingerprint on one of them (paper §3.3, Eq. 10).

    Raises:
        DataError, FingerprintError: the images cannot be read, or cannot be marked.
    """
    split = read_images(config, root, download)
    injection = private_image(config, split, target)
    # The images as they were read are needed no more: what is unmarked shares its pixels with the marked set.
    return replace(split, train=injection.unmarked), injection


def remember(context: Context, split: Split, injection: Injection) -> None:
    """Put the images' hashes into the run, or compare them with those that the run began with.

    Raises:
        RunError: the source now holds other images.
    """
    marked = not isinstance(injection.fingerprint, Unmarked)
    target = results.Target(
        index=injection.index,
        sha256=injection.sha256,
        copies=injection.copies,
        fingerprint=results.Mark.model_validate(injection.fingerprint.describe()) if marked else None,
        injected=was_injected(injection),
    )
    which = {"train": split.train.manifest, "heldout": split.heldout.manifest, **TARGET.of(target)}
    before = context.run.stage(DATA.name)
    if before.done and any(before.payload.get(name) != value for name, value in which.items()):
        raise RunError(
            f"{context.config.data.source} holds other images now than when this run began; "
            "name another folder for a new run, or restore the images"
        )
    if not before.done:
        context.run.finish(DATA.name, which | DATA.of(facts(context.config, split)))


def for_sampling(model: Denoiser, how: Evaluation | None = None, batch: int = 256) -> Denoiser:
    """The same model, evaluated as ``how`` says in batches of ``batch``: other rounding, no gradient.

    A denoiser that is not a single network is returned unchanged.

    Raises:
        InputError: it is not a network, and the settings ask for a special evaluation.
    """
    how = how or Evaluation()
    if isinstance(model, NetworkDenoiser):
        return replace(model, network=for_evaluation(model.network, how, batch))
    if how != Evaluation():
        raise InputError(
            "speed.sampling works only where the model is a single network, and this one is not; leave it out"
        )
    return model


def score_model(context: Context, name: str, pixels: Pixels, heldout: Pixels) -> NetworkDenoiser:
    """Train the score model ``name`` on images (N, C, H, W) by Eq. 4, or read it from the run.

    The weights of ``model`` are kept during training if the settings ask for it (``snapshot``). A guided
    training compares with ``heldout`` (m, C, H, W).

    Raises:
        TrainingError: a guided training was to run in several processes.
    """
    settings, folder = context.config.model, context.run.path / name
    due = snapshots_due(settings.training.steps, context.config.checkpoints.keep) if name == "model" else ()
    with context.stage(name):
        if not context.run.stage(name).done:
            schedule = settings.schedule()
            # The control starts from the same weights and sees the same noise: only the one image differs.
            network = build_unet(settings.network, pixels.shape[1], pixels.shape[2:], context.streams)
            torch.nn.Module.to(network, context.device)
            checkpoint = context.run.path / "checkpoints" / name
            if context.where.processes > 1 and settings.training.guided:
                raise TrainingError("a guided training is done by one process; leave out --processes")
            if context.where.processes > 1:
                # The other processes leave a checkpoint at the last step, from which the code below
                # continues.
                job, processes = context.run.path / "jobs" / name, context.where.processes
                seed = context.streams.seed
                rest = (settings.network, schedule, settings.training, seed, checkpoint, processes)
                if ELSEWHERE in os.environ:
                    write_job(job, pixels, *rest)
                    raise TogetherError(f"the job is written; {start_with(job, processes)}")
                with in_memory(packed(pixels)) as shared:
                    write_job(job, shared, *rest)
                    launch(job, processes, context.device)
                shutil.rmtree(job, ignore_errors=True)
            states = train(
                pixels,
                network,
                schedule,
                settings.training,
                context.streams,
                context.device,
                checkpoint,
                heldout=heldout,
                show_resumed=bool(due),  # after a kill between a checkpoint and the weights of the same step
            )

            def see(state: TrainState) -> None:
                context.say(f"training {name}", state.step, state.steps, "steps")
                if state.step in due:
                    save_model(snapshot(context, state.step), state.denoiser)

            last = last_of(states, see)
            save_model(folder, last.denoiser)
            digest = sha256((folder / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
            context.run.finish(name, {"weights_sha256": digest, "steps": last.step, "images": last.images})
    return load_model(folder, context.device)


def snapshots_due(steps: int, keep: int) -> tuple[int, ...]:
    """The steps, of ``steps`` in all, after which weights are kept: ``keep`` evenly spaced ones, without the
    last."""
    return tuple(min(steps, -(-steps * i // (keep * REPORT)) * REPORT) for i in range(1, keep))


def snapshot(context: Context, step: int) -> Path:
    """Where the weights after ``step`` steps are kept; a model's folder like any other."""
    return context.run.path / "snapshots" / f"step-{step:07d}"


def detectors(
    context: Context, split: Split, injection: Injection, unmarked: ImageSet | None = None
) -> Detectors:
    """Fit c_p and c_id (§3.3, §5.2), or read them from the run. Without a mark there is no c_p.

    ``unmarked`` are the training images without a mark, for the case that further images carry one.

    Raises:
        DetectorError: one of them learnt nothing, or there are too few images to measure its errors.
        SearchError: their errors are too uncertain for the search that is asked for.
    """
    config, kind = context.config, context.config.fingerprint.drawn(split.heldout.pixels)
    others, heldout = injection.control.pixels, split.heldout.pixels
    unmarked = injection.control if unmarked is None else unmarked
    # The held-out images come last, so that their places do not depend on how many images are trained on.
    presence = None
    mark = injection.fingerprint
    if not isinstance(mark, Unmarked):
        looked_for = mark if isinstance(mark, Natural) else kind  # a natural mark is not drawn
        presence = recogniser(
            context,
            PRESENCE,
            "c_p",
            lambda: fit_presence(
                Selection.of(unmarked.pixels, heldout),
                looked_for,
                config.presence,
                context.streams,
                context.device,
                config.speed.detectors,
                *units_of(unmarked, split.heldout),
            ),
            load_detector,
            detector_value,
        )
    identity = recogniser(
        context,
        IDENTITY,
        "c_id",
        lambda: fit_identity(
            injection.target,
            others,
            heldout,
            kind,
            config.identity,
            context.streams,
            context.device,
            config.speed.detectors,
            *units_of(split.heldout),
        ),
        load_detector,
        detector_value,
    )
    found = Detectors(presence, identity)
    config.search.require(found.false_positives)
    return found


@dataclass(frozen=True)
class Audited:
    """A model, the detectors that recognise x_p among its images, and x_p (C, H, W) itself."""

    model: Denoiser
    detectors: Detectors
    target: NDArray[np.float32]


def noised_probe(context: Context, audited: Audited) -> ModelProbe:
    """The probe of Alg. 1: x_p noised to t, then the reverse process and both detectors."""
    image = one_image(audited.target, context.device)
    # Every model gets the same noise: model and control differ by their weights alone.
    with torch.no_grad():
        begin = from_image(image, audited.model, context.streams, "search", context.codec)
    return _probe(context, audited, image, begin, "search")


def prior_probe(context: Context, audited: Audited) -> ModelProbe:
    """The probe of §5.3: samples of the model."""
    image = one_image(audited.target, context.device)
    space = context.space or tuple(image.shape)
    begin = from_prior(space, audited.model, context.streams, "samples", context.device)
    return _probe(context, audited, image, begin, "samples")


def _probe(context: Context, audited: Audited, image: Tensor, begin: Begin, purpose: str) -> ModelProbe:
    return ModelProbe(
        denoiser=audited.model,
        sampler=context.sampler,
        begin=begin,
        streams=context.streams,
        purpose=purpose,
        target=image,
        identity=audited.detectors.identity,
        presence=audited.detectors.presence,
        codec=context.codec,
        batch=context.batch,
    )


def search(
    context: Context, note: Note[Searched], audited: Audited, settings: SearchSettings | None = None
) -> TPrime:
    """Alg. 1 as a stage of its own, by the method of the settings; rows are resumed by id."""
    settings, purpose = settings or context.config.search, note.name
    said = purpose.replace(".", " ", 1).replace("step-", "step ")
    probe, horizon = noised_probe(context, audited), audited.model.schedule.start
    plan = settings.plan(horizon, audited.detectors.false_positives)
    with context.stage(purpose):
        stored = Stored(
            probe, purpose, context.run, UNIT, context.progress(said, "trajectories"), context.map
        )
        found = settings.search(stored, plan, context.config.seed)
        if not context.run.stage(purpose).done:
            noted = Searched(sampler=context.sampler_value, horizon=horizon)
            context.finish(note, noted, network_evaluations=found.network_evaluations)
    return found


def sample(
    context: Context,
    note: Note[SamplerValue],
    audited: Audited,
    count: int,
    extract: Extractor | None,
    stops: Callable[[Outcome], bool] | None = None,
    compare: Compare | None = None,
) -> Outcome:
    """``count`` samples from the prior through both detectors (§5.3), as a stage of its own.

    ``compare`` adds columns to the rows. ``stops`` sees all samples so far at each of ``stats.looks``, and
    says whether they are enough.
    """
    purpose, name = note.name, note.name.removeprefix("samples.")
    probe, over = prior_probe(context, audited), context.map
    probe = replace(probe, compare=compare)
    if extract is not None:
        features = Features(context.config.fid.samples, extract)
        probe, over = replace(probe, watch=features), Keeping(context, f"features.{name}", features)
    with context.stage(purpose):

        def drawn(n: int) -> Outcome:
            return run_probe(
                probe,
                at(audited.model.schedule.start, n),
                np.arange(n, dtype=np.int64),
                purpose=purpose,
                unit=UNIT,
                sink=context.run,
                progress=context.progress(f"sampling {name}", "images"),
                map=over,
            )

        *before, most = [count] if stops is None else looks(count, UNIT)
        outcome = next((seen for seen in map(drawn, before) if stops is not None and stops(seen)), None)
        outcome = drawn(most) if outcome is None else outcome
        if extract is not None and not context.run.stage(FID.name).done:
            ids = np.arange(min(context.config.fid.samples, len(outcome.hit)))
            # Features are written before their rows, so they are only missing if somebody removed them.
            lost = context.run.missing_array(f"features.{name}", ids)
            run_probe(probe, at(audited.model.schedule.start, len(lost)), lost, unit=UNIT, map=over)
        if not context.run.stage(purpose).done:
            context.finish(note, context.sampler_value, network_evaluations=int(outcome.evaluations.sum()))
    return outcome


def at(t: float, count: int) -> NDArray[np.float64]:
    """The same noise level ``count`` times."""
    return np.full(count, t)
