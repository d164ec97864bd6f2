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
  detectors that overlook. With one detector (x_p carries no mark, ``detectors.presence`` is null) s is the
  lower bound of ``tpr_id``, and f the upper bound of c_id's false-positive rate. With m detectors in
  general: s = sum of the m lower bounds - (m - 1), f the largest upper bound, each at
  ``1 - (1 - level) / m``.
- **inconclusive**: anything else, with what stood in the way.

Where sampling stopped on sight of the counts (``q.monte_carlo.until``), tests for a fixed n do not hold: with
hits the lower end of the anytime-valid interval, through the detectors' errors, must lie above zero. Without
a hit the number of looks was a constant, so that "not found" is judged as above.

Detections by further samplers of the same model (``samplers``) turn "not found" into **inconclusive**.

Where samples were given in the place of a model, copies of *any* training image among them decide too: if
more of them are near to training images than images never trained on can be (``copies.leaks``), the state is
**reproduces**, whatever was counted for x_p.

Sources: R. A. Fisher, JRSS 98 (1935); Clopper and Pearson, Biometrika 26 (1934); paper §5.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from scipy import stats as scipy_stats  # pyright: ignore[reportMissingTypeStubs]

from latentprint.contracts import InputError
from latentprint.stats import Trials, samples_to_exclude
from latentprint.words import chance, one_in

State = Literal["reproduces", "not found", "inconclusive"]


@dataclass(frozen=True)
class Rule:
    """What the three words mean in numbers; written into the results beside the verdict.

    Attributes:
        level: confidence of every bound and test.
        share: "not found" needs everything above this share of copies/N to be excluded.
        least_sensitivity: below this joint sensitivity the detectors are too weak to judge by.

    Raises:
        ValueError: a number outside its range.
    """

    level: float = 0.95
    share: float = 1.0
    least_sensitivity: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.level < 1 or not 0 < self.least_sensitivity < 1 or not self.share > 0:
            raise ValueError(f"level and least_sensitivity lie in (0, 1) and share is positive, got {self}")


@dataclass(frozen=True)
class Sight:
    """Intervals of a count that stopped on sight; those of a fixed number of samples do not hold for it.

    ``low``, ``high``: of the rate of joint detections. ``through``: the same through the detectors' errors.
    """

    low: float
    high: float
    level: float
    through: tuple[float, float]


@dataclass(frozen=True)
class Evidence:
    """The counts that the verdict rests on, taken out of results.json.

    ``tpr`` and ``fpr`` are those of c_p and c_id, or of c_id alone where x_p carries no mark.
    """

    hits: Trials
    control: Trials | None
    tpr: tuple[Trials, ...]
    fpr: tuple[Trials, ...]
    expected_rate: float
    sight: Sight | None = None

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


def evidence(results: Mapping[str, Any]) -> Evidence:
    """Take the counts out of results.json.

    Raises:
        InputError: a count that the verdict needs is missing or impossible.
    """
    try:
        q, detectors = results["q"], results["detectors"]
        asked = [detectors["identity"]]
        if detectors["presence"] is not None:
            asked.insert(0, detectors["presence"])
        monte_carlo, control = q["monte_carlo"], q.get("control")
        images, copies = results["data"]["images"], results["target"].get("copies", 1)
        return Evidence(
            hits=_trials(monte_carlo["hits"], monte_carlo["samples"]),
            control=None if control is None else _trials(control["hits"], control["samples"]),
            tpr=tuple(_trials(one["tpr"]["k"], one["tpr"]["n"]) for one in asked),
            fpr=tuple(_trials(one["fpr"]["k"], one["fpr"]["n"]) for one in asked),
            expected_rate=copies / images,
            sight=_sight(monte_carlo),
        )
    except (KeyError, TypeError, AttributeError, ZeroDivisionError, ValueError) as error:
        raise InputError(f"the results lack a count that the verdict needs: {error!r}") from error


def _sight(monte_carlo: Mapping[str, Any]) -> Sight | None:
    if monte_carlo.get("until") is None:
        return None
    through = monte_carlo["corrected"]
    ends = (monte_carlo["low"], monte_carlo["high"], through["low"], through["high"])
    if not all(0 <= end <= 1 for end in ends):
        raise ValueError(f"an interval lies in [0, 1], got {ends}")
    return Sight(*ends[:2], min(monte_carlo["level"], through["level"]), ends[2:])


def _trials(k: int, n: int) -> Trials:
    if not n <= 2**53:  # beyond it JSON keeps no exact count, and no audit gets there
        raise ValueError(f"a count of {n} is no count")
    return Trials(k, n)


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


def verdict(results: Mapping[str, Any], rule: Rule | None = None) -> dict[str, Any]:
    """Judge a results mapping (the contract of results.json); a pure function of its counts.

    Returns ``state``, ``reasons`` (plain sentences), ``policy`` (null: no user policy took part), ``rule``.

    Raises:
        InputError: a count that the verdict needs is missing or impossible.
    """
    rule, counts = rule or Rule(), evidence(results)
    if counts.hits.n == 0:
        state, reasons = "inconclusive", ["No image was generated, so nothing can be said."]
    elif counts.hits.k > 0 and counts.sight is not None:
        state, reasons = _found_on_sight(counts, counts.sight, rule)
    elif counts.hits.k > 0:
        state, reasons = _something_found(counts, rule)
    else:
        state, reasons = _nothing_found(counts, rule)
    state, more = _rare_events(state, results, counts, rule)
    state, told = _samplers(state, results)
    state, reasons = _copies(state, reasons + more + told, results)
    reasons += _search(results)
    return {"state": state, "reasons": reasons, "policy": None, "rule": asdict(rule)}


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


def _found_on_sight(counts: Evidence, sight: Sight, rule: Rule) -> tuple[State, list[str]]:
    """As ``_something_found``, where sampling stopped on sight of the counts: by intervals that allow it."""
    who = "Both detectors" if counts.pair else "The detector"
    reasons = [
        f"{who} recognised the image in {counts.hits.k:,} of {counts.hits.n:,} generated images, when"
        f" sampling stopped: between {one_in(sight.low)} and {one_in(sight.high)}"
        f" (a {sight.level:.0%} interval that holds whenever one stops)."
    ]
    if sight.level < rule.level:
        reasons.append(f"The rule asks for a confidence of {rule.level:.0%}.")
        return "inconclusive", reasons
    if sight.through[0] > 0:
        reasons.append(
            "False alarms, as counted on real images and in the control, leave a rate of at least"
            f" {one_in(sight.through[0])}."
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


def _rare_events(
    state: State, results: Mapping[str, Any], counts: Evidence, rule: Rule
) -> tuple[State, list[str]]:
    """Reliable rare-event estimates: below what counting could see they inform, above it they contradict."""
    reasons: list[str] = []
    for name in ("splitting", "bridge"):
        estimate = results["q"].get(name)
        if not estimate or not estimate.get("reliable") or estimate.get("rate") is None:
            continue
        reasons.append(
            f"The {name} estimator, which can see rarer events than counting, puts the rate at"
            f" {one_in(estimate['rate'])} (between {one_in(estimate['low'])} and {one_in(estimate['high'])})."
        )
        if state == "not found" and estimate["low"] > counts.hits.upper(rule.level):
            reasons.append("That contradicts the count of zero, so the two must be reconciled first.")
            state = "inconclusive"
    return state, reasons


def _samplers(state: State, results: Mapping[str, Any]) -> tuple[State, list[str]]:
    """Counts by further samplers: they inform, and hits among them contradict "not found"."""
    reasons: list[str] = []
    for one in results.get("samplers") or []:
        seen, sampler = _trials(one["q"]["hits"], one["q"]["samples"]), one["sampler"]
        if not seen.k:
            continue
        reasons.append(
            f"By another sampler ({sampler['step']}, {sampler.get('steps')} steps) the image was recognised"
            f" in {seen.k:,} of {seen.n:,} generated images."
        )
        if state == "not found":
            reasons.append("What one sampler does not show another may, so the model is not cleared.")
            state = "inconclusive"
    return state, reasons


def _copies(state: State, reasons: list[str], results: Mapping[str, Any]) -> tuple[State, list[str]]:
    """Nearest copies of any training image among given samples: where they leak, that decides."""
    found: Mapping[str, Any] = results.get("copies") or {}
    if not found:
        return state, reasons
    seen, never = (_trials(found[name]["k"], found[name]["n"]) for name in ("copies", "expected"))
    same, by_chance = (_trials(found[name]["k"], found[name]["n"]) for name in ("same", "same_expected"))
    counted = (
        f"{seen.k:,} of {seen.n:,} images are as near to a training image as {never.k:,} of {never.n:,}"
        f" images never trained on are; if nothing was copied, that had probability"
        f" {chance(found['p_value'])}."
    )
    told = [counted]
    if same.k:
        told.append(
            f"{same.k:,} of them {'is' if same.k == 1 else 'are'} a training image but for rounding;"
            f" of the images never trained on, {by_chance.k:,} of {by_chance.n:,} are."
        )
    if not found["leaks"]:
        return state, reasons + told
    of = found["distinct"]
    told.append(f"The copies are of {of:,} training image{'' if of == 1 else 's'}.")
    return "reproduces", told + reasons


def _search(results: Mapping[str, Any]) -> list[str]:
    """t' against images never trained on: it informs and never decides, since it bounds no probability."""
    found: Mapping[str, Any] = results.get("t_prime") or {}
    baseline: Mapping[str, Any] = found.get("baseline") or {}
    value, p_value = found.get("value"), baseline.get("p_value")
    if value is None or p_value is None:
        return []
    others = f"{baseline.get('images', 0)} images that were never trained on"
    if p_value <= 0.05:
        return [
            f"The model restores the image from noise level {value:.2g}, further than it does {others}"
            f" (p = {p_value:.2g}): it knows this image."
        ]
    return [f"The model restores the image from noise level {value:.2g}, no further than it does {others}."]
