"""From results to the rule's evidence and back to words; the rule itself is the matter of test_rule.py."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from stored_runs import SAMPLER, Drawn, results_of

from latentprint.judge import decide
from latentprint.results import Measured, Rule
from latentprint.results.counted import Combined, Estimate
from latentprint.results.model import Results
from latentprint.verdict import evidence, judge


def clean() -> Results:
    """A run in which nothing came back, and enough was drawn to say so."""
    return results_of(5, Drawn(own=0.0, samples=4000, matched=0.05, sampler=0.0))


def test_the_evidence_is_what_was_counted() -> None:
    results = results_of(1, Drawn(own=0.05))
    found, count = evidence(results), results.q.monte_carlo
    assert found.hits == count.trials and found.hits.k > 0
    assert results.q.control is not None and found.control == results.q.control.trials
    assert found.tpr == tuple(one.tpr for one in results.detectors.fitted) and len(found.tpr) == 2
    assert found.expected == 1 / 100 and found.sight is None
    assert results.memorised is not None and results.memorised.nearest is not None
    assert found.own == results.memorised.nearest.target


def test_the_state_and_its_tests_are_the_rule_s() -> None:
    for drawn in (
        Drawn(own=0.05),
        Drawn(own=0.05, control=0.05),
        Drawn(own=0.0),
        Drawn(marked=False, control=None),
    ):
        results = results_of(2, drawn)
        decision = decide(evidence(results))
        assert results.verdict.state == decision.state
        assert [one.p_value for one in results.verdict.tests] == [one.p_value for one in decision.tests]
        assert results.verdict.reasons[: len(decision.reasons)] == decision.reasons


def test_a_stricter_share_needs_more_samples() -> None:
    measured = clean()
    assert measured.verdict.state == "not found"
    assert judge(measured, Rule(share=0.01)).state == "inconclusive"
    with pytest.raises(ValidationError):
        Rule(level=1)


def test_a_count_that_stopped_on_sight_is_judged_by_the_interval_that_allows_it() -> None:
    stopped = results_of(2, Drawn(own=0.2, until=0.05, samples=3000, null=0))
    found, count = evidence(stopped), stopped.q.monte_carlo
    assert count.stopping is not None and count.corrected is not None and found.sight is not None
    assert (found.sight.low, found.sight.high) == (count.low, count.high)
    assert stopped.q.control is not None
    low, high = count.at(1 - 0.05 / 16)[0], stopped.q.control.at(1 - 0.05 / 16)[1]
    assert found.sight.excess == max(0.0, low - high) > 0
    alone = evidence(results_of(2, Drawn(own=0.2, until=0.05, samples=3000, null=0, control=None)))
    assert alone.sight is not None and alone.sight.excess is None
    # A control that fires as often as the model: real images, on which nothing fires, say nothing of that.
    alike = results_of(2, Drawn(own=0.2, control=0.2, until=0.05, samples=3000, null=0))
    seen = evidence(alike)
    assert seen.sight is not None and seen.sight.excess == 0 and alike.verdict.state != "reproduces"


def estimated(measured: Measured, **more: Any) -> Measured:
    values: dict[str, Any] = {
        "sampler": measured.q.monte_carlo.sampler,
        "rate": 1e-2,
        "low": 5e-3,
        "high": 2e-2,
        "level": 0.95,
        "reliable": True,
        "diagnostic": "reliable",
        "network_evaluations": 1,
    }
    q = measured.q.plain() | {"splitting": Estimate(**values | more).plain()}
    return measured.model_copy(update={"q": type(measured.q).model_validate(q)})


def test_a_reliable_estimate_above_what_counting_allows_is_a_contradiction() -> None:
    measured = clean()
    assert judge(estimated(measured), Rule()).state == "inconclusive"
    declined = estimated(measured, reliable=False, rate=None, low=None, high=None)
    assert judge(declined, Rule()).state == "not found"
    # another sampler has a q of its own: its estimate neither clears nor contradicts
    other = estimated(measured, sampler=SAMPLER.model_copy(update={"step": "flow"}))
    assert judge(other, Rule()) == judge(measured, Rule())


def test_estimates_that_contradict_each_other_clear_nothing() -> None:
    measured = clean()
    apart = Combined(
        answer=None, agree=False, low=0, high=1, level=0.95, sentence="Estimates contradict each other."
    )
    q = measured.q.model_copy(update={"combined": apart})
    found = judge(measured.model_copy(update={"q": q}), Rule())
    assert found.state == "inconclusive" and apart.sentence in found.reasons


def test_hits_of_another_sampler_clear_nothing() -> None:
    hits = results_of(5, Drawn(own=0.0, samples=4000, matched=0.05, sampler=0.01))
    assert hits.samplers[0].q.hits and hits.verdict.state == "inconclusive"
    assert any("(heun, 24 steps, karras)" in reason for reason in hits.verdict.reasons)


def test_no_t_prime_of_the_target_is_no_sign_of_anything() -> None:
    unseen = results_of(4, Drawn(matched=-1.0, null=20))
    law = unseen.t_prime.baseline if unseen.t_prime else None
    assert law is not None
    if law.target.value is None:
        assert law.excess is None and "from no noise level" in unseen.verdict.reasons[-1]
    known = results_of(4, Drawn(matched=0.9, null=20))
    assert "knows this image" in known.verdict.reasons[-1]
