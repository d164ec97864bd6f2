"""The report on further marked images: is the private one typical, and how large is epsilon at least?"""

from __future__ import annotations

from latentprint import words
from latentprint.report.blocks import Block, Note, Section, Table
from latentprint.report.public import RunFacts
from latentprint.results import Results
from latentprint.results.canaries import Bound, Epsilon, Tier
from latentprint.results.value import Spread

_SCORES = {"loss": "Loss", "t_prime": "t′", "count": "Generated images that show it"}


def canaries_section(results: Results, _: RunFacts) -> Section | None:
    """The marked images by how often they were trained on, and the bound on epsilon."""
    found = results.canaries
    if found is None:
        return None
    known = results.detectors.identities
    lead = (
        f"{len(found.images):,} further images were marked as the private one was. A coin decided for each"
        " whether the model was trained on it. Only the coin tells the two groups apart, so any difference"
        " was learnt."
    )
    head = ("Trained on", "Images", "Came back", "t′: least, median, most", "Rate: least, median, most")
    note = f"{found.sentence} {found.samples:,} generated images were looked through"
    if known is not None:
        note += (
            f" by one recogniser of them all; it noticed {words.of(known.tpr.k, known.tpr.n)} appearances"
            f" in a test, and raised {words.of(known.fpr.k, known.fpr.n)} false alarms"
        )
    agreed = found.private.agreed
    note += f". Of the private image it says what c_id says in {words.of(agreed.k, agreed.n)} of them."
    rows = [_tier(one) for one in found.tiers]
    blocks: list[Block] = [Table("Marked images", head, rows, (False, *[True] * 4), note)]
    return Section("canaries", "Is the private image typical?", lead, [*blocks, *_epsilon(results.epsilon)])


def _tier(one: Tier) -> tuple[str, ...]:
    often = "not at all" if not one.copies else "once" if one.copies == 1 else f"{one.copies:,} times"
    return (
        often,
        f"{one.images:,}",
        words.of(one.came_back, one.images),
        _spread(one.t_prime),
        _spread(one.rate),
    )


def _spread(one: Spread) -> str:
    return ", ".join(words.number(value, 2) for value in (one.min, one.median, one.max))


def _epsilon(found: Epsilon | None) -> list[Block]:
    if found is None:
        return [
            Note(
                "Too few images are in the training set exactly once to bound epsilon. More fingerprints"
                " would help."
            )
        ]
    told = (
        f"Epsilon of this training is at least {words.number(found.low)} (delta {found.delta:g},"
        f" {words.percent(found.level)} confidence, {found.canaries:,} coins). This is a lower bound: no"
        " privacy follows from a small one. Had every coin been guessed, it would be"
        f" {words.number(found.most)}."
    )
    head = ("Score", "Copies", "Coins", "Guessed right", "Epsilon at least")
    note = "A bound from several copies is for that many examples together, and not for one."
    rows = [_bound(one) for one in found.bounds]
    return [Note(told), Table("Epsilon", head, rows, (False, *[True] * 4), note)]


def _bound(one: Bound) -> tuple[str, ...]:
    right = words.of(one.right, one.guesses)
    return _SCORES[one.score], f"{one.copies:,}", f"{one.canaries:,}", right, words.number(one.low)
