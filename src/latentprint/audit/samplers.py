"""The same audit for several samplers or step counts, side by side: t' and q belong to each of them.

Every sampler is asked the same questions, from the same noise: Alg. 1 at the same levels, and as many samples
of the prior. The first of the settings is the audit's own; these are the others.

Source: Dombrowski and Kainz 2023, section 7, which leaves the dependence on the sampler open.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentprint.audit import stages
from latentprint.audit.results import monte_carlo_entry, search_entry
from latentprint.audit.stages import Detectors
from latentprint.audit.work import Work
from latentprint.denoiser import Denoiser


def beside(
    work: Work, model: Denoiser, detectors: Detectors, target: NDArray[np.float32], expected: float
) -> list[dict[str, Any]] | None:
    """``samplers`` of results.json: t' and q by each further sampler; None where the settings name none.

    Args:
        expected: copies / N.
    """
    out = list[dict[str, Any]]()
    for settings in work.config.sampler.others():
        one = replace(work, config=replace(work.config, sampler=settings))
        name = f"model.{settings.label}"
        found = stages.search(one, name, model, detectors, target)
        counted = stages.sample(one, name, model, detectors, target, work.config.samples.count, None)
        sampler = one.sampler.describe()
        out.append(
            {
                "sampler": sampler,
                "t_prime": search_entry(found, None, work.run.rows(f"search.{name}")),
                "q": monte_carlo_entry(counted, expected, sampler),
            }
        )
    return out or None
