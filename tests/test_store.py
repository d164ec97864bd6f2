"""The run on disk: what was finished survives anything, what was not leaves no trace, nothing is mixed."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentprint.files import FileError, to_json
from latentprint.store import Growth, Run, RunError

SETTINGS = {"seed": 3, "data": {"source": "digits", "images": 100}, "grid": [0.1, 0.5, 1.0], "control": True}


def columns(ids):
    """Rows that follow from the id alone, of every kind that is kept."""
    ids = np.asarray(list(ids), dtype=np.int64)
    with np.errstate(invalid="ignore"):
        return {
            "id": ids,
            "t": np.sqrt(ids) / 7,
            "hit": ids % 3 == 0,
            "mse": np.where(ids == 5, np.nan, 1.0 / (1 + ids)).astype(np.float32),
            "evaluations": ids * 2,
        }


def features(ids):
    return np.stack([np.full((2, 3), 1.0 / (1 + i), np.float32) for i in ids])


def require_rows(got, ids):
    want = columns(sorted(ids))
    assert set(got) == set(want)
    for name in want:
        assert got[name].dtype == want[name].dtype
        np.testing.assert_array_equal(got[name], want[name])


def tree(folder):
    """Bytes of every file that results follow from (run.json holds times, the lock a process)."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("run.json", "lock")
    }


# Rows


def test_rows_come_back_sorted_by_id_with_their_types_and_nan_stays_nan(tmp_path):
    with Run.open(tmp_path / "run", SETTINGS) as run:
        assert run.rows("q") == {}
        run.append("q", columns([9, 7, 8]))
        run.append("q", columns([5, 0, 2]))
        run.append("other", columns([0, 1]))
        require_rows(run.rows("q"), [0, 2, 5, 7, 8, 9])
        assert math.isnan(run.rows("q")["mse"][2])
    require_rows(Run.read(tmp_path / "run").rows("q"), [0, 2, 5, 7, 8, 9])
    require_rows(Run.read(tmp_path / "run").rows("other"), [0, 1])


def test_missing_ids_in_the_order_asked(tmp_path):
    with Run.open(tmp_path / "run", SETTINGS) as run:
        assert run.missing("q", [4, 2]).tolist() == [4, 2]
        run.append("q", columns(range(3, 6)))
        assert run.missing("q", range(8)).tolist() == [0, 1, 2, 6, 7]
        assert run.missing("q", [9, 4, 1]).tolist() == [9, 1]
        assert run.missing("p", [4]).tolist() == [4]


def test_the_same_ids_again_replace_their_part_and_change_nothing(tmp_path):
    with Run.open(tmp_path / "run", SETTINGS) as run:
        for ids in ([0, 1, 2], [5, 9, 7], [3, 4]):
            run.append("q", columns(ids))
        before = tree(tmp_path / "run")
        run.append("q", columns([2, 1, 0]))
        run.append("q", columns([9, 7, 5]))
    assert tree(tmp_path / "run") == before
    with Run.open(tmp_path / "run", SETTINGS) as run:
        run.append("q", columns([0, 1, 2]))
        require_rows(run.rows("q"), [0, 1, 2, 3, 4, 5, 7, 9])
    assert tree(tmp_path / "run") == before


def test_parts_of_one_range_but_other_ids_do_not_replace_one_another(tmp_path):
    with Run.open(tmp_path / "run", SETTINGS) as run:
        run.append("q", columns([0, 4, 9]))
        with pytest.raises(RunError, match="already holds id 0"):
            run.append("q", columns([0, 5, 9]))
        run.append("q", columns([1, 8]))  # inside the range, but apart
        run.append("q", columns([5, 6, 7]))
        require_rows(run.rows("q"), [0, 1, 4, 5, 6, 7, 8, 9])
        for twice in ([7, 8], [8, 20], [0]):
            with pytest.raises(RunError, match="already holds id"):
                run.append("q", columns(twice))
        require_rows(run.rows("q"), [0, 1, 4, 5, 6, 7, 8, 9])


def test_an_id_in_two_part_files_is_refused_when_read(tmp_path):
    with Run.open(tmp_path / "a", SETTINGS) as run:
        run.append("q", columns([0, 1, 2]))
    with Run.open(tmp_path / "b", SETTINGS) as run:
        run.append("q", columns([2, 3]))
    for part in (tmp_path / "b" / "probes").iterdir():
        part.rename(tmp_path / "a" / "probes" / part.name)
    with pytest.raises(RunError, match="id 2 more than once"):
        Run.read(tmp_path / "a").rows("q")


@given(st.permutations(range(24)), st.lists(st.integers(1, 23), max_size=6, unique=True))
@settings(max_examples=15, deadline=None)
def test_rows_do_not_depend_on_how_ids_were_cut_or_ordered(tmp_path_factory, ids, cuts):
    with Run.open(tmp_path_factory.mktemp("cut") / "run", SETTINGS) as run:
        for unit in np.split(np.array(ids), sorted(cuts)):
            run.append("q", columns(unit))
        require_rows(run.rows("q"), range(24))


def test_arrays_come_back_by_id(tmp_path):
    with Run.open(tmp_path / "run", SETTINGS) as run:
        assert run.array("features") is None
        run.append_array("features", [4, 3], features([4, 3]))
        run.append_array("features", range(3), features(range(3)))
        ids, values = run.array("features")
    assert ids.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(values, features(range(5)))
    with Run.open(tmp_path / "run", SETTINGS) as run:
        assert run.missing_array("features", [7, 3, 5]).tolist() == [7, 5]
        run.append_array("features", [5], features([5]))
        np.testing.assert_array_equal(run.array("features")[1], features(range(6)))
        with pytest.raises(RunError, match=r"'values' is float32\[2, 2\] in one part and float32\[2, 3\]"):
            run.append_array("features", [6], np.zeros((1, 2, 2), np.float32))


@pytest.mark.parametrize(
    "purpose", ["", "..", ".", "../q", "a/b", "a\\b", "A", "q ", ".q", "-q", "q.", "q\n", "é", "a" * 101]
)
def test_purposes_cannot_leave_the_folder(tmp_path, purpose):
    with Run.open(tmp_path / "run", SETTINGS) as run:
        for call in (
            lambda: run.append(purpose, columns([0])),
            lambda: run.rows(purpose),
            lambda: run.append_array(purpose, [0], features([0])),
            lambda: run.finish(purpose),
        ):
            with pytest.raises(RunError, match="a purpose must be made of"):
                call()
    assert {path.name for path in tmp_path.rglob("*")} == {"run", "run.json", "lock"}


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out", "run.json", "lock"])
def test_files_cannot_leave_the_folder(tmp_path, name):
    with Run.open(tmp_path / "run", SETTINGS) as run, pytest.raises(RunError, match="inside its folder"):
        run.write(name, b"")


def test_purposes_that_begin_alike_are_kept_apart(tmp_path):
    with Run.open(tmp_path / "run", SETTINGS) as run:
        for purpose, ids in (("q", [1, 2]), ("q-1", [3]), ("q-1-2", [4]), ("q.0", [5]), ("q_", [6])):
            run.append(purpose, columns(ids))
    run = Run.read(tmp_path / "run")
    for purpose, ids in (("q", [1, 2]), ("q-1", [3]), ("q-1-2", [4]), ("q.0", [5]), ("q_", [6])):
        require_rows(run.rows(purpose), ids)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"t": np.zeros(2)}, "needs a column 'id'"),
        ({"id": np.zeros(2)}, "needs a column 'id' of integers"),
        ({"id": np.array([1, 1])}, "id 1 occurs more than once"),
        ({"id": np.array([-1, 1])}, "an id must be 0 or more, got -1"),
        ({"id": np.arange(2), "t": np.zeros(3)}, r"'t' needs one number for each of 2 ids"),
        ({"id": np.arange(2), "t": np.zeros((2, 2))}, "'t' needs one number per id"),
        ({"id": np.arange(2), "t": np.array(["a", "b"])}, "'t' needs one number"),
        ({"id": np.arange(2), "t": np.array([None, {}])}, "'t' needs one number"),
    ],
)
def test_rows_that_cannot_be_kept_are_refused(tmp_path, rows, words):
    with Run.open(tmp_path / "run", SETTINGS) as run:
        with pytest.raises(RunError, match=words):
            run.append("q", rows)
        assert run.rows("q") == {}


def test_other_columns_or_types_than_before_are_refused(tmp_path):
    with Run.open(tmp_path / "run", SETTINGS) as run:
        run.append("q", {"id": np.array([0]), "t": np.array([0.5])})
        with pytest.raises(RunError, match="'mse' is float64 in one part and missing in another"):
            run.append("q", {"id": np.array([1]), "t": np.array([0.5]), "mse": np.array([0.5])})
        with pytest.raises(RunError, match="'t' is missing in one part and float64 in another"):
            run.append("q", {"id": np.array([1])})
        with pytest.raises(RunError, match="'t' is float32 in one part and float64 in another"):
            run.append("q", {"id": np.array([1]), "t": np.array([0.5], np.float32)})


def test_a_damaged_part_is_named(tmp_path):
    with Run.open(tmp_path / "run", SETTINGS) as run:
        run.append("q", columns(range(40)))
        run.append_array("f", range(4), features(range(4)))
    (part,) = (tmp_path / "run" / "probes").iterdir()
    (array,) = (tmp_path / "run" / "arrays" / "f").iterdir()
    for path in (part, array):
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunError, match=r"part-q@000000000-000000039.parquet' cannot be read"):
        Run.read(tmp_path / "run").rows("q")
    with pytest.raises(RunError, match=r"part-000000000-000000003.safetensors' cannot be read"):
        Run.read(tmp_path / "run").array("f")


# Stages and settings


def test_stages_are_done_once_finished_and_stay_so(tmp_path):
    with Run.open(tmp_path / "run", SETTINGS) as run:
        assert not run.stage("train").done and run.stage("train").payload == {}
        run.begin("train")
        assert not run.stage("train").done
        run.finish("train", {"loss": np.float64(0.1), "steps": np.int64(7), "shape": (1, 8, 8), "none": None})
        run.begin("search")
        straight = run.stage("train")
    with Run.open(tmp_path / "run", SETTINGS) as run:
        assert run.stage("train") == straight
        assert run.stage("train").payload == {"loss": 0.1, "steps": 7, "shape": [1, 8, 8], "none": None}
        assert run.stage("train").seconds >= 0
        assert not run.stage("search").done
        run.begin("train")  # beginning a finished stage again does not undo it
        assert run.stage("train").done


def test_run_json_holds_what_repeating_takes(tmp_path):
    with Run.open(tmp_path / "run", SETTINGS) as run:
        run.note({"device": {"name": "cpu"}, "manifest": "ab" * 32})
        run.complete()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["schema"] == "latentprint/run/1"
    assert record["settings"] == SETTINGS and record["seed"] == 3 and len(record["settings_sha256"]) == 64
    assert record["device"] == {"name": "cpu"} and record["manifest"] == "ab" * 32
    assert record["versions"]["numpy"] == np.__version__
    assert record["finished"] >= record["began"] and len(record["sessions"]) == 1
    with Run.open(tmp_path / "run", SETTINGS) as run, pytest.raises(RunError, match="'settings' itself"):
        run.note({"settings": {}})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 4}, "seed is 3 there and 4 here"),
        ({"data": {"source": "digits", "images": 200}}, "data.images is 100 there and 200 here"),
        ({"data": {"source": "digits"}}, "data.images is 100 there and not set here"),
        ({"data": {**SETTINGS["data"], "root": "x"}}, "data.root is not set there and 'x' here"),
        ({"grid": [0.1, 0.6, 1.0]}, r"grid\[1\] is 0.5 there and 0.6 here"),
        ({"grid": [0.1]}, r"grid is \[0.1, 0.5, 1.0\] there and \[0.1\] here"),
        ({"control": 1}, "control is True there and 1 here"),
        ({"data": None}, "data is {.*} there and None here"),
    ],
)
def test_another_runs_settings_are_refused_and_named(tmp_path, change, words):
    with Run.open(tmp_path / "run", SETTINGS) as run:
        run.append("q", columns([0]))
    before = tree(tmp_path / "run"), (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(RunError, match=words) as caught:
        Run.open(tmp_path / "run", {**SETTINGS, **change})
    assert "\n" not in str(caught.value)
    assert (tree(tmp_path / "run"), (tmp_path / "run" / "run.json").read_bytes()) == before
    with Run.open(tmp_path / "run", SETTINGS) as run:  # the refusal left no lock
        require_rows(run.rows("q"), [0])


def test_a_run_may_be_asked_for_more(tmp_path):
    with Run.open(tmp_path / "run", SETTINGS) as run:
        run.append("q", columns([0]))
        run.finish("draw", {"drawn": 1})
        run.finish("fit", {"steps": 7})
        run.complete()
    more = {**SETTINGS, "data": {**SETTINGS["data"], "images": 200}}
    asked = []

    def grows(held, wanted):
        asked.append((held, wanted))
        return Growth(may=("data.images",), again=("dr",))

    with pytest.raises(RunError, match="seed is 3 there and 4 here"):
        Run.open(tmp_path / "run", {**more, "seed": 4}, grows=grows)
    before = Run.read(tmp_path / "run").record
    assert before["finished"] is not None and asked == [(SETTINGS, {**more, "seed": 4})]
    with Run.open(tmp_path / "run", more, grows=grows) as run:
        assert run.settings == more and run.earlier == (SETTINGS,)
        require_rows(run.rows("q"), [0])
        assert not run.stage("draw").done and run.stage("fit").payload == {"steps": 7}
    after = Run.read(tmp_path / "run").record
    assert after["finished"] is None  # it holds less than it is asked for now
    assert after["settings_sha256"] == sha256(to_json(more, "settings")).hexdigest()
    assert after["earlier"] == [{"settings": SETTINGS, "finished": before["finished"]}]
    # Nobody has seen results of these settings, so they leave no trace when they grow again.
    most = {**SETTINGS, "data": {**SETTINGS["data"], "images": 300}}
    with Run.open(tmp_path / "run", most, grows=grows) as run:
        assert run.settings == most and run.earlier == (SETTINGS,)
    with pytest.raises(RunError, match=r"data\.images is 300 there and 200 here"):
        Run.open(tmp_path / "run", more)


def test_equal_settings_continue_whatever_their_python_types(tmp_path):
    Run.open(tmp_path / "run", {"grid": (0.1, 1), "n": np.int64(3)}).close()
    Run.open(tmp_path / "run", {"n": 3, "grid": [0.1, 1.0]}).close()


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["stages"]["train"]["payload"].update(steps=8),
        lambda record: record["stages"]["train"]["payload"].clear(),
        lambda record: record["stages"].pop("train"),
        lambda record: record["stages"]["train"].update(seconds="long"),
        lambda record: record["stages"].update(train=None),
        lambda record: record.update(sessions="many"),
        lambda record: record.pop("seal"),
        lambda record: record.update(seal=None),
    ],
)
def test_a_run_whose_record_was_changed_does_not_go_on(tmp_path, change):
    """What stages wrote is used by later ones; an altered value is a sentence and no traceback there."""
    with Run.open(tmp_path / "run", SETTINGS) as run:
        run.finish("train", {"steps": 7})
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(
        RunError, match=r"was changed after|is damaged|cannot be read|needs a table|cannot be used"
    ):
        Run.open(tmp_path / "run", SETTINGS)
    with Run.open(tmp_path / "run", SETTINGS, fresh=True) as run:
        assert not run.stage("train").done


def test_fresh_moves_the_earlier_run_aside_and_loses_nothing(tmp_path):
    for n in range(3):
        with Run.open(tmp_path / "run", {"seed": n}, fresh=True) as run:
            assert run.rows("q") == {}
            run.append("q", columns([n]))
    require_rows(Run.read(tmp_path / "run").rows("q"), [2])
    require_rows(Run.read(tmp_path / "run.old-1").rows("q"), [0])
    require_rows(Run.read(tmp_path / "run.old-2").rows("q"), [1])


def test_a_folder_with_something_else_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(RunError, match=r"not empty and holds no run .*'thesis.txt'"):
            Run.open(tmp_path, SETTINGS, fresh=fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(FileError, match="is not a folder"):
        Run.open(tmp_path / "thesis.txt", SETTINGS)
    with pytest.raises(FileError, match=r"could not be made|is not a folder"):
        Run.open(tmp_path / "thesis.txt" / "run", SETTINGS)
    with pytest.raises(RunError, match="holds no run"):
        Run.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no JSON"),
        ('{"schema": ', "holds no JSON"),
        ("[1]", "a JSON object"),
        ("[" * 100_000, "levels deep"),
        ('{"schema": "latentprint/run/9"}', "has the schema 'latentprint/run/9'"),
        (
            '{"schema": "latentprint/run/1", "settings": {}, "stages": [], "sessions": []}',
            "settings_sha256 is missing",
        ),
        ("\udcff", "not UTF-8"),
    ],
)
def test_a_damaged_run_json_is_refused_in_one_sentence(tmp_path, content, words):
    (tmp_path / "run.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    for opening in (lambda: Run.open(tmp_path, SETTINGS), lambda: Run.read(tmp_path)):
        with pytest.raises(FileError, match=words) as caught:
            opening()
        assert "\n" not in str(caught.value)
        assert "begin a run in another folder" in str(caught.value)


# JSON


def test_equal_values_give_equal_bytes_and_numbers_come_back_exactly(tmp_path):
    value = {
        "q": {"rate": 0.1 + 0.2, "low": 5e-324, "n": 2**60, "ok": True, "none": None, "words": "é"},
        "t": [1e-300],
    }
    with Run.open(tmp_path / "run", SETTINGS) as run:
        first = run.write_json("results.json", value).read_bytes()
        with_numpy = {"q": {**value["q"], "rate": np.float64(0.1 + 0.2)}, "t": (np.float64(1e-300),)}
        assert run.write_json("results.json", with_numpy).read_bytes() == first
    assert json.loads(first) == value
    assert list(json.loads(first)) == ["q", "t"] and first.endswith(b"}\n")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": {"b": math.nan}}, "results.json.a.b is nan"),
        ({"a": [1.0, math.inf]}, r"results.json.a\[1\] is inf"),
        ({"a": np.float32("nan")}, "results.json.a is nan"),
        ({"a": {1: 2}}, "has the key 1"),
        ({"a": np.zeros(3)}, "of the type ndarray"),
        ({"a": {1, 2}}, "of the type set"),
        ({"a": b"x"}, "of the type bytes"),
        ({"a": 1j}, "of the type complex"),
    ],
)
def test_what_json_cannot_hold_is_refused_and_named(tmp_path, value, words):
    with Run.open(tmp_path / "run", SETTINGS) as run:
        with pytest.raises(FileError, match=words):
            run.write_json("results.json", value)
        with pytest.raises(FileError):
            run.finish("train", value)
        assert not (tmp_path / "run" / "results.json").exists() and not run.stage("train").done


# One writer


HOLD = """
import sys, time
from latentprint.store import Run
run = Run.open(sys.argv[1], {"seed": 0})
print("open", flush=True)
time.sleep(60)
"""


def start(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path):
    with start(HOLD, tmp_path / "run") as holder:
        try:
            assert holder.stdout.readline() == "open\n"
            with pytest.raises(RunError, match=rf"being written by another process \({holder.pid}\)"):
                Run.open(tmp_path / "run", {"seed": 0})
            Run.read(tmp_path / "run")  # looking is allowed
        finally:
            holder.send_signal(signal.SIGKILL)
    with Run.open(tmp_path / "run", {"seed": 0}) as run:  # what a dead process held is free
        assert run.record["sessions"][-1]["process"] == os.getpid()


def test_a_second_opening_in_one_process_is_refused_too(tmp_path):
    with Run.open(tmp_path / "run", SETTINGS) as run:
        for fresh in (False, True):
            with pytest.raises(RunError, match=rf"another process \({os.getpid()}\)"):
                Run.open(tmp_path / "run", SETTINGS, fresh=fresh)
        run.append("q", columns([0]))
    with Run.open(tmp_path / "run", SETTINGS) as run:
        require_rows(run.rows("q"), [0])


def test_what_went_wrong_while_opening_is_what_is_said(tmp_path, monkeypatch):
    """The lock was given back twice, and the second time became the error."""
    Run.open(tmp_path / "run", SETTINGS).close()
    real = Path.rename

    def rename(path, target):
        real(path, target)
        monkeypatch.setattr(Path, "mkdir", refuse)

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(FileError, match="the disk is full"):
        Run.open(tmp_path / "run", SETTINGS, fresh=True)


def test_a_run_that_was_read_or_closed_is_not_written(tmp_path):
    run = Run.open(tmp_path / "run", SETTINGS)
    run.append("q", columns([0]))
    run.close()
    run.close()
    for closed in (run, Run.read(tmp_path / "run")):
        for write in (
            lambda run: run.append("q", columns([1])),
            lambda run: run.append_array("f", [1], features([1])),
            lambda run: run.finish("train"),
            lambda run: run.note({"device": "cpu"}),
            lambda run: run.write("report.html", b""),
        ):
            with pytest.raises(RunError, match="opened to be read, or is closed"):
                write(closed)
    require_rows(Run.read(tmp_path / "run").rows("q"), [0])


# Whole files or none


@pytest.mark.skipif(sys.platform == "win32", reason="open files cannot be replaced there")
def test_a_file_is_replaced_and_never_overwritten(tmp_path):
    with Run.open(tmp_path / "run", SETTINGS) as run:
        path = run.write("report.html", b"old" * 1000)
        with path.open("rb") as reader:  # somebody who began to read before still reads one whole file
            run.write("report.html", b"new")
            assert reader.read() == b"old" * 1000
        assert path.read_bytes() == b"new"


def test_what_a_killed_writer_left_aside_is_swept_up_by_the_next_one_alone(tmp_path):
    with Run.open(tmp_path / "run", SETTINGS) as run:
        run.append("q", columns([0]))
        run.append_array("f", [0], features([0]))
    before = tree(tmp_path / "run")
    left = [tmp_path / "run" / at / ".part-q@9-9.parquet.tmp" for at in ("", "probes", "arrays", "arrays/f")]
    for path in left:
        path.write_bytes(b"half")
    require_rows(Run.read(tmp_path / "run").rows("q"), [0])
    assert all(path.exists() for path in left)
    with Run.open(tmp_path / "run", SETTINGS) as run:
        require_rows(run.rows("q"), [0])
    assert tree(tmp_path / "run") == before


def test_a_first_moment_that_was_killed_is_no_foreign_folder(tmp_path):
    (tmp_path / "lock").write_text("1\n")
    (tmp_path / ".run.json.tmp").write_text("{")
    with Run.open(tmp_path, SETTINGS) as run:
        assert run.rows("q") == {}
    assert {path.name for path in tmp_path.iterdir()} == {"lock", "run.json"}


def test_nan_is_a_number_in_the_file_and_not_a_gap(tmp_path):
    import pyarrow.parquet as pq

    with Run.open(tmp_path / "run", SETTINGS) as run:
        run.append("q", columns([5]))
    (part,) = (tmp_path / "run" / "probes").iterdir()
    assert pq.ParquetFile(part).read()["mse"].null_count == 0


# A full disk


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_sentence_and_the_run_can_be_continued(tmp_path, monkeypatch, code):
    def full(handle):
        raise OSError(code, os.strerror(code))

    with Run.open(tmp_path / "run", SETTINGS) as run:
        run.append("q", columns(range(4)))
        run.finish("train", {"steps": 1})
        before = tree(tmp_path / "run"), (tmp_path / "run" / "run.json").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            for write in (
                lambda: run.append("q", columns(range(4, 8))),
                lambda: run.append_array("f", [0], features([0])),
                lambda: run.finish("search", {"t": 1}),
                lambda: run.finish("train", {"steps": 2}),
                lambda: run.write_json("results.json", {}),
            ):
                with pytest.raises(FileError, match=r"the disk is full.*make room and repeat") as caught:
                    write()
                assert "\n" not in str(caught.value)
        assert (tree(tmp_path / "run"), (tmp_path / "run" / "run.json").read_bytes()) == before
        assert not run.stage("search").done and run.stage("train").payload == {"steps": 1}
        assert run.missing("q", range(8)).tolist() == [4, 5, 6, 7]
    with Run.open(tmp_path / "run", SETTINGS) as run:
        run.append("q", columns(run.missing("q", range(8))))
        require_rows(run.rows("q"), range(8))


def test_a_disk_that_fills_while_writing_leaves_no_part(tmp_path, monkeypatch):
    limit = pytest.importorskip("resource")
    with Run.open(tmp_path / "run", SETTINGS) as run:
        before = limit.getrlimit(limit.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            limit.setrlimit(limit.RLIMIT_FSIZE, (4096, before[1]))
            with pytest.raises(FileError, match="could not be written"):
                run.append_array("f", range(999), np.zeros((999, 50)))
        finally:
            limit.setrlimit(limit.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert list((tmp_path / "run" / "arrays" / "f").iterdir()) == []
        assert run.array("f") is None


# Killed


WORK = """
import os, random, signal, sys, time
from hashlib import sha256
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store import SETTINGS, columns, features
from latentprint.store import Run

def work(folder):
    with Run.open(folder, SETTINGS) as run:
        for ids in (range(i, i + 8) for i in range(0, 160, 8)):
            if len(missing := run.missing("q", ids)):
                run.append("q", columns(missing))
            if len(missing := run.missing_array("f", ids)):
                run.append_array("f", missing, features(missing))
        run.finish("count", {"hits": int(run.rows("q")["hit"].sum())})
        run.write_json("results.json", {"hits": run.stage("count").payload["hits"]})

def child(task):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            task()
            code = 0
        finally:
            os._exit(code)
    return pid

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def slow(folder):
    real = os.fsync
    def fsync(handle):
        time.sleep(0.01)  # so that the work takes longer than the first kills, however fast the disk
        real(handle)
    os.fsync = fsync
    work(folder)

def dying(folder, sync):
    left, real = [sync], os.fsync
    def fsync(handle):
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
        real(handle)
    os.fsync = fsync
    work(folder)

folder = Path(sys.argv[1])
work(folder / "straight")  # here, so that the children find every module loaded and start at once
for sync in range(1, 11):
    assert ended(child(lambda: dying(folder / f"die-{sync}", sync))) == 9
    print("aside", sync, len(list((folder / f"die-{sync}").rglob(".*.tmp"))))
    assert ended(child(lambda: work(folder / f"die-{sync}"))) == 0
moments, kills = random.Random(0), 0
for _ in range(20):
    pid = child(lambda: slow(folder / "killed"))
    time.sleep(moments.uniform(0.0, 0.2))
    os.kill(pid, signal.SIGKILL)
    kills += ended(pid) == -signal.SIGKILL
print("kills", kills, len(list((folder / "killed").glob("probes/part-*"))))
assert ended(child(lambda: work(folder / "killed"))) == 0
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")
def test_killed_at_any_moment_then_continued_equals_uninterrupted(tmp_path):
    with start(WORK, tmp_path, os.path.dirname(__file__)) as child:
        said = [line.split() for line in child.stdout.read().splitlines()]
        assert child.wait() == 0
    # Each write syncs a file, renames it, syncs its folder: odd deaths leave a file aside, even ones none.
    assert [line[1:] for line in said if line[0] == "aside"] == [[str(i), str(i % 2)] for i in range(1, 11)]
    ((kills, parts),) = [line[1:] for line in said if line[0] == "kills"]
    assert int(kills) >= 3 and int(parts) >= 1
    straight = tree(tmp_path / "straight")
    assert len(straight) == 41
    for folder in ["killed", *(f"die-{sync}" for sync in range(1, 11))]:
        require_rows(Run.read(tmp_path / folder).rows("q"), range(160))
        assert tree(tmp_path / folder) == straight
