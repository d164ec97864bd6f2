"""A text-to-image model under its prompts: which prompt gives which image back.

    pair        a training image with its own prompt, or a held-out image with its own
    came back   under its own prompt at least one of the images generated is a copy of that very image (a copy
                is nearer than real images are to each other: `stats.returned`)

If it makes no difference which pairs were trained on, the pairs that came back are a random draw from all
pairs: the exact tests of `stats.returned`. A prompt by itself makes generated images resemble its own image.
A pair is therefore compared with other pairs, and never an image under its prompt with images under other
prompts.

The base model gets the same prompts with the same noise, so the two models are compared prompt by prompt
(McNemar 1947, exact).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats  # pyright: ignore[reportMissingTypeStubs]

from latentprint.results.counted import Counted
from latentprint.results.searched import Search
from latentprint.results.value import Chance, Count, Note, Sha256, Value
from latentprint.stats import Trials
from latentprint.stats.returned import HELDOUT, TRAIN, Returned, is_copy
from latentprint.stats.roc import AtFalsePositives, Auc, rank_p_value, separation

EACH = 2**20
"""Ids per prompt: image i of prompt p is p EACH + i."""

What = Literal["own", "empty", "other", "further"]
Columns = Mapping[str, NDArray[Any]]

_binomial = cast(Any, scipy_stats).binom


class ConditionNote(Value):
    """A prompt under which x_p was looked for: a hash of its words, its image, and the name of its rows."""

    what: What
    prompt: Sha256
    image: Count | None
    guidance: float
    name: str


class PromptNote(Value):
    """The stage's note: what was asked, in the order of the numbers of its rows.

    Attributes:
        base: whether the base model was asked too.
        train: hashes of the prompts of all training images; ``cut``: tokens of each that no encoder sees.
        further: hashes of further prompts.
        alike: whether all images share one prompt, so that one condition serves them all.
        pairs: whether pairs were asked.
    """

    guidance: float
    base: bool
    conditions: tuple[ConditionNote, ...]
    target: Count
    train: tuple[Sha256, ...]
    cut: tuple[Count, ...]
    further: tuple[Sha256, ...]
    alike: bool
    pairs: bool


PROMPTS = Note("prompts", "asked", PromptNote)


class Condition(Value):
    """x_p under one prompt and scale: the same questions as under its own prompt; ``base``: the base's
    count."""

    what: What
    prompt: Sha256
    image: Count | None
    guidance: float
    t_prime: Search
    q: Counted
    base: Trials | None


_WHAT = {"own": "Its own prompt", "empty": "The empty prompt"}


def named(conditions: Sequence[Condition | ConditionNote]) -> list[str]:
    """The prompts of these conditions, by number and not by their words."""
    further = count(1)
    return [
        f"The prompt of image {one.image:,}"
        if one.what == "other"
        else _WHAT.get(one.what) or f"Further prompt {next(further)}"
        for one in conditions
    ]


class ByPrompt(Value):
    """What one prompt gives.

    Attributes:
        image: the training image whose prompt it is; null for a further prompt.
        cut: tokens beyond the encoder's limit, which the model never sees.
        own: copies of its own image, of ``samples`` generated; null if it has no image.
        any: copies of any training image; ``most``: which of them came most often.
        base_own, base_any: the same for the base model.
    """

    image: Count | None
    prompt: Sha256
    cut: Count = 0
    samples: Count
    own: Count | None
    any: Count
    most: Count | None
    base_own: Count | None = None
    base_any: Count | None = None


class Sign(Value):
    """A sign of memorisation that prompts show (`audit.signs`): its worth on held-out prompts, and x_p's
    value.

    Attributes:
        p_value: rank of the prompt of x_p among those held out.
    """

    name: str
    auc: Auc
    at: tuple[AtFalsePositives, ...]
    target: float
    p_value: Chance


class Prompts(Value):
    """What prompts give back (see the module).

    Attributes:
        asked: x_p under other prompts and scales than those of the audit.
        each: training images under their own prompts, those that came back most often first.
        further: further prompts that were asked.
        came_back, heldout, base: pairs that came back at least once: trained on, held out, of the base model.
        p_value: of "which pairs were trained on makes no difference"; null without held-out pairs.
        base_p: of "the base model gives as many back", prompt by prompt; null without a base.
        signs: empty if too few held-out images have prompts.
    """

    guidance: float
    asked: tuple[Condition, ...]
    each: tuple[ByPrompt, ...]
    further: tuple[ByPrompt, ...]
    came_back: Trials | None
    heldout: Trials | None
    base: Trials | None
    p_value: Chance | None
    base_p: Chance | None
    signs: tuple[Sign, ...] = ()
    sentence: str
    network_evaluations: Count


@dataclass(frozen=True)
class Rows:
    """Rows of images generated under prompts, each (n,) by column; ``pool`` are the real images' own rows.

    Attributes:
        place: (N,) the place of each training image in the pool.
    """

    train: Columns
    heldout: Columns
    further: Columns
    base: Columns
    base_further: Columns
    pool: Columns
    place: NDArray[np.int64]
    signs: Columns = field(default_factory=dict[str, NDArray[Any]])
    heldout_signs: Columns = field(default_factory=dict[str, NDArray[Any]])


SIGNS = ("magnitude", "alignment", "entropy", "ending")


def _signs(rows: Rows, target: int) -> tuple[Sign, ...]:
    inside, outside = rows.signs, rows.heldout_signs
    names = [name for name in SIGNS if name in inside and name in outside]
    if not names or min(len(inside["id"]), len(outside["id"])) < 2:
        return ()
    own = int(np.flatnonzero(inside["id"] == target)[0])
    members, held = ({name: one[name] for name in names} for one in (inside, outside))
    return tuple(
        Sign(
            name=one.name,
            auc=one.auc,
            at=one.at,
            target=float(members[one.name][own]),
            p_value=rank_p_value(float(members[one.name][own]), held[one.name]),
        )
        for one in separation(members, held)
    )


def returned_pairs(rows: Rows, target: int) -> Returned | None:
    """Which pairs came back, in the form that the verdict uses; None without held-out pairs.

    Args:
        target: the number of x_p among the training images.
    """
    if not len(rows.heldout.get("id", ())) or not len(rows.train.get("id", ())):
        return None
    whose, unit = rows.pool["whose"], rows.pool["unit"]
    counts = dict[int, dict[int, int]]()
    copies = total = 0
    for side, generated in ((TRAIN, rows.train), (HELDOUT, rows.heldout)):
        own = _own(generated, rows.pool)
        copies, total = copies + int(own.sum()), total + len(own)
        found = counts.setdefault(side, {})
        for place, one in zip(generated["own"].tolist(), own.tolist(), strict=True):
            if whose[place] == side:
                found[int(unit[place])] = found.get(int(unit[place]), 0) + one
    mine = counts[TRAIN].get(int(unit[rows.place[target]]), 0)
    train, held = list(counts[TRAIN].values()), list(counts[HELDOUT].values())
    return Returned(
        Trials(copies, total),
        Trials(sum(one > 0 for one in train), len(train)),
        Trials(sum(one > 0 for one in held), len(held)),
        mine,
        Trials(sum(one >= mine for one in held), len(held)),
    )


def prompts(rows: Rows, note: PromptNote, asked: Sequence[Condition]) -> Prompts:
    """Everything that the prompts gave, from rows and notes alone."""
    each = _by_prompt(rows, rows.train, rows.base, note.train, note.cut)
    further = _by_prompt(rows, rows.further, rows.base_further, note.further, (), own=False)
    together = returned_pairs(rows, note.target)
    back = Trials(sum(bool(one.own) for one in each), len(each)) if each else None
    told = note.base and back is not None
    base = Trials(sum(bool(one.base_own) for one in each), len(each)) if told else None
    every = [rows.train, rows.heldout, rows.further, rows.base, rows.base_further]
    every += [rows.signs, rows.heldout_signs]
    cost = sum(int(one["evaluations"].sum()) for one in every if "evaluations" in one)
    cost += sum(one.t_prime.network_evaluations + one.q.network_evaluations for one in asked)
    held = None if together is None else together.heldout
    return Prompts(
        guidance=note.guidance,
        asked=tuple(asked),
        each=each,
        further=further,
        came_back=back,
        heldout=held,
        base=base,
        p_value=None if together is None else together.whole_set_p,
        base_p=_beyond_base(each) if base is not None else None,
        signs=_signs(rows, note.target),
        sentence=_sentence(back, held, base),
        network_evaluations=cost,
    )


def _own(rows: Columns, pool: Columns) -> NDArray[np.bool_]:
    """Which of the images are copies of the image whose prompt they were made under."""
    return _copies(rows, pool) & (rows["pool_nearest"] == rows["own"])


def _copies(rows: Columns, pool: Columns) -> NDArray[np.bool_]:
    return is_copy({name: rows[f"pool_{name}"] for name in ("nearest", "distance", "ten")}, pool)


def _by_prompt(
    rows: Rows,
    generated: Columns,
    base: Columns,
    prompts: Sequence[str],
    cut: Sequence[int],
    *,
    own: bool = True,
) -> tuple[ByPrompt, ...]:
    if not len(generated.get("id", ())):
        return ()
    number = {int(place): i for i, place in reversed(list(enumerate(rows.place.tolist())))}
    seen = _counted(rows, generated, number)
    beside = _counted(rows, base, number) if len(base.get("id", ())) else {}
    found = [
        ByPrompt(
            image=prompt if own else None,
            prompt=prompts[prompt],
            cut=cut[prompt] if cut else 0,
            samples=n,
            own=mine if own else None,
            any=any_,
            most=most,
            base_own=beside[prompt][1] if own and prompt in beside else None,
            base_any=beside[prompt][2] if prompt in beside else None,
        )
        for prompt, (n, mine, any_, most) in seen.items()
    ]
    return tuple(sorted(found, key=lambda one: (-(one.own or 0), -one.any, one.image or 0)))


def _counted(
    rows: Rows, generated: Columns, number: Mapping[int, int]
) -> dict[int, tuple[int, int, int, int | None]]:
    """By prompt: images, copies of its own image, copies of any training image, and which image came most."""
    copied = _copies(generated, rows.pool)
    trained = np.array([place in number for place in generated["pool_nearest"].tolist()], np.bool_)
    own = copied & (generated["pool_nearest"] == generated["own"])
    found = dict[int, tuple[int, int, int, int | None]]()
    for prompt in np.unique(generated["id"] // EACH).tolist():
        mine = generated["id"] // EACH == prompt
        places, counts = np.unique(generated["pool_nearest"][mine & copied & trained], return_counts=True)
        most = number[int(places[counts.argmax()])] if len(places) else None
        found[int(prompt)] = int(mine.sum()), int((own & mine).sum()), int(counts.sum()), most
    return found


def _beyond_base(each: Sequence[ByPrompt]) -> float:
    """P(as many prompts or more give their image back in the model alone), of those that differ."""
    alone = sum(bool(one.own) and not one.base_own for one in each)
    other = sum(bool(one.base_own) and not one.own for one in each)
    return float(_binomial.sf(alone - 1, alone + other, 0.5)) if alone else 1.0


def _sentence(back: Trials | None, held: Trials | None, base: Trials | None) -> str:
    if back is None:
        return "Prompts were not asked one by one."
    said = f"Of {back.n:,} prompts that were trained on, {back.k:,} gave their own image back"
    if held is not None:
        said += f"; of {held.n:,} prompts of images that it never saw, {held.k:,} did"
    if base is not None:
        said += f". The base model gave {base.k:,} of the {base.n:,} back"
    return f"{said}."
