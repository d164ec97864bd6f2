"""The same audit for several samplers or step counts, because t' and q belong to one sampler.

Every sampler gets the same questions and the same noise: Alg. 1 at the same levels, and as many samples
from the prior. The first sampler of the settings is the audit's own; these are the others.

Source: Dombrowski and Kainz 2023, section 7, which leaves the dependence on the sampler open.
"""

from __future__ import annotations

from dataclasses import replace

from latentprint.audit import stages
from latentprint.audit.context import Context
from latentprint.audit.stages import Audited
from latentprint.results.notes import SAMPLERS, SEARCH, Further
from latentprint.results.searched import SAMPLES


def further_samplers(context: Context, audited: Audited) -> None:
    """t' and q of each further sampler of the settings, as separate stages."""
    names = list[str]()
    for settings in context.config.sampler.others():
        one = replace(context, config=replace(context.config, sampler=settings))
        stages.search(one, SEARCH.at(settings.label), audited)
        count = context.config.samples.count
        stages.sample(one, SAMPLES.at(settings.label), audited, count, None)
        names.append(settings.label)
    if names and not context.run.stage(SAMPLERS.name).done:
        context.finish(SAMPLERS, Further(names=tuple(names)))
