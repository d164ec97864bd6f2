"""The three words, held to counts whose meaning is known by hand."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
from pydantic import ValidationError
from scipy.stats import beta, fisher_exact
from stored_runs import SAMPLER, Drawn, results_of

from latentprint.results import Measured, Rule, Verdict
from latentprint.results.counted import Combined, Counted, Estimate
from latentprint.stats import Trials
from latentprint.verdict import at_least, evidence, fisher_greater, judge


@cache
def assembled(marked: bool = True) -> Measured:
    """What a run without searches and further samplers measured."""
    return results_of(1, Drawn(marked=marked, null=0, samples=200))


def with_counts(
    hits: int,
    samples: int,
    images: int,
    control: tuple[int, int] | None = None,
    *,
    marked: bool = True,
    copies: int = 1,
    tpr: Trials | None = None,
    fpr: Trials | None = None,
) -> Measured:
    """The same with other counts; of the values a verdict reads, and of no other."""
    base = assembled(marked)
    rates = {"tpr": tpr or Trials(1000, 1000), "fpr": fpr or Trials(0, 1700)}
    presence = None if base.detectors.presence is None else base.detectors.presence.model_copy(update=rates)
    detectors = base.detectors.model_copy(
        update={"presence": presence, "identity": base.detectors.identity.model_copy(update=rates)}
    )
    count = base.q.monte_carlo.model_copy(update={"hits": hits, "samples": samples})
    of_control = control and count.model_copy(update={"hits": control[0], "samples": control[1]})
    return base.model_copy(
        update={
            "data": base.data.model_copy(update={"images": images}),
            "target": base.target.model_copy(update={"copies": copies}),
            "detectors": detectors,
            "q": base.q.model_copy(update={"monte_carlo": count, "control": of_control}),
        }
    )


def judged(
    hits: int, samples: int, images: int, control: tuple[int, int] | None = None, **more: Any
) -> Verdict:
    return judge(with_counts(hits, samples, images, control, **more), Rule())


def test_the_paper_s_table_1() -> None:
    # 150,000 images each; 151 for N = 1000, none for 5,000 to 50,000, where the paper rejects q = 1/N at 5 %.
    # With detectors known to be perfect that must come out; at N = 50,000 it is close: (1 - 1/N)^n = 0.0498.
    assert judged(151, 150_000, 1000, (0, 150_000)).state == "reproduces"
    perfect = {"tpr": Trials(10**7, 10**7)}
    for images in (5000, 10_000, 20_000, 50_000):
        assert judged(0, 150_000, images, (0, 150_000), **perfect).state == "not found", images
    # detectors tested on 1,000 images may overlook up to 0.7 %, and then 50,000 can no longer be excluded
    assert judged(0, 150_000, 50_000, (0, 150_000)).state == "inconclusive"


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
    assert judged(4, 4000, 100, (0, 4000)).state == "inconclusive"
    assert judged(5, 4000, 100, (0, 4000)).state == "reproduces"


def test_a_control_that_fires_takes_the_ground_away() -> None:
    assert judged(40, 4000, 100, (35, 4000)).state == "inconclusive"
    assert "may be false alarms" in " ".join(judged(40, 4000, 100, (35, 4000)).reasons)


def test_without_a_control_the_measured_false_alarms_decide() -> None:
    # no false alarm in 1,700: at most 1 - 0.025^(1/1700) = 0.217 %, which is 8.7 in 4,000
    bound = 1 - 0.025 ** (1 / 1700)
    expected = 4000 * bound
    assert 8 < expected < 9
    for hits in (9, 40):
        tail = 1 - sum(math.comb(4000, k) * bound**k * (1 - bound) ** (4000 - k) for k in range(hits))
        assert at_least(hits, 4000, bound) == pytest.approx(tail, rel=1e-6, abs=1e-12)
    assert judged(9, 4000, 100).state == "inconclusive"
    assert judged(40, 4000, 100).state == "reproduces"
    assert judged(40, 4000, 100, fpr=Trials(20, 1700)).state == "inconclusive"  # 1.2 % false alarms


def test_where_only_the_control_can_tell_the_reasons_say_so() -> None:
    few = {"fpr": Trials(1, 359)}
    alone, compared = judged(20, 2000, 100, **few), judged(20, 2000, 100, (0, 2000), **few)
    assert (alone.state, compared.state) == ("inconclusive", "reproduces")
    assert "too few to settle this by themselves" in compared.reasons[-1]
    assert "probability" not in compared.reasons[-1]


def test_false_alarms_never_measured_can_explain_everything() -> None:
    assert judged(4000, 4000, 100, fpr=Trials(0, 0)).state == "inconclusive"


def test_weak_detectors_cannot_clear_a_model() -> None:
    weak = judged(0, 150_000, 1000, (0, 150_000), tpr=Trials(60, 100))
    assert weak.state == "inconclusive" and "needed to judge" in " ".join(weak.reasons)


def test_sensitivity_is_the_frechet_bound() -> None:
    base = with_counts(0, 100, 100, tpr=Trials(497, 500))
    presence = base.detectors.presence
    assert presence is not None
    both = base.detectors.model_copy(
        update={"presence": presence.model_copy(update={"tpr": Trials(499, 500)})}
    )
    counts = evidence(base.model_copy(update={"detectors": both}))
    bounds = [Trials(499, 500).lower(0.975), Trials(497, 500).lower(0.975)]
    assert counts.sensitivity(0.95) == pytest.approx(sum(bounds) - 1, abs=1e-12)


def test_without_a_mark_one_detector_decides_by_its_own_bounds() -> None:
    leak = with_counts(39, 4000, 100, marked=False, tpr=Trials(497, 500), fpr=Trials(1, 1697))
    counts = evidence(leak)
    # exact bounds of one proportion, undivided: no other detector has to hold as well
    assert counts.sensitivity(0.95) == pytest.approx(beta.ppf(0.05, 497, 4), rel=1e-9)
    assert counts.false_alarms(0.95) == pytest.approx(beta.ppf(0.95, 2, 1696), rel=1e-9)
    found = judge(leak, Rule())
    assert found.state == "reproduces"
    assert found.reasons[0].startswith("The detector recognised")
    assert "etectors" not in " ".join(found.reasons)


@pytest.mark.parametrize(
    ("hits", "samples", "rates", "state"),
    [
        # one in 1,697 false: at most 0.28 %, so 5.6 of 2,000; 11 or more have a probability below 5 %
        (11, 2000, {}, "reproduces"),
        (5, 2000, {}, "inconclusive"),
        (0, 2000, {}, "not found"),
        # 1/100 is excluded by 299 images of a perfect detector, and not by 297
        (0, 302, {"tpr": Trials(10**6, 10**6)}, "not found"),
        (0, 297, {"tpr": Trials(10**6, 10**6)}, "inconclusive"),
        (0, 2000, {"tpr": Trials(50, 100)}, "inconclusive"),
        (2000, 2000, {"fpr": Trials(0, 0)}, "inconclusive"),
    ],
)
def test_the_three_words_without_a_mark(
    hits: int, samples: int, rates: dict[str, Trials], state: str
) -> None:
    given = {"tpr": Trials(497, 500), "fpr": Trials(1, 1697)} | rates
    assert judged(hits, samples, 100, marked=False, **given).state == state


def test_copies_raise_what_a_memorising_model_would_show() -> None:
    # 700 images exclude 4.3e-3 at most: not 1/1000, but 10/1000
    assert judged(0, 700, 1000).state == "inconclusive"
    assert judged(0, 700, 1000, copies=10).state == "not found"


def test_a_stricter_share_needs_more_samples() -> None:
    clean = with_counts(0, 4000, 1000)
    assert judge(clean, Rule(share=1)).state == "not found"
    assert judge(clean, Rule(share=0.1)).state == "inconclusive"
    with pytest.raises(ValidationError):
        Rule(level=1)


def estimated(clean: Measured, **more: Any) -> Measured:
    values: dict[str, Any] = {
        "sampler": clean.q.monte_carlo.sampler,
        "rate": 1e-2,
        "low": 5e-3,
        "high": 2e-2,
        "level": 0.95,
        "reliable": True,
        "diagnostic": "reliable",
        "network_evaluations": 1,
    }
    q = clean.q.plain() | {"splitting": Estimate(**values | more).plain()}
    return clean.model_copy(update={"q": type(clean.q).model_validate(q)})


def test_a_reliable_estimate_above_what_counting_allows_is_a_contradiction() -> None:
    clean = with_counts(0, 4000, 1000)
    assert judge(estimated(clean), Rule()).state == "inconclusive"
    declined = estimated(clean, reliable=False, rate=None, low=None, high=None)
    assert judge(declined, Rule()).state == "not found"
    # another sampler has a q of its own: its estimate neither clears nor contradicts
    other = estimated(clean, sampler=SAMPLER.model_copy(update={"step": "flow"}))
    assert judge(other, Rule()) == judge(clean, Rule())


def test_estimates_that_contradict_each_other_clear_nothing() -> None:
    clean = with_counts(0, 4000, 1000)
    apart = Combined(answer=None, agree=False, sentence="Estimates of the same rate contradict each other.")
    q = clean.q.model_copy(update={"combined": apart})
    found = judge(clean.model_copy(update={"q": q}), Rule())
    assert found.state == "inconclusive" and apart.sentence in found.reasons


def test_a_count_that_stopped_on_sight_is_judged_by_the_interval_that_allows_it() -> None:
    stopped = results_of(2, Drawn(own=0.2, until=0.05, samples=3000, null=0, control=None))
    count: Counted = stopped.q.monte_carlo
    assert count.stopping is not None and count.corrected is not None and count.hits > 0
    assert "holds whenever one stops" in stopped.verdict.reasons[0]
    for low, state in ((0.001, "reproduces"), (0.0, "inconclusive")):
        through = count.corrected.model_copy(update={"low": low})
        q = stopped.q.model_copy(update={"monte_carlo": count.model_copy(update={"corrected": through})})
        assert judge(stopped.model_copy(update={"q": q}), Rule()).state == state


def test_no_t_prime_of_the_target_is_no_sign_of_anything() -> None:
    unseen = results_of(4, Drawn(matched=-1.0, null=20))
    law = unseen.t_prime.baseline if unseen.t_prime else None
    assert law is not None
    if law.target.value is None:
        assert law.excess is None and "from no noise level" in unseen.verdict.reasons[-1]
    known = results_of(4, Drawn(matched=0.9, null=20))
    assert "it knows this image" in known.verdict.reasons[-1]
