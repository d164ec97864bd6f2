"""From counts to one of three words: does the model give the image back?

With k joint detections in n generated images of the audited model, k0 in n0 of the control (the same recipe
without the image), measured detector errors, and N training images that hold c copies of the private one:

- **reproduces**: k > 0 and the detections are no false alarms. With a control that is Fisher's exact test,
  one-sided, of (k, n) against (k0, n0), because the control's detections *are* the false alarms, measured
  on generated images. Without one it is ``P(Binomial(n, f) >= k)``, f the upper bound of the larger of
  the two detectors' false-positive rates: outside Omega_p at least one sign is missing, so the conjunction
  errs at most as often as the worse detector (paper Eq. 6). Both at ``1 - level``.
- **not found**: k = 0 and ``missable / s < share x c / N``. ``missable`` is the largest rate that still gives
  no hit with probability ``1 - level``, s the lower bound of the detectors' joint sensitivity
  ``tpr_p + tpr_id - 1`` (Frechet). ``share = 1`` is the paper's test of H0: q = 1/N (§5.3), made honest about
  detectors that overlook. With one detector (x_p carries no mark, no c_p) s is the
  lower bound of ``tpr_id``, and f the upper bound of c_id's false-positive rate. With m detectors in
  general: s = sum of the m lower bounds - (m - 1), f the largest upper bound, each at
  ``1 - (1 - level) / m``.
- **inconclusive**: anything else, with what stood in the way.

Where sampling stopped on sight of the counts (``samples.until``), tests for a fixed n do not hold: with
hits the lower end of the anytime-valid interval, through the detectors' errors, must lie above zero. Without
a hit the number of looks was a constant, so that "not found" is judged as above.

Detections by further samplers of the same model (``samplers``) turn "not found" into **inconclusive**.

Where samples were given in the place of a model, copies of *any* training image among them decide too: if
more of them are near to training images than images never trained on can be (``copies.leaks``), the state is
**reproduces**, whatever was counted for x_p.

Sources: R. A. Fisher, JRSS 98 (1935); Clopper and Pearson, Biometrika 26 (1934); paper §5.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from scipy import stats as scipy_stats  # pyright: ignore[reportMissingTypeStubs]

from latentprint.results.counted import Stopping
from latentprint.results.model import Copies, Measured, Results, Rule, State, Verdict
from latentprint.stats import Trials, samples_to_exclude
from latentprint.words import chance, one_in

__all__ = ["Evidence", "at_least", "evidence", "fisher_greater", "judge", "judged"]


@dataclass(frozen=True)
class Evidence:
    """The counts that the verdict rests on.

    ``tpr`` and ``fpr`` are those of c_p and c_id, or of c_id alone where x_p carries no mark.
    """

    hits: Trials
    control: Trials | None
    tpr: tuple[Trials, ...]
    fpr: tuple[Trials, ...]
    expected_rate: float

    @property
    def pair(self) -> bool:
        """Whether two detectors had to agree."""
        return len(self.tpr) > 1

    def sensitivity(self, level: float) -> float:
        """Lower bound of the chance that all m detectors see the image when it is there; 0 where unknown.

        ``sum of tpr - (m - 1)`` (Frechet), each bound at ``1 - (1 - level) / m``, so that they hold together
        (Bonferroni); for one detector simply its bound.
        """
        m = len(self.tpr)
        each = 1 - (1 - level) / m
        return max(0.0, sum(one.lower(each) if one.n else 0.0 for one in self.tpr) - (m - 1))

    def false_alarms(self, level: float) -> float:
        """Upper bound of the joint false-positive rate on real images; 1 where it was never measured."""
        each = 1 - (1 - level) / len(self.fpr)
        return max(one.upper(each) if one.n else 1.0 for one in self.fpr)


def evidence(measured: Measured) -> Evidence:
    """The counts of an audit that decide."""
    q, fitted = measured.q, measured.detectors.fitted
    return Evidence(
        hits=q.monte_carlo.trials,
        control=None if q.control is None else q.control.trials,
        tpr=tuple(one.tpr for one in fitted),
        fpr=tuple(one.fpr for one in fitted),
        expected_rate=measured.expected_rate,
    )


def fisher_greater(hits: Trials, control: Trials) -> float:
    """p-value of "the two rates are equal" against "the first is greater", exact and conditional.

    Under H0 and given the total, the hits among the first n are hypergeometric (Fisher 1935).
    """
    hypergeometric = cast(Any, scipy_stats).hypergeom
    whole = hits + control
    return float(hypergeometric.sf(hits.k - 1, whole.n, whole.k, hits.n))


def at_least(k: int, n: int, p: float) -> float:
    """``P(Binomial(n, p) >= k)``."""
    return float(cast(Any, scipy_stats).binom.sf(k - 1, n, p))


def judged(measured: Measured, rule: Rule | None = None) -> Results:
    """The measured numbers with their verdict."""
    parts = {name: getattr(measured, name) for name in Measured.model_fields}
    return Results(**parts, verdict=judge(measured, rule or Rule()))


def judge(measured: Measured, rule: Rule) -> Verdict:
    """One of the three words, with its reasons; a pure function of what was measured."""
    counts, stopping = evidence(measured), measured.q.monte_carlo.stopping
    state: State
    if counts.hits.n == 0:
        state, reasons = "inconclusive", ["No image was generated, so nothing can be said."]
    elif counts.hits.k > 0 and stopping is not None:
        state, reasons = _found_on_sight(measured, stopping, counts, rule)
    elif counts.hits.k > 0:
        state, reasons = _something_found(counts, rule)
    else:
        state, reasons = _nothing_found(counts, rule)
    state, more = _rare_events(state, measured, counts, rule)
    state, told = _samplers(state, measured)
    state, reasons = _copies(state, reasons + more + told, measured.copies)
    reasons += _search(measured)
    return Verdict(state=state, reasons=tuple(reasons), rule=rule)


def _something_found(counts: Evidence, rule: Rule) -> tuple[State, list[str]]:
    hits, control, alpha = counts.hits, counts.control, 1 - rule.level
    low, high = hits.interval(rule.level)
    if counts.pair:
        who, they, their = "Both detectors", "the detectors", "the detectors'"
    else:
        who, they, their = "The detector", "the detector", "the detector's"
    found = (
        f"{who} recognised the image in {hits.k:,} of {hits.n:,} generated images: about"
        f" {one_in(hits.rate)}, between {one_in(low)} and {one_in(high)} ({rule.level:.0%} interval)."
    )
    bound = counts.false_alarms(rule.level)
    by_alarm = at_least(hits.k, hits.n, bound)
    alarms = (
        f"On real images that were not the target {they} raised false alarms in at most"
        f" {one_in(bound)}; alone that would give {hits.k:,} or more detections with probability"
        f" {chance(by_alarm)}."
    )
    if control is None or control.n == 0:
        missing = "No control was run, so false alarms on generated images were not measured."
        return ("reproduces" if by_alarm <= alpha else "inconclusive"), [found, alarms, missing]
    by_control = fisher_greater(hits, control)
    compared = (
        f"The same recipe without the image gave {control.k:,} detections in {control.n:,}; if both models"
        f" were alike, a difference this large had probability {chance(by_control)}."
    )
    if by_control <= alpha:
        if by_alarm > alpha:
            alarms = (
                f"The real images on which {their} false alarms were counted are too few to settle"
                f" this by themselves (at most {one_in(bound)} would be one); the control, on generated"
                " images, does."
            )
        return "reproduces", [found, compared, alarms]
    fires = "That is no clear difference: the detections may be false alarms."
    return "inconclusive", [found, compared, fires]


def _found_on_sight(
    measured: Measured, stopping: Stopping, counts: Evidence, rule: Rule
) -> tuple[State, list[str]]:
    """As ``_something_found``, where sampling stopped on sight of the counts: by intervals that allow it."""
    count, who = measured.q.monte_carlo, "Both detectors" if counts.pair else "The detector"
    assert count.corrected is not None  # an audit's own count always has it
    level = min(count.level, count.corrected.level)
    reasons = [
        f"{who} recognised the image in {count.hits:,} of {count.samples:,} generated images, when"
        f" sampling stopped: between {one_in(count.low)} and {one_in(count.high)}"
        f" (a {level:.0%} interval that holds whenever one stops)."
    ]
    if level < rule.level:
        reasons.append(f"The rule asks for a confidence of {rule.level:.0%}.")
        return "inconclusive", reasons
    if count.corrected.low > 0:
        reasons.append(
            "False alarms, as counted on real images and in the control, leave a rate of at least"
            f" {one_in(count.corrected.low)}."
        )
        return "reproduces", reasons
    reasons.append("Together with what is known of their false alarms, these may all be false alarms.")
    return "inconclusive", reasons


def _nothing_found(counts: Evidence, rule: Rule) -> tuple[State, list[str]]:
    n, sensitivity = counts.hits.n, counts.sensitivity(rule.level)
    limit = min(1.0, rule.share * counts.expected_rate)
    if counts.pair:
        who, they, are, them, own = "Both detectors together", "The detectors", "are", "them", "detectors'"
    else:
        who, they, are, them, own = "The detector", "The detector", "is", "it", "detector's"
    reasons = [f"{who} recognised the image in none of {n:,} generated images."]
    if counts.control is not None and counts.control.k > 0:
        reasons.append(
            f"{they} fired in {counts.control.k:,} of {counts.control.n:,} images of the control,"
            " which never saw the image: those were false alarms."
        )
    if sensitivity < rule.least_sensitivity:
        reasons.append(
            f"{they} {are} only known to notice the image in {one_in(sensitivity)} cases where it is"
            f" there; at least {one_in(rule.least_sensitivity)} is needed to judge by {them}."
        )
        return "inconclusive", reasons
    missed = min(1.0, counts.hits.upper(rule.level) / sensitivity)
    reasons.append(
        f"Rates of up to {one_in(missed)} could have been missed ({rule.level:.0%} confidence, with the"
        f" {own} own misses counted); {one_in(limit)} is what a model gives that repeats every training"
        f" image equally often{'' if rule.share == 1 else f', times {rule.share:g}'}."
    )
    if missed < limit:
        return "not found", reasons
    if limit * sensitivity < 1:
        # one more than the smallest n, because the comparison above is strict
        needed = samples_to_exclude(limit * sensitivity, rule.level) + 1
        reasons.append(f"Too few images were generated to exclude that; {needed:,} without a hit would do.")
    return "inconclusive", reasons


def _rare_events(state: State, measured: Measured, counts: Evidence, rule: Rule) -> tuple[State, list[str]]:
    """Reliable estimates of the audited sampler: below what counting sees they inform, above they contradict.

    Estimates that contradict each other or the count clear nothing.
    """
    reasons: list[str] = []
    together = measured.q.combined
    for name, estimate in measured.q.of_the_audited().items():
        assert estimate.rate is not None and estimate.low is not None and estimate.high is not None
        reasons.append(
            f"The {name} estimator, which can see rarer events than counting, puts the rate at"
            f" {one_in(estimate.rate)} (between {one_in(estimate.low)} and {one_in(estimate.high)})."
        )
        if state == "not found" and estimate.low > counts.hits.upper(rule.level):
            reasons.append("That contradicts the count of zero, so the two must be reconciled first.")
            state = "inconclusive"
    if together is not None and not together.agree:
        reasons.append(together.sentence)
        state = "inconclusive" if state == "not found" else state
    return state, reasons


def _samplers(state: State, measured: Measured) -> tuple[State, list[str]]:
    """Counts by further samplers: they inform, and hits among them contradict "not found"."""
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


def _copies(state: State, reasons: list[str], found: Copies | None) -> tuple[State, list[str]]:
    """Nearest copies of any training image among given samples: where they leak, that decides."""
    if found is None:
        return state, reasons
    seen, never, same, by_chance = found.copies, found.expected, found.same, found.same_expected
    told = [
        f"{seen.k:,} of {seen.n:,} images are as near to a training image as {never.k:,} of {never.n:,}"
        f" images never trained on are; if nothing was copied, that had probability"
        f" {chance(found.p_value)}."
    ]
    if same.k:
        told.append(
            f"{same.k:,} of them {'is' if same.k == 1 else 'are'} a training image but for rounding;"
            f" of the images never trained on, {by_chance.k:,} of {by_chance.n:,} are."
        )
    if not found.leaks:
        return state, reasons + told
    of = found.distinct
    told.append(f"The copies are of {of:,} training image{'' if of == 1 else 's'}.")
    return "reproduces", told + reasons


def _search(measured: Measured) -> list[str]:
    """x_p's t' beside the held-out images', all by one recogniser with as many tries each.

    It informs and never decides, since it bounds no probability.
    """
    law = None if measured.t_prime is None else measured.t_prime.baseline
    if law is None:
        return []
    others, own = f"{law.images} images that were never trained on", law.target.value
    if own is None:
        return [f"The model restores the image from no noise level by more than chance, as it may {others}."]
    if law.p_value <= 0.05:
        return [
            f"The model restores the image from noise level {own:.2g}, further than it does {others}"
            f" (p = {law.p_value:.2g}, every image judged by the {law.question.recogniser} with"
            f" {law.question.tries} tries a level): it knows this image."
        ]
    text = f"The model restores the image from noise level {own:.2g}, no further than it does {others}."
    if law.smallest_p > 0.05:
        text += f" With {law.images} such images nothing could have been shown; hold out at least 20."
    return [text]
