"""Which prompt gives which image back: exact counts from rows made for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from latentprint.adapters.text.model import prompt_sha256
from latentprint.results.prompts import EACH, PromptNote, Rows, prompts, returned_pairs
from latentprint.stats import Trials
from latentprint.stats.returned import HELDOUT, TRAIN, whole_set_p

N, M, EVERY = 30, 20, 4


def pool() -> dict[str, Any]:
    """Real images at about the same distance from each other."""
    distance = 1 + 0.01 * np.sin(np.arange(N + M))
    return {
        "id": np.arange(N + M),
        "whose": np.repeat([TRAIN, HELDOUT], [N, M]),
        "unit": np.arange(N + M),
        "nearest": np.zeros(N + M, np.int64),
        "distance": distance,
        "ten": 1.1 * distance,
    }


def rows(numbers: list[int], own: list[int], copied: dict[int, dict[int, int]]) -> dict[str, Any]:
    """EVERY images a prompt; ``copied``: of prompt p so many are copies of pool image z, the rest of none."""
    out: dict[str, list[Any]] = {"id": [], "own": [], "pool_nearest": [], "pool_distance": []}
    for number, place in zip(numbers, own, strict=True):
        nearest = [z for z, k in copied.get(number, {}).items() for _ in range(k)]
        for i in range(EVERY):
            out["id"].append(number * EACH + i)
            out["own"].append(place)
            out["pool_nearest"].append(nearest[i] if i < len(nearest) else 0)
            out["pool_distance"].append(0.01 if i < len(nearest) else 1.0)
    found = {name: np.array(values) for name, values in out.items()}
    return {**found, "pool_ten": np.full(len(found["id"]), 1.1), "evaluations": np.full(len(found["id"]), 5)}


def asked(train: Any, heldout: Any = None, base: Any = None, further: Any = None) -> Rows:
    empty: dict[str, Any] = {}
    held = rows(list(range(M)), list(range(N, N + M)), heldout) if heldout is not None else empty
    return Rows(
        train=rows(list(range(N)), list(range(N)), train),
        heldout=held,
        base=rows(list(range(N)), list(range(N)), base) if base is not None else empty,
        further=rows([0], [-1], further) if further is not None else empty,
        base_further=empty,
        pool=pool(),
        place=np.arange(N),
    )


def note(base: bool = False) -> PromptNote:
    return PromptNote(
        guidance=3.0,
        base=base,
        conditions=(),
        target=4,
        train=tuple(prompt_sha256(f"prompt {i}") for i in range(N)),
        cut=(0,) * N,
        further=(prompt_sha256("another"),),
        alike=False,
        pairs=True,
    )


def test_own_copies_are_counted_by_prompt_and_those_of_others_apart() -> None:
    # prompt 4 gives its own image 3 times; prompt 7 image 4 twice; prompt 9 a held-out image: no leak
    found = prompts(asked({4: {4: 3}, 7: {4: 2, 7: 1}, 9: {N + 3: 2}}), note(), ())
    by = {one.image: one for one in found.each}
    assert (by[4].own, by[4].any, by[4].most, by[4].samples) == (3, 3, 4, EVERY)
    assert (by[7].own, by[7].any, by[7].most) == (1, 3, 4)
    assert (by[9].own, by[9].any, by[9].most) == (0, 0, None)
    assert [one.image for one in found.each[:2]] == [4, 7]  # the most telling first
    assert found.came_back == Trials(2, N)
    assert (found.heldout, found.base, found.p_value, found.base_p) == (None, None, None, None)
    assert found.network_evaluations == 5 * EVERY * N
    assert found.each[0].prompt == prompt_sha256("prompt 4")


def test_held_out_pairs_are_what_training_pairs_are_held_against() -> None:
    every = asked({i: {i: 1 + (i == 4)} for i in range(12)}, {2: {N + 2: 1}, 5: {3: 4}})
    found, together = prompts(every, note(), ()), returned_pairs(every, 4)
    assert together is not None
    # held-out prompt 5 gives training image 3, which is not its own
    assert (together.train, together.heldout) == (Trials(12, N), Trials(1, M))
    assert (together.target, together.mock) == (2, Trials(0, M))
    assert together.target_p == pytest.approx(1 / (M + 1))
    table = [[12, N - 12], [1, M - 1]]
    assert found.p_value == pytest.approx(stats.fisher_exact(table, alternative="greater").pvalue)
    assert found.p_value == whole_set_p(Trials(12, N), Trials(1, M))
    assert "Of 30 prompts that were trained on, 12 gave their own image back; of 20" in found.sentence


def test_the_base_is_compared_prompt_by_prompt() -> None:
    # six back in the model alone, two in both, one in the base alone
    model = {i: {i: 1} for i in range(8)}
    base = {0: {0: 1}, 1: {1: 2}, 20: {20: 1}}
    found = prompts(asked(model, base=base), note(base=True), ())
    assert found.base == Trials(3, N)
    assert found.base_p == pytest.approx(stats.binomtest(6, 7, 0.5, alternative="greater").pvalue)
    by = {one.image: one for one in found.each}
    assert (by[0].base_own, by[3].base_own, by[20].base_own) == (1, 0, 1)


def test_without_any_copy_nothing_is_told() -> None:
    found = prompts(asked({}, {}, {}), note(base=True), ())
    assert (found.came_back, found.heldout, found.base) == (Trials(0, N), Trials(0, M), Trials(0, N))
    assert (found.p_value, found.base_p) == (1.0, 1.0)


def test_signs_are_worth_what_held_out_prompts_say() -> None:
    every = asked({4: {4: 1}}, {})
    inside = {"id": np.arange(N), "magnitude": np.arange(N, dtype=float), "evaluations": np.full(N, 3)}
    outside = {"id": np.arange(M), "magnitude": np.full(M, 3.5), "evaluations": np.full(M, 3)}
    found = prompts(replace(every, signs=inside, heldout_signs=outside), note(), ())
    (one,) = found.signs
    # 26 of the 30 members lie above every held-out prompt; that of x_p (number 4) too
    assert one.name == "magnitude" and one.auc.value == pytest.approx(26 / 30)
    assert one.target == 4.0 and one.p_value == pytest.approx(1 / (M + 1))
    assert one.at[0].tpr == Trials(26, N)
    assert found.network_evaluations == 5 * EVERY * (N + M) + 3 * (N + M)


def test_a_further_prompt_has_no_image_of_its_own() -> None:
    found = prompts(asked({}, further={0: {6: 2, 3: 1}}), note(), ())
    (one,) = found.further
    assert (one.image, one.own, one.any, one.most) == (None, None, 3, 6)
    assert one.prompt == prompt_sha256("another")
