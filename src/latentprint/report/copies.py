"""Does the model give back *any* training image? The whole set, not only the one that was marked."""

from __future__ import annotations

from dataclasses import dataclass

from latentprint import words
from latentprint.report.blocks import Block, Pairs, Points, Section, Table
from latentprint.report.public import RunFacts
from latentprint.results import Results
from latentprint.results.whole_set import WholeSet as Compared
from latentprint.results.whole_set import told
from latentprint.stats import Trials


@dataclass(frozen=True)
class WholeSet:
    """What the first screen says about all training images together.

    Attributes:
        leaks: more training images came back than chance allows; ``big`` and ``counted`` are then the page's
            large number and its unit.
        answer: to "does it give back any training image?", in sentences.
    """

    leaks: bool
    answer: str
    big: str = ""
    counted: str = ""


def whole_set(results: Results) -> WholeSet:
    """The first answer of every report."""
    found, n = results.returned, results.data.images
    rejects = {one.name for one in results.verdict.tests if one.rejects}
    if found is None:
        others = f"The other {n - 1:,} training images were not compared with what it generates."
        if results.whole_set is not None:
            others = (
                f"{' '.join(told(results.whole_set))} There were too few real images to test this further."
            )
        if rejects:
            return WholeSet(False, f"Yes: the private image comes back. {others}")
        return WholeSet(False, f"This run looked for one of them, the private image. {others}")
    train, held, copies = found.train, found.heldout, found.copies
    came = f"{train.k:,} of {train.n:,} training images came back"
    compared = (
        f"Every generated image was compared with every real one: {words.of(copies.k, copies.n)} are copies"
        f" of one. Of {held.n:,} images never trained on, {f'{held.k:,}' if held.k else 'none'} came back."
    )
    if "whole set" in rejects and (every := results.whole_set) is not None and every.copies.k:
        k, n = every.copies.k, every.copies.n
        came = words.of(every.memorised.k, every.memorised.n)
        counted = f"generated images are copies of training images; {came} training images came back"
        return WholeSet(True, f"Yes. {' '.join(told(every))}", words.of(k, n), counted)
    if "whole set" in rejects:
        counted = f"training images came back among {copies.n:,} generated images"
        return WholeSet(True, f"Yes: {came}. {compared}", words.of(train.k, train.n), counted)
    if rejects:
        return WholeSet(False, f"Yes: the private image comes back. {compared}")
    if not train.k:
        return WholeSet(False, f"None was found. {compared}")
    return WholeSet(False, f"It cannot be told: {came}, but so may images that only look alike. {compared}")


def whole_set_section(results: Results, _: RunFacts) -> Section | None:
    """Which real images came back: training images beside images never trained on."""
    found = results.returned
    if found is None:
        return None
    counts = [
        _counted("Training images that came back", found.train),
        _counted("Images never trained on that came back", found.heldout),
        _counted("Generated images that are a copy of a real one", found.copies),
        _counted("Images never trained on with as many copies as the private one", found.mock),
    ]
    facts = [
        ("Copies of the private image", f"{found.target:,}"),
        (
            "p-value of “which images were trained on makes no difference”",
            words.number(found.whole_set_p, 2),
        ),
        ("p-value of “the private image is like one never trained on”", words.number(found.target_p, 2)),
    ]
    lead = (
        "Each generated image was compared with all training images and with images never trained on. A"
        " copy is nearer to a real image than real images are to each other. Copies of images never trained"
        " on show what happens by chance. This rule compares pixel by pixel, for an exact test; copies that"
        " were moved or changed are in the tables below it."
    )
    table = Table("Counts", ("", "Count", "95% interval"), counts, (False, True, True))
    blocks: list[Block] = [table, Pairs(facts)]
    if results.whole_set is not None:
        blocks += _every(results.whole_set)
    return Section("whole-set", "Which training images came back", lead, blocks)


def _every(found: Compared) -> list[Block]:
    """All generated images against all training images: the criteria, and what was not seen."""
    criteria = [
        (
            one.sentence,
            words.of(one.copies.k, one.copies.n),
            f"{one.memorised:,}",
            "not known" if one.false_alarms is None else words.of(one.false_alarms.k, one.false_alarms.n),
        )
        for one in found.criteria
    ]
    head = ("What is compared", "Copies", "Of so many training images", "False alarms")
    note = (
        "The first line decides. Each threshold is a score that nearly all images never trained on exceed."
        " False alarms are counted on other such images."
    )
    blocks: list[Block] = [Table("Copies by criterion", head, criteria, (False, True, True, True), note)]
    changes = list(found.criteria[0].planted)
    if changes:
        rows = [
            (one.name.replace("_", " "), *(words.of(one.planted[c].k, one.planted[c].n) for c in changes))
            for one in found.criteria
            if one.planted
        ]
        aligned = (False, *[True] * len(changes))
        note = "Copies of training images made on purpose and changed: how many each criterion finds."
        blocks.append(Table("Planted copies found", ("Criterion", *changes), rows, aligned, note))
    if found.curve:
        rows = [
            (f"{one.images:,}", f"{one.expected:.1f}", f"{one.low:.1f} – {one.high:.1f}")
            for one in found.curve
        ]
        head = ("Images generated", "Different training images expected", "95% interval")
        blocks.append(Table("How many come back", head, rows, (True, True, True), found.unseen.assumptions))
    if found.notes:
        blocks.append(Points(found.notes))
    chances = [
        (
            f"{one.images:,}",
            words.percent(one.chance),
            f"{words.percent(one.low)} – {words.percent(one.high)}",
        )
        for one in found.shown
    ]
    head = ("Images generated", "Chance that a training image is among them", "95% interval")
    blocks.append(Table("How soon one is shown", head, chances, (True, True, True)))
    return blocks


def _counted(name: str, one: Trials) -> tuple[str, str, str]:
    low, high = one.interval() if one.n else (0.0, 1.0)
    return name, words.of(one.k, one.n), f"{words.percent(low)} – {words.percent(high)}"
