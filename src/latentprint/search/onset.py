"""When did the model begin to memorise? The same search after several numbers of training steps.

A try is the same at every checkpoint: the id decides its noise, so two checkpoints that disagree on a try
differ only by their weights. Of the tries on which a checkpoint and a reference disagree, u came back from
the checkpoint only, and d from the reference only. If at no noise level the image comes back from the
checkpoint more often than from the reference, each disagreement falls to the checkpoint with probability 1/2
at most, and

    p = P(X >= u),  X ~ Binomial(u + d, 1/2)                    (sign test; McNemar 1947, exact and one-sided)

is a p-value, whatever the noise levels are. Memorising has begun at the first checkpoint whose p, times the
number of checkpoints compared (Bonferroni), is at most 1 - level. The reference is the control, trained alike
without x_p. Without a control it is the first checkpoint; a rise can then also mean that the model restores
every image better, not only this one.

Source: McNemar, Psychometrika 12 (1947).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

from latentprint.search.boundary import TPrime

_binom = cast(Any, stats).binom

Rows = Mapping[str, NDArray[Any]]
Against = Literal["control", "first checkpoint"]


@dataclass(frozen=True)
class CheckpointSearch:
    """One checkpoint: its step, its search, and the rows of that search (``id``, ``hit``)."""

    step: int
    found: TPrime
    rows: Rows


@dataclass(frozen=True)
class Onset:
    """When the image began to come back more often than from the reference.

    Attributes:
        against: the reference.
        p_values: of each checkpoint, in the order of steps; None for one that is the reference itself.
        step: the first at which memorising has begun at ``level``; None if it has at none.
        level: confidence, over all checkpoints together.
        sentence: the finding in words.
    """

    against: Against
    p_values: tuple[float | None, ...]
    step: int | None
    level: float
    sentence: str


def disagreements(rows: Rows, reference: Rows) -> tuple[int, int]:
    """(u, d): tries of both that came back only in ``rows``, and only in ``reference``."""
    _, mine, theirs = np.intersect1d(rows["id"], reference["id"], assume_unique=True, return_indices=True)
    if not len(mine):
        raise ValueError("the two searches have no try in common, so they cannot be compared")
    one, other = rows["hit"][mine].astype(np.bool_), reference["hit"][theirs].astype(np.bool_)
    return int(np.count_nonzero(one & ~other)), int(np.count_nonzero(~one & other))


def sign_test(up: int, down: int) -> float:
    """P(X >= up) for X ~ Binomial(up + down, 1/2); 1 if nothing disagrees."""
    return float(_binom.sf(up - 1, up + down, 0.5))


def onset(looks: Sequence[CheckpointSearch], control: Rows | None, *, level: float = 0.95) -> Onset:
    """Compare each checkpoint with the control's rows or, if there are none, with the first checkpoint."""
    if not looks:
        raise ValueError("at least one checkpoint is needed, got none")
    steps = [one.step for one in looks]
    if steps != sorted(set(steps)):
        raise ValueError(f"checkpoints must come in rising order of their steps, each once, got {steps}")
    against: Against = "control" if control is not None else "first checkpoint"
    reference = control if control is not None else looks[0].rows
    compared = list(looks) if control is not None else list(looks[1:])
    found = {one.step: sign_test(*disagreements(one.rows, reference)) for one in compared}
    limit = (1 - level) / max(1, len(compared))
    first = next((step for step, p in found.items() if p <= limit), None)
    p_values = tuple(found.get(step) for step in steps)
    return Onset(against, p_values, first, level, _sentence(looks, against, first))


def _sentence(looks: Sequence[CheckpointSearch], against: Against, first: int | None) -> str:
    last = looks[-1]
    reached = (
        "never comes back" if last.found.value is None else f"comes back up to t' = {last.found.value:.4g}"
    )
    end = f"after the last, step {last.step:,}, it {reached}"
    if len(looks) == 1 and against != "control":
        return f"There is one checkpoint, so nothing to compare it with; {end}."
    beside = "the control" if against == "control" else f"step {looks[0].step:,}, the first"
    if first is None:
        text = f"At none of {len(looks)} checkpoints does the image come back more often than from {beside};"
        text += f" {end}."
    else:
        text = (
            f"The image comes back more often than from {beside} at step {first:,} for the"
            f" first time ({len(looks)} checkpoints looked at); {end}."
        )
    if against != "control":
        text += " Without a control, a model that learns to restore any image cannot be told from one that"
        text += " learns this one by heart."
    return text
