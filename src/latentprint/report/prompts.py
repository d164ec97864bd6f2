"""Which prompt gives which image back: the private image under other prompts, and every prompt on its own.

Prompts may contain names, so the page identifies them by the number of their image. The confidential page has
their words.
"""

from __future__ import annotations

from latentprint import words
from latentprint.report.blocks import Block, Pairs, Points, Section, Table
from latentprint.report.public import RunFacts, said
from latentprint.results import Results
from latentprint.results.prompts import ByPrompt, Condition, Sign, named
from latentprint.stats import Trials

SHOWN = 50
"""Prompts shown in the page; results.json has all."""


def prompts_section(results: Results, _: RunFacts) -> Section | None:
    """None for a model that takes no prompts."""
    found, count = results.prompts, results.q.monte_carlo
    if found is None:
        return None
    t_prime, control = results.t_prime, results.q.control
    first = [
        "Its own prompt (the audit's)",
        f"{found.guidance:g}",
        _level(None if t_prime is None else t_prime.value),
        words.of(count.hits, count.samples),
        "not asked" if control is None else words.of(control.hits, control.samples),
    ]
    head = ("Prompt", "Guidance", "t\u2032", "Times seen", "By the base model")
    aligned = (False, True, True, True, True)
    note = (
        "All rows are of the private image, from the same noise. t\u2032 is the noise from which it still"
        " comes back (1: from pure noise)."
    )
    rows = [first, *map(_asked, named(found.asked), found.asked)]
    blocks: list[Block] = [Table("The private image under prompts", head, rows, aligned, note)]
    if found.each:
        blocks += [Pairs(_tests(results)), _each(found.each)]
    if found.further:
        further = [(f"Further prompt {i}", *_counts(one)) for i, one in enumerate(found.further, 1)]
        head = ("Prompt", "Images made", "Copies of any training image", "The base model", "Most often")
        blocks.append(Table("Prompts that are no training image's", head, further, (False, *[True] * 4)))
    if found.signs:
        blocks.append(_signs(found.signs))
    if cut := sum(one.cut > 0 for one in found.each):
        blocks.append(Points([f"{cut:,} prompts are longer than the text encoder reads, and were cut off."]))
    lead = f"{said(found.sentence)} Prompts are named by the numbers of their images; the words are"
    lead += " confidential."
    return Section("prompts", "Which prompt gives which image back", lead, blocks)


def _asked(what: str, one: Condition) -> list[str]:
    base = "not asked" if one.base is None else words.of(one.base.k, one.base.n)
    seen = words.of(one.q.hits, one.q.samples)
    return [what, f"{one.guidance:g}", _level(one.t_prime.value), seen, base]


def _level(value: float | None) -> str:
    return "never" if value is None else f"{value:.2g}"


def _tests(results: Results) -> list[tuple[str, str]]:
    found = results.prompts
    assert found is not None
    rows = [("Prompts that gave their own image back", _of(found.came_back))]
    rows.append(("Prompts of images never trained on that did", _of(found.heldout)))
    rows.append(("Prompts that did with the base model", _of(found.base)))
    if found.p_value is not None:
        chance = "p-value of \u201cit is no matter which images were trained on\u201d"
        rows.append((chance, words.number(found.p_value, 2)))
    if found.base_p is not None:
        told = "p-value of \u201cthe base model gives as many back\u201d, prompt by prompt"
        rows.append((told, words.number(found.base_p, 2)))
    return rows


def _of(counted: Trials | None) -> str:
    return "not asked" if counted is None else words.of(counted.k, counted.n)


def _each(each: tuple[ByPrompt, ...]) -> Table:
    with_base = any(one.base_own is not None for one in each)
    head = ("Image", "Its prompt gave it back", "Any training image", "Most often")
    rows = [
        (
            f"{one.image:,}",
            words.of(one.own or 0, one.samples),
            words.of(one.any, one.samples),
            _most(one),
            *([words.of(one.base_own or 0, one.samples)] if with_base else []),
        )
        for one in each[:SHOWN]
    ]
    head = (*head, *(["The base model gave it back"] if with_base else []))
    note = f"The first {SHOWN} of {len(each):,}; results.json has all." if len(each) > SHOWN else ""
    return Table("Each prompt by itself", head, rows, [True] * len(head), note)


_SIGNS = {
    "magnitude": "How far the prompt moves pure noise",
    "alignment": "How much it moves every noise the same way",
    "entropy": "Attention kept to few words",
    "ending": "Attention on the end of the prompt",
}


def _signs(signs: tuple[Sign, ...]) -> Table:
    shares = [f"Found at {words.percent(at.wanted)} false" for at in signs[0].at]
    head = ("Sign", "Area under the curve (95% interval)", *shares, "Private image: p-value")
    rows = [
        (
            _SIGNS.get(one.name, one.name),
            f"{one.auc.value:.2f} ({one.auc.low:.2f} to {one.auc.high:.2f})",
            *(f"{words.of(at.tpr.k, at.tpr.n)}{'' if at.resolved else ' *'}" for at in one.at),
            words.number(one.p_value, 2),
        )
        for one in signs
    ]
    note = (
        "Signs need no image to be compared. They rank prompts, and prove nothing by themselves. An area"
        " of 0.5 is chance, 1 is certainty. Found: prompts trained on, above the score that the named share"
        " of held-out prompts exceeds. A star marks a share for which there were too few of these."
    )
    return Table("Signs of memory in prompts", head, rows, (False, *[True] * (len(head) - 1)), note)


def _counts(one: ByPrompt) -> tuple[str, str, str, str]:
    base = "not asked" if one.base_any is None else words.of(one.base_any, one.samples)
    return f"{one.samples:,}", words.of(one.any, one.samples), base, _most(one)


def _most(one: ByPrompt) -> str:
    return "none" if one.most is None else f"image {one.most:,}"
