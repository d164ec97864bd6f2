"""Sampling that stops on sight: where it stops, what it then says, and what detectors' errors leave of it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from scipy import special

from latentprint import resolve, run_audit
from latentprint.audit.counting import Question, corrected
from latentprint.config import SampleSettings
from latentprint.contracts import Outcome
from latentprint.gate import Policy, judge
from latentprint.gate.policy import MissableRule, RateRule
from latentprint.rate import Rate
from latentprint.rate.weights import Offered, offered
from latentprint.settings import SettingsError
from latentprint.stats import Trials, looks, narrowed, running_interval, running_p_value, samples_to_decide
from latentprint.store import Run
from latentprint.verdict import verdict
from latentprint.verify import verify

SHARP = ((Trials(400, 400), Trials(0, 400)), (Trials(400, 400), Trials(0, 400)))


def outcome(hits: Sequence[bool] | np.ndarray[Any, Any]) -> Outcome:
    hit = np.asarray(hits, np.bool_)
    return Outcome(hit, np.ones(len(hit), np.int64))


def drawn(question: Question, hits: np.ndarray[Any, Any]) -> Outcome:
    """What sampling would have drawn of a stream of hits."""
    for size in question.sizes():
        seen = outcome(hits[:size])
        if question.answered(seen):
            return seen
    return outcome(hits[: question.most])


def test_looks_are_whole_units_grow_by_a_quarter_and_end_at_the_most() -> None:
    sizes = looks(20_000, 512)
    assert sizes[:5] == [512, 1024, 1536, 2048, 2560]
    assert sizes[-1] == 20_000
    assert all(n % 512 == 0 for n in sizes[:-1])
    assert all(b - a <= max(512, a / 4) for a, b in itertools.pairwise(sizes))
    assert looks(100, 512) == [100]
    with pytest.raises(ValueError, match="at least 1"):
        looks(0, 512)


def test_the_running_interval_is_the_intersection_of_martingale_sets() -> None:
    near, counts = 0.01, [Trials(1, 100), Trials(6, 400), Trials(7, 900)]
    low, high = running_interval(counts, 0.95, near)
    a, b = 0.5, 0.5 * (1 - near) / near
    for end, outside in ((low, 0.999), (high, 1.001)):

        def worst(p: float) -> float:
            logs = [
                special.betaln(a + c.k, b + c.n - c.k)
                - special.betaln(a, b)
                - c.k * math.log(p)
                - (c.n - c.k) * math.log1p(-p)
                for c in counts
            ]
            return max(logs)

        assert worst(end) == pytest.approx(math.log(20), abs=1e-6)
        assert worst(end * outside) > math.log(20)
    assert narrowed((0.9, 1.0), Trials(0, 100), 0.95, (0.5, 0.5))[0] == 0.0  # an empty cut: the latest stands


def test_the_p_value_holds_whenever_one_stops() -> None:
    q, rng, rejected = 0.02, np.random.default_rng(1), 0
    for _ in range(400):
        hits = np.cumsum(rng.random(4000) < q)
        counts = [Trials(int(hits[n - 1]), n) for n in range(100, 4001, 100)]
        smallest = min(running_p_value(counts[: i + 1], q, q) for i in range(len(counts)))
        rejected += smallest <= 0.05
    # at most 1 in 20 by Ville's inequality; 37 of 400 has probability 1e-4 at exactly that rate
    assert rejected < 37
    assert running_p_value([Trials(0, 2000)], q, q) < 1e-6
    assert running_p_value([Trials(80, 2000)], q, q) == 1.0


@pytest.mark.parametrize(("q", "answer"), [(0.0, "below"), (0.002, "below"), (0.05, "above")])
def test_sampling_stops_when_the_question_is_answered(q: float, answer: str) -> None:
    question = Question(0.01, 50_000, SHARP)
    hits = np.random.default_rng(0).random(50_000) < q
    seen = drawn(question, hits)
    assert question.answer(question.counts(seen)) == answer
    assert len(seen.hit) < 10_000
    entry = question.entry(seen, 0.01)
    assert entry["stopped"].startswith(f"after {len(seen.hit):,} of at most 50,000 images")
    assert (entry["high"] < 0.01) == (answer == "below")
    assert (entry["low"] > 0.01) == (answer == "above")
    before = len(question.counts(seen)) - 2
    if before >= 0:  # and not a look later than it could
        assert question.answer(question.counts(seen)[: before + 1]) is None


def test_an_open_question_draws_the_most_and_says_so() -> None:
    question = Question(0.01, 3000, SHARP)
    hits = np.zeros(3000, np.bool_)
    hits[::100] = True
    seen = drawn(question, hits)
    assert len(seen.hit) == 3000
    assert "still open" in question.entry(seen, 0.01)["stopped"]
    assert "would be needed" not in question.entry(seen, 0.01)["stopped"]  # 3,000 could have been enough
    scarce = Question(1e-4, 3000, SHARP)
    said = scarce.entry(drawn(scarce, np.zeros(3000, np.bool_)), 0.01)["stopped"]
    assert f"at least {samples_to_decide(1e-4):,} would be needed" in said


def test_detectors_that_overlook_make_it_draw_more() -> None:
    weak = ((Trials(50, 80), Trials(0, 80)), (Trials(80, 80), Trials(0, 80)))
    none = np.zeros(50_000, np.bool_)
    sharp = len(drawn(Question(0.005, 50_000, SHARP), none).hit)
    blurred = len(drawn(Question(0.005, 50_000, weak), none).hit)
    blind = len(drawn(Question(0.005, 5000, ((Trials(30, 80), Trials(0, 80)),) * 2), none).hit)
    assert sharp < blurred < 50_000
    assert blind == 5000


def errs(tpr: tuple[int, int], fpr: tuple[int, int]) -> Any:
    return SimpleNamespace(rates=SimpleNamespace(tpr=Trials(*tpr), fpr=Trials(*fpr)))


def test_what_detectors_leave_of_an_estimate_by_hand() -> None:
    found = Rate("splitting", 1e-3, 8e-4, 1.25e-3, 0.95, True, "", 1, {}, freedom=20.0)
    both = cast(Any, SimpleNamespace(presence=errs((90, 100), (0, 500)), identity=errs((80, 100), (1, 500))))
    entry = corrected(1e-3, found.at, both, Trials(0, 100_000))
    each = 1 - 0.05 / 6
    low, high = found.at(each)
    least = sum(Trials(k, 100).interval(each)[0] for k in (90, 80)) - 1
    most = Trials(80, 100).interval(each)[1]
    alarms = Trials(0, 100_000).upper((1 + each) / 2)
    assert entry["high"] == pytest.approx(high / least)
    assert entry["low"] == pytest.approx((low - alarms) / (most - alarms))
    assert entry["rate"] == pytest.approx(1e-3 / 0.7)
    # without the control's false alarms, real images leave nothing of so small a rate
    assert corrected(1e-3, found.at, both, None)["low"] == 0
    alone = cast(Any, SimpleNamespace(presence=None, identity=errs((100, 100), (0, 100))))
    assert corrected(1e-3, found.at, alone, None)["high"] < entry["high"]


def test_an_interval_at_another_level_is_the_one_asked_for_at_once() -> None:
    rate, error, freedom = 3e-6, 0.2, 7.0
    ends = [offered(math.log(rate), error, freedom, level) for level in (0.95, 0.99)]
    (low, high), wider = [(one.low, one.high) for one in ends if isinstance(one, Offered)]
    found = Rate("splitting", rate, low, high, 0.95, True, "", 1, {}, freedom=freedom)
    assert found.at(0.99) == pytest.approx(wider)
    assert found.at(0.95) == pytest.approx((low, high))
    counted = Rate("splitting", 0.1, 0.05, 0.2, 0.95, True, "", 1, {}, trials=Trials(10, 100))
    assert counted.at(0.99) == Trials(10, 100).interval(0.99)
    with pytest.raises(ValueError, match="no interval"):
        Rate("bridge", None, None, None, 0.95, False, "", 1, {}).at(0.99)


def test_bad_settings_are_refused_when_they_are_read() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        SampleSettings(until=1.5)
    for over in ({"samples": {"until": 0.0}}, {"rare": {"splitting": True, "most": 100}}):
        with pytest.raises(SettingsError):
            resolve(over, preset="demo")


TINY: dict[str, Any] = {
    "control": False,
    "data": {"images": 24},
    "model": {"training": {"steps": 24, "batch": 16}},
    "presence": {"epochs": 3, "draws": 256},
    "identity": {"epochs": 3, "draws": 256},
    "sampler": {"steps": 2},
    "search": {"levels": 2, "tries": 2},
    "baseline": {"images": 0},
    "samples": {"count": 3000, "until": 0.05},
    "likelihood": {"images": 1, "probes": 1},
    "rare": {"splitting": True, "most": 4000},
}


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("counting") / "run"
    return out, run_audit(resolve(TINY, preset="demo"), out)


def test_an_audit_stops_says_why_and_verifies(audited: tuple[Path, dict[str, Any]]) -> None:
    out, results = audited
    entry, rows = results["q"]["monte_carlo"], Run.read(out).rows("samples.model")
    assert entry["samples"] == len(rows["id"]) == entry["looks"]["samples"][-1]
    assert entry["answer"] == "below" and entry["samples"] < entry["most"] == 3000
    counts = [
        Trials(k, n) for n, k in zip(*(entry["looks"][key] for key in ("samples", "hits")), strict=True)
    ]
    assert (entry["low"], entry["high"]) == running_interval(counts, 0.95, 0.05)
    assert entry["high"] > Trials(entry["hits"], entry["samples"]).interval(0.95)[1]
    assert entry["high"] <= entry["corrected"]["high"] < 0.05
    found = verify(out)
    assert found.exit_code == 0, found.sentences
    assert {"q.monte_carlo.looks.hits", "q.monte_carlo.corrected.high"} <= {one.path for one in found.checks}


def test_the_same_command_finds_it_finished_and_a_lost_part_is_drawn_again(
    audited: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, results = audited
    assert run_audit(resolve(TINY, preset="demo"), out) == json.loads(json.dumps(results))
    # what a kill in the middle of sampling leaves: no results, the stage unfinished, its last part gone
    other = tmp_path / "killed"
    for file in out.rglob("*"):
        if file.is_file() and file.name not in ("results.json", "lock"):
            (other / file.relative_to(out)).parent.mkdir(parents=True, exist_ok=True)
            (other / file.relative_to(out)).write_bytes(file.read_bytes())
    parts = sorted((other / "probes").rglob("*samples.model*"))
    assert parts
    for part in parts:
        part.unlink() if part.is_file() else [one.unlink() for one in part.iterdir()]
    record = json.loads((other / "run.json").read_text())
    del record["stages"]["samples.model"]
    (other / "run.json").write_text(json.dumps(record))
    again = run_audit(resolve(TINY, preset="demo"), other)
    assert again["q"]["monte_carlo"] == results["q"]["monte_carlo"]


def test_the_gate_and_the_verdict_judge_by_the_interval_that_allows_stopping(
    audited: tuple[Path, dict[str, Any]],
) -> None:
    _, results = audited
    limit = results["q"]["monte_carlo"]["corrected"]["high"]
    for at_most, answer in ((limit * 1.01, "pass"), (limit * 0.99, "unknown")):
        policy = Policy(q=RateRule(at_most, 0.95, ("monte_carlo",)))
        assert judge(results, policy).outcomes[0].answer == answer
    strict = Policy(q=RateRule(0.5, 0.99, ("monte_carlo",)))
    assert judge(results, strict).outcomes[0].answer == "unknown"
    found = json.loads(json.dumps(results))
    found["q"]["monte_carlo"] |= {"hits": 40, "missable": 0.02, "low": 0.01, "high": 0.03}
    found["q"]["monte_carlo"]["corrected"] |= {"low": 0.001, "high": 0.04}
    judged = verdict(found)
    assert judged["state"] == "reproduces" and "holds whenever one stops" in judged["reasons"][0]
    found["q"]["monte_carlo"]["corrected"]["low"] = 0.0
    assert verdict(found)["state"] == "inconclusive"
    missed = judge(found, Policy(missable=MissableRule(0.03, 0.95))).outcomes[0]
    assert (
        missed.answer == "unknown" and judge(found, Policy(missable=MissableRule(0.04, 0.95))).exit_code == 0
    )
