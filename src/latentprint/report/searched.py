"""How t' was searched, compared with which images, and t' over training: when memorising began."""

from __future__ import annotations

from latentprint import words
from latentprint.report.blocks import Block, Note, Section
from latentprint.report.figures import beside_figure, curve_figure, growth_figure, strip_figure
from latentprint.report.public import RunFacts, said
from latentprint.results import Results
from latentprint.results.searched import Baseline, Search

METHODS = {
    "exhaustive": "every noise level was asked",
    "bisection": "by halving the range of noise above which it no longer comes back",
    "subsample": "at noise levels drawn at random",
    "reduced_range": "at the noise levels of a chosen range",
    "sequential": "by halving, with as many tries at a level as decided it",
}


def search_section(results: Results, _: RunFacts) -> Section | None:
    """t' of the private image and of its control, then both beside images never trained on."""
    found = results.t_prime
    if found is None:
        return None
    law, agreement = found.baseline, results.detectors.agreement
    lead = (
        "Noise was laid over the private image, little by little more, and the model was asked to restore an"
        f" image from it, {found.tries} times at each level. A model that has learned the image by heart"
        " brings it back even from much noise."
    )
    told = [_came_back(found), said(found.statement), said(found.falling.sentence), method(found)]
    figures: list[Block | None] = [curve_figure(found)]
    if law is not None:
        told.append(against_the_null(law))
        figures += [beside_figure(law, found.band.level), strip_figure(law)]
    if agreement is not None:
        told.append(said(agreement.sentence))
    blocks: list[Block] = [Note(one) for one in told]
    blocks += [one for one in figures if one is not None]
    return Section("search", "How well the model remembers it", lead, blocks)


def _came_back(found: Search) -> str:
    own = (
        "never came back" if found.value is None else f"still came back from t′\u00a0=\u00a0{found.value:.3g}"
    )
    if found.control is None:
        return f"It {own}."
    value = found.control.value
    other = "never brought it back" if value is None else f"brought it back up to t′\u00a0=\u00a0{value:.3g}"
    return f"It {own}. The control, which never saw it, {other}."


def against_the_null(law: Baseline) -> str:
    """x_p's t' among those of images never trained on, all measured alike."""
    own = law.target.value
    came = "never came back" if own is None else f"came back from t′\u00a0=\u00a0{own:.3g}"
    excess = "" if law.excess is None else f", {law.excess:+.2g} against their median"
    return (
        f"{law.images} images never trained on were searched in the same way, all judged by the"
        f" {law.question.recogniser} with {law.question.tries} tries at each level. Judged so, the private"
        f" image {came}{excess}. If it were one of them, a value as high or higher would have probability"
        f" p\u00a0=\u00a0{words.number(law.p_value, 2)}."
    )


def method(found: Search) -> str:
    """How t' was searched, and with how many tries."""
    how = METHODS.get(found.method, found.method)
    return f"Search: {how}; {sum(found.trials):,} tries at {len(found.grid)} of {found.levels} noise levels."


def growth(results: Results, _: RunFacts) -> Section | None:
    """t' at the checkpoints of training as a plot, its numbers and the finding."""
    found = results.checkpoints
    if found is None or not found.steps:
        return None
    control = None if results.t_prime is None else results.t_prime.control
    asked_alike = control is not None and control.tries == found.tries
    lead = (
        "The same search after several numbers of training steps, with the same tries each time: what changes"
        " from step to step is the model's memory, and its skill."
    )
    plain = "No checkpoint shows that the model had begun to memorise the image."
    if found.onset is not None:
        other = "a model never given it" if found.against == "control" else "the first checkpoint"
        plain = f"The model knows the image better than {other} at step {found.onset:,} for the first time."
    figure = growth_figure(found, None if control is None else control.value, asked_alike)
    blocks = [Note(plain), Note(said(found.sentence)), figure]
    return Section("growth", "When the model began to remember it", lead, blocks)
