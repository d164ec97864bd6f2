"""The embedding checked against c_id: the same images of x_p's search, judged by both.

The embedding stands in for c_id wherever many targets are searched (`audit.baseline`, `audit.profile`). For
x_p both exist. The trajectories of its search are drawn again from their ids, which gives the same images,
and the embedding's verdicts are held against those that c_id gave: from little noise nearly all show x_p,
from much noise nearly none, so that both answers occur.
"""

from __future__ import annotations

from dataclasses import replace

from latentprint.audit.context import Context
from latentprint.audit.stages import UNIT, Audited, noised_probe
from latentprint.detector.embedding import EmbeddingDetector
from latentprint.execute import Stored


def agreement(context: Context, audited: Audited, matcher: EmbeddingDetector) -> None:
    """The trajectories of x_p's search judged by the embedding too; rows are kept as ``agreement``."""
    searched = context.run.rows("search.model")
    probe = noised_probe(context, audited)
    judged = replace(probe, identity=matcher.for_target(probe.target), presence=None)
    with context.stage("agreement"):
        progress = context.progress("comparing the recognisers", "trajectories")
        stored = Stored(judged, "agreement", context.run, UNIT, progress, context.map)
        outcome = stored(searched["t"], searched["id"])
        cost = int(outcome.evaluations.sum())
        if not context.run.stage("agreement").done:
            context.run.finish("agreement", {"network_evaluations": cost})
