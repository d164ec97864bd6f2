"""Sampling that stops on sight: where it stops, what it then says, and what detectors' errors leave of it."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import special
from small_runs import SmallRun, leak

from latentprint import resolve, run_audit
from latentprint.audit.estimates import value
from latentprint.config import SampleSettings
from latentprint.gate import Policy, judge, read_policy
from latentprint.rate import Rate
from latentprint.rate.weights import Offered, offered
from latentprint.results import Results
from latentprint.results.model import Detectors
from latentprint.results.stopping import FIRST_LOOK, Until
from latentprint.results.stored import Stored
from latentprint.settings import SettingsError
from latentprint.stats import (
    Trials,
    corrected_interval,
    looks,
    narrowed,
    running_interval,
    running_p_value,
    samples_to_decide,
)
from latentprint.store import Run
from latentprint.store.record import sealed
from latentprint.verify import verify

SHARP = ((Trials(400, 400), Trials(0, 400)), (Trials(400, 400), Trials(0, 400)))


def small_detectors() -> Detectors:
    """Those of a real small run."""
    return leak().results.detectors


def drawn(until: Until, hits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What sampling would have drawn of a stream of hits."""
    for size in looks(until.most, FIRST_LOOK):
        if until.answer(until.counts(hits[:size])) is not None:
            return hits[:size]
    return hits[: until.most]


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
    until = Until(0.01, tuple(looks(50_000, FIRST_LOOK)), SHARP)
    seen = drawn(until, np.random.default_rng(0).random(50_000) < q)
    assert until.answer(until.counts(seen)) == answer
    assert len(seen) < 10_000
    stopping = until.stopping(seen)
    assert stopping.answer == answer
    assert stopping.stopped.startswith(f"after {len(seen):,} of at most 50,000 images")
    low, high = until.interval(stopping.looks.counts)
    assert (high < 0.01) == (answer == "below")
    assert (low > 0.01) == (answer == "above")
    before = len(until.counts(seen)) - 2
    if before >= 0:  # and not a look later than it could
        assert until.answer(until.counts(seen)[: before + 1]) is None


def test_the_interval_of_a_raised_number_holds_whoever_raises_it() -> None:
    """Somebody who doubles the number until the interval for a fixed number excludes q misses it often; the
    interval that is stated then does not."""
    average, rng, fixed, stated, runs = 1 / 50, np.random.default_rng(2), 0, 0, 400
    for _ in range(runs):
        hits = rng.random(200 * 2**6) < average
        sizes = [200]
        while sizes[-1] < len(hits):
            low, high = Trials(int(hits[: sizes[-1]].sum()), sizes[-1]).interval(0.95)
            if not low <= average <= high:
                break
            sizes.append(2 * sizes[-1])
        before, n = [SampleSettings(count=size) for size in sizes[:-1]], sizes[-1]
        low, high = Trials(int(hits[:n].sum()), n).interval(0.95)
        fixed += not low <= average <= high
        until = Until.of_raised(before, n, small_detectors(), average)
        if until is None:  # looked at once
            stated += not low <= average <= high
            continue
        counts = until.counts(hits[:n])
        assert [one.n for one in counts] == sizes
        low, high = until.interval(counts)
        stated += not low <= average <= high
    assert fixed > 1.5 * 0.05 * runs
    # of the first look, which nobody has raised, and of all later ones together: at most 1 in 20 each
    assert stated <= 0.05 * runs + 3 * math.sqrt(0.05 * runs)


def test_a_number_that_was_not_raised_is_fixed() -> None:
    for before in ([], [SampleSettings(count=400)], [SampleSettings(count=500)]):
        assert Until.of_raised(before, 400, small_detectors(), 0.01) is None
    until = Until.of_raised([SampleSettings(count=300), SampleSettings(count=100)], 400, small_detectors(), 1)
    assert until is not None and until.sizes == (100, 300, 400) and until.threshold == 0.5


def test_an_open_question_draws_the_most_and_says_so() -> None:
    until = Until(0.01, tuple(looks(3000, FIRST_LOOK)), SHARP)
    hits = np.zeros(3000, np.bool_)
    hits[::100] = True
    seen = drawn(until, hits)
    assert len(seen) == 3000
    assert "still open" in until.stopping(seen).stopped
    assert "would be needed" not in until.stopping(seen).stopped  # 3,000 could have been enough
    scarce = Until(1e-4, tuple(looks(3000, FIRST_LOOK)), SHARP)
    said = scarce.stopping(drawn(scarce, np.zeros(3000, np.bool_))).stopped
    assert f"at least {samples_to_decide(1e-4):,} would be needed" in said


def test_detectors_that_overlook_make_it_draw_more() -> None:
    weak = ((Trials(50, 80), Trials(0, 80)), (Trials(80, 80), Trials(0, 80)))
    none = np.zeros(50_000, np.bool_)
    sharp = len(drawn(Until(0.005, tuple(looks(50_000, FIRST_LOOK)), SHARP), none))
    blurred = len(drawn(Until(0.005, tuple(looks(50_000, FIRST_LOOK)), weak), none))
    blind = len(
        drawn(Until(0.005, tuple(looks(5000, FIRST_LOOK)), ((Trials(30, 80), Trials(0, 80)),) * 2), none)
    )
    assert sharp < blurred < 50_000
    assert blind == 5000


def test_what_detectors_leave_of_an_estimate_by_hand() -> None:
    found = value(Rate("splitting", 1e-3, 8e-4, 1.25e-3, 0.95, True, "", 1, {"step": "a"}, freedom=20.0))

    def at(level: float) -> tuple[float, float]:
        ends = found.at(level)
        assert ends is not None
        return ends

    both = ((Trials(90, 100), Trials(0, 500)), (Trials(80, 100), Trials(1, 500)))
    through = corrected_interval(1e-3, at, both, control=Trials(0, 100_000), level=0.95)
    each = 1 - 0.05 / 6
    low, high = at(each)
    least = sum(Trials(k, 100).interval(each)[0] for k in (90, 80)) - 1
    most = Trials(80, 100).interval(each)[1]
    alarms = Trials(0, 100_000).upper((1 + each) / 2)
    assert through.high == pytest.approx(high / least)
    assert through.low == pytest.approx((low - alarms) / (most - alarms))
    assert through.rate == pytest.approx(1e-3 / 0.7)
    # without the control's false alarms, real images leave nothing of so small a rate
    assert corrected_interval(1e-3, at, both, level=0.95).low == 0
    alone = ((Trials(100, 100), Trials(0, 100)),)
    assert corrected_interval(1e-3, at, alone, level=0.95).high < through.high


def test_an_interval_at_another_level_is_the_one_asked_for_at_once() -> None:
    rate, error, freedom = 3e-6, 0.2, 7.0
    ends = [offered(math.log(rate), error, freedom, level) for level in (0.95, 0.99)]
    (low, high), wider = [(one.low, one.high) for one in ends if isinstance(one, Offered)]
    made = Rate("splitting", rate, low, high, 0.95, True, "", 1, {"step": "a"}, freedom=freedom)
    for found in (made, value(made)):
        assert found.at(0.99) == pytest.approx(wider)
        assert found.at(0.95) == pytest.approx((low, high))
    counted = Rate("splitting", 0.1, 0.05, 0.2, 0.95, True, "", 1, {"step": "a"}, trials=Trials(10, 100))
    assert value(counted).at(0.99) == Trials(10, 100).interval(0.99)
    declined = value(Rate("path", None, None, None, 0.95, False, "", 1, {"step": "a"}))
    assert declined.at(0.99) is None


def test_bad_settings_are_refused_when_they_are_read() -> None:
    with pytest.raises(ValueError, match="less than 1"):
        SampleSettings(until=1.5)
    for over in ({"samples": {"until": 0.0}}, {"rare": {"splitting": True, "most": 100}}):
        with pytest.raises(SettingsError):
            resolve(over, preset="demo")
    with pytest.raises(SettingsError, match=r"rare\.bridge is not a setting; known: path, splitting,"):
        resolve({"rare": {"bridge": True}}, preset="demo")


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
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    out = tmp_path_factory.mktemp("counting") / "run"
    return out, run_audit(resolve(TINY, preset="demo"), out)


def test_an_audit_stops_says_why_and_verifies(audited: tuple[Path, Results]) -> None:
    out, results = audited
    count, rows = results.q.monte_carlo, Run.read(out).rows("samples.model")
    stopping, through = count.stopping, count.corrected
    assert stopping is not None and through is not None
    assert count.samples == len(rows["id"]) == stopping.looks.samples[-1]
    assert stopping.answer == "below" and count.samples < stopping.most == 3000
    assert (count.low, count.high) == running_interval(stopping.looks.counts, 0.95, 0.05)
    assert count.high > count.trials.interval(0.95)[1]
    assert count.high <= through.high < 0.05
    found = verify(out)
    assert found.exit_code == 0, found.sentences
    paths = {one.path for one in found.checks}
    assert {"q.monte_carlo.stopping.looks.hits.0", "q.monte_carlo.corrected.high"} <= paths


def test_the_same_command_finds_it_finished_and_a_lost_part_is_drawn_again(
    audited: tuple[Path, Results], tmp_path: Path
) -> None:
    out, results = audited
    assert run_audit(resolve(TINY, preset="demo"), out) == results
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
    (other / "run.json").write_bytes(sealed(record))
    again = run_audit(resolve(TINY, preset="demo"), other)
    assert again.q.monte_carlo == results.q.monte_carlo


def asked(table: str, limit: float, level: float = 0.95) -> Policy:
    more = 'estimators = ["monte_carlo"]' if table == "q" else ""
    return read_policy(f"[{table}]\nat_most = {limit}\nlevel = {level}\n{more}")


def test_the_gate_judges_by_the_interval_that_allows_stopping(audited: tuple[Path, Results]) -> None:
    small = SmallRun(Stored.of(Run.read(audited[0])))
    many = small.counts(300, 512).results  # stopped at the first look: above
    count = many.q.monte_carlo
    assert count.stopping.answer == "above" and count.corrected.low > 0
    for limit, answer in ((count.corrected.low * 0.99, "fail"), (count.corrected.high * 1.01, "pass")):
        assert judge(many, asked("q", limit)).outcomes[0].answer == answer
    # at another confidence the looks are counted again, and the interval is wider
    assert judge(many, asked("q", count.corrected.high * 1.001, 0.999)).outcomes[0].answer == "unknown"
    assert judge(many, asked("missable", count.corrected.high * 1.01)).exit_code == 0
    assert judge(many, asked("missable", count.corrected.high * 0.99)).exit_code == 2
