"""What the report says of generated images that were given in the place of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentprint import words
from latentprint.report.blocks import Block, Pairs, Points, Section, Table
from latentprint.report.reading import at, count, digest, items, mapping, number, rate, trials
from latentprint.report.reading import words as text


def leaking(results: Mapping[str, Any]) -> bool:
    """Whether the samples hold copies of training images."""
    return at(results, "copies.leaks") is True


def headline(results: Mapping[str, Any]) -> tuple[str, str, str]:
    """(headline, the big number, what it counts) of samples that leak."""
    same, near = trials(results, "copies.same"), trials(results, "copies.copies")
    if same is not None and same.k:
        big, what = f"{same.k:,} of {same.n:,}", "generated images are training images but for rounding"
    else:
        big = f"{near.k:,} of {near.n:,}" if near is not None else words.NOTHING
        what = "generated images are nearer to a training image than images never trained on come to be"
    of = count(results, "copies.distinct")
    if of:
        what += f"; {of:,} training image{' is' if of == 1 else 's are'} copied"
    return "These generated images hold copies of training images.", big, what


def found(results: Mapping[str, Any]) -> str:
    """One sentence for the first screen."""
    near, never = trials(results, "copies.copies"), trials(results, "copies.expected")
    if near is None or never is None:
        return ""
    return (
        f" Every training image was compared with every generated one: {near.k:,} of {near.n:,} come as near"
        f" to one as {never.k:,} of {never.n:,} images never trained on do."
    )


NEXT = (
    "Do not release these images, nor the model that made them. Look at the pairs on the confidential page."
    " If you can have the model itself, audit it (--model): it tells how far the memory goes and how rare a"
    " copy must be to be missed."
)


def copies_section(results: Mapping[str, Any]) -> Section | None:
    """The nearest copies with their background; nothing where a model was audited."""
    source = mapping(results, "copies")
    if not source:
        return None
    named = (
        ("Generated images to training images", "samples"),
        ("Training images to each other", "train"),
        ("Images never trained on to training images", "heldout"),
    )
    distances = [
        (name, *(words.number(number(source, f"distance.{key}.{part}")) for part in ("min", "median", "max")))
        for name, key in named
    ]
    counts = [
        (name, *_counted(source, key))
        for name, key in (
            ("Generated images near a training image", "copies"),
            ("The same of images never trained on", "expected"),
            ("Generated images that are a training image but for rounding", "same"),
            ("The same of images never trained on", "same_expected"),
        )
    ]
    facts = [
        ("Training images that the copies are of", words.whole(count(source, "distinct"))),
        ("Training images that are near copies of others", words.whole(count(source, "repeated"))),
        (
            "p-value of “generated images are no nearer than images never trained on”",
            words.number(rate(source, "p_value"), 2),
        ),
    ]
    blocks: list[Block] = [
        Table("Counts", ("", "Count", "95% interval"), counts, (False, True, True)),
        Pairs(facts),
        Table(
            "Distance to the nearest training image",
            ("", "Smallest", "Median", "Largest"),
            distances,
            (False, True, True, True),
            "Root mean squared difference; pixels from 0 to 1.",
        ),
        _pairs(source),
    ]
    lead = (
        "Each generated image was compared with every training image. Near means: by its distance, and by"
        " that distance against the ten nearest, closer than all but one in a hundred images never trained"
        " on."
    )
    return Section("copies", "Nearest copies", lead, blocks)


def _counted(source: Mapping[str, Any], key: str) -> tuple[str, str]:
    one = trials(source, key)
    if one is None:
        return words.NOTHING, words.NOTHING
    low, high = one.interval()
    return f"{one.k:,} of {one.n:,}", f"{words.percent(low)} – {words.percent(high)}"


def _pairs(source: Mapping[str, Any]) -> Table:
    rows = [
        (
            words.whole(count(pair, "sample")),
            (digest(pair, "sha256") or words.NOTHING)[:16],
            words.number(number(pair, "distance")),
            words.number(number(pair, "relative")),
            "yes" if at(pair, "copy") is True else "no",
        )
        for pair in items(source, "pairs")[:100]
    ]
    return Table(
        "The nearest pairs",
        (
            "Generated image",
            "Training image (hash)",
            "Difference",
            "Against the nearest ten",
            "Counts as copy",
        ),
        rows,
        (False, False, True, True, False),
        "The images themselves are confidential and not in this file.",
    )


def not_done_section(results: Mapping[str, Any]) -> Section | None:
    """What this audit could not do, and why."""
    said = [one for note in items(results, "not_done")[:20] if (one := text({"note": note}, "note"))]
    if not said:
        return None
    return Section(
        "not-done", "What could not be done", "", [Points([f"{s[:1].upper()}{s[1:]}." for s in said])]
    )
