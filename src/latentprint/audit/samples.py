"""Generated images in place of a model: what images alone can show, and what they cannot.

    DATA, samples → x_p, an image as it stands → c_id → count → nearest copies, FID → verdict

Omega_p is counted as for any sampler (§5.3). Nearest copies are looked for among all training images, not for
x_p alone, because a set that holds any of them gives it back (``latentprint.adapters.samples``). t',
likelihood and the estimators of q need the model; the results say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentprint.adapters.samples import CANNOT, open_samples, require_like_range
from latentprint.audit import evidence, stages
from latentprint.audit.asking import require_none
from latentprint.audit.context import Context, Where, one_image
from latentprint.audit.distance import extractor
from latentprint.audit.distance import finish as fid
from latentprint.audit.given import as_it_is, named
from latentprint.audit.images import other_shape, private_image, read_images, require_unseen
from latentprint.audit.lifecycle import begin, finish
from latentprint.audit.pool import pool
from latentprint.audit.stages import Detectors
from latentprint.audit.whole_set import joined, whole_set
from latentprint.config import AuditConfig
from latentprint.contracts import Ids, InputError, Outcome, Times
from latentprint.data import ImageSet, Split
from latentprint.data.listing import Preparation
from latentprint.execute import run_probe
from latentprint.fingerprint import Injection
from latentprint.metrics.error import mae, mse
from latentprint.probe import Compare
from latentprint.report.evidence import Evidence, Sample
from latentprint.results import Results
from latentprint.results.model import FID, MODEL, Model
from latentprint.results.notes import NOT_DONE, NotDone
from latentprint.results.searched import SAMPLES, Sampler
from latentprint.settings import plain
from latentprint.store import Run

_USED = ("seed", "data", "fingerprint", "presence", "identity", "fid", "descriptor")
"""Settings that this audit uses."""

_BATCH = 256
_SAMPLER = Sampler(step="not known")


@dataclass(frozen=True)
class StoredSamples:
    """A probe that looks images up instead of generating them: id i is the i-th sample, at no cost."""

    samples: ImageSet
    target: NDArray[np.float32]
    detectors: Detectors
    device: torch.device
    compare: Compare | None = None

    def __call__(self, t: Times, ids: Ids) -> Outcome:
        n, target = len(ids), one_image(self.target, self.device)
        columns = {name: np.zeros(n, np.float32) for name in ("presence", "identity", "mse", "mae")}
        flags = {name: np.ones(n, np.bool_) for name in ("presence_hit", "identity_hit")}
        more: dict[str, NDArray[Any]] = {}
        for first in range(0, n, _BATCH):
            rows = slice(first, first + _BATCH)
            images = one_image(self.samples.pixels[ids[rows]], self.device)
            columns["mse"][rows] = mse(images, target).cpu().numpy()
            columns["mae"][rows] = mae(images, target).cpu().numpy()
            for name, values in ({} if self.compare is None else self.compare(images)).items():
                more.setdefault(name, np.zeros(n, values.dtype))[rows] = values
            pair = (("presence", self.detectors.presence), ("identity", self.detectors.identity))
            for name, detector in pair:
                if detector is None:
                    columns[name][rows] = np.nan
                    continue
                probability = detector(images)
                columns[name][rows] = probability.cpu().numpy()
                flags[f"{name}_hit"][rows] = (probability >= detector.threshold).cpu().numpy()
        hit = flags["presence_hit"] & flags["identity_hit"]
        return Outcome(hit=hit, evaluations=np.zeros(n, np.int64), columns=columns | flags | more)


def run_samples_audit(
    config: AuditConfig,
    out: Path | str,
    samples: Path | str,
    where: Where,
    *,
    target: int | str | Path | None,
    fresh: bool,
    authorised_by: str | None,
) -> Results:
    """Audit generated images; see ``run_audit`` for the arguments.

    Raises:
        InputError: one sentence about the samples, the images, the settings or the folder.
    """
    place, config = where.place, as_it_is(config)
    require_none(config, given=False)
    given, split = comparable(config, samples, where)
    injection = private_image(config, split, target)
    with Run.open(out, settings_of(config, given, target), fresh=fresh) as run:
        context = Context(config, run, where)
        begin(context, split, injection, authorised_by)
        if not run.stage(MODEL.name).done:
            said = NotDone(sentences=CANNOT)
            run.finish(MODEL.name, MODEL.of(_model(given, split)) | NOT_DONE.of(said))
        detectors = stages.detectors(context, split, injection)
        compare = joined(pool(context, split, injection), whole_set(context, split, injection))
        counted = _count(context, given, injection, detectors, compare)
        if len(given) > 1 and not run.stage(FID.name).done:
            extract = extractor(context, detectors, split.train.shape)
            starts = range(0, len(given), _BATCH)
            batches = (extract(one_image(given.pixels[i : i + _BATCH], place)) for i in starts)
            features = np.concatenate([batch.float().cpu().numpy() for batch in batches])
            fid(context, features, split.train.pixels, split.heldout.pixels, extract)
        return finish(context, lambda found: _evidence(context, given, injection, counted, found))


def comparable(config: AuditConfig, samples: Path | str, where: Where) -> tuple[ImageSet, Split]:
    """The samples, and the images that they are compared with.

    Raises:
        InputError: either of them cannot be read, their shapes differ, or it is not known which images were
            held out.
    """
    data = config.data
    how = Preparation(data.resize, data.convert, data.stored_range)
    given = open_samples(samples, how, data.window, data.orientation)
    split = read_images(config, where.root, where.download)
    if split.train.shape != given.shape:
        theirs, ours = ("x".join(map(str, s)) for s in (given.shape, split.train.shape))
        raise InputError(
            f"the samples are {theirs} (channels x sides), but the images of {split.name} are"
            f" {ours}, so they cannot be compared{other_shape(split.train.shape, given.shape)}"
        )
    if split.used is not None:
        split.used.require()
    if data.stored_range is None:  # a stated range holds for both
        require_like_range(
            given,
            split,
            ". If their contrast is as it should be, --stored-range with the range of the training images"
            " confirms it",
        )
    require_unseen(config, split, "the samples' model")
    return given, split


def settings_of(config: AuditConfig, samples: ImageSet, target: int | str | Path | None) -> dict[str, object]:
    """The run's settings: those that this audit uses, and the identity of the samples."""
    kept = {name: value for name, value in plain(config).items() if name in _USED}
    own = {"kind": "samples", "samples_sha256": samples.manifest, "target": named(target)}
    return kept | {"given": own}


def _count(
    context: Context, samples: ImageSet, injection: Injection, detectors: Detectors, compare: Compare | None
) -> Outcome:
    """Pass every sample through the detectors; rows are kept as ``samples.model``."""
    purpose = SAMPLES.name
    probe = StoredSamples(samples, injection.target, detectors, context.device, compare)
    with context.stage(purpose):
        ids = np.arange(len(samples), dtype=np.int64)
        found = run_probe(
            probe,
            np.ones(len(ids)),
            ids,
            purpose=purpose,
            unit=stages.UNIT,
            sink=context.run,
            progress=context.progress("samples", "images"),
        )
        if not context.run.stage(purpose).done:
            context.finish(SAMPLES, _SAMPLER, network_evaluations=0)
    return found


def _model(samples: ImageSet, split: Split) -> Model:
    notes = [
        f"No model was given but {len(samples):,} generated images; nothing is known about other images that"
        " the model behind them can make.",
        "Whoever ran the audit stated that the model was trained on exactly the images named here, and on"
        " none of those held out. They also stated that the generated images were not selected.",
    ]
    held = len(split.heldout)
    if held < 100:
        notes.append(
            f"Only {held} held-out images say how near an image comes to a training image by chance."
        )
    return Model(kind="samples", samples_sha256=samples.manifest, notes=tuple(notes))


def _evidence(
    context: Context, samples: ImageSet, injection: Injection, counted: Outcome, found: Results
) -> Evidence:
    rows: Mapping[str, NDArray[Any]] = counted.columns
    presence = rows["presence"]
    return Evidence(
        target=injection.target,
        samples=[
            Sample(
                id=int(i),
                image=samples.pixels[i],
                mse=float(rows["mse"][i]),
                presence=None if np.isnan(presence[i]) else float(presence[i]),
                identity=float(rows["identity"][i]),
            )
            for i in np.flatnonzero(counted.hit)[: evidence.SHOWN_SAMPLES]
        ],
        pairs=evidence.nearest_pairs(
            context.run, found.whole_set, injection.marked.pixels, lambda _, ids: samples.pixels[ids]
        ),
        at=evidence.middle(injection),
    )
