"""The first screen: what a person who must decide needs, in words without terms of the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentprint import words
from latentprint.report import copies
from latentprint.report.blocks import First, Table
from latentprint.report.reading import at, confidence, count, items, number, public_source, two_recognisers
from latentprint.report.reading import words as text
from latentprint.stats import Trials, samples_to_exclude
from latentprint.verdict import at_least, evidence, fisher_greater

STATES = {
    "reproduces": ("leak", "Gives the image back", "This model gives back the private image."),
    "not found": ("clean", "Not found", "The private image was not found."),
    "inconclusive": ("unsure", "Undecided", "This run cannot decide."),
}


def first_screen(results: Mapping[str, Any]) -> First:
    """Build the first screen; ``results`` has passed ``reading.check``."""
    state = results["verdict"]["state"]
    css, word, headline = STATES[state]
    leaking = copies.leaking(results)
    if leaking:
        headline, word = copies.headline(results)[0], "Copies found"
    hits = Trials(int(results["q"]["monte_carlo"]["hits"]), int(results["q"]["monte_carlo"]["samples"]))
    control = _control(results)
    level = confidence(results, "q.monte_carlo.level")
    big, big_text = _big(results, state, hits, level)
    answers = [
        ("What we looked for", _looked_for(results)),
        ("What we found", _found(results, hits, control, level)),
        ("How sure this is", _how_sure(results, hits, control)),
        ("What could have been missed", _missed(results, state, hits, level)),
        ("What to do next", copies.NEXT if leaking else _next(results, state, hits, level)),
    ]
    reasons = [
        reason
        for i in range(len(items(results, "verdict.reasons")))
        if (reason := text({"r": items(results, "verdict.reasons")[i]}, "r"))
    ]
    made = "given" if at(results, "model.kind") == "samples" else "generated"
    sub = f"{_images(results)}; {hits.n:,} images {made} and checked."
    return First(css, word, headline, big, big_text, answers, _tally(results, hits, control), reasons, sub)


def _images(results: Mapping[str, Any]) -> str:
    said = "Said to be trained" if at(results, "model") is not None else "Trained"
    return f"{said} on {count(results, 'data.images') or 0:,} images from {public_source(results)}"


def _control(results: Mapping[str, Any]) -> Trials | None:
    hits, n = count(results, "q.control.hits"), count(results, "q.control.samples")
    return Trials(hits, n) if hits is not None and n and hits <= n else None


def _big(results: Mapping[str, Any], state: str, hits: Trials, level: float) -> tuple[str, str]:
    low, high = _span(results, hits, level)
    if copies.leaking(results):
        return copies.headline(results)[1:]
    if state == "reproduces":
        verb = "are" if words.one_in(hits.rate)[:2] != "1 " else "is"
        span = words.between(low, high)
        return words.one_in(hits.rate), f"generated images {verb} the private image; give or take, {span}"
    text = "generated images showed the private image"
    missed = _upper(results, hits, level)
    if missed is not None:
        text += f"; up to {words.one_in(missed)} could have gone unseen"
    return f"{hits.k:,} of {hits.n:,}", text


def _span(results: Mapping[str, Any], hits: Trials, level: float) -> tuple[float, float]:
    """The interval of the count; the one stated where sampling stopped on sight of it."""
    sight = evidence(results).sight
    return hits.interval(level) if sight is None else (sight.low, sight.high)


def _upper(results: Mapping[str, Any], hits: Trials, level: float) -> float | None:
    """The largest rate that agrees with the count, the detectors' own misses included; None: unknown."""
    counts = evidence(results)
    if counts.sight is not None and hits.k:
        return counts.sight.through[1]
    sensitivity = counts.sensitivity(level)
    return min(1.0, hits.upper(level) / sensitivity) if sensitivity > 0 else None


def _looked_for(results: Mapping[str, Any]) -> str:
    n, copies = count(results, "data.images") or 0, count(results, "target.copies") or 1
    kind = text(results, "target.fingerprint.kind", 40)
    if at(results, "target.injected") is False or kind is None:
        what = f"One private image among the {n:,} that the model was trained on, left as it was."
    else:
        what = (
            f"One private image among the {n:,} that the model was trained on. Before training it was marked"
            f" with a small grey {kind}, which stands for a tattoo, an implant or a device by which somebody"
            " could be recognised."
        )
    if copies > 1:
        what += f" The training images held {copies} copies or near-copies of it."
    return what


def _found(results: Mapping[str, Any], hits: Trials, control: Trials | None, level: float) -> str:
    images = f"{hits.n:,} images that the model generated"
    if hits.k == 0:
        found = f"None of {images} was recognised as the private image."
    else:
        low, high = _span(results, hits, level)
        verb = "was" if hits.k == 1 else "were"
        found = (
            f"{hits.k:,} of {images} {verb} recognised as the private image: about {words.one_in(hits.rate)}"
            f" ({words.between(low, high)})."
        )
    if two_recognisers(results):
        found += " Two recognisers had to agree: one looks for the mark, one for the image itself."
    else:
        found += " One recogniser, made to know this image from all others, had to say so."
    found += copies.found(results)
    if control is not None:
        made = "none" if control.k == 0 else f"{control.k:,}"
        found += f" A second model, trained the same way without the image, gave {made} in {control.n:,}."
    return found


def _how_sure(results: Mapping[str, Any], hits: Trials, control: Trials | None) -> str:
    counts = evidence(results)
    parts: list[str] = []
    if hits.k and control is not None:
        p = fisher_greater(hits, control)
        sure = "Very sure" if p < 0.001 else "Fairly sure" if p <= 0.05 else "Not sure"
        parts.append(
            f"{sure}: if the model did no more than the one that never saw the image, a difference this large"
            f" would turn up with a chance of {words.chance(p)}."
        )
    elif hits.k:
        p = at_least(hits.k, hits.n, counts.false_alarms(0.95))
        parts.append(
            f"If {_recognisers(results)} had only raised false alarms, this many would turn up with a chance"
            f" of {words.chance(p)}. No second model without the image was made to compare with."
        )
    found, fpr = counts.tpr, counts.fpr
    if all(one.n for one in (*found, *fpr)):
        parts.append(
            f"In a test on images made for it, the recognisers noticed {_of(found[0])} marks and"
            f" {_of(found[1])} appearances of the image, and raised {_of(fpr[0])} and {_of(fpr[1])} false"
            " alarms."
            if counts.pair
            else f"In a test on images made for it, the recogniser noticed {_of(found[0])} appearances of the"
            f" image, and raised {_of(fpr[0])} false alarms."
        )
    elif not parts:
        whose = "recognisers'" if counts.pair else "recogniser's"
        parts.append(f"The {whose} own errors were not measured.")
    return " ".join(parts)


def _recognisers(results: Mapping[str, Any]) -> str:
    return "the recognisers" if two_recognisers(results) else "the recogniser"


def _of(one: Trials) -> str:
    return f"{one.k:,} of {one.n:,}"


def _missed(results: Mapping[str, Any], state: str, hits: Trials, level: float) -> str:
    upper, them = _upper(results, hits, level), _recognisers(results)
    rest = "Only this one image was searched for; what holds for it need not hold for the others."
    if state == "reproduces":
        return f"Copies too faint for {them}, so the true number may be higher. {rest}"
    if upper is None:
        return f"Anything: it is not known how often the image is overlooked by {them}. {rest}"
    if hits.k:
        return f"The image may appear in up to {words.one_in(upper)} generated images. {rest}"
    return (
        f"A model that gives the image back in {words.one_in(upper)} images or more rarely could have passed"
        f" this test. Someone who generates far more than {hits.n:,} images may still meet it. {rest}"
    )


def _next(results: Mapping[str, Any], state: str, hits: Trials, level: float) -> str:
    if state == "reproduces":
        return (
            "Do not release this model. Anyone who generates"
            f" {_enough(hits)} images should expect to see the private image at least once. Train again on"
            " more images, for fewer steps, without repeated images or with a privacy guarantee, and repeat"
            " this audit on the new model."
        )
    if state == "not found":
        return (
            "Compare the rate that could have been missed with the number of images that users will generate,"
            " and with your own release rule (latentprint gate). To exclude rarer copies, generate more"
            " images."
            " This result is no promise of anonymity."
        )
    expected = evidence(results).expected_rate * evidence(results).sensitivity(level)
    if hits.k == 0 and 0 < expected < 1:
        needed = samples_to_exclude(expected, level) + 1
        if needed > hits.n:
            return (
                f"Do not decide on this run. Generate at least {needed:,} images (this run: {hits.n:,}) by"
                " repeating the command with a larger number; what is finished is kept."
            )
    return (
        "Do not decide on this run. The reasons below say what stood in the way: usually more generated"
        " images, better recognisers, or a comparison model trained without the image are needed."
    )


def _enough(hits: Trials) -> str:
    """How many images make one copy likelier than not to appear at least 19 times in 20."""
    if hits.rate >= 1:
        return "a few"
    return f"{float(f'{samples_to_exclude(hits.rate):.1e}'):,.0f}"


def _tally(results: Mapping[str, Any], hits: Trials, control: Trials | None) -> Table:
    expected = number(results, "q.monte_carlo.expected")
    rows = [("This model", f"{hits.k:,}", f"{hits.n:,}", words.one_in(hits.rate) if hits.k else "none seen")]
    if control is not None:
        seen = words.one_in(control.rate) if control.k else "none seen"
        rows.append(("Same training, without the image", f"{control.k:,}", f"{control.n:,}", seen))
    if expected is not None and 0 <= expected <= hits.n:
        rate_each = words.one_in(expected / hits.n)
        rows.append(
            (
                "If every training image came back equally often",
                words.number(expected),
                f"{hits.n:,}",
                rate_each,
            )
        )
    head = ("", "Times seen", "Images made", "Rate")
    return Table("How often the private image was seen", head, rows, (False, True, True, True))
