"""The numbers of an audit for whoever signs: each with its interval, what to compare it with, and its power.

A number is *underpowered* if the audit could not have answered its question whatever it had seen: with too
few generated images, or too few images that no fit saw. This is a property of the design, so reassuring and
alarming numbers get the stamp alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from latentprint import words
from latentprint.report.provenance import weights
from latentprint.report.public import RunFacts, public_source, said
from latentprint.results import Results
from latentprint.stats import Trials, samples_to_exclude
from latentprint.verdict import evidence

LEAST = 59
"""Images needed for a rate of 5 % to be excluded at 95 % if none of them raises a false alarm: 0.95^59 <
0.05."""


@dataclass(frozen=True)
class Measure:
    """One number.

    Attributes:
        name: what it is, in plain words.
        value: as it is written.
        interval: of the value, with its level; "" if it has none.
        beside: what to compare it with.
        weak: why the audit was too small for it; "" if it was not.
    """

    name: str
    value: str
    interval: str = ""
    beside: str = ""
    weak: str = ""


Make = Callable[[Results, RunFacts], "Measure | None"]


def _within(low: float, high: float, level: float = 0.95) -> str:
    return f"{words.percent(low)} to {words.percent(high)} ({level:.0%} interval)"


def _share(name: str, found: Trials, beside: str, weak: str = "") -> Measure:
    low, high = found.interval() if found.n else (0.0, 1.0)
    return Measure(name, words.of(found.k, found.n), _within(low, high), beside, weak)


def _verdict(results: Results, _: RunFacts) -> Measure:
    return Measure(
        "Verdict of the audit", results.verdict.state, "", said(" ".join(results.verdict.reasons[:1]), 300)
    )


def _t_prime(results: Results, _: RunFacts) -> Measure | None:
    """The noise level, from the weights: the paper's indicator."""
    found = results.t_prime
    if found is None:
        return None
    base, weak = found.baseline, "No image that the model never saw was put through the same search."
    beside = ""
    if base is not None:
        weak = ""
        beside = (
            f"{base.images:,} images never trained on, all with one recogniser: their median is"
            f" {words.noise(base.median)}, and the private image's value {words.noise(base.target.value)}"
            f" (p = {words.number(base.p_value, 2)})."
        )
        if base.smallest_p > 0.05:
            weak = f"{base.images:,} images never trained on give no p-value below {base.smallest_p:.2g}."
    return Measure(
        "Highest noise level from which the private image was restored (t′)",
        words.noise(found.value),
        said(found.statement, 240),
        beside,
        weak,
    )


def _estimates(results: Results, _: RunFacts) -> Measure | None:
    """The rate estimated from the weights, for cases in which counting sees nothing."""
    usable = results.q.of_the_audited()
    if not results.q.estimates:
        return None
    name = "Rate of the private image, estimated from the weights"
    if not usable:
        told = "; ".join(f"{key}: {said(one.diagnostic, 160)}" for key, one in results.q.estimates.items())
        return Measure(name, "none that can be relied on", "", told, "Every estimator declined.")
    together = results.q.combined
    if together is not None and not together.agree:
        return Measure(name, "none: they contradict each other", "", said(together.sentence, 240), "No rate.")
    key, one = min(usable.items(), key=lambda item: (item[1].high or 1.0) / (item[1].low or 1e-300))
    low, high = one.low or 0.0, one.high if one.high is not None else 1.0
    return Measure(
        name, words.one_in(one.rate or 0.0), words.between(low, high), f"Estimator: {key.replace('_', ' ')}."
    )


def _count(results: Results, _: RunFacts) -> Measure:
    """Detections among generated images: what somebody gets who only asks the model for images."""
    count, counts = results.q.monte_carlo, evidence(results)
    share, weak = results.expected_rate * counts.sensitivity(count.level), ""
    if not count.hits:
        needed = samples_to_exclude(share, count.level) + 1 if 0 < share < 1 else None
        if needed is None:
            weak = "It is not known how often the image would be overlooked."
        elif needed > count.samples:
            weak = (
                f"{needed:,} generated images without the private one would be needed to exclude that it"
                " comes back as often as every training image on average."
            )
    return Measure(
        "Generated images recognised as the private image",
        words.of(count.hits, count.samples),
        _within(count.low, count.high, count.level),
        f"About {words.number(count.expected)} if every training image came back equally often. A rate above"
        f" {words.one_in(count.missable)} would have given more, with a probability of {count.level:.0%}.",
        weak,
    )


def _control(results: Results, _: RunFacts) -> Measure | None:
    control = results.q.control
    if control is None:
        return None
    name = (
        "The same for the base model, asked the same prompt"
        if results.base_is_control
        else "The same for a model trained in the same way without that image"
    )
    return _share(name, control.trials, "Each of these is a false alarm.")


def _alarms(results: Results, _: RunFacts) -> Measure:
    fitted = results.detectors.fitted
    fewest = min(one.fpr.n for one in fitted)
    bound = evidence(results).false_alarms(0.95)
    told = "; ".join(words.of(one.fpr.k, one.fpr.n) for one in fitted)
    weak = "" if fewest >= LEAST else f"{LEAST} such images are needed to exclude a rate of 5 %."
    return Measure(
        "False alarms of the recognisers, on images that they were not fitted on",
        told,
        f"at most {words.percent(bound)} (95% bound of the worst recogniser, all bounds together)",
        "Of images that do show it, "
        + " and ".join(words.of(one.tpr.k, one.tpr.n) for one in fitted)
        + " were recognised.",
        weak,
    )


def _copies(results: Results, _: RunFacts) -> Measure | None:
    found = results.whole_set
    if found is None:
        return None
    alarms, weak = found.false_alarms, "There was no image never trained on, to count false alarms on."
    beside = ""
    if alarms is not None:
        beside = f"Of {alarms.n:,} images never trained on, the same rule takes {alarms.k:,} for copies."
        weak = "" if alarms.n >= LEAST else f"{LEAST} images never trained on are needed for this."
    return _share("Generated images that are copies of any training image", found.copies.trials, beside, weak)


def _memorised(results: Results, _: RunFacts) -> Measure | None:
    found = results.whole_set
    if found is None:
        return None
    persons = "" if found.persons is None else f" Persons: {words.of(found.persons.k, found.persons.n)}."
    beside = (
        f"False alarms of {found.copies.n:,} independent images would not explain {found.at_least:,} of"
        f" them.{persons}"
    )
    return _share("Training images that came back at least once", found.memorised.trials, beside)


def _unseen(results: Results, _: RunFacts) -> Measure | None:
    found = results.whole_set
    if found is None:
        return None
    unseen, name = found.unseen, "Training images not seen so far that can come back too"
    if found.memorised.k == found.memorised.n:
        return Measure(name, "none", "", "Every training image came back at least once.")
    if unseen.low is None:
        return Measure(name, "not known", "", "", said(unseen.assumptions, 240))
    high = "no upper bound" if unseen.high is None else f"at most {unseen.high:,}"
    return Measure(name, f"at least {unseen.low:,}", f"{high} (95% interval)", said(unseen.assumptions, 300))


def _shown(results: Results, _: RunFacts) -> Measure | None:
    found = results.whole_set
    if found is None:
        return None
    one = found.shown[-1]
    return Measure(
        f"Chance that some training image is among the first {one.images:,} generated images",
        words.chance(one.chance),
        _within(one.low, one.high) if one.low < 0.999 else "above 99.9% (95% interval)",
        "False alarms are not subtracted.",
    )


def _membership(results: Results, _: RunFacts) -> Measure | None:
    found = results.membership
    if found is None or found.auc is None or found.low is None or found.high is None:
        return None
    weak = "" if found.high - found.low <= 0.2 else "The interval is wider than 0.2: more images are needed."
    counted = (
        f"{words.integer(found.members)} training images, {words.integer(found.heldout)} never trained on."
    )
    return Measure(
        "How well training images can be told from others (AUC; 0.5 is guessing)",
        f"{found.auc:.3f}",
        f"{found.low:.3f} to {found.high:.3f} ({found.level:.0%}, all scores together)",
        counted,
        weak,
    )


def _epsilon(results: Results, _: RunFacts) -> Measure | None:
    found = results.epsilon
    if found is None:
        return None
    weak = "" if found.most > 1 else f"{found.canaries:,} marked images can show at most {found.most:.2g}."
    return Measure(
        "Lower bound of epsilon, from marked images of one training",
        f"at least {words.number(found.low)}",
        f"{found.level:.0%} confidence, delta = {words.number(found.delta)}",
        f"{found.canaries:,} marked images, each in or out by a fair coin. A low bound proves nothing.",
        weak,
    )


def _data(results: Results, _: RunFacts) -> Measure:
    data = results.data
    persons = "" if data.identities is None else f" of {data.identities:,} persons"
    return Measure(
        "Training images given to the audit",
        f"{data.images:,}{persons}, {public_source(data.source)}",
        f"SHA-256 of their list: {data.sha256}",
        f"{words.integer(data.near_copies)} have a near copy among the others.",
    )


def _weights(results: Results, run: RunFacts) -> Measure:
    found = weights(results, run)
    weak = "" if found else "Only generated images were audited; nothing ties them to a file of weights."
    told = "identified by hash" if found else "none"
    return Measure("Weights that were audited", told, f"SHA-256: {found}" if found else "", "", weak)


def _settings(_: Results, run: RunFacts) -> Measure:
    when = "not finished" if run.finished is None else f"finished on {run.finished.date().isoformat()}"
    return Measure("Settings of the audit", when, f"SHA-256: {run.settings_sha256 or words.NOTHING}")


MEASURES: Mapping[str, Make] = {
    "verdict": _verdict,
    "t_prime": _t_prime,
    "estimates": _estimates,
    "count": _count,
    "control": _control,
    "alarms": _alarms,
    "copies": _copies,
    "memorised": _memorised,
    "unseen": _unseen,
    "shown": _shown,
    "membership": _membership,
    "epsilon": _epsilon,
    "data": _data,
    "weights": _weights,
    "settings": _settings,
}
"""A number of the dossier: its key, by which clauses name it, and how it is read from the results."""
