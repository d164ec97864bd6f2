"""The rule that chooses between estimates: its error is that of all intervals together."""

import numpy as np
import pytest

from latentprint.stats import Claim, Trials, choose


def counted(name: str, k: int, n: int) -> Claim:
    trials = Trials(k, n)
    return Claim(name, trials.rate, trials.interval)


def test_one_estimate_answers_with_its_own_interval():
    found = choose([counted("counting", 3, 100)])
    assert (found.low, found.high) == Trials(3, 100).interval(0.95)
    assert found.answer == 0
    assert "One estimate" in found.sentence


def test_of_two_the_narrowest_answers_and_both_are_widened():
    found = choose([counted("counting", 3, 1000), counted("path", 300, 100_000)], 0.9)
    assert found.answer == 1
    assert (found.low, found.high) == Trials(300, 100_000).interval(0.95)
    assert "path 0.003" in found.sentence


def test_a_count_of_zero_gives_way_to_what_can_see():
    assert choose([counted("counting", 0, 100), counted("path", 20, 10**6)]).answer == 1


def test_two_that_contradict_leave_no_answer():
    found = choose([counted("counting", 50, 1000), counted("path", 1, 1000), counted("splitting", 2, 1000)])
    assert (found.answer, found.agree, found.low, found.high) == (None, False, 0.0, 1.0)
    assert "counting 0.05" in found.sentence
    assert "path 0.001" in found.sentence
    with pytest.raises(ValueError, match="nothing to choose"):
        choose([])


def test_an_answer_chosen_on_sight_misses_no_more_often_than_it_says():
    rng, q, missed, apart = np.random.default_rng(0), 0.02, 0, 0
    for _ in range(1500):
        claims = [counted(str(n), int(rng.binomial(n, q)), n) for n in (400, 500, 600, 700)]
        found = choose(claims, 0.8)
        apart += found.answer is None
        missed += not found.low <= q <= found.high
    assert (missed + apart) / 1500 <= 0.2
    assert missed + apart > 15  # and it can miss
