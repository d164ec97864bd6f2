"""How sampled images compare with images that were trained on, and with those that were not."""

from latentprint.metrics.error import mae, mse, psnr
from latentprint.metrics.frechet import (
    DetectorFeatures,
    Extractor,
    InceptionFeatures,
    Moments,
    PixelFeatures,
    frechet,
    moments,
)
from latentprint.metrics.neighbours import Neighbours, nearest

__all__ = [
    "DetectorFeatures",
    "Extractor",
    "InceptionFeatures",
    "Moments",
    "Neighbours",
    "PixelFeatures",
    "frechet",
    "mae",
    "moments",
    "mse",
    "nearest",
    "psnr",
]
