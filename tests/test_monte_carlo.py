"""Monte Carlo over coins: probes whose q is known, and nothing else behind them."""

from dataclasses import dataclass

import numpy as np
import pytest

from latentprint import rate
from latentprint.contracts import Ids, Outcome, Times
from latentprint.stats import Trials, samples_to_decide, samples_to_exclude


@dataclass(frozen=True)
class Coin:
    """Hits with probability q, by id alone."""

    q: float
    seed: int = 0
    cost: int = 3

    def __call__(self, t: Times, ids: Ids) -> Outcome:
        assert (t == 0.9).all()
        draws = np.random.default_rng(self.seed).random(6000)[ids]
        return Outcome(
            hit=draws < self.q,
            evaluations=np.full(len(ids), self.cost, dtype=np.int64),
            columns={"presence": draws < 2 * self.q, "mse": draws},
        )


SAMPLER = {"step": "coin", "steps": 1}


def test_counts_cost_interval_and_p_value():
    found = rate.monte_carlo(Coin(0.1), 0.9, 500, sampler=SAMPLER, expected=0.2, batch=64)
    draws = np.random.default_rng(0).random(6000)[:500]
    k = sum(d < 0.1 for d in draws)
    assert found.trials == Trials(k, 500)
    assert found.rate == k / 500
    assert (found.low, found.high) == Trials(k, 500).interval(0.95)
    assert found.network_evaluations == 1500
    assert found.sampler == SAMPLER
    assert found.details["presence_hits"] == sum(d < 0.2 for d in draws)
    assert "mse_hits" not in found.details
    assert found.details["p_value"] < 1e-6
    assert found.to_dict()["hits"] == k


def test_batches_change_nothing_and_fresh_ids_add_up():
    whole = rate.monte_carlo(Coin(0.1), 0.9, 300, sampler=SAMPLER, batch=300)
    assert whole == rate.monte_carlo(Coin(0.1), 0.9, 300, sampler=SAMPLER, batch=7)
    parts = [rate.monte_carlo(Coin(0.1), 0.9, 150, sampler=SAMPLER, first=f).trials for f in (0, 150)]
    assert parts[0] is not None
    assert parts[1] is not None
    assert parts[0] + parts[1] == whole.trials
    draws = np.random.default_rng(0).random(6000)
    assert parts[1] == Trials(int((draws[150:300] < 0.1).sum()), 150)


def test_zero_hits_say_what_could_have_been_missed_and_how_many_would_do():
    found = rate.monte_carlo(Coin(0.0), 0.9, 100, sampler=SAMPLER, expected=0.001)
    assert found.rate == 0
    assert found.details["missable"] == pytest.approx(1 - 0.05 ** (1 / 100))
    assert f"{1 - 0.05 ** (1 / 100):.3g} could have been missed" in found.diagnostic
    assert f"{samples_to_exclude(0.001)} would be enough" in found.diagnostic


@pytest.mark.parametrize(("q", "side"), [(0.3, "above"), (0.001, "below")])
def test_stops_as_soon_as_the_policy_is_answered(q: float, side: str):
    found = rate.monte_carlo_until(
        Coin(q), 0.9, rate.decided(0.05), near=0.05, most=5000, sampler=SAMPLER, batch=10
    )
    assert found.low is not None
    assert found.high is not None
    assert found.low > 0.05 if side == "above" else found.high < 0.05
    assert found.trials is not None
    assert found.trials.n < 400
    assert found.network_evaluations == 3 * found.trials.n
    assert "answered" in found.diagnostic


def test_an_open_question_says_so_and_what_would_be_enough():
    found = rate.monte_carlo_until(
        Coin(0.0), 0.9, rate.decided(1e-4), near=1e-4, most=200, sampler=SAMPLER, batch=50
    )
    assert found.details["stopped"] is False
    assert "still open" in found.diagnostic
    assert f"at least {samples_to_decide(1e-4)} would be needed" in found.diagnostic


def test_stopping_on_sight_keeps_its_coverage_where_a_fixed_interval_loses_it():
    q, cases, kept, fooled = 0.2, 150, 0, 0
    for seed in range(cases):
        found = rate.monte_carlo_until(
            Coin(q, seed), 0.9, rate.decided(q), near=q, most=400, sampler=SAMPLER, level=0.8, batch=5
        )
        kept += found.holds(q)
        for n in (t.trials for t in rate.tally(Coin(q, seed), 0.9, 400, batch=5)):
            if not n.interval(0.8)[0] <= q <= n.interval(0.8)[1]:
                fooled += 1
                break
    assert Trials(kept, cases).upper(0.999) >= 0.8
    assert kept / cases >= 0.8
    assert Trials(fooled, cases).lower(0.999) > 0.3


def test_precision_can_be_the_question():
    found = rate.monte_carlo_until(
        Coin(0.5), 0.9, rate.precise(0.5), most=4000, sampler=SAMPLER, batch=50, near=0.5
    )
    assert found.low is not None
    assert found.high is not None
    assert found.high <= 1.5 * found.low
    assert found.trials is not None
    assert found.trials.n < 1000


def test_brute_force_cost_of_a_relative_error():
    assert rate.brute_force_samples(1e-5) == pytest.approx(25 * (1e5 - 1))
    with pytest.raises(ValueError, match="0 < q < 1"):
        rate.brute_force_samples(0.0)


def test_bad_questions_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        rate.monte_carlo(Coin(0.5), 0.9, 0, sampler=SAMPLER)
    with pytest.raises(ValueError, match="threshold"):
        rate.decided(0.0)
    with pytest.raises(ValueError, match="must not offer a number"):
        rate.Rate("bridge", 0.1, 0.0, 0.2, 0.95, False, "", 0, {})
    with pytest.raises(ValueError, match="in its interval"):
        rate.Rate("bridge", 0.3, 0.0, 0.2, 0.95, True, "", 0, {})
