"""The detectors: c_p says whether an image carries a fingerprint, c_id whether it is the private image.

Omega_p = { x : c_p(x) and c_id(x) }                            (paper Eq. 6, sections 3.3 and 3.4)
"""

from latentprint.detector.backbone import Backbone, build_backbone
from latentprint.detector.contrast import fit_embedding
from latentprint.detector.draws import AUGMENTED_TOGETHER, augmix
from latentprint.detector.embedding import (
    Agreement,
    EmbeddingConfig,
    EmbeddingDetector,
    TargetDetector,
    agreement,
    load_embedding,
)
from latentprint.detector.fit import fit_identity, fit_presence
from latentprint.detector.fitting import FitState
from latentprint.detector.identities import Identities, fit_identities, load_identities
from latentprint.detector.model import (
    Against,
    Detector,
    DetectorConfig,
    DetectorError,
    Fitted,
    NetworkDetector,
    load_detector,
    threshold_between,
)

__all__ = [
    "AUGMENTED_TOGETHER",
    "Against",
    "Agreement",
    "Backbone",
    "Detector",
    "DetectorConfig",
    "DetectorError",
    "EmbeddingConfig",
    "EmbeddingDetector",
    "FitState",
    "Fitted",
    "Identities",
    "NetworkDetector",
    "TargetDetector",
    "agreement",
    "augmix",
    "build_backbone",
    "fit_embedding",
    "fit_identities",
    "fit_identity",
    "fit_presence",
    "load_detector",
    "load_embedding",
    "load_identities",
    "threshold_between",
]
