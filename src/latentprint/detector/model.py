"""A fitted recogniser: a network, a threshold, and how often it is wrong, as counts.

The threshold is fixed on a calibration split, the errors are counted on a test split that neither the weights
nor the threshold have seen (`latentprint.stats.DetectorRates` says which images those are). A fitted detector
is a function of one image: batch normalisation uses the statistics of the fit, so that an answer never
depends on the rest of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Generic, Protocol, Self, TypeVar

import numpy as np
import pydantic.dataclasses
import torch
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter
from torch import Tensor

from latentprint.contracts import InputError
from latentprint.detector.backbone import Backbone, Classifier, Headed, build_backbone
from latentprint.networks import FileError, commit, committed
from latentprint.networks.speed import Evaluated, Evaluation
from latentprint.settings import MOST, STRICT, NotNegative, Positive, SettingsError, Some, plain, read
from latentprint.stats import DetectorRates, Trials
from latentprint.stats.rates import Unit
from latentprint.streams import Streams

_BATCH, _PIXELS = 512, 2**21
"""Images, and pixels, that a detector processes together. Answers depend on it only by rounding."""

AT_ONCE = 256
"""The only batch shape of a compiled detector: the audit's own batch."""


Against = Callable[[Tensor, Tensor], Tensor]
"""Images (B, C, H, W) and the place of each one's target (B,) among the targets -> scores (B,)."""


class DetectorError(InputError):
    """A detector that cannot be fitted, trusted or read, with the reason in one sentence."""


class Detector(Protocol):
    """images (B, C, H, W) in [-1, 1] -> probability (B,); positive from ``threshold`` on."""

    @property
    def name(self) -> str: ...

    @property
    def threshold(self) -> float: ...

    @property
    def rates(self) -> DetectorRates: ...

    def __call__(self, images: Tensor, /) -> Tensor: ...


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class DetectorConfig:
    """How a detector is fitted. The defaults are the paper's, at a size that the paper leaves open.

    Attributes:
        backbone: see `latentprint.detector.backbone`.
        epochs: most epochs; an epoch shows ``draws`` images.
        patience: epochs without a better validation loss after which the fit ends; the best weights are kept.
        draws: images shown in an epoch; None: as many as there are to fit on.
        batch: images per step.
        learning_rate, weight_decay: of AdamW.
        augmix: whether images are augmented by AugMix (Hendrycks et al. 2020).
        noise: additive Gaussian noise has a deviation drawn uniformly from 0 to this, for pixels in [-1, 1].
            The paper adds it for c_id. c_p judges images of the same sampler, so here it is added for both.
        masked: share of the images that c_id sees under a random mask of the fingerprint's shape.

    Raises:
        ValueError: fewer draws than a batch.
    """

    backbone: Backbone = "resnet50"
    epochs: Some = 200
    patience: Some = 20
    draws: Some | None = None
    batch: Annotated[int, Field(ge=2, le=MOST)] = 64
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 1e-2
    augmix: bool = True
    noise: NotNegative = 0.2
    masked: Annotated[float, Field(ge=0, le=1)] = 0.5

    def __post_init__(self) -> None:
        if self.draws is not None and self.draws < self.batch:
            raise ValueError(f"draws must be no less than batch, got {self.draws} and {self.batch}")

    def network(self, name: str, streams: Streams, axes: int) -> Headed:
        """The network before its fit, for images with ``axes`` sides; ``streams`` draw its weights."""
        return build_backbone(self.backbone, streams, name, axes)


Config = TypeVar("Config", bound=DetectorConfig)
Network = TypeVar("Network", bound=Headed)


@dataclass(frozen=True)
class _Note:
    """What is stored beside the weights."""

    name: str
    threshold: float
    epoch: int
    shape: Annotated[list[Some], Field(min_length=3, max_length=4)]
    config: dict[str, object]
    tpr: Trials
    fpr: Trials
    kinds: dict[str, Trials]
    recogniser: str
    unit: Unit


@dataclass(frozen=True, eq=False)
class Fitted(Generic[Network, Config]):
    """A fitted network as a recogniser.

    Attributes:
        name: "presence" (c_p), "identity" (c_id) or "embedding".
        network: in evaluation mode.
        threshold: of its answers.
        rates: counted on the test split.
        config: the settings of its fit.
        epoch: the one whose weights were kept, from 1.
        shape: (C, *sides) of the images.
        how: the arithmetic of its backbone; its last layer is always float32.
    """

    name: str
    network: Network
    threshold: float
    rates: DetectorRates
    config: Config
    epoch: int
    shape: tuple[int, ...]
    how: Evaluation = Evaluation()  # noqa: RUF009 (frozen)

    @property
    def label(self) -> str:
        """Its name and backbone, e.g. ``presence (small)``."""
        return f"{self.name} ({self.config.backbone})"

    @property
    def place(self) -> torch.device:
        """The device of its weights."""
        return self.network.head.weight.device

    def _seen(self, images: Tensor) -> list[Tensor]:
        """Features of the images (B, C, H, W), in parts.

        Raises:
            ValueError: images of another shape than it was fitted on, or not finite.
        """
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(
                f"the {self.name} detector was fitted on images {self.shape}, got {tuple(images.shape[1:])}"
            )
        if not bool(images.isfinite().all()):
            raise ValueError(f"the {self.name} detector was given NaN or infinity")
        return [self._backbone(three_channels(part)) for part in images.float().split(at_once(self.shape))]

    @cached_property
    def _backbone(self) -> Evaluated:
        return Evaluated(self.network.backbone, self.how, AT_ONCE)

    def save(self, folder: Path) -> None:
        """Write it: weights as safetensors, the rest as JSON.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        note = {name: getattr(self, name) for name in ("name", "threshold", "epoch")}
        note |= {"shape": list(self.shape), "config": plain(self.config), **asdict(self.rates)}
        commit(folder, self.network.state_dict(), note)

    @classmethod
    def restored(
        cls,
        config: type[Config],
        folder: Path,
        device: torch.device | str,
        how: Evaluation | None,
    ) -> Self | None:
        """Read what ``save`` wrote; None if there is nothing. ``how`` should be that of its fit.

        Raises:
            DetectorError: it is damaged.
        """
        try:
            found = committed(folder)
            return None if found is None else cls._rebuilt(config, *found, device, how or Evaluation())
        except (FileError, SettingsError, TypeError, ValueError, RuntimeError) as error:
            raise DetectorError(
                f"the recogniser in {folder} is damaged, or of an earlier version; start again with --fresh:"
                f" {error}"
            ) from error

    @classmethod
    def _rebuilt(
        cls,
        kind: type[Config],
        tensors: dict[str, Tensor],
        found: Mapping[str, object],
        device: torch.device | str,
        how: Evaluation,
    ) -> Self:
        note = TypeAdapter(_Note).validate_python(found)
        config, shape = read(kind, note.config), tuple(note.shape)
        # its weights are replaced at once
        network: Any = config.network(note.name, Streams(0), len(shape) - 1)
        network.load_state_dict(tensors)
        network.to(device).eval().requires_grad_(False)
        rates = DetectorRates(note.tpr, note.fpr, note.kinds, note.recogniser, note.unit)
        return cls(note.name, network, note.threshold, rates, config, note.epoch, shape, how)


@dataclass(frozen=True, eq=False)
class NetworkDetector(Fitted[Classifier, DetectorConfig]):
    """A fitted classifier as a `Detector`; its threshold is a probability."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Probabilities (B,), float64: the sigmoid of a confident logit is 1 in float32."""
        return self.logit(images).double().sigmoid()

    def logit(self, images: Tensor) -> Tensor:
        """Logits (B,), float32.

        Raises:
            ValueError: images of another shape than it was fitted on, or not finite.
        """
        return torch.cat([self.network.ending(seen) for seen in self._seen(images)])

    def features(self, images: Tensor, /) -> Tensor:
        """The penultimate layer, (B, d) float32: features for a Fréchet distance.

        Raises:
            ValueError: as for ``logit``.
        """
        return torch.cat(self._seen(images))


def load_detector(
    folder: Path, device: torch.device | str = "cpu", how: Evaluation | None = None
) -> NetworkDetector | None:
    """Read a c_p or c_id that ``Fitted.save`` wrote; None if there is none.

    Raises:
        DetectorError: it is damaged.
    """
    return NetworkDetector.restored(DetectorConfig, folder, device, how)


def at_once(shape: tuple[int, ...]) -> int:
    """How many images (C, *sides) a detector processes together."""
    return min(_BATCH, max(1, _PIXELS // math.prod(shape[1:])))


def three_channels(images: Tensor) -> Tensor:
    """Single-channel images repeated to three (paper section 5.1); three channels as they are."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"detectors see images of 1 or 3 channels, got {images.shape[1]}")
    return images.expand(-1, 3, *images.shape[2:]) if images.shape[1] == 1 else images


def threshold_between(positive: NDArray[np.float64], negative: NDArray[np.float64], name: str) -> float:
    """The logit that best separates positives from negatives on the calibration split: the middle of a gap.

    Best is the largest difference of true and false positive rate (Youden 1950); of several gaps the widest.

    Raises:
        DetectorError: a logit is not finite, or no threshold is better than always or never firing.
    """
    logits = np.sort(np.concatenate([positive, negative]))
    if not np.isfinite(logits).all():
        raise DetectorError(f"the {name} detector answers NaN or infinity on its calibration split")
    middles, gaps = (logits[1:] + logits[:-1]) / 2, logits[1:] - logits[:-1]
    if not (gaps > 0).any():
        raise _indifferent(name)
    hit = 1 - np.searchsorted(np.sort(positive), middles, side="left") / len(positive)
    false = 1 - np.searchsorted(np.sort(negative), middles, side="left") / len(negative)
    merit = np.where(gaps > 0, hit - false, -np.inf)
    best = np.flatnonzero(merit >= merit.max() - 1e-12)
    if merit.max() <= 0:
        raise _indifferent(name)
    return float(middles[best[np.argmax(gaps[best])]])


def _indifferent(name: str) -> DetectorError:
    return DetectorError(
        f"the {name} detector learnt nothing: on its calibration split no threshold is better than always or"
        " never firing; give it more images or epochs, or another backbone"
    )
