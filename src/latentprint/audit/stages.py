"""The stages of an audit, each idempotent: what the run already holds is read, what is missing is done.

Their order is the paper's Figure 2. Stages hand their numbers on through the run (rows by id, small
payloads), so an audit killed at any moment continues where it was, and ends in the same results.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentprint.audit.features import Features, Keeping
from latentprint.audit.images import facts, private_image, read_images
from latentprint.audit.work import Work, one_image
from latentprint.config import AuditConfig
from latentprint.contracts import InputError, Outcome
from latentprint.data import Split
from latentprint.denoiser import Denoiser, NetworkDenoiser
from latentprint.detector import (
    EmbeddingDetector,
    FitState,
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
from latentprint.probe import Compare, ModelProbe, from_image, from_prior
from latentprint.results import model as results
from latentprint.results.notes import Searched
from latentprint.results.stopping import FIRST_LOOK
from latentprint.results.tprime import false_positives
from latentprint.search import SearchSettings, TPrime
from latentprint.stats import Trials, looks
from latentprint.store import RunError
from latentprint.together import launch, write_job
from latentprint.training import REPORT, TrainState, train

UNIT = FIRST_LOOK
"""Trajectories between two writes to disk: what a kill loses at most."""


@dataclass(frozen=True)
class Detectors:
    """c_p and c_id, and the error rate that a joint hit on anything but x_p has at most.

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
        """Counts of the weaker of the two."""
        return false_positives(self.values)


def detector_value(detector: NetworkDetector | EmbeddingDetector) -> results.Detector:
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
        DataError, FingerprintError: the images cannot be had, or cannot be marked.
    """
    split = read_images(config, root, download)
    return split, private_image(config, split, target)


def remember(work: Work, split: Split, injection: Injection) -> None:
    """Put the images' hashes into the run, or hold them against those it began with.

    Raises:
        RunError: the source holds other images than when the run began.
    """
    marked = not isinstance(injection.fingerprint, Unmarked)
    target = results.Target(
        index=injection.index,
        sha256=injection.sha256,
        copies=injection.copies,
        fingerprint=results.Mark.model_validate(injection.fingerprint.describe()) if marked else None,
        injected=was_injected(injection),
    )
    which = {"train": split.train.manifest, "heldout": split.heldout.manifest, "target": target.plain()}
    before = work.run.stage("data")
    if before.done and any(before.payload.get(name) != value for name, value in which.items()):
        raise RunError(
            f"{work.config.data.source} holds other images now than when this run began; "
            "name another folder for a new run, or restore the images"
        )
    if not before.done:
        work.run.finish("data", which | {"data": facts(work.config, split).plain()})


def for_sampling(model: Denoiser, how: Evaluation | None = None, batch: int = 256) -> Denoiser:
    """The same model, evaluated as ``how`` says in batches of ``batch``; other rounding, no gradient.

    A denoiser that is no single network stays as it is.

    Raises:
        InputError: it is none, and something is asked of its evaluation.
    """
    how = how or Evaluation()
    if isinstance(model, NetworkDenoiser):
        return replace(model, network=for_evaluation(model.network, how, batch))
    if how != Evaluation():
        raise InputError("speed.sampling is for a single network, and this model is none; leave it out")
    return model


def score_model(work: Work, name: str, pixels: NDArray[np.float32]) -> NetworkDenoiser:
    """Train the score model ``name`` on images (N, C, H, W) by Eq. 4, or read it where that is done.

    Of ``model``, weights are kept along the way where the settings ask for it (``snapshot``).
    """
    settings, folder = work.config.model, work.run.path / name
    due = snapshots_due(settings.training.steps, work.config.checkpoints.keep) if name == "model" else ()
    with work.stage(name):
        if not work.run.stage(name).done:
            schedule = settings.schedule()
            # The control starts from the same weights and sees the same noise: it differs by the image alone.
            network = build_unet(settings.network, pixels.shape[1], pixels.shape[2:], work.streams)
            torch.nn.Module.to(network, work.device)
            checkpoint = work.run.path / "checkpoints" / name
            if work.processes > 1:
                # The others leave a checkpoint at the last step, which is continued from below.
                job = work.run.path / "jobs" / name
                write_job(
                    job, pixels, settings.network, schedule, settings.training, work.streams.seed, checkpoint
                )
                try:
                    launch(job, work.processes, work.device)
                finally:
                    shutil.rmtree(job, ignore_errors=True)  # it holds the training images
            states = train(
                pixels,
                network,
                schedule,
                settings.training,
                work.streams,
                work.device,
                checkpoint,
                show_resumed=bool(due),  # a kill between a checkpoint and the weights kept at that very step
            )

            def see(state: TrainState) -> None:
                work.say(f"training {name}", state.step, state.steps, "steps")
                if state.step in due:
                    save_model(snapshot(work, state.step), state.denoiser)

            last = _last(states, see)
            save_model(folder, last.denoiser)
            digest = sha256((folder / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
            work.run.finish(name, {"weights_sha256": digest, "steps": last.steps, "images": last.images})
    return load_model(folder, work.device)


def snapshots_due(steps: int, keep: int) -> tuple[int, ...]:
    """After which of ``steps`` steps weights are kept: ``keep`` of them, evenly, less the last, the model."""
    return tuple(min(steps, -(-steps * i // (keep * REPORT)) * REPORT) for i in range(1, keep))


def snapshot(work: Work, step: int) -> Path:
    """Where the weights after ``step`` steps are kept; a model's folder like any other."""
    return work.run.path / "snapshots" / f"step-{step:07d}"


def detectors(work: Work, split: Split, injection: Injection) -> Detectors:
    """Fit c_p and c_id (§3.3, §5.2), or read them where they were fitted before; no c_p without a mark.

    Raises:
        DetectorError: one of them learnt nothing, or there are too few images to tell.
        SearchError: they are too uncertain for the search that is asked for.
    """
    config, kind = work.config, work.config.fingerprint.drawn(split.heldout.pixels)
    others, heldout = injection.control.pixels, split.heldout.pixels
    # The held-out images come last: their places do not depend on how many are trained on.
    presence = None
    mark = injection.fingerprint
    if not isinstance(mark, Unmarked):
        looked_for = mark if isinstance(mark, Natural) else kind  # a natural mark is not drawn
        presence = _detector(
            work,
            "presence",
            lambda: fit_presence(
                np.concatenate([others, heldout]),
                looked_for,
                config.presence,
                work.streams,
                work.device,
                config.speed.detectors,
                *units_of(injection.control, split.heldout),
            ),
        )
    identity = _detector(
        work,
        "identity",
        lambda: fit_identity(
            injection.target,
            others,
            heldout,
            kind,
            config.identity,
            work.streams,
            work.device,
            config.speed.detectors,
            *units_of(split.heldout),
        ),
    )
    found = Detectors(presence, identity)
    config.search.require(found.false_positives)
    return found


State = TypeVar("State")


def _last(states: Iterator[State], see: Callable[[State], None]) -> State:
    """The last of a stream of states, each of them seen.

    Raises:
        ValueError: there is none.
    """
    last: State | None = None
    for last in states:
        see(last)
    if last is None:
        raise ValueError("a stage ended without a state")
    return last


def _detector(
    work: Work, name: str, fit: Callable[[], Iterator[FitState[NetworkDetector]]]
) -> NetworkDetector:
    folder = work.run.path / "detectors" / name
    with work.stage(name):
        if not work.run.stage(name).done:

            def say(state: FitState[NetworkDetector]) -> None:
                # Early stopping makes the number of epochs unknown; the bar ends where the fit does.
                epochs = state.epoch if state.detector is not None else state.epochs
                work.say(f"fitting c_{'p' if name == 'presence' else 'id'}", state.epoch, epochs, "epochs")

            last = _last(fit(), say)
            assert last.detector is not None  # the last state of a fit holds it
            last.detector.save(folder)
            noted = {"epochs": last.epoch, "best_epoch": last.best_epoch}
            work.run.finish(name, noted | {"detector": detector_value(last.detector).plain()})
    found = load_detector(folder, work.device, work.config.speed.detectors)
    if found is None:
        raise RunError(f"the {name} detector is missing in {folder}; begin anew with --fresh")
    return found


def noised_probe(
    work: Work, denoiser: Denoiser, detectors: Detectors, target: NDArray[np.float32], purpose: str
) -> ModelProbe:
    """The probe of Alg. 1: x_p noised to t, then the reverse process and both detectors."""
    image = one_image(target, work.device)
    # Every model gets the same noise: main and control differ by their weights alone.
    with torch.no_grad():
        begin = from_image(image, denoiser, work.streams, purpose, work.codec)
    return _probe(work, denoiser, detectors, image, begin, purpose)


def prior_probe(
    work: Work, denoiser: Denoiser, detectors: Detectors, target: NDArray[np.float32], purpose: str
) -> ModelProbe:
    """The probe of §5.3: samples of the model."""
    image = one_image(target, work.device)
    space = work.space or tuple(image.shape)
    begin = from_prior(space, denoiser, work.streams, purpose, work.device)
    return _probe(work, denoiser, detectors, image, begin, purpose)


def _probe(
    work: Work, denoiser: Denoiser, detectors: Detectors, image: Tensor, begin: Any, purpose: str
) -> ModelProbe:
    return ModelProbe(
        denoiser=denoiser,
        sampler=work.sampler,
        begin=begin,
        streams=work.streams,
        purpose=purpose,
        target=image,
        identity=detectors.identity,
        presence=detectors.presence,
        codec=work.codec,
        batch=work.batch,
    )


def search(
    work: Work, name: str, denoiser: Denoiser, detectors: Detectors, target: NDArray[np.float32]
) -> TPrime:
    """Alg. 1, by the method that the settings choose; rows are kept as ``search.<name>``."""
    probe = noised_probe(work, denoiser, detectors, target, "search")
    return searched(work, f"search.{name}", f"search {name}", probe, detectors, work.config.search)


def searched(
    work: Work,
    purpose: str,
    said: str,
    probe: ModelProbe,
    detectors: Detectors,
    settings: SearchSettings,
) -> TPrime:
    """A search as a stage of its own: rows under ``purpose``, resumed by id."""
    horizon = probe.denoiser.schedule.start
    plan = settings.plan(horizon, detectors.false_positives)
    with work.stage(purpose):
        stored = Stored(probe, purpose, work.run, UNIT, work.progress(said, "trajectories"), work.map)
        found = settings.search(stored, plan, work.config.seed)
        if not work.run.stage(purpose).done:
            noted = Searched(sampler=work.sampler_value, horizon=horizon)
            cost = {"network_evaluations": found.network_evaluations}
            work.run.finish(purpose, cost | {"search": noted.plain()})
    return found


def sample(
    work: Work,
    name: str,
    denoiser: Denoiser,
    detectors: Detectors,
    target: NDArray[np.float32],
    count: int,
    extract: Extractor | None,
    stops: Callable[[Outcome], bool] | None = None,
    compare: Compare | None = None,
) -> Outcome:
    """``count`` samples from the prior through both detectors (§5.3); rows are kept as ``samples.<name>``.

    ``compare`` adds columns to the rows. ``stops`` sees all samples so far at each of ``stats.looks`` and
    says whether they are enough.
    """
    purpose = f"samples.{name}"
    probe, over = prior_probe(work, denoiser, detectors, target, "samples"), work.map
    probe = replace(probe, compare=compare)
    if extract is not None:
        features = Features(work.config.fid.samples, extract)
        probe, over = replace(probe, watch=features), Keeping(work, f"features.{name}", features)
    with work.stage(purpose):

        def drawn(n: int) -> Outcome:
            return run_probe(
                probe,
                at(denoiser.schedule.start, n),
                np.arange(n, dtype=np.int64),
                purpose=purpose,
                unit=UNIT,
                sink=work.run,
                progress=work.progress(f"sampling {name}", "images"),
                map=over,
            )

        *before, most = [count] if stops is None else looks(count, UNIT)
        outcome = next((seen for seen in map(drawn, before) if stops is not None and stops(seen)), None)
        outcome = drawn(most) if outcome is None else outcome
        if not work.run.stage(purpose).done:
            cost = {"network_evaluations": int(outcome.evaluations.sum())}
            work.run.finish(purpose, cost | {"sampler": work.sampler_value.plain()})
    return outcome


def at(t: float, count: int) -> NDArray[np.float64]:
    """The same noise level ``count`` times."""
    return np.full(count, t)
