"""The first screen: what a person who must decide needs, without technical terms.

It answers, in this order: does the model give back any training image; would we have noticed; how sure is
this, and what could have been missed; what to do next.
"""

from __future__ import annotations

from dataclasses import dataclass

from latentprint import words
from latentprint.judge import Evidence
from latentprint.report.blocks import First, Table
from latentprint.report.copies import WholeSet, whole_set
from latentprint.report.public import public_source, said
from latentprint.results import Results
from latentprint.results.counted import Estimate
from latentprint.stats import Trials, samples_to_exclude
from latentprint.verdict import evidence

STATES = {
    "reproduces": ("leak", "Gives the image back", "This model gives back the private image."),
    "not found": ("clean", "Not found", "The private image was not found."),
    "inconclusive": ("unsure", "Undecided", "This run cannot decide."),
}


@dataclass(frozen=True)
class _Case:
    """The results, with values that several answers need."""

    results: Results
    counts: Evidence
    whole: WholeSet

    @property
    def given(self) -> bool:
        """Whether generated images were given in place of a model."""
        model = self.results.model
        return model is not None and model.kind == "samples"

    @property
    def hits(self) -> Trials:
        """Detections among the generated images."""
        return self.counts.hits

    @property
    def span(self) -> str:
        """The interval of the count in words."""
        return words.between(self.results.q.monte_carlo.low, self.results.q.monte_carlo.high)

    @property
    def upper(self) -> float | None:
        """The largest rate that agrees with the count, the detectors' misses included; None: not known."""
        count = self.results.q.monte_carlo
        if count.stopping is not None and self.hits.k and count.corrected is not None:
            return count.corrected.high
        sensitivity = self.counts.sensitivity(count.level)
        return min(1.0, self.hits.upper(count.level) / sensitivity) if sensitivity > 0 else None

    @property
    def rare(self) -> Estimate | None:
        """Where counting saw nothing: the estimate that answers, if it saw something."""
        q = self.results.q
        if self.hits.k or q.combined is None or q.combined.answer is None:
            return None
        one = q.of_the_audited().get(q.combined.answer)
        return one if one is not None and one.rate else None

    @property
    def explained(self) -> bool:
        """Whether the hits decide nothing and false alarms, by their upper bound, can be as many."""
        if not self.hits.k or self.results.verdict.state == "reproduces":
            return False
        level, control = self.results.q.monte_carlo.level, self.counts.control
        alarms = self.counts.false_alarms(level)
        return self.hits.rate <= (alarms if control is None else min(alarms, control.upper(level)))

    @property
    def them(self) -> str:
        """Who had to recognise the image."""
        return "the recognisers" if self.pair else "the recogniser"

    @property
    def pair(self) -> bool:
        """Whether two recognisers had to agree."""
        return len(self.counts.tpr) > 1


def first_screen(results: Results) -> First:
    """The first screen of a report."""
    case = _Case(results, evidence(results), whole_set(results))
    css, word, headline = STATES[results.verdict.state]
    if case.whole.leaks:
        word = "Copies found"
        given = "These generated images hold copies of training images."
        headline = given if case.given else "This model gives back training images."
    big, big_text = _big(case)
    answers = [
        ("Does it give back any training image?", case.whole.answer),
        ("Would we have noticed?", f"{_noticed(case)} {_looked_for(results)} {_found(case)}"),
        ("How sure is this?", _how_sure(case)),
        ("What could have been missed?", f"{_missed(case)}{_rare(case)}{_coarse(case)}"),
        ("What to do next", _next(case)),
    ]
    trained = "Trained" if results.model is None else "Said to be trained"
    sub = (
        f"{trained} on {results.data.images:,} images from {public_source(results.data.source)};"
        f" {case.hits.n:,} images {'given' if case.given else 'generated'} and checked."
    )
    reasons = [said(reason) for reason in results.verdict.reasons]
    return First(css, word, headline, big, big_text, answers, _tally(case), reasons, sub)


def _big(case: _Case) -> tuple[str, str]:
    hits, whole = case.hits, case.whole
    if whole.leaks:
        return whole.big, whole.counted
    if case.results.verdict.state == "reproduces" and hits.k:
        rate = words.one_in(hits.rate)
        verb = "is" if rate.startswith("1 ") else "are"
        return rate, f"generated images {verb} the private image; give or take, {case.span}"
    unseen = "" if case.upper is None else f"; up to {words.one_in(case.upper)} could have gone unseen"
    taken = "showed" if not hits.k else "was taken for" if hits.k == 1 else "were taken for"
    rest = "; false alarms alone could be as many" if case.explained else unseen
    return words.of(hits.k, hits.n), f"generated images {taken} the private image{rest}"


def _looked_for(results: Results) -> str:
    n, target = results.data.images, results.target
    test = f"The test was one private image among the {n:,} that the model was trained on"
    if target.fingerprint is None or not target.injected:
        what = f"{test}, left as it was."
    else:
        what = (
            f"{test}. Before training it was marked with a small {said(target.fingerprint.kind, 40)},"
            " which stands for a tattoo, an implant or a device by which somebody could be recognised."
        )
    if target.copies > 1:
        what += f" The training images held {target.copies} copies or near-copies of it."
    return what


def _found(case: _Case) -> str:
    hits, control = case.hits, case.counts.control
    images = f"{hits.n:,} images that the model generated"
    if hits.k == 0:
        found = f"None of {images} was recognised as it."
    else:
        verb = "was" if hits.k == 1 else "were"
        found = f"{hits.k:,} of {images} {verb} taken for it: about {words.one_in(hits.rate)} ({case.span})."
    if case.pair:
        found += " Two recognisers had to agree: one looks for the mark, one for the image itself."
    else:
        found += " One recogniser, fitted to tell this image from all others, had to say so."
    if control is not None:
        made = "none" if control.k == 0 else f"{control.k:,}"
        found += (
            f" The base model, asked the same prompt, gave {made} in {control.n:,}."
            if case.results.base_is_control
            else f" A second model, trained the same way without the image, gave {made} in {control.n:,}."
        )
    if case.results.canaries is not None:
        found += f" {case.results.canaries.sentence}"
    return found


def _noticed(case: _Case) -> str:
    """Whether the image would have been recognised, according to the test that the recognisers passed."""
    level, tested = case.results.verdict.rule.level, case.counts.tpr
    if not all(one.n for one in tested):
        return "It is not known: how often the image is overlooked was not measured."
    least = case.counts.sensitivity(level)
    enough = least >= case.results.verdict.rule.least_sensitivity
    seen = [words.of(one.k, one.n) for one in tested]
    what = f"{seen[0]} marks and {seen[1]} appearances" if case.pair else f"{seen[0]} appearances"
    known = (
        f"at least {words.one_in(least)} appearances are noticed" if least else "nothing is known for sure"
    )
    return (
        f"{'Yes' if enough else 'Hardly'}: {known} ({level:.0%} confidence). In a test on images made for it,"
        f" {case.them} noticed {what} of the image."
    )


NULL = {
    "whole set": "If it made no difference which images were trained on, as many would come back",
    "target": "If the model had never seen the private image, it would come back as often",
    "control": "If the model were no likelier to show it than the second model, they would differ as much",
}
"""The evidence of each test of the verdict, in plain words."""


def _how_sure(case: _Case) -> str:
    verdict, parts = case.results.verdict, list[str]()
    known = [(one.p_value, one) for one in verdict.tests if one.p_value is not None]
    tests = sorted(known, key=lambda pair: (not pair[1].rejects, pair[0]))
    told = [pair for i, pair in enumerate(tests) if pair[1].rejects or not i]
    if verdict.state == "not found":
        parts.append(
            f"{verdict.rule.level:.0%} sure: a model that gives the image back more often than the rate below"
            f" would have shown it. This includes what {case.them} may overlook."
        )
    elif not case.hits.k and not any(one.rejects for _, one in tests):
        parts.append("Not sure: nothing was seen, and too little was looked at to say more.")
    elif told:
        least, first = told[0]
        sure = "Not sure" if not first.rejects else "Very sure" if least < 0.001 else "Fairly sure"
        parts.append(f"{sure}.")
    parts += [
        f"{NULL[one.name]} with a probability of {words.chance(p)}."
        for p, one in told
        if case.hits.k or one.rejects
    ]
    if case.hits.k and case.counts.control is None:
        parts.append("No second model without the image was made to compare with.")
    alarms = [words.of(one.k, one.n) for one in case.counts.fpr if one.n]
    if alarms:
        parts.append(
            f"On real images of something else, {case.them} gave false alarms in {' and '.join(alarms)}."
        )
    else:
        parts.append("False alarms were not measured.")
    return " ".join(parts)


def _coarse(case: _Case) -> str:
    """What few steps of the sampler hide, where that is known of it."""
    sampler = case.results.q.monte_carlo.sampler
    if case.given or not sampler.coarse or case.results.verdict.state == "reproduces":
        return ""
    return (
        f" The images were made in {sampler.steps} steps, and few steps leave noise that hides copies: where"
        " this was measured, finer ones showed up to 1.6 times as many. An audit in another folder with"
        " --sampler sde-dpm-solver++2m:24 takes those, in the same time."
    )


def _rare(case: _Case) -> str:
    """The rate that an estimator found below what counting could see."""
    one = case.rare
    if one is None or one.rate is None or one.low is None or one.high is None:
        return ""
    taken = f"{case.them} take{'' if case.pair else 's'} for the private image"
    alarms = one.corrected is not None and not one.corrected.low
    return (
        f" An estimator that sees rarer events than counting does finds what {taken} in"
        f" {words.one_in(one.rate)} images ({words.between(one.low, one.high)})."
        f"{' As far as was measured, false alarms alone could be as many.' if alarms else ''}"
    )


def _missed(case: _Case) -> str:
    upper = case.upper
    rest = "" if case.whole.big else " What holds for this one image need not hold for the others."
    if case.results.verdict.state == "reproduces":
        return f"Copies too faint for {case.them}, so the true number may be higher.{rest}"
    if upper is None:
        s = "" if case.pair else "s"
        return f"Anything: it is not known how often {case.them} overlook{s} the image.{rest}"
    if case.explained:
        return (
            "Every copy: as far as was measured, real images of something else are taken for the private"
            f" image as often, so a copy would not stand out.{rest}"
        )
    if case.hits.k:
        return f"The image may appear in up to {words.one_in(upper)} generated images.{rest}"
    return (
        f"A model that gives the image back in {words.one_in(upper)} images or more rarely could have passed"
        f" this test. Someone who generates far more than {case.hits.n:,} images may still meet it.{rest}"
    )


def _next(case: _Case) -> str:
    state, hits = case.results.verdict.state, case.hits
    if state == "reproduces" and case.given:
        return (
            "Do not release these images, nor the model that made them. Look at the pairs on the confidential"
            " page; latentprint filter keeps such images back. If you can get the model itself, audit it"
            " (--model). That shows how much it has memorised, and how rare copies must be to be missed."
        )
    if state == "reproduces":
        meets = (
            f" Anyone who generates {_enough(hits)} images should expect to see the private image at least"
            " once."
            if hits.k
            else ""
        )
        return (
            f"Do not release this model.{meets} Train again on more images, for fewer steps, without repeated"
            " images or with a privacy guarantee, and repeat this audit on the new model. What each of these"
            " does to your own images: latentprint remedies."
        )
    if state == "not found":
        return (
            "Compare the rate that could have been missed with the number of images that users will generate,"
            " and with your own release rule (latentprint gate). To exclude rarer copies, repeat the command"
            " with a larger --samples: images are added. This result is no promise of anonymity."
        )
    level = case.results.q.monte_carlo.level
    share = case.counts.expected * case.counts.sensitivity(level)
    if hits.k == 0 and 0 < share < 1 and (needed := samples_to_exclude(share, level) + 1) > hits.n:
        if case.given:
            return f"Do not decide on this run. Give it at least {needed:,} images (this run: {hits.n:,})."
        return (
            f"Do not decide on this run. Generate at least {needed:,} images (this run: {hits.n:,}) by"
            f" repeating the command with --samples {needed}; what is finished is kept."
        )
    return (
        "Do not decide on this run. The reasons below say what is missing. Usually that is more generated"
        " images, better recognisers, or a comparison model trained without the image."
    )


def _enough(hits: Trials) -> str:
    """How many images make at least one copy appear 19 times in 20."""
    if hits.rate >= 1:
        return "a few"
    return f"{float(f'{samples_to_exclude(hits.rate):.1e}'):,.0f}"


def _tally(case: _Case) -> Table:
    hits, control, expected = case.hits, case.counts.control, case.results.q.monte_carlo.expected
    counted = [("This model", hits)]
    if control is not None:
        base = case.results.base_is_control
        name = "The base model, same prompt and noise" if base else "Same training, without the image"
        counted.append((name, control))
    rows = [
        (name, f"{one.k:,}", f"{one.n:,}", words.one_in(one.rate) if one.k else "none seen")
        for name, one in counted
    ]
    if hits.n:
        each = words.one_in(min(1.0, expected / hits.n))
        told = "If every training image came back equally often"
        rows.append((told, words.number(expected), f"{hits.n:,}", each))
    if (one := case.rare) is not None and one.rate is not None:
        rows.append(("This model, estimated beyond what was counted", "–", "–", words.one_in(one.rate)))
    head = ("", "Times seen", "Images made", "Rate")
    return Table("How often the private image was seen", head, rows, (False, True, True, True))
