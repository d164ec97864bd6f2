"""The embedding checked against c_id: the same images of x_p's search, judged by both.

The embedding stands in for c_id wherever many targets are searched (`audit.baseline`, `audit.profile`). For
x_p both exist. The trajectories of its search are drawn again from their ids, which gives the same images,
and the embedding's verdicts are held against those that c_id gave: from little noise nearly all show x_p,
from much noise nearly none, so that both answers occur.
"""

from __future__ import annotations

from dataclasses import replace

from latentprint.audit.stages import UNIT, Detectors, noised_probe
from latentprint.audit.work import Work, one_image
from latentprint.denoiser import Denoiser
from latentprint.detector.embedding import EmbeddingDetector
from latentprint.execute import Stored
from latentprint.fingerprint import Injection


def agreement(
    work: Work, model: Denoiser, detectors: Detectors, matcher: EmbeddingDetector, injection: Injection
) -> None:
    """The trajectories of x_p's search judged by the embedding too; rows are kept as ``agreement``."""
    searched = work.run.rows("search.model")
    image = one_image(injection.target, work.device)
    probe = noised_probe(work, model, detectors, injection.target, "search")
    judged = replace(probe, identity=matcher.for_target(image), presence=None)
    with work.stage("agreement"):
        progress = work.progress("comparing the recognisers", "trajectories")
        stored = Stored(judged, "agreement", work.run, UNIT, progress, work.map)
        outcome = stored(searched["t"], searched["id"])
        cost = int(outcome.evaluations.sum())
        if not work.run.stage("agreement").done:
            work.run.finish("agreement", {"network_evaluations": cost})
