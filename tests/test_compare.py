"""Differences held to what they promise: coverage by enumeration, Fisher by hand, noise called noise."""

from __future__ import annotations

import re
from math import comb

import numpy as np
import pytest
import small_runs
from scipy.stats import binom

from latentprint.compare import compare, difference_interval, equality_p, ratio_interval
from latentprint.report import render_comparison
from latentprint.stats import Trials


def coverage(n1: int, n2: int, p1: float, p2: float) -> tuple[float, float]:
    """Exact probability that the intervals of difference and ratio hold the truth, over all outcomes."""
    joint = np.outer(binom.pmf(np.arange(n1 + 1), n1, p1), binom.pmf(np.arange(n2 + 1), n2, p2))
    held = np.zeros(2)
    for k1, k2 in np.argwhere(joint > 1e-9):
        one, two = Trials(int(k1), n1), Trials(int(k2), n2)
        low, high = difference_interval(one, two)
        r_low, r_high = ratio_interval(one, two)
        inside = np.array(
            [low <= p2 - p1 <= high, r_low <= p2 / p1 and (r_high is None or p2 / p1 <= r_high)]
        )
        held += joint[k1, k2] * inside
    return float(held[0]), float(held[1])


@pytest.mark.parametrize(("n1", "n2"), [(60, 60), (40, 90)])
def test_the_intervals_hold_the_truth_as_often_as_they_say(n1: int, n2: int) -> None:
    for p1 in (0.01, 0.03, 0.1):
        for p2 in (0.01, 0.05, 0.1):
            difference, ratio = coverage(n1, n2, p1, p2)
            assert difference >= 0.95 and ratio >= 0.95, (p1, p2)


def test_the_difference_interval_of_two_zeros_reaches_both_ways() -> None:
    upper = 1 - 0.025 ** (1 / 100)
    assert difference_interval(Trials(0, 100), Trials(0, 100)) == pytest.approx((-upper, upper), rel=1e-9)
    low, high = difference_interval(Trials(2, 50), Trials(9, 80))
    assert difference_interval(Trials(9, 80), Trials(2, 50)) == pytest.approx((-high, -low))


def test_the_ratio_interval_by_hand() -> None:
    # none of 5 hits fell to the second run: its share is at most 1 - 0.025^(1/5), the ratio share/(1 - share)
    share = 1 - 0.025 ** (1 / 5)
    assert ratio_interval(Trials(5, 1000), Trials(0, 1000)) == pytest.approx((0, share / (1 - share)))
    assert ratio_interval(Trials(0, 9), Trials(0, 9)) == (0, None)
    # the same counts in twice the samples halve the ratio
    assert ratio_interval(Trials(5, 1000), Trials(4, 2000))[0] == pytest.approx(
        ratio_interval(Trials(5, 1000), Trials(4, 1000))[0] / 2
    )


def test_fisher_by_hand() -> None:
    # 3 of 3 against 0 of 3: two tables of 20 are as extreme
    assert equality_p(Trials(3, 3), Trials(0, 3)) == pytest.approx(2 / comb(6, 3))


def test_a_safer_recipe_is_called_safer_and_noise_noise() -> None:
    leak, safer, alike = (small_runs.leak().counts(k, 4000).results for k in (39, 4, 45))
    found = compare({"long": leak, "short": safer, "again": alike})
    first, second = found.differences
    assert first.difference == pytest.approx((4 - 39) / 4000) and first.high < 0
    times = float(re.findall(r"at least ([\d.]+) times more rarely", first.sentence)[0])
    assert 1 < times < 39 / 4 and times == pytest.approx(1 / first.ratio_high, rel=0.01)
    assert "may be noise" in second.sentence and second.low < 0 < second.high
    # two comparisons: p is doubled, the intervals are wider than alone
    assert first.p_value == pytest.approx(2 * equality_p(Trials(39, 4000), Trials(4, 4000)))
    alone = compare({"long": leak, "short": safer}).differences[0]
    assert alone.high - alone.low < first.high - first.low
    assert found.lines[0].times_expected == pytest.approx(39 / (4000 / 20))


def test_unlike_runs_are_compared_with_a_caution() -> None:
    leak = small_runs.leak()
    others = leak.note("data", "data", sha256="0" * 64).results
    said = " ".join(compare({"a": leak.results, "b": others}).cautions)
    assert "training images" in said and "private image" not in said
    sampler = leak.stored.notes["samples.model"]["sampler"] | {"steps": 96}
    other = leak.note("samples.model", "sampler", **sampler).results
    assert "way of generating" in " ".join(compare({"a": leak.results, "b": other}).cautions)
    (seeds,) = compare({"a": leak.results, "b": leak.results}).cautions
    assert "one training" in seeds and "several seeds" in seeds


def test_a_recogniser_that_overlooks_more_is_a_caution() -> None:
    """Fewer hits of a blinder recogniser are no safer recipe."""
    leak = small_runs.leak()
    for noticed, unlike in ((400, False), (398, False), (200, True)):
        other = leak.note("identity", "detector", tpr={"k": noticed, "n": 400}).results
        assert (equality_p(Trials(400, 400), Trials(noticed, 400)) <= 0.05 / 3) == unlike
        told = " ".join(compare({"a": leak.results, "b": other}).cautions)
        assert ("overlooked more" in told) == unlike


def test_a_given_model_is_compared_with_a_caution_about_its_recognisers() -> None:
    found = compare({"ours": small_runs.leak().results, "given": small_runs.unmarked().results})
    assert "recognisers' networks" in " ".join(found.cautions)


def test_one_run_is_no_comparison() -> None:
    with pytest.raises(ValueError, match="two runs"):
        compare({"a": small_runs.leak().results})


def test_the_page_says_the_same_and_no_name_can_inject() -> None:
    hostile = "<script>alert(1)</script>"
    leak, clean = small_runs.leak().counts(39, 4000).results, small_runs.clean().results
    found = compare({hostile: leak, "runs//home/anna/x": clean, "/home/anna/y": clean})
    page = render_comparison(found)
    assert page.count("<script") == 1 and "&lt;script&gt;alert(1)" in page
    assert "39 of 4,000" in page and "0 of 4,000" in page and "/home/anna/y" not in page
