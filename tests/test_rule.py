"""The rule of the verdict: its exact tests against enumeration and other libraries, its words, its design."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import fisher_exact

from latentprint.attacks.pool import Pool
from latentprint.judge import (
    Decision,
    Design,
    Evidence,
    StoppedCount,
    decide,
    fisher_greater,
    heldout_to_settle,
)
from latentprint.judge.design import heldout_to_rank, samples_for_not_found, samples_to_call_whole_set
from latentprint.stats import Trials
from latentprint.stats.returned import (
    HELDOUT,
    MIXED,
    TRAIN,
    Returned,
    images_to_call,
    is_copy,
    returned,
    samples_to_return,
    whole_set_p,
)

RNG = np.random.default_rng


def columns(**given: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(values) for name, values in given.items()}


def pool_of(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Images about 1 apart, the ten nearest about 1.2."""
    rng = RNG(seed)
    near = rng.normal(1.0, 0.05, count)
    return columns(nearest=np.zeros(count, int), distance=near, ten=1.2 * near + rng.normal(0, 0.01, count))


def told(copies_of: list[int], others: int = 5) -> dict[str, np.ndarray]:
    """Samples that are plain copies of the pool images named, and others that are no copies."""
    n = len(copies_of)
    return columns(
        nearest=copies_of + [0] * others,
        distance=[0.1] * n + [1.0] * others,
        ten=[1.0] * n + [1.2] * others,
    )


# The two tests of exchangeability


@pytest.mark.parametrize(("train", "heldout", "a", "b"), [(4, 3, 2, 1), (3, 4, 3, 0), (5, 2, 4, 2)])
def test_the_whole_set_is_held_to_every_way_to_choose_which_were_trained_on(train, heldout, a, b):
    """p is the share of all choices of the training images that find as many among those that came back."""
    came = set(range(a + b))
    found = [len(came & set(chosen)) >= a for chosen in itertools.combinations(range(train + heldout), train)]
    assert whole_set_p(Trials(a, train), Trials(b, heldout)) == pytest.approx(np.mean(found))
    assert whole_set_p(Trials(0, train), Trials(b, heldout)) == 1


def test_both_tests_keep_their_level_whatever_the_model():
    """A model that repeats six images of a population: which were trained on is drawn anew each time."""
    rng, rounds, pool = RNG(1), 3000, pool_of(60)
    whole, target = 0, 0
    samples = told([3] * 40 + [17] * 20 + [22, 31, 44, 58])
    for _ in range(rounds):
        whose = np.repeat([TRAIN, HELDOUT], [20, 40])[rng.permutation(60)]
        found = returned(samples, pool, whose, int(rng.choice(np.flatnonzero(whose == TRAIN))))
        whole += found.whole_set_p <= 0.1
        target += found.target_p <= 0.1
    assert Trials(int(whole), rounds).interval(0.999)[0] <= 0.1
    assert Trials(int(target), rounds).interval(0.999)[0] <= 0.1
    assert target > 0  # the images that come back do reject where one of them is drawn


def test_what_came_back_is_counted_by_image_and_x_p_among_its_rivals():
    pool, whose = pool_of(30), np.repeat([TRAIN, HELDOUT, MIXED], [10, 18, 2])
    samples = told([2, 2, 2, 5, 12, 13, 13, 13, 28])
    found = returned(samples, pool, whose, 2)
    assert found == Returned(Trials(9, 14), Trials(2, 10), Trials(2, 18), 3, Trials(1, 18))
    assert found.target_p == pytest.approx(2 / 19)
    assert returned(samples, pool, whose, 0).target_p == 1
    with pytest.raises(ValueError, match="not among the training images"):
        returned(samples, pool, whose, 12)
    with pytest.raises(ValueError, match="20 different images or more, got 4"):
        returned(samples, pool, whose[:4], 0)


def test_a_copy_is_nearer_than_real_images_are_and_nearer_to_one_than_to_many():
    pool = pool_of(200)
    rows = columns(nearest=[0, 0, 0, 0], distance=[0.1, 0.1, 1.0, 0.95], ten=[1.0, 0.105, 8.0, 1.15])
    # The second is near to many: a smooth image. The third is far, if nearer to one; the last is as others.
    assert is_copy(rows, pool).tolist() == [True, False, False, False]
    # A tenth of the pool in near copies moves the fence down, and hides nothing that lies below it.
    pool["distance"][:2] = 0.3
    assert is_copy(rows, pool).tolist() == [True, False, False, False]


def test_one_image_of_each_group_of_near_copies_stands_in_the_pool():
    rng = RNG(3)
    train, held = (rng.uniform(-1, 1, (n, 1, 6, 6)).astype(np.float32) for n in (20, 20))
    train[7], train[9], held[4], held[11] = train[3], train[8], train[0], held[10] + 0.001
    pool = Pool.of(train, held, target=7, mixed=[12])
    assert len(pool.images) == 40 - 4 and (pool.images[pool.target] == train[7]).all()
    assert [int((pool.whose == who).sum()) for who in (TRAIN, HELDOUT, MIXED)] == [16, 18, 2]
    assert pool.whose[0] == MIXED  # a copy of it is held out
    own = pool.rows["distance"]
    assert own.shape == (36,) and own.min() > 0.1
    seen = pool.held_against(train[7][None])
    assert seen["nearest"].tolist() == [pool.target] and seen["distance"].tolist() == [0.0]


def test_all_images_of_a_person_are_one_trial():
    """Persons a to j trained on with two images each, k to t held out with two each."""
    rng = RNG(5)
    train, held = (rng.uniform(-1, 1, (20, 1, 6, 6)).astype(np.float32) for _ in range(2))
    persons = [*"aabbccddeeffgghhiijj", *"kkllmmnnooppqqrrsstt"]
    pool = Pool.of(train, held, 3, persons=persons)
    samples = np.concatenate([train[[2, 3, 2]], train[[8, 9]], held[[0, 1]]])
    found = returned(pool.held_against(samples), pool.rows, pool.whose, pool.target)
    assert (found.train, found.heldout, found.copies) == (Trials(2, 10), Trials(1, 10), Trials(7, 7))
    assert (found.target, found.mock) == (3, Trials(0, 10))  # person b, whichever of their images came back
    persons[-1] = persons[0]  # a stands on both sides
    other = Pool.of(train, held, 3, persons=persons)
    counted = returned(other.held_against(samples), other.rows, other.whose, other.target)
    assert (counted.train.n, counted.heldout.n) == (9, 10) and (other.whose == MIXED).sum() == 3


# The rule


def evidence(**other: Any) -> Evidence:
    """No hit in 1,000 of a model trained on 100, by a nearly perfect detector; nothing came back."""
    nothing = Returned(Trials(0, 1000), Trials(0, 100), Trials(0, 50), 0, Trials(50, 50))
    plain = Evidence(
        hits=Trials(0, 1000),
        own=0,
        control=None,
        tpr=(Trials(400, 400),),
        fpr=(Trials(0, 100),),
        expected=0.01,
        returned=nothing,
    )
    return replace(plain, **other)


def names(decision: Decision) -> list[str]:
    return [one.name for one in decision.tests if one.rejects]


def test_nothing_found_clears_only_what_was_excluded():
    assert decide(evidence()).state == "not found"
    few = decide(evidence(hits=Trials(0, 290)))  # 3.01 / 290 = 1.04 %
    assert few.state == "inconclusive" and "301 without a hit would be enough" in few.reasons[-1]
    needed = samples_for_not_found(0.01, Trials(400, 400).lower(0.95))
    assert needed == 301 and decide(evidence(hits=Trials(0, 301))).state == "not found"
    assert decide(evidence(hits=Trials(0, 300))).state == "inconclusive"
    assert decide(evidence(tpr=(Trials(40, 400),))).state == "inconclusive"
    assert decide(evidence(), share=0.1).state == "inconclusive"
    assert decide(evidence(hits=Trials(0, 0))).state == "inconclusive"


def test_the_target_is_called_where_no_held_out_image_came_back_as_often():
    seen = Returned(Trials(9, 1000), Trials(1, 100), Trials(0, 50), 9, Trials(0, 50))
    found = decide(evidence(hits=Trials(9, 1000), own=9, returned=seen))
    assert found.state == "reproduces" and names(found) == ["target"] and found.of_the_target
    assert "9 of 1,000 images are copies of the private image" in found.reasons[0]
    # 1 / (m + 1) <= 0.025 takes 39 rivals, and one that reaches as high takes 79.
    assert heldout_to_rank() == 39
    for rivals, state in ((Trials(0, 39), True), (Trials(0, 38), False), (Trials(1, 50), False)):
        now = replace(seen, mock=rivals, heldout=Trials(0, rivals.n))
        one = decide(evidence(hits=Trials(9, 1000), own=9, returned=now))
        assert (one.state == "reproduces") is state
    assert (
        "38 held-out images cannot decide"
        in decide(evidence(hits=Trials(9, 1000), returned=replace(seen, mock=Trials(0, 38)))).reasons[-1]
    )


def test_copies_of_x_p_that_settle_nothing_are_no_all_clear():
    seen = Returned(Trials(3, 1000), Trials(1, 100), Trials(1, 50), 1, Trials(1, 50))
    assert decide(evidence(returned=seen)).state == "inconclusive"


def test_the_whole_set_decides_where_x_p_was_never_seen():
    seen = Returned(Trials(700, 1000), Trials(60, 100), Trials(0, 50), 0, Trials(50, 50))
    found = decide(evidence(returned=seen))
    assert found.state == "reproduces" and names(found) == ["whole set"] and not found.of_the_target
    assert "60 of 100 training images came back, and 0 of 50 held-out" in found.reasons[0]
    both = replace(seen, heldout=Trials(30, 50))  # it repeats images, and knows of no training
    assert decide(evidence(returned=both)).state == "not found"


def test_a_control_decides_by_fisher_where_a_hit_is_nearest_to_x_p():
    hits, control = Trials(8, 1000), Trials(0, 1000)
    table = [[8, 992], [0, 1000]]
    expected = float(fisher_exact(table, alternative="greater").pvalue)
    assert fisher_greater(hits, control) == pytest.approx(expected, rel=1e-9)
    found = decide(evidence(hits=hits, own=8, control=control))
    assert found.state == "reproduces" and names(found) == ["control"]
    assert found.tests[-1].p_value == pytest.approx(expected) and found.tests[-1].alpha == pytest.approx(
        0.00625
    )
    assert decide(evidence(hits=hits, own=None, control=control)).state == "reproduces"
    strange = decide(evidence(hits=hits, own=0, control=control))
    assert strange.state == "inconclusive" and "None of the detected images is nearest" in strange.reasons[-1]
    assert decide(evidence(hits=hits, own=8, control=Trials(3, 1000))).state == "inconclusive"


def test_false_alarms_on_real_images_decide_nothing():
    """20 hits of 1,000 with a bound of 0.3 %: of a model that repeats fifty other images, one false alarm."""
    hits = evidence(hits=Trials(20, 1000), own=20, fpr=(Trials(0, 1000),))
    assert decide(hits).state == "inconclusive"


@pytest.mark.parametrize(
    ("excess", "level", "state"),
    [(0.002, 0.95, "reproduces"), (0.0, 0.95, "inconclusive"), (0.002, 0.9, "inconclusive")],
)
def test_a_count_that_stopped_on_sight_is_judged_by_its_own_interval(excess, level, state):
    sight = StoppedCount(0.004, 0.02, level, excess)
    seen = evidence(hits=Trials(8, 1000), own=8, control=Trials(0, 1000), sight=sight)
    assert decide(seen).state == state


@pytest.mark.parametrize("control", [None, Trials(0, 1000)])
def test_asking_until_a_test_rejects_costs_no_more_than_alpha(control):
    """Every request is a test. After a look the control's is one that holds at any further look."""
    first = evidence(hits=Trials(8, 1000), own=8, control=control)
    assert first.returned is not None
    spent = sum(one.alpha for one in decide(first).tests)
    assert spent == pytest.approx((0.75 if control is None else 0.875) * 0.05)
    at_any_look = []
    for request in range(2, 40):
        again = replace(
            first,
            returned=replace(first.returned, request=request),
            sight=StoppedCount(0.004, 0.02, 0.95, None if control is None else 0.002),
        )
        tests = decide(again).tests
        spent += sum(one.alpha for one in tests if one.name != "control")
        at_any_look += [one.alpha for one in tests if one.name == "control"]
    assert len(at_any_look) == (0 if control is None else 38) and len({*at_any_look}) <= 1
    assert spent + sum({*at_any_look}) == pytest.approx(0.05)


def test_without_a_comparison_hits_settle_nothing_and_it_says_what_would():
    found = decide(evidence(hits=Trials(5, 1000), own=5, returned=None))
    assert found.state == "inconclusive" and found.tests == ()
    assert "Held-out images for comparison, or a control" in found.reasons[-1]


# What a design can show


def test_the_smallest_numbers_are_the_smallest():
    for train, heldout in ((50, 40), (50, 708), (1000, 40), (30, 30)):
        few = images_to_call(train, heldout, 0.0125)
        assert few is not None
        assert whole_set_p(Trials(few, train), Trials(0, heldout)) <= 0.0125
        assert whole_set_p(Trials(few - 1, train), Trials(0, heldout)) > 0.0125
    assert images_to_call(2, 5, 0.0125) is None  # both of two: 1 in 21


@pytest.mark.parametrize(("of", "images"), [(50, 8), (50, 50), (2000, 210), (1, 1)])
def test_so_many_samples_show_so_many_images(of: int, images: int):
    samples, rng = samples_to_return(images, of), RNG(4)
    assert samples is not None
    shown = [len(np.unique(rng.integers(of, size=samples))) >= images for _ in range(1000)]
    assert np.mean(shown) > 0.88
    fewer = [len(np.unique(rng.integers(of, size=max(1, int(samples * 0.8))))) >= images for _ in range(1000)]
    assert of == 1 or np.mean(fewer) < 0.9
    assert samples_to_return(images + of, of) is None


def test_a_design_says_beforehand_what_the_rule_would_say():
    """A model that repeats its images, by the counts it most likely gives: rule and design agree."""
    for train, heldout, samples in (
        (50, 40, 400),
        (2000, 40, 400),
        (2000, 40, 100),
        (50, 5, 10),
        (300, 10, 60),
    ):
        design = Design(train, heldout, 1, samples)
        shown = round(train * (1 - (1 - 1 / train) ** samples))
        own = samples // train
        seen = Returned(
            Trials(samples, samples),
            Trials(shown, train),
            Trials(0, heldout),
            own,
            Trials(0 if own else heldout, heldout),
        )
        found = decide(evidence(hits=Trials(own, samples), own=own, expected=1 / train, returned=seen))
        assert ("whole set" in names(found)) == ("whole set" in design.can_call), (train, heldout, samples)
        assert ("target" in names(found)) == ("target" in design.can_call), (train, heldout, samples)


def test_a_design_that_shows_nothing_says_what_would():
    small = Design(train=2000, heldout=20, copies=1, samples=100)
    assert small.can_call == () and not small.can_clear
    first, second = small.sentences
    needed = samples_to_call_whole_set(2000, 20)
    assert needed is not None and f"{needed:,} samples" in first and "39 held-out images" in first
    assert replace(small, samples=needed).can_call == ("whole set",)
    assert "5,990 without a hit" in second and replace(small, samples=5990).can_clear
    enough = Design(train=50, heldout=40, copies=1, samples=2000, control=2000)
    assert enough.can_call == ("target", "whole set", "control") and enough.sentences == ()


def test_the_held_out_images_that_would_settle_hits_as_false_alarms():
    """Issue 14, 9: for N = 50 about 500 distinct negatives, for N = 1,000 about 10,000."""
    for hits, at_least, at_most in ((Trials(8, 400), 200, 700), (Trials(4, 4000), 5000, 20000)):
        images = heldout_to_settle(hits)
        assert images is not None and at_least < images < at_most
        bound = Trials(0, images // 2).upper(0.95)
        tail = sum(
            float(np.exp(_log_binomial(k, hits.n, bound))) for k in range(hits.k, min(hits.n, hits.k + 200))
        )
        assert tail == pytest.approx(0.05, rel=0.1) and tail <= 0.0501
    assert heldout_to_settle(Trials(0, 400)) is None


def _log_binomial(k: int, n: int, p: float) -> float:
    from math import lgamma, log, log1p

    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(p) + (n - k) * log1p(-p)
