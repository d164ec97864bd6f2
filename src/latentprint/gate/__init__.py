"""From results and a release policy to yes, no, or could not judge.

A policy is a TOML file of rules; every limit in it is its author's, none is built in. Each rule compares a
limit with an interval [low, high] that holds the true value with the policy's confidence:

    high <= limit          pass
    low > limit            fail
    otherwise              unknown: the run cannot tell, and more samples could

The answer is 1 (no) if any rule fails, else 2 (could not judge) if any is unknown or there is no rule at all,
else 0 (yes). "Nothing found" in too small a sample is therefore never a yes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any, Literal

from latentprint.files import MAX_TOML, read, read_text
from latentprint.gate.policy import (
    ControlRule,
    DetectorRule,
    MembershipRule,
    MissableRule,
    Policy,
    RateRule,
    SearchRule,
    VerdictRule,
    read_policy,
    starter,
)
from latentprint.stats import Trials, samples_to_exclude
from latentprint.verdict import Evidence, evidence
from latentprint.words import one_in

__all__ = ["Decision", "Outcome", "Policy", "judge", "judge_file", "read_policy", "starter"]

Answer = Literal["pass", "fail", "unknown"]


@dataclass(frozen=True)
class Outcome:
    """What one rule says, with its reason in one sentence."""

    rule: str
    answer: Answer
    reason: str


@dataclass(frozen=True)
class Decision:
    """What all rules say together.

    Attributes:
        exit_code: 0 pass, 1 fail, 2 could not judge.
        policy_sha256: hash of the policy's text, for the audit trail.
    """

    outcomes: tuple[Outcome, ...]
    policy_name: str = ""
    policy_sha256: str | None = field(default=None)

    @property
    def exit_code(self) -> int:
        """0 where every rule passed, 1 where one failed, 2 where one (or all) could not be judged."""
        answers = {outcome.answer for outcome in self.outcomes}
        return 1 if "fail" in answers else 2 if "unknown" in answers or not answers else 0

    @property
    def sentence(self) -> str:
        """The answer in words."""
        count = {a: sum(o.answer == a for o in self.outcomes) for a in ("pass", "fail", "unknown")}
        if not self.outcomes:
            return "Could not judge: the policy holds no rule."
        word = {0: "Passes", 1: "Fails", 2: "Could not judge"}[self.exit_code]
        return (
            f"{word}: {count['pass']} passed, {count['fail']} failed, {count['unknown']} could not be judged."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json`` and for ``verdict.policy`` of results.json."""
        return {
            "name": self.policy_name,
            "sha256": self.policy_sha256,
            "exit_code": self.exit_code,
            "sentence": self.sentence,
            "rules": [{"rule": o.rule, "answer": o.answer, "reason": o.reason} for o in self.outcomes],
        }


def judge_file(results: Mapping[str, Any], policy: Path) -> Decision:
    """Judge results by a policy file; its hash goes into the decision.

    Raises:
        ValueError: the policy cannot be read (SettingsError), or the results lack their counts.
    """
    decision = judge(results, read_policy(read_text(policy, MAX_TOML), name=policy.name))
    return Decision(decision.outcomes, decision.policy_name, sha256(read(policy, MAX_TOML)).hexdigest())


def judge(results: Mapping[str, Any], policy: Policy) -> Decision:
    """Judge results by every rule of a policy; a pure function.

    Raises:
        ValueError: the results lack the counts that any audit has.
    """
    counts = evidence(results)
    rules: list[Callable[[], Iterator[Outcome]]] = []
    if (q := policy.q) is not None:
        rules.append(lambda: _rate(results, counts, q))
    if (missable := policy.missable) is not None:
        rules.append(lambda: _missable(counts, missable))
    if (search := policy.t_prime) is not None:
        rules.append(lambda: _search(results, search))
    if (membership := policy.membership) is not None:
        rules.append(lambda: _membership(results, membership))
    if (control := policy.control) is not None:
        rules.append(lambda: _control(counts, control))
    if (detectors := policy.detectors) is not None:
        rules.append(lambda: _detectors(counts, detectors))
    if (state := policy.verdict) is not None:
        rules.append(lambda: _state(results, state))
    return Decision(tuple(outcome for rule in rules for outcome in rule()), policy.name)


def _compare(rule: str, what: str, low: float, high: float, limit: float, hint: str = "") -> Outcome:
    span = f"{what} lies between {one_in(low)} and {one_in(high)}; the limit is {one_in(limit)}"
    if high <= limit:
        return Outcome(rule, "pass", f"{span}.")
    if low > limit:
        return Outcome(rule, "fail", f"{span}, which is exceeded.")
    return Outcome(rule, "unknown", f"{span}, and both sides of it are possible.{hint}")


def _rate(results: Mapping[str, Any], counts: Evidence, rule: RateRule) -> Iterator[Outcome]:
    """One estimator that pins q below the limit is enough, unless another puts it above."""
    found = [_estimate(results, counts, name, rule) for name in rule.estimators]
    answers = {outcome.answer for outcome in found}
    decisive = "fail" if "fail" in answers else "pass" if "pass" in answers else "unknown"
    told = [outcome for outcome in found if outcome.answer == decisive]
    yield Outcome("q.at_most", decisive, " ".join(outcome.reason for outcome in told))


def _estimate(results: Mapping[str, Any], counts: Evidence, name: str, rule: RateRule) -> Outcome:
    if name == "monte_carlo" and counts.sight is not None:
        if counts.sight.level < rule.level:
            return Outcome("q", "unknown", _too_loose("counting", counts.sight.level, rule.level))
        return _compare("q", "The rate by counting", *counts.sight.through, rule.at_most)
    if name == "monte_carlo":
        low, high = _counted(counts.hits, counts, rule.level)
        return _compare(
            "q", "The rate by counting", low, high, rule.at_most, _more(counts, rule.at_most, rule.level)
        )
    estimate = results["q"].get(name)
    if not estimate:
        return Outcome("q", "unknown", f"The {name} estimator was not run.")
    if estimate.get("reliable") is not True:
        return Outcome("q", "unknown", f"The {name} estimate is not reliable.")
    # What the detectors' errors leave of it, where that is stated: the rate of the image, not of detections.
    stated = estimate.get("corrected") or estimate
    if stated["level"] < rule.level:
        return Outcome("q", "unknown", _too_loose(name, stated["level"], rule.level))
    return _compare("q", f"The rate by {name}", stated["low"], stated["high"], rule.at_most)


def _too_loose(name: str, level: float, asked: float) -> str:
    return f"The {name} interval has a confidence of only {level:g} instead of {asked:g}."


def _counted(hits: Trials, counts: Evidence, level: float) -> tuple[float, float]:
    """One-sided bounds on q, each at ``level``: misses raise the upper one, false alarms lower the other.

    Half of each bound's error probability is spent on the detectors' own rates (Bonferroni).
    """
    if hits.n == 0:
        return 0.0, 1.0
    each = 1 - (1 - level) / 2
    sensitivity = counts.sensitivity(each)
    high = min(1.0, hits.upper(each) / sensitivity) if sensitivity > 0 else 1.0
    alarms = counts.control.upper(each) if counts.control is not None and counts.control.n else None
    alarms = counts.false_alarms(each) if alarms is None else min(alarms, counts.false_alarms(each))
    return max(0.0, hits.lower(each) - alarms), high


def _more(counts: Evidence, limit: float, level: float) -> str:
    """How many images without a hit would decide, where that helps."""
    each = 1 - (1 - level) / 2
    share = limit * counts.sensitivity(each)
    if counts.hits.k or not 0 < share < 1:
        return ""
    return f" {samples_to_exclude(share, each):,} generated images without a hit would decide."


def _missable(counts: Evidence, rule: MissableRule) -> Iterator[Outcome]:
    _, high = _counted(counts.hits, counts, rule.level)
    if counts.sight is not None and counts.hits.k:
        if counts.sight.level < rule.level:
            yield Outcome(
                "missable.at_most", "unknown", _too_loose("counting", counts.sight.level, rule.level)
            )
            return
        high = counts.sight.through[1]
    said = f"A rate of up to {one_in(high)} could have been missed; the limit is {one_in(rule.at_most)}"
    if high <= rule.at_most:
        yield Outcome("missable.at_most", "pass", f"{said}.")
    else:
        hint = _more(counts, rule.at_most, rule.level)
        yield Outcome("missable.at_most", "unknown", f"{said}, so this run says too little.{hint}")


def _search(results: Mapping[str, Any], rule: SearchRule) -> Iterator[Outcome]:
    found: Mapping[str, Any] = results.get("t_prime") or {}
    baseline: Mapping[str, Any] = found.get("baseline") or {}
    others, value = baseline.get("values") or [], found.get("value")
    wanted = [
        (name, limit)
        for name, limit in (
            ("excess_at_most", rule.excess_at_most),
            ("p_value_at_least", rule.p_value_at_least),
        )
        if limit is not None
    ]
    if not found or len(others) < rule.baseline_images_at_least:
        needed = rule.baseline_images_at_least
        said = f"t' was compared with {len(others)} images never trained on; {needed} are needed."
        yield from (Outcome(f"t_prime.{name}", "unknown", said) for name, _ in wanted)
        return
    for name, limit in wanted:
        outcome = _excess(value, others, limit) if name == "excess_at_most" else _p_value(baseline, limit)
        yield Outcome(f"t_prime.{name}", *outcome)


def _excess(value: float | None, others: list[float | None], limit: float) -> tuple[Answer, str]:
    if value is None:
        return "pass", "The image never came back from noise, so there is no excess."
    known = [-1.0 if one is None else one for one in others]  # "never" ranks below every t
    middle = median(sorted(known))
    if middle < 0:
        return (
            "unknown",
            f"t' is {value:.3g}, but most images never trained on never came back: no distance to them.",
        )
    excess = value - middle
    said = f"t' is {value:.3g}, {excess:+.3g} against the median of {len(others)} images never trained on"
    return ("pass" if excess <= limit else "fail"), f"{said}; the limit is {limit:+.3g}."


def _p_value(baseline: Mapping[str, Any], limit: float) -> tuple[Answer, str]:
    p = baseline.get("p_value")
    if p is None:
        return "unknown", "The comparison with images never trained on has no p-value."
    said = f"The p-value of t' against images never trained on is {p:.2g}; at least {limit:g} is asked for."
    return ("pass" if p >= limit else "fail"), said


def _membership(results: Mapping[str, Any], rule: MembershipRule) -> Iterator[Outcome]:
    found: Mapping[str, Any] = results.get("membership") or {}
    low, high = found.get("low"), found.get("high")
    name, limit = "membership.auc_at_most", rule.auc_at_most
    if low is None or high is None:
        yield Outcome(name, "unknown", "The run holds no membership test with an interval.")
        return
    said = f"The membership test's AUC lies between {low:.3g} and {high:.3g}; the limit is {limit:.3g}."
    yield Outcome(name, "pass" if high <= limit else "fail" if low > limit else "unknown", said)


def _control(counts: Evidence, rule: ControlRule) -> Iterator[Outcome]:
    if counts.control is None or counts.control.n == 0:
        yield Outcome("control.rate_at_most", "unknown", "No control was run.")
        return
    low, high = counts.control.lower(rule.level), counts.control.upper(rule.level)
    yield _compare("control.rate_at_most", "The control's rate", low, high, rule.rate_at_most)


def _detectors(counts: Evidence, rule: DetectorRule) -> Iterator[Outcome]:
    sensitivity, alarms = counts.sensitivity(rule.level), counts.false_alarms(rule.level)
    known = f"is known to be at least {sensitivity:.3g}; {rule.sensitivity_at_least:.3g} is asked for."
    enough = sensitivity >= rule.sensitivity_at_least
    whose, joint = ("detectors'", " joint") if counts.pair else ("detector's", "")
    said = f"The {whose}{joint} sensitivity {known}"
    yield Outcome("detectors.sensitivity_at_least", "pass" if enough else "unknown", said)
    few = alarms <= rule.false_alarms_at_most
    known = f"known to be at most {alarms:.3g}; {rule.false_alarms_at_most:.3g} is allowed."
    said = f"The {whose} false-alarm rate is {known}"
    yield Outcome("detectors.false_alarms_at_most", "pass" if few else "unknown", said)


def _state(results: Mapping[str, Any], rule: VerdictRule) -> Iterator[Outcome]:
    state = (results.get("verdict") or {}).get("state")
    allowed = " or ".join(f"“{one}”" for one in rule.allowed)
    if state in rule.allowed:
        yield Outcome("verdict.allowed", "pass", f"The audit's verdict is “{state}”.")
    else:
        answer: Answer = "fail" if state == "reproduces" else "unknown"
        yield Outcome("verdict.allowed", answer, f"The audit's verdict is “{state}”; {allowed} is asked for.")
