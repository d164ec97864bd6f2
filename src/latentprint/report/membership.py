"""The report's section on membership scores."""

from __future__ import annotations

from latentprint import words
from latentprint.report.blocks import Block, Note, Section, Table
from latentprint.report.public import RunFacts, said
from latentprint.results import Results
from latentprint.results.model import Score

_NAMES = {"loss": "Loss", "secmi": "SecMI", "pia": "PIA", "likelihood": "Likelihood"}


def membership_section(results: Results, _: RunFacts) -> Section | None:
    """How well four known scores tell training images from others, and what they say about the private
    one."""
    found = results.membership
    if found is None:
        return None
    lead = (
        "Can an outsider with the model tell whether an image was trained on? Scores from the literature,"
        " on training images and on images never trained on. An area of 0.5 is chance, 1 is certainty. This"
        " says whether the model knows its images, not whether it gives them back."
    )
    blocks: list[Block] = []
    if found.note is not None:
        blocks.append(Note(f"None was computed: {said(found.note)}."))
    if found.scores:
        shares = [f"Found at {words.percent(at.wanted)} false" for at in found.scores[0].at]
        head = (
            "Score", "Area under the curve", f"{found.level:.0%} interval", *shares, "Private image: p-value",
        )  # fmt: skip
        told = (
            "Found: training images above the score that the named share of other images exceeds. A star"
            " marks a share for which there were too few other images. p-value: the chance that an image"
            " never trained on scores as high as the private one."
        )
        rows = [_row(one) for one in found.scores]
        blocks.append(Table("Membership scores", head, rows, (False, *[True] * (len(head) - 1)), told))
    if found.low is not None and found.high is not None:
        span = f"{words.number(found.low)} and {words.number(found.high)}"
        blocks.append(Note(f"The best of them lies between {span} (all intervals hold together)."))
    return Section("membership", "Membership scores", lead, blocks)


def _row(one: Score) -> tuple[str, ...]:
    return (
        _NAMES.get(one.name, said(one.name, 40)),
        words.number(one.auc.value),
        f"{words.number(one.auc.low)} – {words.number(one.auc.high)}",
        *(f"{words.of(at.tpr.k, at.tpr.n)}{'' if at.resolved else ' *'}" for at in one.at),
        words.number(one.target.p_value, 2),
    )
