"""Networks and their files: the U-Net of the score model, saved models, and crash-safe files of tensors."""

from latentprint.networks.files import FileError, commit, committed
from latentprint.networks.saved import ModelError, load_model, save_model
from latentprint.networks.unet import (
    DIGITS,
    PAPER,
    SMALL28,
    UNetConfig,
    build_unet,
    is_coarse,
    label_of,
    multiple_of,
    parameters,
    require_fit,
)

__all__ = [
    "DIGITS",
    "PAPER",
    "SMALL28",
    "FileError",
    "ModelError",
    "UNetConfig",
    "build_unet",
    "commit",
    "committed",
    "is_coarse",
    "label_of",
    "load_model",
    "multiple_of",
    "parameters",
    "require_fit",
    "save_model",
]
