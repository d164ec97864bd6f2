"""The three words, held to counts whose meaning is known by hand."""

from __future__ import annotations

import math
from typing import Any

import made_up
import pytest
from scipy.stats import beta, fisher_exact

from latentprint.stats import Trials
from latentprint.verdict import Rule, at_least, evidence, fisher_greater, verdict


def judged(
    hits: int, samples: int, images: int, control: tuple[int, int] | None = None, **detectors: Any
) -> Any:
    """A results mapping with nothing in it but the counts of the verdict."""
    rates = {"tpr": {"k": 1000, "n": 1000}, "fpr": {"k": 0, "n": 1700}} | detectors
    count = {"hits": hits, "samples": samples}
    results: dict[str, Any] = {
        "data": {"images": images},
        "target": {"copies": 1},
        "detectors": {"presence": rates, "identity": rates},
        "q": {"monte_carlo": count, "control": control and {"hits": control[0], "samples": control[1]}},
    }
    return verdict(results)


def test_the_paper_s_table_1() -> None:
    # 150,000 images each; 151 for N = 1000, none for 5,000 to 50,000, where the paper rejects q = 1/N at 5 %.
    # With detectors known to be perfect that must come out; at N = 50,000 it is close: (1 - 1/N)^n = 0.0498.
    assert judged(151, 150_000, 1000, (0, 150_000))["state"] == "reproduces"
    perfect = {"tpr": {"k": 10**7, "n": 10**7}}
    for images in (5000, 10_000, 20_000, 50_000):
        assert judged(0, 150_000, images, (0, 150_000), **perfect)["state"] == "not found", images
    # detectors tested on 1,000 images may overlook up to 0.7 %, and then 50,000 can no longer be excluded
    assert judged(0, 150_000, 50_000, (0, 150_000))["state"] == "inconclusive"


def test_fisher_against_scipy() -> None:
    for a, n, b, m in [
        (39, 4000, 0, 4000),
        (5, 4000, 0, 4000),
        (4, 4000, 0, 4000),
        (3, 10, 2, 7),
        (0, 5, 3, 9),
    ]:
        reference = fisher_exact([[a, n - a], [b, m - b]], alternative="greater").pvalue
        assert fisher_greater(Trials(a, n), Trials(b, m)) == pytest.approx(reference, rel=1e-9)


def test_five_against_none_is_the_smallest_clear_difference_for_equal_samples() -> None:
    # each of k hits falls into the first half with probability 1/2: p = 2^-k, 0.0625 for 4, 0.03 for 5
    assert judged(4, 4000, 100, (0, 4000))["state"] == "inconclusive"
    assert judged(5, 4000, 100, (0, 4000))["state"] == "reproduces"


def test_a_control_that_fires_takes_the_ground_away() -> None:
    assert judged(40, 4000, 100, (35, 4000))["state"] == "inconclusive"
    assert "may be false alarms" in " ".join(judged(40, 4000, 100, (35, 4000))["reasons"])


def test_without_a_control_the_measured_false_alarms_decide() -> None:
    # no false alarm in 1,700: at most 1 - 0.025^(1/1700) = 0.217 %, which is 8.7 in 4,000
    bound = 1 - 0.025 ** (1 / 1700)
    expected = 4000 * bound
    assert 8 < expected < 9
    for hits in (9, 40):
        tail = 1 - sum(math.comb(4000, k) * bound**k * (1 - bound) ** (4000 - k) for k in range(hits))
        assert at_least(hits, 4000, bound) == pytest.approx(tail, rel=1e-6, abs=1e-12)
    assert judged(9, 4000, 100)["state"] == "inconclusive"
    assert judged(40, 4000, 100)["state"] == "reproduces"
    assert judged(40, 4000, 100, fpr={"k": 20, "n": 1700})["state"] == "inconclusive"  # 1.2 % false alarms


def test_where_only_the_control_can_tell_the_reasons_say_so() -> None:
    few = {"fpr": {"k": 1, "n": 359}}
    alone, compared = judged(20, 2000, 100, **few), judged(20, 2000, 100, (0, 2000), **few)
    assert (alone["state"], compared["state"]) == ("inconclusive", "reproduces")
    assert "too few to settle this by themselves" in compared["reasons"][-1]
    assert "probability" not in compared["reasons"][-1]


def test_false_alarms_never_measured_can_explain_everything() -> None:
    assert judged(4000, 4000, 100, fpr={"k": 0, "n": 0})["state"] == "inconclusive"


def test_weak_detectors_cannot_clear_a_model() -> None:
    weak = judged(0, 150_000, 1000, (0, 150_000), tpr={"k": 60, "n": 100})
    assert weak["state"] == "inconclusive" and "needed to judge" in " ".join(weak["reasons"])


def test_sensitivity_is_the_frechet_bound() -> None:
    results = made_up.leak()
    counts = evidence(results)
    bounds = [Trials(499, 500).lower(0.975), Trials(497, 500).lower(0.975)]
    assert counts.sensitivity(0.95) == pytest.approx(sum(bounds) - 1, abs=1e-12)


def test_without_a_mark_one_detector_decides_by_its_own_bounds() -> None:
    leak = made_up.unmarked()
    counts = evidence(leak)
    # exact bounds of one proportion, undivided: no other detector has to hold as well
    assert counts.sensitivity(0.95) == pytest.approx(beta.ppf(0.05, 497, 4), rel=1e-9)
    assert counts.false_alarms(0.95) == pytest.approx(beta.ppf(0.95, 2, 1696), rel=1e-9)
    assert leak["verdict"]["state"] == "reproduces"
    assert leak["verdict"]["reasons"][0].startswith("The detector recognised")
    assert "etectors" not in " ".join(leak["verdict"]["reasons"])


@pytest.mark.parametrize(
    ("hits", "samples", "identity", "state"),
    [
        # one in 1,697 false: at most 0.28 %, so 5.6 of 2,000; 11 or more have a probability below 5 %
        (11, 2000, {}, "reproduces"),
        (5, 2000, {}, "inconclusive"),
        (0, 2000, {}, "not found"),
        # 1/100 is excluded by 299 images of a perfect detector, and not by 297
        (0, 302, {"tpr": {"k": 10**6, "n": 10**6}}, "not found"),
        (0, 297, {"tpr": {"k": 10**6, "n": 10**6}}, "inconclusive"),
        (0, 2000, {"tpr": {"k": 50, "n": 100}}, "inconclusive"),
        (2000, 2000, {"fpr": {"k": 0, "n": 0}}, "inconclusive"),
    ],
)
def test_the_three_words_without_a_mark(
    hits: int, samples: int, identity: dict[str, Any], state: str
) -> None:
    results = made_up.unmarked()
    results["detectors"]["identity"] |= identity
    results["q"]["monte_carlo"] |= {"hits": hits, "samples": samples}
    assert verdict(results)["state"] == state


def test_no_presence_detector_is_told_from_one_that_was_forgotten() -> None:
    results = made_up.unmarked()
    del results["detectors"]["presence"]
    with pytest.raises(ValueError, match="presence"):
        verdict(results)


def test_copies_raise_what_a_memorising_model_would_show() -> None:
    # 700 images exclude 4.3e-3 at most: not 1/1000, but 10/1000
    once = made_up.changed(made_up.undecided(), "data.images", 1000)
    once["q"]["monte_carlo"] = made_up.monte_carlo(0, 700, 1 / 1000, 0, 0)
    assert verdict(once)["state"] == "inconclusive"
    assert verdict(made_up.changed(once, "target.copies", 10))["state"] == "not found"


def test_a_stricter_share_needs_more_samples() -> None:
    results = made_up.clean()
    assert verdict(results, Rule(share=1))["state"] == "not found"
    assert verdict(results, Rule(share=0.1))["state"] == "inconclusive"


def test_a_reliable_estimate_above_what_counting_allows_is_a_contradiction() -> None:
    results = made_up.clean()
    above = made_up.changed(
        results, "q.splitting", results["q"]["splitting"] | {"rate": 1e-3, "low": 5e-4, "high": 2e-3}
    )
    assert verdict(above)["state"] == "inconclusive"
    unreliable = made_up.changed(above, "q.splitting.reliable", False)
    assert verdict(unreliable)["state"] == "not found"


@pytest.mark.parametrize(
    ("name", "state"), [("leak", "reproduces"), ("clean", "not found"), ("undecided", "inconclusive")]
)
def test_made_up_runs(name: str, state: str) -> None:
    given = getattr(made_up, name)()["verdict"]
    assert given["state"] == state and given["policy"] is None and given["rule"]["level"] == 0.95


def test_a_missing_count_is_named() -> None:
    results = made_up.leak()
    del results["detectors"]["identity"]
    with pytest.raises(ValueError, match="identity"):
        verdict(results)
    with pytest.raises(ValueError, match="level"):
        Rule(level=1)
