"""Rows and notes -> results: by formula where there is one, and every single altered value is found."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_runs
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from stored_runs import SAMPLER, Drawn, in_memory, results_of, write_run

from latentprint.contracts import InputError
from latentprint.results.assemble import assemble
from latentprint.results.counted import Estimate
from latentprint.results.model import Results
from latentprint.results.read import read_results
from latentprint.results.searched import Incomparable, require_alike
from latentprint.results.whole_set import WholeSet
from latentprint.store import Run, RunError
from latentprint.verdict import judged
from latentprint.verify import differences, verify

ALL = Drawn(
    profile=4,
    membership=True,
    likelihood=True,
    sampler=0.01,
    whole=0.3,
    splitting=Estimate(
        sampler=SAMPLER,
        rate=0.02,
        low=0.012,
        high=0.033,
        level=0.95,
        reliable=True,
        diagnostic="reliable",
        network_evaluations=40_000,
        freedom=7.0,
        details={"levels": 2},
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run")
    write_run(place, 3, ALL)
    return place


def test_counts_follow_the_rows(folder: Path) -> None:
    run, results = Run.read(folder), read_results(folder)
    rows, count = run.rows("samples.model"), results.q.monte_carlo
    assert count.trials.k == int(rows["hit"].sum()) and count.trials.n == len(rows["id"])
    exact = scipy_stats.binomtest(count.hits, count.samples).proportion_ci(0.95, "exact")
    assert math.isclose(count.low, exact.low) and math.isclose(count.high, exact.high)
    less = scipy_stats.binomtest(count.hits, count.samples, 1 / 100, alternative="less").pvalue
    assert math.isclose(count.p_value, less)
    assert (
        results.costs.total
        == sum(
            int(run.rows(purpose)["evaluations"].sum())
            for purpose in results.costs.network_evaluations
            if purpose not in {"splitting", "likelihood", "membership"}
        )
        + 40_000
        + 2 * 850
    )


def test_the_whole_set_follows_the_rows(folder: Path) -> None:
    run, found = Run.read(folder), read_results(folder).whole_set
    assert found is not None and found.persons is not None and found.criterion == "aligned"
    rows, train = run.rows("samples.model"), run.rows("whole.train")
    copied = rows["whole_aligned"] < found.criteria[0].threshold
    assert (found.copies.k, found.copies.n) == (int(copied.sum()), len(copied))
    came = np.unique(rows["whole_aligned_of"][copied])
    assert (found.memorised.k, found.memorised.n) == (len(came), int(train["distinct"].sum()))
    assert found.persons.k == len(np.unique(train["person"][came]))
    assert found.criteria[0].planted["flipped"].n == 20 and found.control is None


def test_t_prime_and_its_law_answer_one_question_each(folder: Path) -> None:
    results, run = read_results(folder), Run.read(folder)
    search = results.t_prime
    assert search is not None and search.baseline is not None and search.control is not None
    rows = run.rows("search.model")
    assert search.value == max(rows["t"][rows["hit"]])
    assert search.question.recogniser == "c_p and c_id" and search.tries == 8
    law = search.baseline
    assert law.question.recogniser == "embedding" and law.question.tries == 4 and law.target.tries == 4
    reach = [-1.0 if value is None else value for value in law.values]
    own = -1.0 if law.target.value is None else law.target.value
    assert math.isclose(law.p_value, (1 + sum(value >= own for value in reach)) / (1 + len(reach)))
    with pytest.raises(Incomparable):
        require_alike(search.question, law.question)
    sentence = " ".join(results.verdict.reasons)
    assert f"{own:.2g}" in sentence and f"p = {law.p_value:.2g}" in sentence


def test_the_profile_has_a_law_of_its_own(folder: Path) -> None:
    profile = read_results(folder).profile
    assert profile is not None and profile.null.marked is not None
    for row in profile.rows:
        law = profile.null.marked if row.target == 17 else profile.null.values
        reach = [-1.0 if value is None else value for value in law]
        own = -1.0 if row.value is None else row.value
        assert math.isclose(row.p_value, (1 + sum(value >= own for value in reach)) / (1 + len(reach)))


def test_results_read_back_are_the_ones_written(folder: Path) -> None:
    written = json.loads((folder / "results.json").read_text())
    assert written["schema"] == "latentprint/2"
    assert read_results(folder).plain() == written
    assert Results.model_json_schema()["properties"]["q"]


@settings(max_examples=40, deadline=None, phases=[Phase.generate])
@given(
    seed=st.integers(0, 10**6),
    own=st.sampled_from([0.0, 0.003, 0.2, 1.0]),
    control=st.sampled_from([None, 0.0, 0.05]),
    marked=st.booleans(),
    until=st.sampled_from([None, 0.05]),
    null=st.sampled_from([0, 5, 20]),
    only=st.booleans(),
    more=st.booleans(),
)
def test_nothing_differs_in_an_unaltered_run_and_exactly_what_was_altered_does(
    seed: int,
    own: float,
    control: float | None,
    marked: bool,
    until: float | None,
    null: int,
    only: bool,
    more: bool,
) -> None:
    drawn = Drawn(
        own=own,
        control=control,
        marked=marked,
        until=until,
        null=null,
        only_samples=only,
        profile=2 if null else 0,
        likelihood=more,
        membership=more,
        sampler=0.01 if more and not only else None,
    )
    stored = in_memory(seed, drawn)
    written = json.loads(json.dumps(judged(assemble(stored)).plain()))
    derived = judged(assemble(stored)).plain()
    checks = list(differences(written, derived))
    assert all(check.agrees for check in checks)
    assert Results.model_validate(written).plain() == written
    numbers = [check.path for check in checks if isinstance(check.derived, (int, float))]
    for path in np.random.default_rng(seed).choice(numbers, 20, replace=False).tolist():
        altered = json.loads(json.dumps(written))
        _alter(altered, path.split("."))
        assert [check.path for check in differences(altered, derived) if not check.agrees] == [path]


def test_verify_finds_what_was_altered_on_disk(folder: Path, tmp_path: Path) -> None:
    assert verify(folder).exit_code == 0
    write_run(tmp_path, 3, ALL)
    written = json.loads((tmp_path / "results.json").read_text())
    written["q"]["monte_carlo"]["hits"] += 1
    (tmp_path / "results.json").write_text(json.dumps(written))
    found = verify(tmp_path)
    assert found.exit_code == 1 and [check.path for check in found.altered] == ["q.monte_carlo.hits"]
    assert "q.monte_carlo.hits says" in found.sentences[1]


def _alter(value: Any, path: list[str]) -> None:
    """Change the number at ``path``; stages have dots in their names, so a key may take several parts."""
    if isinstance(value, list):
        key, rest = int(path[0]), path[1:]
    else:
        size = next(n for n in range(len(path), 0, -1) if ".".join(path[:n]) in value)
        key, rest = ".".join(path[:size]), path[size:]
    if rest:
        _alter(value[key], rest)
    else:
        value[key] = (not value[key]) if isinstance(value[key], bool) else value[key] + 1


@pytest.mark.parametrize("missing", ["schema", "verdict", "t_prime", "q"])
def test_a_part_that_is_gone_is_altered(folder: Path, tmp_path: Path, missing: str) -> None:
    write_run(tmp_path, 3, ALL)
    written = json.loads((tmp_path / "results.json").read_text())
    del written[missing]
    (tmp_path / "results.json").write_text(json.dumps(written))
    found = verify(tmp_path)
    assert found.exit_code == 1 and all(c.path.split(".")[0] == missing for c in found.altered)
    assert any("older version" in sentence for sentence in found.sentences)
    with pytest.raises(InputError):
        read_results(tmp_path)


def test_an_older_versions_words_are_no_way_out_by_themselves(folder: Path, tmp_path: Path) -> None:
    """Numbers that are absent say that an older version wrote; other words of a reason alone do not."""
    write_run(tmp_path, 3, ALL)
    written = json.loads((tmp_path / "results.json").read_text())
    written["verdict"]["reasons"][0] = "In other words."
    for gone, said in ((False, False), (True, True)):
        if gone:
            del written["q"]["monte_carlo"]["expected"]
        (tmp_path / "results.json").write_text(json.dumps(written))
        found = verify(tmp_path)
        assert found.exit_code == 1 and any("In other words." in one for one in found.sentences)
        assert any("older version" in one for one in found.sentences) == said


def test_every_text_counts_too(tmp_path: Path) -> None:
    write_run(tmp_path, 3, ALL)
    written = json.loads((tmp_path / "results.json").read_text())
    for path in ("target.injected", "data.source", "q.monte_carlo.sampler.step", "verdict.state"):
        altered = json.loads(json.dumps(written))
        value = altered
        for key in path.split(".")[:-1]:
            value = value[key]
        value[path.split(".")[-1]] = "another" if path != "target.injected" else False
        assert [c.path for c in differences(altered, written) if not c.agrees] == [path]


def test_lost_rows_are_a_sentence(tmp_path: Path) -> None:
    write_run(tmp_path, 3, Drawn())
    for part in (tmp_path / "probes").rglob("*"):
        if part.is_file() and "search.model" in str(part):
            part.unlink()
    with pytest.raises(RunError, match=r"search\.model"):
        verify(tmp_path)


@pytest.mark.parametrize("purpose", ["whole.heldout", "whole.planted"])
def test_a_column_of_the_whole_set_that_is_lost_is_a_sentence(purpose: str) -> None:
    run = small_runs.leak()
    rows = run.stored.rows(purpose)
    compared = [name for name in rows if name not in ("id", "change")]
    assert {"distance", "aligned", "nearest"} <= set(compared)
    if purpose == "whole.planted":
        with pytest.raises(RunError, match=purpose):
            assemble(run.rows(purpose, {}).stored)
    for column in compared:
        fewer = run.rows(purpose, {name: one for name, one in rows.items() if name != column})
        with pytest.raises(RunError, match=purpose):
            assemble(fewer.stored)


def test_each_criterion_is_given_the_same_planted_copies() -> None:
    found = small_runs.leak().results.whole_set
    assert found is not None and found.criteria[1].planted
    plain = found.model_dump()
    assert WholeSet.model_validate(plain) == found
    plain["criteria"][1]["planted"].popitem()
    with pytest.raises(ValueError, match="same planted copies"):
        WholeSet.model_validate(plain)
    with pytest.raises(ValueError, match="at least one criterion"):
        WholeSet.model_validate(found.model_dump() | {"criteria": ()})


def test_old_results_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"schema": "latentprint/1"}')
    with pytest.raises(InputError, match="run the audit again"):
        read_results(tmp_path)


def test_an_estimate_of_another_sampler_is_no_estimate_of_the_audited() -> None:
    assert ALL.splitting is not None
    flow = ALL.splitting.model_copy(update={"sampler": SAMPLER.model_copy(update={"step": "flow"})})
    results = results_of(3, Drawn(splitting=flow))
    assert results.q.estimates and not results.q.of_the_audited()
    assert not any("splitting" in reason for reason in results.verdict.reasons)
