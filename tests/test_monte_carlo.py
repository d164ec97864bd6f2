"""Monte Carlo over coins: probes whose q is known, and nothing else behind them."""

from dataclasses import dataclass

import numpy as np
import pytest

from latentprint import rate
from latentprint.contracts import Ids, Outcome, Times
from latentprint.stats import Trials, samples_to_exclude


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


def test_brute_force_cost_of_a_relative_error():
    assert rate.brute_force_samples(1e-5) == pytest.approx(25 * (1e5 - 1))
    with pytest.raises(ValueError, match="0 < q < 1"):
        rate.brute_force_samples(0.0)


def test_bad_questions_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        rate.monte_carlo(Coin(0.5), 0.9, 0, sampler=SAMPLER)
    with pytest.raises(ValueError, match="must not offer a number"):
        rate.Rate("path", 0.1, 0.0, 0.2, 0.95, False, "", 0, {})
    with pytest.raises(ValueError, match="in its interval"):
        rate.Rate("path", 0.3, 0.0, 0.2, 0.95, True, "", 0, {})
