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

__all__ = [
    "DetectorFeatures",
    "Extractor",
    "InceptionFeatures",
    "Moments",
    "PixelFeatures",
    "frechet",
    "mae",
    "moments",
    "mse",
    "psnr",
]
