"""How sampled images compare with training images, and with images that were not trained on."""

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
