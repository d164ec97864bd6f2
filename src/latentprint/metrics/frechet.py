"""The Fréchet distance between two sets of images, as Gaussians in a feature space.

    d^2 = |m_1 - m_2|^2 + tr(C_1) + tr(C_2) - 2 tr( (C_1^(1/2) C_2 C_1^(1/2))^(1/2) )

The last trace is the sum of the singular values of C_1^(1/2) C_2^(1/2), which needs two symmetric eigenvalue
problems and no square root of an asymmetric matrix. It stays real and accurate if covariances are singular,
as they are whenever there are fewer images than features. Means and covariances are float64 and can be added.

The number depends on the features, and small samples bias it upwards (Chong and Forsyth 2020). Compare only
values with the same features and the same n. With Inception features (2048) it is the FID.

Sources: Dowson and Landau 1982; Heusel et al. 2017; Chan, Golub, LeVeque 1979 for the pooled moments.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentprint.contracts import InputError
from latentprint.files import read_weights
from latentprint.networks.files import unpack


class MetricError(InputError):
    """A distance that cannot be measured, with the reason in one sentence."""


class Extractor(Protocol):
    """images (n, C, H, W) in [-1, 1] -> features (n, d); ``name`` goes into the result."""

    @property
    def name(self) -> str: ...

    def __call__(self, images: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Moments:
    """Mean and scatter of ``count`` feature vectors; ``a + b`` is that of both sets together.

    Attributes:
        count: vectors seen.
        mean: (d,) float64.
        scatter: (d, d) float64, the sum of (x - mean)(x - mean)^T.
    """

    count: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[Any]) -> Moments:
        """Of the rows of ``features`` (n, d).

        Raises:
            ValueError: no rows, the wrong number of axes, or NaN or infinity.
        """
        if features.ndim != 2 or not len(features):
            raise ValueError(f"features must have shape (n, d) with n of 1 or more, got {features.shape}")
        values = features.astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("features must be finite, got NaN or infinity")
        mean = values.mean(axis=0)
        centred = values - mean
        return cls(len(values), mean, centred.T @ centred)

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        apart = other.mean - self.mean
        between = np.outer(apart, apart) * (self.count * other.count / count)
        return Moments(
            count, self.mean + apart * (other.count / count), self.scatter + other.scatter + between
        )

    @property
    def covariance(self) -> NDArray[np.float64]:
        """The unbiased covariance, (d, d).

        Raises:
            ValueError: fewer than two vectors.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs 2 images or more, got {self.count}")
        return self.scatter / (self.count - 1)


def frechet(one: Moments, two: Moments) -> float:
    """The squared Fréchet distance d^2 (reported as FID), 0 or more.

    Raises:
        ValueError: unequal numbers of features, or fewer than two images on a side.
    """
    if one.mean.shape != two.mean.shape:
        raise ValueError(f"both sides need the same features, got {one.mean.shape} and {two.mean.shape}")
    first, second = one.covariance, two.covariance
    cross = np.linalg.svd(_root(first) @ _root(second), compute_uv=False).sum()
    apart = one.mean - two.mean
    # Rounding of the traces can leave a distance of 0 slightly negative.
    return max(0.0, float(apart @ apart + np.trace(first) + np.trace(second) - 2 * cross))


def _root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def moments(batches: Iterable[Tensor], extractor: Extractor) -> Moments:
    """Of all images in ``batches``, each (n, C, H, W) in [-1, 1]; only one batch is held at a time.

    Raises:
        ValueError: there is no image.
    """
    total: Moments | None = None
    for images in batches:
        if len(images):
            with torch.no_grad():
                part = Moments.of(extractor(images).cpu().numpy())
            total = part if total is None else total + part
    if total is None:
        raise ValueError("moments need at least one image, got none")
    return total


@dataclass(frozen=True)
class PixelFeatures:
    """The pixels themselves, in [0, 1]: d = C H W; for small images only."""

    name: str = field(default="pixels", init=False)

    def __call__(self, images: Tensor, /) -> Tensor:
        return (images.flatten(1).double() + 1) / 2


class HasFeatures(Protocol):
    """A fitted detector with access to its penultimate layer, as `latentprint.detector.NetworkDetector`."""

    @property
    def label(self) -> str: ...

    def features(self, images: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class DetectorFeatures:
    """The penultimate layer of a fitted detector: a domain extractor for data without any other."""

    detector: HasFeatures

    @property
    def name(self) -> str:
        """E.g. ``detector presence (small)``."""
        return f"detector {self.detector.label}"

    def __call__(self, images: Tensor, /) -> Tensor:
        return self.detector.features(images)


@dataclass(frozen=True)
class InceptionFeatures:
    """The 2048 features of the FID: torch-fidelity's network, with weights from a safetensors file.

    Nothing is downloaded. The file holds the state of torch-fidelity's ``FeatureExtractorInceptionV3``. The
    network takes images; the features of a volume are the mean over its slices.

    Attributes:
        weights: path of the safetensors file.
        sha256: what the file must hash to; it is written into the result.
        device: where the network runs.
    """

    weights: Path
    sha256: str
    device: str = "cpu"

    @property
    def name(self) -> str:
        """E.g. ``inception 2048 (sha256 6726825d0af5)``."""
        return f"inception 2048 (sha256 {self.sha256[:12]})"

    @cached_property
    def network(self) -> torch.nn.Module:
        """The network, read once.

        Raises:
            FileError: the file cannot be read, or has another hash.
            MetricError: it has another network, or torch-fidelity is not installed.
        """
        read_weights(self.weights, self.sha256)
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise MetricError(
                'Inception features need torch-fidelity: pip install "latentprint[fid]"'
            ) from error
        state = unpack(self.weights)
        # The constructor only reads files in torch's own format; this file holds nothing but these tensors.
        with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
            aside = Path(folder) / "weights.pth"
            torch.save(state, aside)
            try:
                network = FeatureExtractorInceptionV3("inception", ["2048"], str(aside))
            except RuntimeError as error:
                raise MetricError(
                    f"{self.weights} does not hold torch-fidelity's Inception network"
                ) from error
        return cast(torch.nn.Module, network).to(self.device)

    def __call__(self, images: Tensor, /) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise MetricError(f"Inception sees images of 1 or 3 channels, got {images.shape[1]}")
        stored = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).to(self.device)
        planes = stored.movedim(1, -3).reshape(-1, images.shape[1], *images.shape[-2:])
        seen = self.network(planes.expand(-1, 3, -1, -1))[0]
        return seen.reshape(len(images), -1, seen.shape[1]).mean(1)
