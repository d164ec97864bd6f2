"""The lower bound of epsilon: valid where epsilon is known, and no weaker than what is published."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from latentprint.stats.epsilon import Form, epsilon_bound, epsilon_of_guesses, gaussian_epsilon

DELTA = 1e-5


def gaussian_run(mu: float, canaries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a mechanism that is exactly mu-Gaussian private: each canary's own N(0, 1), mu more if in."""
    rng = np.random.default_rng(seed)
    member = rng.random(canaries) < 0.5
    return rng.normal(size=canaries) + mu * member, member


@pytest.mark.parametrize("form", ["coins", "exact", "gaussian"])
@pytest.mark.parametrize("mu", [0.3, 1.0])
def test_the_bound_is_valid_on_the_gaussian_mechanism(mu: float, form: Form) -> None:
    """200 trainings of known epsilon: the bound exceeds it in at most 5 %."""
    truth = gaussian_epsilon(mu, DELTA)
    found = [epsilon_bound(*gaussian_run(mu, 120, s), delta=DELTA, form=form).low for s in range(200)]
    assert sum(low > truth for low in found) <= binom.ppf(0.999, 200, 0.05)
    assert mu < 1 or np.mean(found) > 0.4


def randomized_response(epsilon: float, canaries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Each coin told truly with chance e^epsilon / (1 + e^epsilon): epsilon-private; noise breaks ties."""
    rng = np.random.default_rng(seed)
    member = rng.random(canaries) < 0.5
    true = rng.random(canaries) < 1 / (1 + math.exp(-epsilon))
    return np.where(true, member, ~member) + 0.01 * rng.random(canaries), member


@pytest.mark.parametrize("form", ["coins", "exact"])
def test_the_bound_is_valid_and_near_on_randomized_response(form: Form) -> None:
    """The mechanism for which Steinke's theorem is tight: at delta 0, valid in 95 %, and near the truth."""
    found = [epsilon_bound(*randomized_response(1.5, 400, s), delta=0.0, form=form).low for s in range(200)]
    assert sum(low > 1.5 for low in found) <= binom.ppf(0.999, 200, 0.05)
    assert np.mean(found) > 0.7


def even_scores(n: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """n canaries out at the quantiles of N(0, 1), n in at those of N(shift, 1)."""
    at = norm.ppf((np.arange(n) + 0.5) / n)
    return np.concatenate([at + shift, at]), np.arange(2 * n) < n


@pytest.mark.parametrize(
    ("shift", "coins", "gaussian"),
    [(1, 1.13346, 2.164749), (2, 2.311945, 4.7218075), (4, 4.395568, 9.133752)],
)
def test_no_weaker_than_the_published_auditor(shift: int, coins: float, gaussian: float) -> None:
    """jax_privacy's one-run bounds on these very scores (its test of 10,000 canaries a side, delta 1e-6)."""
    scores, member = even_scores(10_000, shift)
    assert epsilon_bound(scores, member, delta=1e-6, form="coins").low >= coins
    assert epsilon_bound(scores, member, delta=1e-6, form="gaussian").low >= gaussian
    assert epsilon_bound(scores, member, delta=1e-6).low <= gaussian_epsilon(shift, 1e-6)


def test_without_delta_the_coins_are_a_binomial_tail() -> None:
    """Theorem 5.2 at delta 0: the epsilon at which P(Binomial(r, sigmoid) >= v) is alpha."""
    low = epsilon_of_guesses(45, 50, 200, delta=0.0, alpha=0.05, form="coins")
    assert binom.sf(44, 50, 1 / (1 + math.exp(-low))) == pytest.approx(0.05, rel=1e-4)


def test_the_recursion_forbids_nothing_that_a_private_mechanism_does() -> None:
    """Randomized response of 6 canaries, all guessed: its exact chances are never forbidden."""
    for epsilon, right in itertools.product((0.3, 1.0, 2.5), range(1, 7)):
        chance = float(binom.sf(right - 1, 6, 1 / (1 + math.exp(-epsilon))))
        assert (
            epsilon_of_guesses(right, 6, 6, delta=0.0, alpha=chance * 0.999, form="exact") <= epsilon + 1e-5
        )


@pytest.mark.parametrize("mu", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("delta", [1e-2, 1e-6])
def test_epsilon_of_the_gaussian_mechanism(mu: float, delta: float) -> None:
    """Against the integral of its definition: delta = E[(1 - e^(epsilon - L))_+], L the privacy loss."""
    epsilon = gaussian_epsilon(mu, delta)
    x = np.linspace(-12, mu + 12, 400_001)
    loss = mu * x - mu**2 / 2
    integral = np.trapezoid(norm.pdf(x, mu) * np.maximum(0, 1 - np.exp(epsilon - loss)), x)
    assert integral == pytest.approx(delta, rel=1e-4)


def test_scores_that_say_nothing_give_nothing() -> None:
    rng = np.random.default_rng(0)
    found = epsilon_bound(rng.normal(size=60), rng.random(60) < 0.5, delta=1e-5)
    assert found.low == 0 and found.canaries == 60
    with pytest.raises(ValueError, match="8 or more canaries"):
        epsilon_bound(np.zeros(4), np.ones(4, bool), delta=0.0)
    with pytest.raises(ValueError, match="below 1"):
        epsilon_bound(np.zeros(9), np.ones(9, bool), delta=1.0)
    with pytest.raises(ValueError, match="rise"):
        epsilon_of_guesses(5, 4, 9, delta=0.0, alpha=0.05)
    with pytest.raises(ValueError, match="no epsilon at delta 0"):
        epsilon_of_guesses(4, 4, 9, delta=0.0, alpha=0.05, form="gaussian")
    assert gaussian_epsilon(0.0, 1e-5) == 0.0
    with pytest.raises(ValueError, match="lies in"):
        gaussian_epsilon(1.0, 0.0)
