"""The Fréchet distance of the samples to the training images and to held-out ones (Table 2)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentprint.audit.context import Context, one_image
from latentprint.audit.stages import Detectors
from latentprint.data.images import Pixels, fits
from latentprint.metrics.frechet import (
    DetectorFeatures,
    Extractor,
    InceptionFeatures,
    Moments,
    PixelFeatures,
    frechet,
    moments,
)
from latentprint.results.model import FID, Fid
from latentprint.store import RunError

_CHUNK, _VALUES = 256, 2**24
"""Images, and values, whose features are computed at once."""


MOST_PIXELS = 3072
"""Values per image up to which pixels serve as features; the covariance of more would take minutes."""


def extractor(context: Context, detectors: Detectors, shape: tuple[int, ...]) -> Extractor:
    """The features that the settings name, of images of this shape (C, H, W).

    If there is no presence detector, pixels replace its features, or the features of c_id for large images.
    """
    settings = context.config.fid
    if settings.features == "presence" and detectors.presence is not None:
        return DetectorFeatures(detectors.presence)
    if settings.features == "presence" and math.prod(shape) > MOST_PIXELS:
        return DetectorFeatures(detectors.identity)
    if settings.features != "inception":
        return PixelFeatures()
    assert settings.weights is not None and settings.sha256 is not None  # FidSettings keeps them together
    return InceptionFeatures(Path(settings.weights), settings.sha256, str(context.device))


def distance(context: Context, train: Pixels, heldout: Pixels, extract: Extractor) -> None:
    """FID of the first samples to training and held-out images (N, C, H, W), as the stage ``fid``."""
    if context.run.stage(FID.name).done:
        return
    kept = context.run.array("features.model")
    if kept is None:  # sampling writes them before any row
        raise RunError("the features of the samples are missing in arrays/; start again with --fresh")
    finish(context, kept[1], train, heldout, extract)


def finish(
    context: Context,
    values: NDArray[np.float32],
    train: Pixels,
    heldout: Pixels,
    extract: Extractor,
) -> None:
    """Note the distances of the samples' features (n, d) to those of images (N, C, H, W)."""
    generated = Moments.of(values)

    def of(pixels: Pixels) -> Moments:
        step = fits(pixels.shape[1:], _VALUES, most=_CHUNK)
        starts = range(0, len(pixels), step)
        return moments((one_image(pixels[i : i + step], context.device) for i in starts), extract)

    with context.stage(FID.name):
        context.say("Frechet distance", 0, 1, "sets")
        found = Fid(
            train=_digits(frechet(generated, of(train))),
            test=_digits(frechet(generated, of(heldout))) if len(heldout) > 1 else None,
            features=extract.name,
            samples=len(values),
        )
        context.finish(FID, found)
        context.say("Frechet distance", 1, 1, "sets")


def _digits(distance: float) -> float:
    """Six digits. Later digits depend on how many images share a network call, and results must not."""
    return float(f"{distance:.6g}")
