"""One recogniser of many images, instead of one c_id for each: which of m targets does an image show, or
none?

    s_k(x) = log p_k(x) - log(1 - p_k(x)),   p the softmax of m + 1 logits, the first of "none of them"

s_k is the answer of a c_id of target k alone: the log odds of k against all else. x shows k if s_k is at
least the threshold, which is one for all targets. It is fitted like c_id (`latentprint.detector.fit`): the
same draws of rivals, masks, noise and AugMix, early stopping, a threshold between what shows a target and
what does not, and errors counted on images that no part of the fit saw. Here half of the draws are targets,
all equally often.

Source: paper sections 3.3 and 5.2 (c_id, one against all).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydantic.dataclasses
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentprint.data.images import Pixels, Selection
from latentprint.detector.backbone import Headed, build_headed
from latentprint.detector.draws import Perturbed, Rng, Shown, returned, split
from latentprint.detector.fit import LEAST, UNSEEN, augmented
from latentprint.detector.fitting import FitState, Step, answer, fitted, on
from latentprint.detector.model import Against, DetectorConfig, DetectorError, Fitted, threshold_between
from latentprint.fingerprint import FingerprintKind
from latentprint.networks.speed import Evaluation
from latentprint.settings import STRICT, Some, plain
from latentprint.stats import DetectorRates, Trials, Unit, false_alarms
from latentprint.streams import Streams

Units = NDArray[np.int64]

_COPIES = 400
"""Fewest perturbed copies of targets on which the true positive rate is counted."""


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class IdentitiesConfig(DetectorConfig):
    """How it is fitted, and of how many ``targets``."""

    targets: Some = 1

    def network(self, name: str, streams: Streams, axes: int) -> Headed:
        """The network before its fit."""
        return build_headed(Headed, self.backbone, self.targets + 1, streams, name, axes)


@dataclass(frozen=True, eq=False)
class Identities(Fitted[Headed, IdentitiesConfig]):
    """A fitted recogniser of many images; ``rates.fpr`` counts images that are mistaken for any target."""

    def scores(self, images: Tensor, /) -> Tensor:
        """s of images (B, C, H, W) in [-1, 1] with every target: (B, m), float64.

        Raises:
            ValueError: images of another shape than it was fitted on, or not finite.
        """
        with torch.no_grad():
            return odds(torch.cat([self.network.ending(part) for part in self._seen(images)]))

    def which(self, images: Tensor, /) -> NDArray[np.int64]:
        """The target that each image (B, C, H, W) shows, (B,), counted from 0; -1: none."""
        best = self.scores(images).max(1)
        return torch.where(best.values >= self.threshold, best.indices, -1).cpu().numpy()

    def against(self, targets: Tensor, numbers: NDArray[np.int64], /) -> Against:
        """A function that scores images against the targets of these ``numbers`` (m,); their pixels are not
        needed."""
        place = torch.as_tensor(numbers, device=targets.device)
        return lambda images, which: self.scores(images).gather(1, place[which, None])[:, 0]


def odds(logits: Tensor) -> Tensor:
    """Log odds (B, m) of each target against all else, from logits (B, m + 1), the first of none."""
    p = logits.double().log_softmax(1)[:, 1:]
    return p - torch.log1p(-p.exp().clamp(max=1 - 1e-15))


def fit_identities(
    targets: NDArray[np.float32],
    others: Pixels,
    heldout: Pixels,
    kind: FingerprintKind,
    config: DetectorConfig,
    streams: Streams,
    device: torch.device | str = "cpu",
    how: Evaluation | None = None,
    units: Units | None = None,
    unit: Unit = "image",
) -> Iterator[FitState[Identities]]:
    """Fit it on ``targets`` (m, C, H, W) against ``others`` and ``heldout``; see ``fit_identity``.

    ``others`` are training images that are neither targets nor their originals.

    Raises:
        DetectorError: fewer than 1 target, 1 other or 10 held-out images, or the fit learnt nothing.
    """
    if not len(targets) or not len(others) or len(heldout) < LEAST:
        raise DetectorError(
            f"a recogniser of many images needs 1 of them, 1 other training image and {LEAST} held-out"
            f" ones or more, got {len(targets)}, {len(others)} and {len(heldout)}"
        )
    rng, place, how = streams.generator("identities.data"), torch.device(device), how or Evaluation()
    settings: dict[str, Any] = plain(config) | {"targets": len(targets)}
    own = IdentitiesConfig(**settings)
    task = _Task(targets, others, heldout, kind, own, units, unit, rng)
    held, truth = task.draw(task.validation, max(128, 8 * len(targets)), rng)
    fixed, labels = task.back(held), on(place, truth)

    def epoch(number: int) -> Iterator[Step]:
        drawn = streams.generator("identities.epoch", number)
        count = own.draws or max(2 * own.batch, len(task.rivals), 4 * len(targets))
        shown, classes = task.draw(task.rivals, count, drawn)
        steps = augmented(shown, own, drawn).once(own.batch)
        for first, pixels in zip(range(0, len(classes), own.batch), steps, strict=True):
            if len(pixels) > 1:
                yield on(place, pixels), partial(_of_class, on(place, classes[first : first + len(pixels)]))

    yield from fitted(
        "identities",
        own.network("identities", streams, targets.ndim - 2).to(place),
        own,
        how,
        epoch,
        own.batch,
        lambda answers: _of_class(labels, answers(fixed)),
        lambda network, best: task.held_to(network, best, place, how),
    )


class _Task:
    """The images of the fit, and the test of the finished network."""

    def __init__(
        self,
        targets: NDArray[np.float32],
        others: Pixels,
        heldout: Pixels,
        kind: FingerprintKind,
        config: IdentitiesConfig,
        units: Units | None,
        unit: Unit,
        rng: Rng,
    ) -> None:
        self.whose = np.arange(len(heldout)) if units is None else units
        self.unit: Unit = unit
        parts = self._parts = split(self.whose, rng, UNSEEN)
        self.targets, self.others, self.heldout, self.kind = targets, others, heldout, kind
        self.config, self._rng = config, rng
        self._every = Selection.of(others, heldout, targets)
        self.rivals, self.validation, self._calibration = (
            np.concatenate([np.arange(len(others)), len(others) + part])
            for part in (parts.fit, parts.validation, parts.calibration)
        )

    def draw(self, negatives: NDArray[np.int64], count: int, rng: Rng) -> tuple[Shown, NDArray[np.int64]]:
        """Half of ``count`` are targets, all equally often. Masks hide from all what a mark would hide."""
        half = count // 2
        shown = np.resize(rng.permutation(len(self.targets)), half)
        rest = negatives[np.resize(rng.permutation(len(negatives)), count - half)]
        order = rng.permutation(count)
        places = np.concatenate([len(self._every) - len(self.targets) + shown, rest])[order]
        classes = np.concatenate([shown + 1, np.zeros(count - half, np.int64)])[order]
        return Shown.of(self._every, places).masked(self.config.masked, self.kind, rng), classes

    def back(self, shown: Shown) -> Perturbed:
        """Images as a sampler would return them."""
        return returned(shown, self._every.take(self.rivals), self.config.noise, self._rng)

    def held_to(self, network: Headed, best: int, place: torch.device, how: Evaluation) -> Identities:
        """Fix the threshold on the calibration split, then count errors on the test split."""

        def scores(shown: Shown) -> NDArray[np.float64]:
            with torch.no_grad():
                return odds(answer(network, self.back(shown), place, how)).cpu().numpy()

        def copies() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            """Scores of copies of the targets: each with its own target, and the best with another."""
            own = np.repeat(np.arange(len(self.targets)), -(-_COPIES // len(self.targets)))
            found, rows = scores(Shown.of(self.targets, own)), np.arange(len(own))
            mine = found[rows, own]
            found[rows, own] = -np.inf
            return mine, found.max(1) if len(self.targets) > 1 else np.empty(0)

        def forms(shown: Shown, name: str) -> dict[str, NDArray[np.float64]]:
            every = {name: shown, f"{name}, with a fingerprint": shown.marked(self.kind, self._rng)}
            return {form: scores(seen).max(1) for form, seen in every.items()}

        parts, (mine, other) = self._parts, copies()
        unlike = forms(Shown.of(self._every, self._calibration), "")
        level = threshold_between(mine, np.concatenate([other, *unlike.values()]), "identities")

        def count(values: NDArray[np.float64]) -> Trials:
            return Trials(int((values >= level).sum()), len(values))

        mine, other = copies()
        seen = forms(Shown.of(self.heldout, parts.test), "held-out")
        fired = np.logical_or.reduce([values >= level for values in seen.values()])
        informs = seen | {"another of them": other} | forms(Shown.of(self.others), "trained on")
        rates = DetectorRates(
            tpr=count(mine),
            fpr=false_alarms(fired, self.whose[parts.test]),
            kinds={name: count(values) for name, values in informs.items()},
            recogniser=f"identities ({self.config.backbone})",
            unit=self.unit,
        )
        shape = self.targets.shape[1:]
        return Identities("identities", network, level, rates, self.config, best, shape, how)


def _of_class(labels: Tensor, logits: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, labels)


def load_identities(
    folder: Path, device: torch.device | str = "cpu", how: Evaluation | None = None
) -> Identities | None:
    """Read what ``Fitted.save`` wrote; None if there is nothing.

    Raises:
        DetectorError: it is damaged.
    """
    return Identities.restored(IdentitiesConfig, folder, device, how)
