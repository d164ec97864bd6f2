"""Training images, held-out images, and a manifest of both. It never imports torch."""

from latentprint.data.images import DataError, ImageSet, image_sha256, stack
from latentprint.data.load import SOURCES, load, require_source
from latentprint.data.near import NEAR, Overlap, copies_of, near_duplicates, overlap
from latentprint.data.split import Split

__all__ = [
    "NEAR",
    "SOURCES",
    "DataError",
    "ImageSet",
    "Overlap",
    "Split",
    "copies_of",
    "image_sha256",
    "load",
    "near_duplicates",
    "overlap",
    "require_source",
    "stack",
]
