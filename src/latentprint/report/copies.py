"""Does the model give back *any* training image? The whole set, not only the one that was marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentprint import words
from latentprint.report.blocks import Block, Pairs, Points, Section, Table
from latentprint.report.public import RunFacts
from latentprint.results import Results
from latentprint.results.whole_set import WholeSet as Compared
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
    train, held, copies, every = found.train, found.heldout, found.copies, results.whole_set
    came = f"{train.k:,} of {train.n:,} training images came back"
    compared = (
        f"Every generated image was compared with every real one: {words.of(copies.k, copies.n)} are copies"
        f" of one. Of {held.n:,} images never trained on, {f'{held.k:,}' if held.k else 'none'} came back."
    )
    if "whole set" in rejects and every is not None and every.copies.k:
        k, n = every.copies.k, every.copies.n
        came = words.of(every.memorised.k, every.memorised.n)
        counted = f"generated images are copies of training images; {came} training images came back"
        return WholeSet(True, f"Yes. {' '.join(told(every))}", words.of(k, n), counted)
    if "whole set" in rejects:
        counted = f"training images came back among {copies.n:,} generated images"
        return WholeSet(True, f"Yes: {came}. {compared}", words.of(train.k, train.n), counted)
    if every is not None and every.copies.k:
        compared += f" By the rule that also sees copies that were moved or changed: {' '.join(told(every))}"
    if rejects:
        return WholeSet(False, f"Yes: the private image comes back. {compared}")
    if not train.k and (every is None or not every.copies.k):
        return WholeSet(False, f"None was found. {compared}")
    if not train.k:
        return WholeSet(False, f"It cannot be told. {compared}")
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


def told(found: Compared) -> Sequence[str]:
    """The answer in plain sentences, the most important first."""
    c, m, u = found.copies, found.memorised, found.unseen
    if not c.k:
        out = [f"None of {c.n:,} generated images is a copy of a training image."]
    else:
        share = "More than half" if c.rate > 0.5 else words.one_in(c.rate)
        are = "is a copy of a training image" if share[:2] == "1 " else "are copies of its training images"
        out = [f"{share} of the images it makes {are}: {c.k:,} of {c.n:,}."]
        shown = f"all {m.n:,}" if m.k == m.n else f"{m.k:,} of the {m.n:,}"
        out.append(f"Together they show {shown} training images.")
    if found.persons is not None and found.persons.k:
        out.append(f"{found.persons.k:,} of {found.persons.n:,} persons came back.")
    out += _beside_others(found)
    if found.false_alarms is not None:
        f = found.false_alarms
        taken = f"wrongly takes {f.k:,} for copies" if f.k else "takes none for a copy"
        out.append(f"Of {f.n:,} real images that it never saw, the same rule {taken}.")
    if u.low is not None and u.high:
        more = f"at least {u.low:,} and up to {u.high:,}" if u.low else f"up to {u.high:,}"
        out.append(f"More images would show {more} training image{'s' * (u.high > 1)} not seen so far.")
    return out


def _beside_others(found: Compared) -> list[str]:
    """Whether the private image came back as often as the others, by the same rule; nothing where no copy
    was found."""
    if found.target is None or found.median is None or not found.copies.k:
        return []
    own, median = found.target, found.median
    said = (
        f"The private image came back {words.often(own.k)}, the training image in the middle"
        f" {words.often(median)}."
    )
    if own.high * own.n < median:
        return [said, "So what is said about the private image understates what happens to the others."]
    if own.low * own.n > median:
        return [said, "So the private image comes back more often than most."]
    return [said]
