"""The detectors: c_p sees whether an image carries a fingerprint, c_id whether it is the private image.

Omega_p = { x : c_p(x) and c_id(x) }                            (paper Eq. 6, sections 3.3 and 3.4)
"""

from latentprint.detector.backbone import Backbone, build_backbone
from latentprint.detector.contrast import EmbeddingState, fit_embedding
from latentprint.detector.draws import AUGMENTED_TOGETHER, augmix
from latentprint.detector.embedding import (
    Agreement,
    EmbeddingConfig,
    EmbeddingDetector,
    TargetDetector,
    agreement,
    load_embedding,
    save_embedding,
)
from latentprint.detector.fit import FitState, fit_identity, fit_presence
from latentprint.detector.model import (
    Detector,
    DetectorConfig,
    DetectorError,
    DetectorRates,
    NetworkDetector,
    load_detector,
    save_detector,
    threshold_between,
)

__all__ = [
    "AUGMENTED_TOGETHER",
    "Agreement",
    "Backbone",
    "Detector",
    "DetectorConfig",
    "DetectorError",
    "DetectorRates",
    "EmbeddingConfig",
    "EmbeddingDetector",
    "EmbeddingState",
    "FitState",
    "NetworkDetector",
    "TargetDetector",
    "agreement",
    "augmix",
    "build_backbone",
    "fit_embedding",
    "fit_identity",
    "fit_presence",
    "load_detector",
    "load_embedding",
    "save_detector",
    "save_embedding",
    "threshold_between",
]
