"""What was measured -> one of three words, with its reasons. A pure function of the results.

The rule itself, its errors and its power are described in `judge.rule` and docs/verdict.md: three exact tests
can say "reproduces", and a count without a hit that excludes copies / N says "not found". This module takes
the evidence from the results, and adds what informs without deciding:

- reliable estimates of the audited sampler, hits of further samplers and under further prompts: they turn
  "not found" into **inconclusive** if they contradict it;
- copies by the criteria that also see moved and changed ones: more of them than false alarms explain turn
  "not found" into **inconclusive**;
- t' of x_p compared with that of held-out images, by one recogniser with equally many tries. It bounds no
  probability, and never decides.
"""

from __future__ import annotations

from latentprint.judge import Evidence, StoppedCount, decide
from latentprint.judge.design import AT_ANY_LOOK
from latentprint.results.model import Measured, Results, Rule, State, Tested, Verdict
from latentprint.stats import Trials
from latentprint.words import one_in

__all__ = ["evidence", "judge", "judged"]


def judged(measured: Measured, rule: Rule | None = None) -> Results:
    """The measured numbers with their verdict."""
    parts = {name: getattr(measured, name) for name in Measured.model_fields}
    return Results(**parts, verdict=judge(measured, rule or Rule()))


def evidence(measured: Measured) -> Evidence:
    """The part of the measured numbers that decides."""
    q, fitted, memorised = measured.q, measured.detectors.fitted, measured.memorised
    count, sight = q.monte_carlo, None
    if count.stopping is not None:
        both, excess = 1 - AT_ANY_LOOK * (1 - count.level), None
        if q.control is not None:
            excess = max(0.0, count.at(both)[0] - q.control.at(both)[1])
        sight = StoppedCount(low=count.low, high=count.high, level=count.level, excess=excess)
    nearest = None if memorised is None else memorised.nearest
    return Evidence(
        hits=count.trials,
        own=None if nearest is None else nearest.target,
        control=None if q.control is None else q.control.trials,
        tpr=tuple(one.tpr for one in fitted),
        fpr=tuple(one.fpr for one in fitted),
        expected=measured.expected_rate,
        returned=measured.returned,
        sight=sight,
        base=measured.base_is_control,
    )


def judge(measured: Measured, rule: Rule) -> Verdict:
    """The verdict by ``rule``."""
    decision = decide(evidence(measured), rule.level, rule.share, rule.least_sensitivity)
    state, more = _rare_events(decision.state, measured, rule)
    state, told = _samplers(state, measured)
    state, under = _prompts(state, measured)
    state, changed = _changed_copies(state, measured)
    return Verdict(
        state=state,
        reasons=(*decision.reasons, *more, *told, *under, *changed, *_search(measured)),
        tests=tuple(
            Tested(name=one.name, p_value=one.p_value, alpha=one.alpha, rejects=one.rejects)
            for one in decision.tests
        ),
        rule=rule,
    )


def _rare_events(state: State, measured: Measured, rule: Rule) -> tuple[State, list[str]]:
    """Reliable estimates of the audited sampler: below what counting can see they inform, above it they can
    contradict.

    Estimates that contradict each other or the count cannot support "not found".
    """
    reasons: list[str] = []
    together = measured.q.combined
    for name, estimate in measured.q.of_the_audited().items():
        assert estimate.rate is not None and estimate.low is not None and estimate.high is not None
        reasons.append(
            f"The {name} estimator, which can see rarer events than counting, puts the rate at"
            f" {one_in(estimate.rate)} (between {one_in(estimate.low)} and {one_in(estimate.high)})."
        )
        if state == "not found" and estimate.low > measured.q.monte_carlo.trials.upper(rule.level):
            reasons.append("That contradicts the count of zero, so the two must be reconciled first.")
            state = "inconclusive"
    if together is not None and not together.agree:
        reasons.append(together.sentence)
        state = "inconclusive" if state == "not found" else state
    return state, reasons


def _samplers(state: State, measured: Measured) -> tuple[State, list[str]]:
    """Counts of further samplers: they inform, and hits among them contradict "not found"."""
    reasons: list[str] = []
    for one in measured.samplers:
        seen = one.q.trials
        if not seen.k:
            continue
        reasons.append(
            f"By another sampler ({one.sampler.words}) the image was recognised in {seen.k:,} of"
            f" {seen.n:,} generated images."
        )
        if state == "not found":
            reasons.append("What one sampler does not show another may, so the model is not cleared.")
            state = "inconclusive"
    return state, reasons


def _prompts(state: State, measured: Measured) -> tuple[State, list[str]]:
    """Counts of x_p under further prompts and scales: they inform, and more than the base model's contradict
    "not found"."""
    asked = () if measured.prompts is None else measured.prompts.asked
    seen = sum((one.q.trials for one in asked), Trials(0, 0))
    if not seen.k:
        return state, []
    base = sum((one.base for one in asked if one.base is not None), Trials(0, 0))
    beside = f"; the base model gave {base.k:,} of {base.n:,}" if base.n else ""
    reasons = [
        f"Under further prompts and scales of guidance ({len(asked):,} of them) the image was recognised in"
        f" {seen.k:,} of {seen.n:,} generated images{beside}."
    ]
    if state != "not found" or (base.n and seen.k <= base.k):
        return state, reasons
    return "inconclusive", [
        *reasons,
        "What one prompt does not show another may, so the model is not cleared.",
    ]


def _changed_copies(state: State, measured: Measured) -> tuple[State, list[str]]:
    """Copies by the criteria that also see moved and changed ones: more than false alarms contradict "not
    found".

    They count samples, which a model that repeats a few images of its own draws again and again. So they
    never say "reproduces".
    """
    found = measured.whole_set
    if state != "not found" or found is None or found.false_alarms is None or not found.beyond:
        return state, []
    return "inconclusive", [
        f"By the rule that also sees copies that were moved or changed, {found.copies.k:,} of"
        f" {found.copies.n:,} generated images are copies of training images. False alarms on"
        f" {found.false_alarms.n:,} real images do not explain them, so the model is not cleared. Look at"
        " the pairs."
    ]


def _search(measured: Measured) -> list[str]:
    """x_p's t' compared with the held-out images', all by one recogniser with equally many tries.

    It informs and never decides, since it bounds no probability.
    """
    law = None if measured.t_prime is None else measured.t_prime.baseline
    if law is None:
        return []
    others, own = f"{law.images} images that were never trained on", law.target.value
    if own is None:
        return [
            "The model restores the image from no noise level by more than chance. The same may hold for"
            f" {others}."
        ]
    if law.p_value <= 0.05:
        as_far = round(law.p_value * (law.images + 1)) - 1  # the p-value is a rank: (1 + as far) / (n + 1)
        than = f"further than {others}" if not as_far else f"and only {as_far} of {others} as far"
        return [
            f"The model knows this image: it restores it from noise level {own:.2g}, {than}"
            f" (p = {law.p_value:.2g}). Every image was judged by the {law.question.recogniser} with"
            f" {law.question.tries} tries a level."
        ]
    text = (
        f"The model restores the image from noise level {own:.2g}. That this is further than for {others} is"
        " not shown."
    )
    if law.smallest_p > 0.05:
        text += f" With {law.images} such images nothing could have been shown; hold out at least 20."
    return [text]
