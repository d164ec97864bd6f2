"""Fitting c_p and c_id (paper sections 3.3 and 5.2, appendix A).

    c_p    fingerprints of random place and radius on half of the images it is fitted on, on a tenth of those
           on which it is stopped; real images from anywhere, none of which is the private one
    c_id   one against all: x_p in 10 % of the draws it is fitted on, in 50 % of those on which it is stopped;
           against it stand the other training images, and held-out ones

Both: binary cross-entropy, AugMix, early stopping on the validation loss with the best weights kept, the
threshold on a calibration split, errors counted on a test split of other images with other fingerprints.
The seed draws all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from latentprint.detector.backbone import Classifier, build_backbone
from latentprint.detector.draws import (
    Parts,
    Pixels,
    Rng,
    augmix,
    half_marked,
    marked,
    masked,
    noisy,
    returned,
    split,
)
from latentprint.detector.model import (
    DetectorConfig,
    DetectorError,
    DetectorRates,
    NetworkDetector,
    threshold_between,
)
from latentprint.detector.seeing import learning, seen_by
from latentprint.detector.stopping import until_best
from latentprint.fingerprint import FingerprintKind
from latentprint.networks.speed import Evaluation, rounding
from latentprint.stats import Trials
from latentprint.streams import Streams

Labels = NDArray[np.float32]

LEAST = 10
"""Images without which the splits of a detector would mean nothing."""

_IDENTITY_TESTS = 400
"""Perturbed copies of x_p on which c_id's true positive rate is counted."""


@dataclass(frozen=True)
class FitState:
    """Where a fit stands after ``epoch`` of at most ``epochs`` epochs.

    Attributes:
        name: "presence" or "identity".
        loss, validation_loss: binary cross-entropy of the epoch and of the validation split.
        best_epoch: the one with the lowest validation loss so far, from 1.
        detector: the fitted detector, in the last state; None before.
    """

    name: str
    epoch: int
    epochs: int
    loss: float
    validation_loss: float
    best_epoch: int
    detector: NetworkDetector | None


@dataclass(frozen=True)
class _Task:
    """What distinguishes the two fits: what an epoch shows, and what the finished network is held to."""

    name: str
    config: DetectorConfig
    shape: tuple[int, int, int]
    epoch: Callable[[Rng], tuple[Pixels, Labels]]
    validation: tuple[Pixels, Labels]
    calibration: tuple[Pixels, Pixels]  # positives, negatives
    positives: Pixels
    negatives: Mapping[str, Pixels]


def fit_presence(
    images: Pixels,
    kind: FingerprintKind,
    config: DetectorConfig,
    streams: Streams,
    device: torch.device | str = "cpu",
    how: Evaluation | None = None,
) -> Iterator[FitState]:
    """Fit c_p on unmarked real images, (n, C, H, W) in [-1, 1]; the last state holds the detector.

    ``how`` its backbone is evaluated, in the fit and afterwards.

    Raises:
        DetectorError: fewer than 10 images, or the fit learnt nothing.
    """
    _require(len(images) >= LEAST, f"the presence detector needs {LEAST} images or more, got {len(images)}")
    rng = streams.generator("presence.data")
    parts = split(len(images), rng)
    shown = images[parts.fit]

    def epoch(rng: Rng) -> tuple[Pixels, Labels]:
        rows = _rows(len(shown), config.draws or len(shown), rng)
        pixels, labels = half_marked(shown[rows], 0.5, kind, rng)
        return _augmented(pixels, config, rng), labels

    def as_returned(index: NDArray[np.int64], mark: bool) -> Pixels:
        chosen = marked(images[index], kind, rng) if mark else images[index]
        return noisy(chosen, config.noise, rng)

    # Ten times over, so that exactly a tenth can be marked however few there are.
    held, labels = half_marked(np.repeat(images[parts.validation], 10, 0), 0.1, kind, rng)
    task = _Task(
        "presence",
        config,
        _shape(images),
        epoch,
        (noisy(held, config.noise, rng), labels),
        (
            as_returned(np.repeat(parts.calibration, 4), mark=True),
            as_returned(np.repeat(parts.calibration, 4), mark=False),
        ),
        as_returned(parts.test, mark=True),
        {"without a fingerprint": as_returned(parts.test, mark=False)},
    )
    yield from _fit(task, streams, torch.device(device), how or Evaluation())


def fit_identity(
    target: Pixels,
    others: Pixels,
    heldout: Pixels,
    kind: FingerprintKind,
    config: DetectorConfig,
    streams: Streams,
    device: torch.device | str = "cpu",
    how: Evaluation | None = None,
) -> Iterator[FitState]:
    """Fit c_id: ``target`` x_p (C, H, W) against ``others``, the rest of the training set, and ``heldout``.

    Both are (n, C, H, W) in [-1, 1]; the last state holds the detector. ``how``: as for ``fit_presence``.
    Its false positives are counted on held-out images of the test split and on the other training images,
    each as they are and under another fingerprint.

    Raises:
        DetectorError: fewer than 1 other or 10 held-out images, or the fit learnt nothing.
    """
    _require(len(others) >= 1, "the identity detector needs at least 1 other training image, got none")
    _require(
        len(heldout) >= LEAST,
        f"the identity detector needs {LEAST} held-out images or more, got {len(heldout)}",
    )
    rng = streams.generator("identity.data")
    parts = split(len(heldout), rng)
    rivals = np.concatenate([others, heldout[parts.fit]])

    def draw(negatives: Pixels, count: int, share: float, mask: float, rng: Rng) -> tuple[Pixels, Labels]:
        """``share`` of ``count`` are x_p, the rest ``negatives``; masks hide from both what a mark would."""
        hits = min(max(1, round(share * count)), count - 1)
        labels = np.zeros(count, np.float32)
        labels[rng.permutation(count)[:hits]] = 1
        pixels = negatives[_rows(len(negatives), count, rng)]
        pixels[labels == 1] = target
        return masked(pixels, mask, kind, rng), labels

    def epoch(rng: Rng) -> tuple[Pixels, Labels]:
        count = config.draws or max(2 * config.batch, len(rivals))
        pixels, labels = draw(rivals, count, 0.1, config.masked, rng)
        return _augmented(pixels, config, rng), labels

    def copies() -> Pixels:
        return returned(np.repeat(target[None], _IDENTITY_TESTS, 0), others, config.noise, rng)

    count = max(64, 2 * len(parts.validation))
    held, labels = draw(np.concatenate([others, heldout[parts.validation]]), count, 0.5, 0.5, rng)
    calibration = np.concatenate([others, heldout[parts.calibration]])
    task = _Task(
        "identity",
        config,
        _shape(others),
        epoch,
        (returned(held, others, config.noise, rng), labels),
        (
            copies(),
            returned(
                np.concatenate([calibration, marked(calibration, kind, rng)]), others, config.noise, rng
            ),
        ),
        copies(),
        _identity_negatives(others, heldout, parts, kind, config, rng),
    )
    yield from _fit(task, streams, torch.device(device), how or Evaluation())


def _identity_negatives(
    others: Pixels, heldout: Pixels, parts: Parts, kind: FingerprintKind, config: DetectorConfig, rng: Rng
) -> dict[str, Pixels]:
    unseen = heldout[parts.test]
    return {
        "held-out": returned(unseen, others, config.noise, rng),
        "held-out, with a fingerprint": returned(marked(unseen, kind, rng), others, config.noise, rng),
        "trained on": returned(others, others, config.noise, rng),
        "trained on, with a fingerprint": returned(marked(others, kind, rng), others, config.noise, rng),
    }


def _fit(task: _Task, streams: Streams, device: torch.device, how: Evaluation) -> Iterator[FitState]:
    config, name = task.config, task.name
    network = build_backbone(config.backbone, streams, name)
    fast = learning(network.to(device), how)
    optimiser = torch.optim.AdamW(
        network.parameters(),
        config.learning_rate,
        weight_decay=config.weight_decay,
        fused=device.type == "cuda",
    )
    held = (_tensor(task.validation[0], device), torch.from_numpy(task.validation[1]).to(device))

    def learn(epoch: int) -> float:
        pixels, labels = task.epoch(streams.generator(f"{name}.epoch", epoch))
        truth = torch.from_numpy(labels).to(device)
        return _pass(network, fast, optimiser, _tensor(pixels, device), truth, config.batch, how)

    for seen in until_best(
        network,
        config.epochs,
        config.patience,
        learn,
        lambda: _loss(network, *held, how),
        what=f"the {name} detector",
        learning_rate=config.learning_rate,
    ):
        done = _held_to(task, network, seen.best, device, how) if seen.last else None
        yield FitState(name, seen.number, config.epochs, seen.loss, seen.validation_loss, seen.best, done)


def _pass(
    network: Classifier,
    fast: nn.Module,
    optimiser: torch.optim.Optimizer,
    pixels: Tensor,
    labels: Tensor,
    batch: int,
    how: Evaluation,
) -> float:
    """One epoch; its mean loss. A rest of one image has no variance to normalise by and joins no batch."""
    network.train()
    losses: list[Tensor] = []
    for first in range(0, len(pixels), batch):
        part, truth = pixels[first : first + batch], labels[first : first + batch]
        if len(part) < 2:
            continue
        # What is compiled takes whole batches only.
        body = fast if len(part) == batch else network.backbone
        loss = binary_cross_entropy_with_logits(_logits(network, body, part, how), truth)
        optimiser.zero_grad(set_to_none=True)
        with rounding(how, part.device):
            loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return float(np.mean(torch.stack(losses).cpu().numpy().astype(np.float64)))


def _logits(network: Classifier, body: nn.Module, images: Tensor, how: Evaluation) -> Tensor:
    """(B,) float32; the backbone as ``how`` says, the last layer in float32."""
    return network.ending(seen_by(body, images, how))


def _loss(network: Classifier, pixels: Tensor, labels: Tensor, how: Evaluation) -> float:
    network.eval()
    with torch.no_grad():
        logits = torch.cat([_logits(network, network.backbone, part, how) for part in pixels.split(512)])
        return float(binary_cross_entropy_with_logits(logits.double(), labels.double()))


def _held_to(
    task: _Task, network: Classifier, epoch: int, device: torch.device, how: Evaluation
) -> NetworkDetector:
    """Fix the threshold on the calibration split, then count errors on the test split."""
    body = network.backbone

    def logits(pixels: Pixels) -> NDArray[np.float64]:
        with torch.no_grad():
            parts = [_logits(network, body, p, how) for p in _tensor(pixels, device).split(512)]
        return torch.cat(parts).double().cpu().numpy()

    level = threshold_between(logits(task.calibration[0]), logits(task.calibration[1]), task.name)

    def count(found: NDArray[np.float64]) -> Trials:
        return Trials(int((found >= level).sum()), len(found))

    kinds = {kind: count(logits(pixels)) for kind, pixels in task.negatives.items()}
    rates = DetectorRates(count(logits(task.positives)), sum(kinds.values(), Trials(0, 0)), kinds)
    threshold = float(torch.tensor(level, dtype=torch.float64).sigmoid())
    return NetworkDetector(task.name, network, threshold, rates, task.config, epoch, task.shape, how)


def _augmented(pixels: Pixels, config: DetectorConfig, rng: Rng) -> Pixels:
    return noisy(augmix(pixels, rng) if config.augmix else pixels, config.noise, rng)


def _rows(available: int, wanted: int, rng: Rng) -> NDArray[np.int64]:
    """``wanted`` indices, each of the available ones before any comes again."""
    rounds = [rng.permutation(available) for _ in range(-(-wanted // available))]
    return np.concatenate(rounds)[:wanted].astype(np.int64)


def _tensor(pixels: Pixels, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(device)


def _shape(images: Pixels) -> tuple[int, int, int]:
    channels, height, width = images.shape[1:]
    return channels, height, width


def _require(condition: bool, said: str) -> None:
    if not condition:
        raise DetectorError(said)
