"""The embedding checked against c_id: the same images of x_p's search, judged by both.

The embedding stands in for c_id wherever many targets are searched (`audit.baseline`, `audit.profile`). For
x_p both exist. The trajectories of its search are drawn again from their ids, which gives the same images,
and the embedding's verdicts are held against those that c_id gave: from little noise nearly all show x_p,
from much noise nearly none, so that both answers occur.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from latentprint.audit.stages import UNIT, Detectors, noised_probe
from latentprint.audit.work import Work, one_image
from latentprint.denoiser import Denoiser
from latentprint.detector.embedding import Agreement, EmbeddingDetector
from latentprint.execute import Stored
from latentprint.fingerprint import Injection


def agreement(
    work: Work, model: Denoiser, detectors: Detectors, matcher: EmbeddingDetector, injection: Injection
) -> dict[str, Any]:
    """``detectors.agreement`` of results.json: counts of the four cases; rows are kept as ``agreement``."""
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
    found = Agreement.of(searched["identity_hit"], outcome.hit)
    return entry(found) | {"network_evaluations": cost}


def entry(found: Agreement) -> dict[str, Any]:
    """The counts, how many images they are, and the finding in words."""
    same = found.agree
    sentence = (
        f"On {same.n} images from the search for the private one, c_id and the embedding say the same of "
        f"{same.k}; c_id alone recognised it in {found.identity_only}, the embedding alone in "
        f"{found.embedding_only}."
    )
    return {**asdict(found), "images": same.n, "sentence": sentence}
