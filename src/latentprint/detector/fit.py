"""Fitting c_p and c_id (paper sections 3.3 and 5.2, appendix A).

    c_p    fingerprints of random place and radius, on half of the images of the fit and on a tenth of the
           validation images; real images of any origin, none of which is the private one
    c_id   one against all: x_p is 10 % of the draws of the fit and 50 % of the validation draws; the rest are
           the other training images, and held-out ones

Both use binary cross-entropy, AugMix, early stopping on the validation loss with the best weights kept, a
threshold from a calibration split, and errors counted on a test split of other images with other
fingerprints. No person and no near copy is in two splits. The seed draws everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from latentprint.data.images import Pixels, Selection
from latentprint.detector.backbone import Classifier, build_backbone
from latentprint.detector.draws import (
    Perturbed,
    Rng,
    Seen,
    Shown,
    augmix,
    half_marked,
    noisy,
    returned,
    split,
)
from latentprint.detector.fitting import FitState, Step, answer, fitted, on
from latentprint.detector.model import DetectorConfig, DetectorError, NetworkDetector, threshold_between
from latentprint.fingerprint import FingerprintKind
from latentprint.networks.speed import Evaluation
from latentprint.stats import DetectorRates, Trials, Unit, false_alarms
from latentprint.streams import Streams

Labels = NDArray[np.float32]
Units = NDArray[np.int64]

LEAST = 10
"""Fewest images with which the splits of a detector mean something."""

UNSEEN = 0.5
"""Share of the held-out images on which c_id's false alarms are counted, which its bound relies on.

The fit also uses the other training images, so it needs only few of the held-out ones.
"""

_IDENTITY_TESTS = 400
"""Perturbed copies of x_p on which c_id's true positive rate is counted."""


@dataclass(frozen=True)
class _Task:
    """What distinguishes the two fits: the images of an epoch, and the test of the finished network.

    ``unseen`` are images that no part of the fit saw, in each form in which they are shown, and ``units``
    (n,) says to whom they belong. ``known`` are counted for information only.
    """

    name: str
    config: DetectorConfig
    shape: tuple[int, ...]
    epoch: Callable[[Rng], tuple[Shown, Labels]]
    validation: tuple[Seen, Labels]
    calibration: tuple[Seen, Seen]  # positives, negatives
    positives: Seen
    unseen: Mapping[str, Seen]
    units: Units
    unit: Unit
    known: Mapping[str, Seen]


def fit_presence(
    images: Pixels,
    kind: FingerprintKind,
    config: DetectorConfig,
    streams: Streams,
    device: torch.device | str = "cpu",
    how: Evaluation | None = None,
    units: Units | None = None,
    unit: Unit = "image",
) -> Iterator[FitState[NetworkDetector]]:
    """Fit c_p on unmarked real images, (n, C, H, W) in [-1, 1]; the last state holds the detector.

    ``how`` is the arithmetic of its backbone, in the fit and afterwards. ``units`` (n,) says to whom the
    images belong (`latentprint.stats.DetectorRates`), and ``unit`` what a unit is; None: each image is its
    own.

    Raises:
        DetectorError: fewer than 10 images, or the fit learnt nothing.
    """
    _require(len(images) >= LEAST, f"the presence detector needs {LEAST} images or more, got {len(images)}")
    rng = streams.generator("presence.data")
    whose = np.arange(len(images)) if units is None else units
    parts = split(whose, rng)
    count = len(parts.fit)

    def epoch(rng: Rng) -> tuple[Shown, Labels]:
        rows = parts.fit[_rows(count, config.draws or count, rng)]
        return half_marked(Shown.of(images, rows), 0.5, kind, rng)

    def as_returned(index: NDArray[np.int64], mark: bool) -> Seen:
        shown = Shown.of(images, index)
        return noisy(shown.marked(kind, rng) if mark else shown, config.noise, rng).fixed()

    # Ten times, so that exactly a tenth can be marked however few there are.
    held, labels = half_marked(Shown.of(images, np.repeat(parts.validation, 10)), 0.1, kind, rng)
    task = _Task(
        "presence",
        config,
        images.shape[1:],
        epoch,
        (noisy(held, config.noise, rng).fixed(), labels),
        (
            as_returned(np.repeat(parts.calibration, 4), mark=True),
            as_returned(np.repeat(parts.calibration, 4), mark=False),
        ),
        as_returned(parts.test, mark=True),
        {"without a fingerprint": as_returned(parts.test, mark=False)},
        whose[parts.test],
        unit,
        {},
    )
    yield from _fit(task, streams, torch.device(device), how or Evaluation())


def fit_identity(
    target: NDArray[np.float32],
    others: Pixels,
    heldout: Pixels,
    kind: FingerprintKind,
    config: DetectorConfig,
    streams: Streams,
    device: torch.device | str = "cpu",
    how: Evaluation | None = None,
    units: Units | None = None,
    unit: Unit = "image",
) -> Iterator[FitState[NetworkDetector]]:
    """Fit c_id: ``target`` x_p (C, H, W) against ``others``, the rest of the training set, and ``heldout``.

    Both are (n, C, H, W) in [-1, 1]; the last state holds the detector. The other arguments: as for
    ``fit_presence``, ``units`` of the held-out images. Its false alarms are counted on the held-out images of
    the test split, as they are and under another fingerprint. Those on the other training images, which the
    fit used, are reported separately.

    Raises:
        DetectorError: fewer than 1 other or 10 held-out images, or the fit learnt nothing.
    """
    _require(len(others) >= 1, "the identity detector needs at least 1 other training image, got none")
    _require(
        len(heldout) >= LEAST,
        f"the identity detector needs {LEAST} held-out images or more, got {len(heldout)}",
    )
    rng = streams.generator("identity.data")
    whose = np.arange(len(heldout)) if units is None else units
    parts = split(whose, rng, UNSEEN)
    every = Selection.of(others, heldout, target[None])
    known = np.arange(len(others))
    rivals, stopping, calibration = (
        np.concatenate([known, len(others) + part])
        for part in (parts.fit, parts.validation, parts.calibration)
    )

    def draw(
        negatives: NDArray[np.int64], count: int, share: float, mask: float, rng: Rng
    ) -> tuple[Shown, Labels]:
        """``share`` of ``count`` are x_p, the rest ``negatives``. Masks hide from both what a mark would
        hide."""
        hits = min(max(1, round(share * count)), count - 1)
        labels = np.zeros(count, np.float32)
        labels[rng.permutation(count)[:hits]] = 1
        places = negatives[_rows(len(negatives), count, rng)]
        places[labels == 1] = len(every) - 1
        return Shown.of(every, places).masked(mask, kind, rng), labels

    def epoch(rng: Rng) -> tuple[Shown, Labels]:
        count = config.draws or max(2 * config.batch, len(rivals))
        return draw(rivals, count, 0.1, config.masked, rng)

    def back(shown: Shown) -> Perturbed:
        return returned(shown, others, config.noise, rng)

    def both(shown: Shown, name: str) -> dict[str, Seen]:
        return {name: back(shown), f"{name}, with a fingerprint": back(shown.marked(kind, rng))}

    copies = Shown.of(every, np.full(_IDENTITY_TESTS, len(every) - 1))
    held, labels = draw(stopping, max(64, 2 * len(parts.validation)), 0.5, 0.5, rng)
    twice, second = np.tile(calibration, 2), np.arange(len(calibration), 2 * len(calibration))
    task = _Task(
        "identity",
        config,
        others.shape[1:],
        epoch,
        (back(held), labels),
        (back(copies), back(Shown.of(every, twice).marked(kind, rng, second))),
        back(copies),
        both(Shown.of(heldout, parts.test), "held-out"),
        whose[parts.test],
        unit,
        both(Shown.of(others), "trained on"),
    )
    yield from _fit(task, streams, torch.device(device), how or Evaluation())


def _fit(
    task: _Task, streams: Streams, device: torch.device, how: Evaluation
) -> Iterator[FitState[NetworkDetector]]:
    config = task.config
    network = build_backbone(config.backbone, streams, task.name, len(task.shape) - 1).to(device)
    held, truth = task.validation[0], on(device, task.validation[1]).double()

    def epoch(number: int) -> Iterator[Step]:
        rng = streams.generator(f"{task.name}.epoch", number)
        shown, labels = task.epoch(rng)
        steps = augmented(shown, config, rng).once(config.batch)
        for first, pixels in zip(range(0, len(labels), config.batch), steps, strict=True):
            if len(pixels) > 1:  # one image has no variance to normalise by
                yield on(device, pixels), partial(_against, on(device, labels[first : first + len(pixels)]))

    yield from fitted(
        task.name,
        network,
        config,
        how,
        epoch,
        config.batch,
        lambda answers: _against(truth, answers(held)),
        lambda network, epoch: _held_to(task, network, epoch, device, how),
    )


def _against(labels: Tensor, logits: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, labels)


def _held_to(
    task: _Task, network: Classifier, epoch: int, device: torch.device, how: Evaluation
) -> NetworkDetector:
    """Fix the threshold on the calibration split, then count errors on the test split."""

    def logits(seen: Seen) -> NDArray[np.float64]:
        with torch.no_grad():
            return answer(network, seen, device, how).cpu().numpy()

    level = threshold_between(logits(task.calibration[0]), logits(task.calibration[1]), task.name)

    def fires(seen: Seen) -> NDArray[np.bool_]:
        return logits(seen) >= level

    def count(found: NDArray[np.bool_]) -> Trials:
        return Trials(int(found.sum()), len(found))

    unseen = {name: fires(pixels) for name, pixels in task.unseen.items()}
    rates = DetectorRates(
        tpr=count(fires(task.positives)),
        fpr=false_alarms(np.logical_or.reduce(list(unseen.values())), task.units),
        kinds={name: count(found) for name, found in unseen.items()}
        | {name: count(fires(pixels)) for name, pixels in task.known.items()},
        recogniser=f"{task.name} ({task.config.backbone})",
        unit=task.unit,
    )
    threshold = float(torch.tensor(level, dtype=torch.float64).sigmoid())
    return NetworkDetector(task.name, network, threshold, rates, task.config, epoch, task.shape, how)


def augmented(shown: Shown, config: DetectorConfig, rng: Rng) -> Perturbed:
    """The images of an epoch, with AugMix where the settings ask for it, and noise."""
    return noisy(augmix(shown, rng) if config.augmix else shown, config.noise, rng)


def _rows(available: int, wanted: int, rng: Rng) -> NDArray[np.int64]:
    """``wanted`` indices; every available one is used before any repeats."""
    rounds = [rng.permutation(available) for _ in range(-(-wanted // available))]
    return np.concatenate(rounds)[:wanted].astype(np.int64)


def _require(condition: bool, said: str) -> None:
    if not condition:
        raise DetectorError(said)
