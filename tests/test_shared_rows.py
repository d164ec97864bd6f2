"""Rows of a table that look for one image with one pair of recognisers, and rows that show another's run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentprint.contracts import InputError
from latentprint.data import load
from latentprint.settings import SettingsError
from latentprint.store import Run
from tools.reproduce import experiment, reproduce, shared
from tools.reproduce.pictures import reopen
from tools.reproduce.record import Record

TINY = """
control = false
data = { source = "digits" }
model.training = { steps = 20, batch = 8, warmup = 5 }
presence = { epochs = 2, draws = 128 }
identity = { epochs = 2, draws = 128 }
sampler.steps = 3
search = { levels = 4, tries = 2 }
baseline.images = 0
samples.count = 16
likelihood.images = 0
"""
TABLE = f"""
title = "Numbers of images"
kind = "audits"
shows = "fewer come back."
[mini]
preset = "demo"
[mini.settings]
{TINY}
[[mini.rows]]
name = "few"
settings = {{ data.images = 20 }}
private = "PRIVATE"
[[mini.rows]]
name = "many"
settings = {{ data.images = 60 }}
recognisers = "few"
"""
OTHER = """
title = "Sets"
kind = "audits"
shows = "sets differ."
order = 1
[mini]
preset = "demo"
[[mini.rows]]
name = "digits"
run = "numbers/many"
"""


def written(folder: Path, table: str = TABLE, other: str = OTHER, private: str | None = None) -> Path:
    """The two experiments' files; x_p is an image of the smaller set."""
    folder.mkdir()
    private = private or load("digits", seed=0, images=20).train.sha256[3]
    (folder / "numbers.toml").write_text(table.replace("PRIVATE", private))
    (folder / "sets.toml").write_text(other)
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("shared")
    where: dict[str, Any] = {"runs": base / "runs", "docs": base / "docs"}
    where["experiments"] = written(base / "experiments")
    reproduce("sets", **where)  # runs the larger row, and of the smaller one its recognisers alone
    lender = Run.read(base / "runs" / "numbers" / "mini" / "few")
    assert {one.name for one in lender.finished} == {"data", "presence", "identity"}
    reproduce("numbers", **where)
    return base


def test_both_rows_look_for_the_same_marked_image(done: Path) -> None:
    few, many = (reopen(done / "runs" / "numbers" / "mini" / name) for name in ("few", "many"))
    assert np.array_equal(few.injection.target, many.injection.target)
    assert few.injection.original_sha256 == load("digits", seed=0, images=20).train.sha256[3]
    assert few.injection.original_sha256 == many.injection.original_sha256
    assert (len(few.injection.marked), len(many.injection.marked)) == (20, 60)


def test_the_recognisers_are_fitted_once(done: Path) -> None:
    few, many = (done / "runs" / "numbers" / "mini" / name for name in ("few", "many"))
    for name in ("presence", "identity"):
        files = sorted(path.name for path in (few / "detectors" / name).iterdir())
        assert files
        for file in files:
            mine, theirs = (one / "detectors" / name / file for one in (few, many))
            assert mine.read_bytes() == theirs.read_bytes()
        lent, taken = (Run.read(one).stage(name) for one in (few, many))
        assert lent.payload == taken.payload
        # No time was spent on what was taken over, so none is stated.
        assert lent.seconds is not None and taken.seconds is None
    rows = json.loads((done / "docs" / "paper" / "results.json").read_text())["experiments"]
    assert "recognisers" not in rows["numbers"]["mini"]["few"]
    assert rows["numbers"]["mini"]["many"]["recognisers"] == "numbers/few"


def test_a_row_shows_the_run_of_another_table(done: Path) -> None:
    rows = json.loads((done / "docs" / "paper" / "results.json").read_text())["experiments"]
    assert rows["sets"]["mini"]["digits"] == rows["numbers"]["mini"]["many"]
    assert not (done / "runs" / "sets").exists()
    assert "many: c_p and c_id are those of numbers/few" in (done / "docs" / "paper.md").read_text()


def test_another_private_image_is_another_run(done: Path, tmp_path: Path) -> None:
    other = load("digits", seed=0, images=20).train.sha256[4]
    folder = written(tmp_path / "experiments", private=other)
    with pytest.raises(InputError, match=r"few: .*target"):
        reproduce("numbers", runs=done / "runs", docs=tmp_path, experiments=folder, only=["few"])


def test_a_row_with_lent_recognisers_is_given_an_estimate_later(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "runs", tmp_path / "runs")
    more = TABLE.replace("data.images = 60 }", "data.images = 60, rare = { splitting = true, most = 4000 } }")
    where: dict[str, Any] = {"runs": tmp_path / "runs", "docs": tmp_path / "docs", "only": ["many"]}
    reproduce("numbers", **where, experiments=written(tmp_path / "experiments", more))
    entry = Record.read(tmp_path / "docs" / "paper").rows("numbers", "mini")["many"]
    assert "splitting" in entry["estimates"] and entry["recognisers"] == "numbers/few"
    assert len(Run.read(tmp_path / "runs" / "numbers" / "mini" / "many").earlier) == 1


def test_recognisers_of_another_image_are_not_taken(tmp_path: Path) -> None:
    """The lender was begun with the image that the seed draws; its file names one since."""
    where: dict[str, Any] = {"runs": tmp_path / "runs", "docs": tmp_path / "docs", "only": ["few"]}
    drawn = TABLE.replace('private = "PRIVATE"\n', "")
    reproduce("numbers", **where, experiments=written(tmp_path / "drawn", drawn))
    where["only"] = ["many"]
    with pytest.raises(InputError, match="many cannot take the recognisers of few, which look for another"):
        reproduce("numbers", **where, experiments=written(tmp_path / "named"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("data.images = 60 }", "data.images = 60, identity.epochs = 3 }"), "settings differ in identity"),
        (("data.images = 60 }", "data.images = 60, presence.epochs = 3 }"), "settings differ in presence"),
        (("PRIVATE", "0" * 64), "none of the 60 training images of digits has the sha256 000000000000"),
    ],
)
def test_rows_that_do_not_fit_are_refused_before_anything_is_fitted(
    tmp_path: Path, change: tuple[str, str], sentence: str
) -> None:
    assert change[0] in TABLE
    folder = written(tmp_path / "experiments", TABLE.replace(*change))
    with pytest.raises(InputError, match=sentence):
        reproduce("numbers", runs=tmp_path / "runs", docs=tmp_path, experiments=folder, only=["many"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('recognisers = "few"', 'continues = "many"', "circle: sets/digits, numbers/many, numbers/many"),
        ('recognisers = "few"', 'recognisers = "fwe"', "there is no row 'fwe', only few, many"),
        ('recognisers = "few"', 'recognisers = "many"', "circle: sets/digits, numbers/many, numbers/many"),
        ('recognisers = "few"', 'recognisers = "few"\nprivate = "0"', "leave out `private`"),
        ('run = "numbers/many"', 'run = "many"', 'shows a run "EXPERIMENT/ROW"'),
        ('run = "numbers/many"', 'run = "numbers/many"\nprivate = "0"', "without more settings"),
        ('recognisers = "few"', 'recognisers = "nubmers/few"', "'nubmers' is not an experiment"),
        (
            'recognisers = "few"',
            'recognisers = "sets/digits"',
            "circle: sets/digits, numbers/many, sets/digits",
        ),
        ('run = "numbers/many"', 'run = "numbers/more"', "there is no row 'more'"),
        ('run = "numbers/many"', 'run = "nubmers/many"', "'nubmers' is not an experiment"),
    ],
)
def test_files_that_contradict_themselves_are_refused(
    tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    assert (TABLE + OTHER).count(old) == 1
    folder = written(tmp_path / "experiments", TABLE.replace(old, new), OTHER.replace(old, new))
    with pytest.raises((SettingsError, InputError), match=sentence):
        reproduce("sets", runs=tmp_path / "runs", docs=tmp_path, experiments=folder)


def test_a_row_of_its_own_borrows_nothing(tmp_path: Path) -> None:
    one = experiment("numbers", written(tmp_path / "experiments"))
    scale = one.scale("mini")
    unit = shared.Unit("few", scale.config(scale.row("few")), tmp_path / "few")
    with pytest.raises(ValueError, match="recognisers of its own"):
        shared.borrow(unit, shared.Where())


LONGER = f"""
title = "Lengths of one training"
kind = "audits"
shows = "longer memorises."
[mini]
preset = "demo"
[mini.settings]
{TINY.replace("warmup = 5", 'warmup = 5, decay = "none"')}
[[mini.rows]]
name = "short"
settings = {{ data.images = 20 }}
[[mini.rows]]
name = "long"
settings = {{ data.images = 20, model.training.steps = 50 }}
recognisers = "short"
continues = "short"
[[mini.rows]]
name = "whole"
settings = {{ data.images = 20, model.training.steps = 50 }}
[[mini.rows]]
name = "after"
settings = {{ data.images = 20, model.training.steps = 50 }}
recognisers = "short"
continues = "lengths/only"
"""
LOOKED_AT = f"""
title = "One training, looked at"
kind = "lengths"
shows = "longer memorises."
order = 2
[mini]
preset = "demo"
steps = [20, 40]
[mini.settings]
{TINY.replace("warmup = 5", 'warmup = 5, decay = "none"')}
[[mini.rows]]
name = "only"
settings = {{ data.images = 20, model.training.steps = 40 }}
recognisers = "numbers/short"
"""


def weights(run: Path) -> object:
    return Run.read(run).record["weights_sha256"]


def test_a_training_that_goes_on_is_the_longer_training(tmp_path: Path) -> None:
    where: dict[str, Any] = {"runs": tmp_path / "runs", "docs": tmp_path / "docs"}
    where["experiments"] = written(tmp_path / "experiments", LONGER)
    (where["experiments"] / "lengths.toml").write_text(LOOKED_AT)
    reproduce("lengths", **where)
    reproduce("numbers", **where)
    record = json.loads((tmp_path / "docs" / "paper" / "results.json").read_text())["experiments"]
    rows, looked = record["numbers"]["mini"], record["lengths"]["mini"]["only"]
    runs = tmp_path / "runs" / "numbers" / "mini"
    assert weights(runs / "long") == weights(runs / "whole") == weights(runs / "after")
    assert weights(runs / "short") != weights(runs / "whole")
    for name in ("long", "after"):
        for part in ("monte_carlo", "t_prime", "identity"):
            assert rows[name][part] == rows["whole"][part]
    assert [rows["long"][what] for what in ("continues", "recognisers")] == ["numbers/short", "numbers/short"]
    assert [rows["after"][what] for what in ("continues", "recognisers")] == ["lengths/only", "numbers/short"]
    assert "continues" not in rows["short"] and "recognisers" not in rows["whole"]
    page = (tmp_path / "docs" / "paper.md").read_text()
    assert "Its training goes on with that of numbers/short, whose time is not in this sum." in page
    # What is looked at after 20 steps is the row that was trained for 20.
    assert looked["recognisers"] == "numbers/short" and [one["step"] for one in looked["lengths"]] == [20, 40]
    assert looked["lengths"][0]["monte_carlo"] == rows["short"]["monte_carlo"]
    # Without the row that it would go on with, it trains all its steps, to the same weights.
    alone: dict[str, Any] = {**where, "runs": tmp_path / "alone", "docs": tmp_path / "alone"}
    reproduce("numbers", **alone, only=["after"])
    assert weights(tmp_path / "alone" / "numbers" / "mini" / "after") == weights(runs / "whole")
    told = json.loads((tmp_path / "alone" / "paper" / "results.json").read_text())["experiments"]["numbers"]
    assert "continues" not in told["mini"]["after"]


@pytest.mark.parametrize(
    "change",
    [
        ('decay = "none"', 'decay = "linear"'),
        ("steps = 50 }\nrecognisers", "steps = 10 }\nrecognisers"),
        ("steps = 50 }\nrecognisers", "steps = 50, model.training.batch = 4 }\nrecognisers"),
        ("steps = 50 }\nrecognisers", "steps = 50, model.network.norm_groups = 4 }\nrecognisers"),
    ],
)
def test_only_more_of_the_same_steps_goes_on(tmp_path: Path, change: tuple[str, str]) -> None:
    assert change[0] in LONGER
    text = LONGER.replace(*change).replace('recognisers = "short"\n', "")
    folder = written(tmp_path / "experiments", text)
    with pytest.raises(InputError, match="only with as many steps or more of the very same settings"):
        reproduce("numbers", runs=tmp_path / "runs", docs=tmp_path, experiments=folder, only=["long"])
