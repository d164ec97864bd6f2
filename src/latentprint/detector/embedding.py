"""An identity detector for many targets: one embedding of all images; a cosine above a threshold is a match.

    s(x, x_p) = (1 + cos(f(x), f(x_p))) / 2,      positive where s >= threshold

f is fitted by contrast on the user's own images (`latentprint.detector.contrast`), once for all targets. The
paper's c_id (section 3.3) is one classifier per target. The embedding measures t' without any fingerprint:
the paper's "indicator of overfitting" that needs c_id alone (section 6).

**Threshold.** Of n pairs of different images, s_(1) >= s_(2) >= ... in falling order, the threshold lies just
above s_(j) with j = floor(r (n + 1)): the score of one more such pair, exchangeable with them, passes it with
probability r at most (split conformal). If j = 0, n pairs cannot guarantee the rate r, and the fit is
refused. Pairs share images, so the counts behind the rates are not independent trials, and their intervals
are too narrow.

Source: Vovk, Gammerman, Shafer 2005 (conformal quantile); Chen et al. 2020, arXiv 2002.05709 (the embedding).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pydantic.dataclasses
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from latentprint.detector.backbone import Embedder, build_headed
from latentprint.detector.model import Against, Detector, DetectorConfig, DetectorError, Fitted
from latentprint.networks.speed import Evaluation
from latentprint.settings import MOST, STRICT, Positive, Share
from latentprint.stats import DetectorRates, Trials
from latentprint.streams import Streams


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class EmbeddingConfig(DetectorConfig):
    """How the embedding is fitted, and how often it may take one image for another.

    Attributes:
        dimensions: of the embedding.
        temperature: of the contrastive loss.
        false_positive_rate: the share of pairs of different images that may match.
        draws, batch: an epoch shows each image in two views, which must be told apart from the others of the
            batch.
        masked: share of the views under a random mask of the fingerprint's shape.
    """

    batch: Annotated[int, Field(ge=2, le=MOST)] = 128
    dimensions: Annotated[int, Field(ge=1, le=65_536)] = 128
    temperature: Positive = 0.1
    false_positive_rate: Share = 1e-3

    def network(self, name: str, streams: Streams, axes: int) -> Embedder:
        """The embedder before its fit; there is only one, whatever the name."""
        return build_headed(Embedder, self.backbone, self.dimensions, streams, "embedding", axes)


@dataclass(frozen=True, eq=False)
class EmbeddingDetector(Fitted[Embedder, EmbeddingConfig]):
    """A fitted embedding with its threshold, which is one of s.

    Its ``rates.fpr`` is the stated rate, of any pair of different images. ``rates.kinds`` adds two counts:
    each image's nearest other image, which is mistaken far more often if images are alike, and the
    calibration pairs at or above the threshold.
    """

    def vectors(self, images: Tensor, /) -> Tensor:
        """f(images): (B, C, H, W) in [-1, 1] -> unit vectors (B, d), float64.

        Raises:
            ValueError: images of another shape than it was fitted on, or not finite.
        """
        with torch.no_grad():
            return torch.cat([self.network.ending(part) for part in self._seen(images)]).double()

    def score(self, images: Tensor, targets: Tensor, /) -> Tensor:
        """s of each image (B, C, H, W) with its own target, given as vectors (B, d), or (1, d) for all: (B,).

        Raises:
            ValueError: as for ``vectors``.
        """
        return similarity(self.vectors(images), targets)

    def matches(self, images: Tensor, targets: Tensor, /) -> Tensor:
        """Whether each image shows its own target: bool (B,); arguments as for ``score``."""
        return self.score(images, targets) >= self.threshold

    def against(self, targets: Tensor, numbers: NDArray[np.int64], /) -> Against:
        """A function that scores images against targets (m, C, H, W), whatever their ``numbers``."""
        del numbers
        vectors = self.vectors(targets)
        return lambda images, which: self.score(images, vectors[which])

    def for_target(self, image: Tensor, /) -> TargetDetector:
        """The identity detector of one image (C, H, W)."""
        return TargetDetector(self, self.vectors(image[None]))


@dataclass(frozen=True, eq=False)
class TargetDetector:
    """A `Detector`: whether an image shows the one with the embedding ``vector`` (1, d).

    Its error rates are the embedding's, over many targets.
    """

    embedding: EmbeddingDetector
    vector: Tensor

    @property
    def name(self) -> str:
        """It answers the question of c_id."""
        return "identity"

    @property
    def threshold(self) -> float:
        """The embedding's."""
        return self.embedding.threshold

    @property
    def rates(self) -> DetectorRates:
        """The embedding's."""
        return self.embedding.rates

    def __call__(self, images: Tensor, /) -> Tensor:
        """s, (B,) float64 in [0, 1]."""
        return self.embedding.score(images, self.vector)


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """(1 + cos) / 2 of unit vectors, row by row: (B, d) and (B, d) or (1, d) -> (B,) in [0, 1]."""
    return ((1 + (a * b).sum(dim=1)) / 2).clamp(0, 1)


def pairs_needed(rate: float) -> int:
    """Fewest pairs of different images with which a false-positive rate can be guaranteed: n + 1 >= 1 /
    rate."""
    if not 0 < rate < 1:
        raise ValueError(f"a false-positive rate lies strictly between 0 and 1, got {rate}")
    return max(1, math.ceil(1 / rate - 1e-9) - 1)


def pair_threshold(scores: NDArray[np.float64], rate: float, images: int) -> float:
    """The threshold for a false-positive ``rate`` from the scores (n,) of pairs of different images.

    It lies in the middle between s_(j) and the next score above (see the module), or just above s_(j) if
    there is none. ``images`` is the number of images behind the pairs, for the message.
    """
    needed = pairs_needed(rate)
    if len(scores) < needed:
        raise DetectorError(
            f"a false-positive rate of {rate:g} needs {needed:,} pairs of different images or more; the "
            f"{images} images of the calibration split make {len(scores):,}: give more images, or a "
            f"false_positive_rate of 1/{len(scores) + 1} or more"
        )
    if not np.isfinite(scores).all():
        raise DetectorError("the embedding answers NaN or infinity on its calibration split")
    falling = np.sort(scores)[::-1]
    bar = falling[max(1, math.floor(rate * (len(scores) + 1) + 1e-9)) - 1]
    above = falling[falling > bar]
    found = float((bar + above[-1]) / 2) if len(above) else float(np.nextafter(bar, np.inf))
    if found > 1:
        raise DetectorError(
            f"the embedding learnt nothing: it cannot tell apart too many of {len(scores):,} pairs of"
            f" different images for a false-positive rate of {rate:g}; give it more images or epochs"
        )
    return found


@dataclass(frozen=True)
class Agreement:
    """How two identity detectors of one target answer on the same images: a 2 x 2 table of counts."""

    both: int
    identity_only: int
    embedding_only: int
    neither: int

    @property
    def agree(self) -> Trials:
        """Images on which they agree, of all."""
        same = self.both + self.neither
        return Trials(same, same + self.identity_only + self.embedding_only)

    @classmethod
    def of(cls, identity: NDArray[np.bool_], embedding: NDArray[np.bool_]) -> Agreement:
        """The table of two detectors' answers (n,) on the same images.

        Raises:
            ValueError: no image, or unequal numbers of answers.
        """
        if identity.shape != embedding.shape or not identity.size:
            raise ValueError(
                f"two detectors are compared on at least one image, each on the same, got {len(identity)}"
                f" and {len(embedding)} answers"
            )
        one, other = identity.astype(np.bool_), embedding.astype(np.bool_)
        cells = (one & other, one & ~other, ~one & other, ~one & ~other)
        return cls(*(int(np.count_nonzero(cell)) for cell in cells))


def agreement(identity: Detector, embedding: Detector, images: Tensor) -> Agreement:
    """The one-against-all c_id compared with the embedding's detector for the same target, on images (B, C,
    H, W).

    Raises:
        ValueError: no image.
    """
    one, other = (d(images).cpu().numpy() >= d.threshold for d in (identity, embedding))
    return Agreement.of(one, other)


def load_embedding(
    folder: Path, device: torch.device | str = "cpu", how: Evaluation | None = None
) -> EmbeddingDetector | None:
    """Read an embedding that ``Fitted.save`` wrote; None if there is none.

    Raises:
        DetectorError: it is damaged.
    """
    return EmbeddingDetector.restored(EmbeddingConfig, folder, device, how)
