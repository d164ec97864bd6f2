"""The report's section on membership scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentprint import words
from latentprint.report.blocks import Block, Note, Section, Table
from latentprint.report.reading import at, confidence, items, mapping, rate, trials
from latentprint.report.reading import words as text

_NAMES = {"loss": "Loss", "secmi": "SecMI", "pia": "PIA", "likelihood": "Likelihood"}


def membership_section(results: Mapping[str, Any]) -> Section | None:
    """How well four known scores tell training images from others, and what they say of the private one."""
    source = mapping(results, "membership")
    if not source:
        return None
    lead = (
        "Can an outsider with the model tell whether an image was trained on? Scores from the literature, on"
        " training images and on images never trained on. An area of 0.5 is a coin, 1 is certainty. This says"
        " whether the model knows its images, not whether it gives them back."
    )
    blocks: list[Block] = []
    if (note := text(source, "note")) is not None:
        blocks.append(Note(f"None was computed: {note}."))
    rows = [
        (
            _NAMES.get(str(at(one, "name")), text(one, "name", 40) or words.NOTHING),
            words.number(rate(one, "auc.value")),
            f"{words.number(rate(one, 'auc.low'))} – {words.number(rate(one, 'auc.high'))}",
            *(_found(one, share) for share in range(2)),
            words.number(rate(one, "target.p_value"), 2),
        )
        for one in items(source, "scores")
    ]
    if rows:
        level = words.percent(confidence(source, "level"))
        head = (
            "Score",
            "Area under the curve",
            f"{level} interval",
            "Found at 1% false",
            "Found at 0.1% false",
            "Private image: p-value",
        )
        told = (
            "Found: training images above the score that the named share of other images exceeds. A star:"
            " fewer other images than that share needs to mean anything. p-value: the chance that an image"
            " never trained on scores as high as the private one."
        )
        blocks.append(Table("Membership scores", head, rows, (False, True, True, True, True, True), told))
        low, high = rate(source, "low"), rate(source, "high")
        if low is not None and high is not None:
            span = f"{words.number(low)} and {words.number(high)}"
            blocks.append(Note(f"The best of them lies between {span} (all intervals hold together)."))
    return Section("membership", "Membership scores", lead, blocks)


def _found(one: Any, share: int) -> str:
    entries = items(one, "at")
    if share >= len(entries):
        return words.NOTHING
    found = trials(entries[share], "tpr")
    star = "" if at(entries[share], "resolved") is True else " *"
    return words.NOTHING if found is None else f"{found.k:,} of {found.n:,}{star}"
