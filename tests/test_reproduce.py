"""The paper as commands: experiments that are read strictly, rows run once, a page made of results alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import beta, binom, kendalltau
from typer.testing import CliRunner

from latentprint.audit import Where
from latentprint.cli import app
from latentprint.config import AuditConfig
from latentprint.contracts import InputError
from latentprint.results.model import Detector
from latentprint.settings import SettingsError
from latentprint.stats import Trials
from latentprint.store import Run
from latentprint.store.record import sealed
from tools import reproduce as package
from tools.reproduce import claims, experiment, figures, names, pictures, reproduce, rows
from tools.reproduce.figures import return_curves, svg
from tools.reproduce.lengths import folder as at_length
from tools.reproduce.page import differences
from tools.reproduce.passes import over_each, points
from tools.reproduce.pictures import difference, grid, reopen
from tools.reproduce.plan import FOLDER, SIZES, ExperimentError, Size
from tools.reproduce.record import Record
from tools.reproduce.rows import Place, tuned_units, unit_of
from tools.reproduce.summary import accuracy, holds, tuning_of
from tools.reproduce.tuning import Tuned

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / FOLDER

TINY = """
control = false
data = { source = "digits", images = 24 }
model.training = { steps = 30, batch = 8, warmup = 5, checkpoint_seconds = 0.0 }
presence = { epochs = 2, draws = 128 }
identity = { epochs = 2, draws = 128 }
sampler.steps = 3
search = { levels = 4, tries = 2 }
baseline.images = 0
samples.count = 24
likelihood.images = 0
"""
TABLE = f"""
title = "A table"
kind = "audits"
shows = "small sets come back."
found = "None of ours did."
[[published]]
name = "small"
images = 1080
samples = 50000
expected = 46.3
hits = 52
[mini]
preset = "demo"
hours = "seconds"
[mini.settings]
{TINY}
[[mini.rows]]
name = "24"
published = "small"
[[mini.rows]]
name = "absent"
settings = {{ data = {{ source = "medmnist:chestmnist" }} }}
"""
LENGTHS = f"""
title = "Lengths"
kind = "lengths"
shows = "longer is worse."
order = 1
[mini]
preset = "demo"
steps = [10, 30]
[mini.settings]
{TINY}
[[mini.rows]]
name = "only"
"""
CURVES = """
title = "Curves"
kind = "pictures"
uses = "table"
shows = "a decline."
order = 2
"""


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    folder = tmp_path / "experiments"
    folder.mkdir()
    for name, text in (("table", TABLE), ("fig3", LENGTHS), ("fig6", CURVES), ("fig8", CURVES)):
        (folder / f"{name}.toml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything tiny was reproduced once; tests read it or copy it."""
    base = tmp_path_factory.mktemp("paper")
    folder = base / "experiments"
    folder.mkdir()
    for name, text in (("table", TABLE), ("fig3", LENGTHS), ("fig6", CURVES), ("fig8", CURVES)):
        (folder / f"{name}.toml").write_text(text)
    where: dict[str, Any] = {"runs": base / "runs", "docs": base / "docs", "experiments": folder}
    with pytest.raises(InputError, match=r"table lacks 1 of its rows\. absent: .*chestmnist.npz.*--download"):
        reproduce("table", root=base, **where)
    reproduce("fig6", only=["24"], **where)
    reproduce("fig3", **where)
    return base


def test_a_row_without_its_data_leaves_the_others_on_the_page(done: Path) -> None:
    record = json.loads((done / "docs" / "paper" / "results.json").read_text())
    assert set(record["experiments"]["table"]["mini"]) == {"24"}
    page = (done / "docs" / "paper.md").read_text()
    assert "**Not run:** absent." in page
    assert "| small, paper | 1,080 |" in page and "| 50,000 | 46.3 | – | – | 52 |" in page
    # Of the paper's counts: the exact interval of 52 in 50,000, and P(X <= 52) for H0: q = 1/1,080.
    low, high, p_value = (
        beta.ppf(0.025, 52, 49_949),
        beta.ppf(0.975, 53, 49_948),
        binom.cdf(52, 50_000, 1 / 1080),
    )
    assert f"| {low:.2g} … {high:.2g} | {p_value:.2g} |" in page


def test_the_page_says_what_the_run_says(done: Path) -> None:
    results = json.loads((done / "runs" / "table" / "mini" / "24" / "results.json").read_text())
    seen = results["q"]["monte_carlo"]
    (line,) = [
        one
        for one in (done / "docs" / "paper.md").read_text().splitlines()
        if one.startswith("| **24, ours**")
    ]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:3] == ["24", "10"] and cells[7] == "24"  # 30 steps of 8 images, over 24
    assert cells[8] == f"{24 * results['target']['copies'] / 24:.4g}"
    counts = [seen["presence_hits"], seen["identity_hits"], seen["hits"]]
    assert [int(cell) for cell in cells[9:12]] == counts
    assert cells[12] == f"{seen['low']:.2g} … {seen['high']:.2g}"


def test_what_is_finished_is_not_run_again(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished row was run again")

    monkeypatch.setattr(rows, "run_audit", refuse)
    before = (done / "docs" / "paper" / "results.json").read_bytes()
    reproduce("table", only=["24"], runs=done / "runs", docs=done / "docs", experiments=done / "experiments")
    assert (done / "docs" / "paper" / "results.json").read_bytes() == before


def test_only_a_finished_run_of_the_very_settings_counts(done: Path, tmp_path: Path) -> None:
    one = experiment("table", done / "experiments")
    scale = one.scale("mini")
    config, other = (scale.config(row) for row in scale.rows)
    folder = tmp_path / "run"
    shutil.copytree(done / "runs" / "table" / "mini" / "24", folder)
    assert holds(folder, config) and not holds(folder, other)
    # A setting that did not exist when the run was made counts with its default ...
    record = json.loads((folder / "run.json").read_text())
    assert record["settings"]["search"].pop("threshold") == 0.05
    (folder / "run.json").write_text(json.dumps(record))
    assert holds(folder, config)
    # ... one that does not exist any more makes it another run, as does an end that was not reached.
    record["settings"]["search"]["gone"] = 1
    (folder / "run.json").write_text(json.dumps(record))
    assert not holds(folder, config)
    del record["settings"]["search"]["gone"]
    record["finished"] = None
    (folder / "run.json").write_text(json.dumps(record))
    assert not holds(folder, config)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each candidate of a tuning is measured once; what torch was told is taken back."""
    monkeypatch.setattr(rows, "tune", partial(rows.tune, seconds=0.0))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_tuned_rows_begin_and_are_continued_with_what_was_measured(
    experiments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quickly: None
) -> None:
    threads = torch.get_num_threads()
    where: dict[str, Any] = {"runs": tmp_path / "runs", "docs": tmp_path / "docs", "experiments": experiments}
    reproduce("table", only=["24"], tuned=True, **where)
    monkeypatch.setattr(rows, "tune", lambda *_: pytest.fail("measured again"))
    reproduce("table", only=["24"], **where)  # begun so, continued so, unless somebody asks for the opposite
    with pytest.raises(ExperimentError, match="leave out --no-tune"):
        reproduce("table", only=["24"], tuned=False, **where)
    assert torch.get_num_threads() == threads
    note = tuning_of(where["runs"], "mini")
    kept = note.read_text()
    for broken in (
        "{",
        "[]",
        kept.replace('"threads"', '"others"'),
        kept.replace('"threads": ', '"threads": -'),
    ):
        note.write_text(broken)
        with pytest.raises(ExperimentError, match=r"mini\.tuning\.json is no note of a tuning: "):
            reproduce("table", only=["24"], **where)
    row = Record.read(tmp_path / "docs" / "paper").rows("table", "mini")["24"]
    assert {one["part"] for one in row["tuning"]["timings"]} == {"training", "sampling"}
    assert row["tuning"]["measured_on"] == "24" and row["tuning"]["threads"] == row["device"]["threads"]


def test_all_rows_of_a_size_have_the_same_arithmetic(
    experiments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quickly: None
) -> None:
    """Rows that take from each other must agree, so what is measured is given to all of them."""
    one = experiment("table", experiments)
    (row, _) = one.scale("mini").rows
    place = Place(tmp_path / "runs", tuned=True)
    unit = unit_of(one, "mini", row, place, experiments)
    linked = replace(unit, lender=unit, earlier=replace(unit, lender=unit))

    def slow(config: AuditConfig, shape: tuple[int, ...]) -> Tuned:
        coarse = replace(config.model.training, precision="bfloat16")
        return Tuned(replace(config, model=replace(config.model, training=coarse)), 1, ())

    monkeypatch.setattr(rows, "tune", slow)
    (tuned,) = tuned_units([linked], "mini", place)
    assert tuned.lender is not None and tuned.earlier is not None and tuned.earlier.lender is not None
    for one_of_them in (tuned, tuned.lender, tuned.earlier, tuned.earlier.lender):
        assert one_of_them.config.model.training.precision == "bfloat16"
        assert one_of_them.config.speed == unit.config.speed


@pytest.mark.parametrize(
    ("size", "device", "measures"), [("cpu", "cpu", True), ("mini", "cpu", False), ("cpu", "meta", False)]
)
def test_left_to_itself_size_cpu_is_tuned(
    size: Size, device: str, measures: bool, experiments: Path, tmp_path: Path, quickly: None
) -> None:
    one = experiment("table", experiments)
    units = [unit_of(one, "mini", row, Place(tmp_path), experiments) for row in one.scale("mini").rows]
    tuned_units(units, size, Place(tmp_path, Where(device)))
    assert tuning_of(tmp_path, size).is_file() == measures


def test_runs_that_began_without_tuning_stay_as_they_are(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "tune", lambda *_: pytest.fail("measured"))
    runs = tmp_path / "runs"
    shutil.copytree(done / "runs" / "table" / "mini", runs / "table" / "cpu")
    one = experiment("table", done / "experiments")
    units = tuple(
        unit_of(one, "mini", row, Place(runs), done / "experiments") for row in one.scale("mini").rows
    )
    assert tuned_units(units, "cpu", Place(runs)) == units
    with pytest.raises(ExperimentError, match="leave out --tune"):
        tuned_units(units, "cpu", Place(runs, tuned=True))


def test_pictures_are_of_the_very_samples_that_were_counted(done: Path) -> None:
    run = reopen(done / "runs" / "table" / "mini" / "24")
    ids = np.array([3, 17, 5], np.int64)
    images = run.drawn(run.model("model"), ids)
    error = (((images - run.injection.target) / 2) ** 2).mean(axis=(1, 2, 3))
    kept = Run.read(done / "runs" / "table" / "mini" / "24").rows("samples.model")
    assert kept["id"].tolist() == list(range(24))
    np.testing.assert_allclose(error, kept["mse"][ids], rtol=1e-4)


def test_lengths_are_states_of_one_training(done: Path) -> None:
    from latentprint.audit import stages
    from latentprint.networks import build_unet, load_model
    from latentprint.streams import Streams
    from latentprint.training import train

    scale = experiment("fig3", done / "experiments").scale("mini")
    config = scale.config(scale.rows[0])
    _, injection = stages.images(config, None, False)
    network = build_unet(config.model.network, 1, (8, 8), Streams(0))
    states = train(
        injection.marked.pixels, network, config.model.schedule(), config.model.training, Streams(0)
    )
    kept = done / "runs" / "fig3" / "mini" / "only"
    for state in states:
        if state.step in scale.steps:
            there = load_model(at_length(kept, state.step)).network.state_dict()
            for name, value in state.denoiser.network.state_dict().items():
                assert np.allclose(value, there[name], rtol=1e-4, atol=1e-6), (state.step, name)
    entry = json.loads((done / "docs" / "paper" / "results.json").read_text())
    lengths = entry["experiments"]["fig3"]["mini"]["only"]["lengths"]
    assert [one["step"] for one in lengths] == [10, 30]
    for one in lengths:
        hits = Run.read(kept).rows(f"samples.at-{one['step']}")["hit"]
        assert one["monte_carlo"]["hits"] == np.count_nonzero(hits) and len(hits) == 24
        # The columns of all training images are those of an audit of that model.
        assert one["whole_set"]["copies"]["n"] == 24
    compared = Run.read(kept).rows("samples.at-30")
    run = reopen(kept)
    again = run.drawn(run.model("at-30"), np.arange(24))
    page = (done / "docs" / "paper.md").read_text()
    copies = lengths[1]["whole_set"]["copies"]
    assert f"| {copies['k']} of {copies['n']} |" in page and "the same at every length" in page
    apart = np.sqrt(((again[:, None] - injection.marked.pixels[None]) ** 2).sum((2, 3, 4)))
    assert (apart.argmin(1) == compared["whole_nearest"]).all()


def test_lengths_take_more_samples_after_they_were_run(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "runs", tmp_path / "runs")
    folder = shutil.copytree(done / "experiments", tmp_path / "experiments")
    (folder / "fig3.toml").write_text(LENGTHS.replace("samples.count = 24", "samples.count = 40"))
    reproduce("fig3", runs=tmp_path / "runs", docs=tmp_path / "docs", experiments=folder)
    (before,), (after,) = (
        Record.read(base / "docs" / "paper").rows("fig3", "mini").values() for base in (done, tmp_path)
    )
    for one, other in zip(before["lengths"], after["lengths"], strict=True):
        assert other["monte_carlo"]["samples"] == other["whole_set"]["copies"]["n"] == 40
        assert (
            other["t_prime"] == one["t_prime"] and other["monte_carlo"]["hits"] >= one["monte_carlo"]["hits"]
        )


def test_a_row_is_given_an_estimate_after_it_was_run(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "runs", tmp_path / "runs")
    folder = shutil.copytree(done / "experiments", tmp_path / "experiments")
    more = TABLE.replace("[[mini.rows]]", "rare = { splitting = true, most = 4000 }\n[[mini.rows]]", 1)
    (folder / "table.toml").write_text(more)
    reproduce("table", runs=tmp_path / "runs", docs=tmp_path / "docs", experiments=folder, only=["24"])
    before, after = (
        Record.read(base / "docs" / "paper").rows("table", "mini")["24"] for base in (done, tmp_path)
    )
    assert after["monte_carlo"] == before["monte_carlo"] and "estimates" not in before
    found = json.loads((tmp_path / "runs" / "table" / "mini" / "24" / "results.json").read_text())
    (one,) = after["estimates"].items()
    assert one[0] == "splitting" and one[1].items() <= found["q"]["splitting"].items()
    said = one[1]["diagnostic"] if one[1]["rate"] is None else f"**{one[1]['rate']:.2g}** (95%"
    assert f"- 24, splitting: {said}" in (tmp_path / "docs" / "paper.md").read_text()


def test_a_kill_between_checkpoint_and_kept_weights_loses_no_length(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "runs", tmp_path / "runs")
    kept = tmp_path / "runs" / "fig3" / "mini" / "only"
    weights = (at_length(kept, 30) / "diffusion_pytorch_model.safetensors").read_bytes()
    shutil.rmtree(at_length(kept, 30))
    record = json.loads((kept / "run.json").read_text())
    del record["stages"]["model"]
    (kept / "run.json").write_bytes(sealed(record))
    reproduce("fig3", runs=tmp_path / "runs", docs=tmp_path / "docs", experiments=done / "experiments")
    assert (at_length(kept, 30) / "diffusion_pytorch_model.safetensors").read_bytes() == weights


def test_figures_are_files_that_stand_alone(done: Path) -> None:
    folder = done / "docs" / "paper" / "mini"
    root = ElementTree.fromstring((folder / "fig6.svg").read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    outside = re.findall(r'(?:href|src)="(?!#)[^"]*"', (folder / "fig6.svg").read_text())
    assert not outside
    assert "![Curves: mini](paper/mini/fig6.svg)" in (done / "docs" / "paper.md").read_text()
    with Image.open(folder / "fig3.png") as picture:
        assert picture.size == (12 * (80 + 4) + 4, 2 * (80 + 4) + 4)  # 8 x 8 pixels, ten times


def test_curves_hold_rows_whose_runs_are_not_here(done: Path, tmp_path: Path) -> None:
    """What a curve shows stands in results.json; pictures need the models of the runs."""
    shutil.copytree(done / "docs", tmp_path / "docs")
    kept = tmp_path / "docs" / "paper" / "results.json"
    record = json.loads(kept.read_text())
    rows = record["experiments"]["table"]["mini"]
    rows["absent"] = rows["24"]
    kept.write_text(json.dumps(record))
    reproduce(
        "fig6",
        only=["24"],
        runs=done / "runs",
        docs=tmp_path / "docs",
        experiments=done / "experiments",
    )
    drawn = (kept.parent / "mini" / "fig6.svg").read_text()
    assert "24 (t'" in drawn and "absent (t'" in drawn


def test_curves_show_the_counts_with_their_exact_intervals() -> None:
    found = {"value": 0.5, "grid": [0.25, 0.5, 0.75], "hits": [16, 4, 0], "tries": 16}
    figure = return_curves({"N = 7": {"t_prime": found}})
    (axes,) = figure.axes
    ((line, _, (bars,)),) = axes.containers
    # Up to t' = 0.5, as in the paper: 16 of 16 and 4 of 16, with the bounds of Clopper and Pearson.
    assert line.get_xydata().tolist() == [[0.25, 1.0], [0.5, 0.25]]
    bounds = [
        [0.25, beta.ppf(0.025, 16, 1)],
        [0.25, 1.0],
        [0.5, beta.ppf(0.025, 4, 13)],
        [0.5, beta.ppf(0.975, 5, 12)],
    ]
    np.testing.assert_allclose(np.concatenate(bars.get_segments()), bounds, rtol=1e-6)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["N = 7 (t' 0.5)"]
    assert svg(figure) == svg(return_curves({"N = 7": {"t_prime": found}}))


def test_passes_are_told_beside_each_t_prime_and_drawn_from_like_rows(done: Path) -> None:
    record = Record.read(done / "docs" / "paper")
    only, row = record.rows("fig3", "mini")["only"], record.rows("table", "mini")["24"]
    assert over_each(row) == 30 * 8 / 24 and over_each(only, 10) == 10 * 8 / 24
    page = (done / "docs" / "paper.md").read_text()
    assert "| **24, ours** | 24 | 10 |" in page and re.search(r"^\| 10 \| 3 \| 24 \|", page, re.MULTILINE)
    # The row of 30 steps and the last of the lengths are one training: a single point.
    found = points(record, row, "mini")
    assert [(one.source, one.images, one.steps) for one in found] == [("digits", 24, 10), ("digits", 24, 30)]
    other = json.loads(json.dumps(row))
    for part, name, value in (
        (other["settings"]["sampler"], "steps", 4),
        (other["settings"]["model"]["network"], "channels", [8, 8]),
        (other["settings"]["model"]["training"], "learning_rate", 1e-5),
        (other["settings"]["search"], "tries", 3),
    ):
        before, part[name] = part[name], value
        assert points(record, other, "mini") == []
        part[name] = before
    (axes,) = figures.passes_curves(found).axes
    value, certain = axes.lines
    assert value.get_xdata().tolist() == [10 * 8 / 24, 10.0]
    assert value.get_ydata().tolist() == [one.value or 0.0 for one in found]
    assert certain.get_ydata().tolist() == [one.certain or 0.0 for one in found]
    assert certain.get_markerfacecolor() == "none" != value.get_markerfacecolor()


def test_a_grid_of_images_keeps_every_pixel() -> None:
    one = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    colour = np.stack([one[0], -one[0], 0 * one[0]])
    with Image.open(BytesIO(grid([[one, colour], [colour]]))) as picture:
        shown = np.asarray(picture)
    stored = np.rint((one[0] + 1) * 127.5)
    assert np.array_equal(shown[4:84:10, 4:84:10, 0], stored)
    assert np.array_equal(shown[4:84:10, 88:168:10, 1], np.rint((1 - one[0]) * 127.5))
    assert (shown[88:168, 88:168] == 251).all()  # the second row holds one image only
    assert np.allclose(difference(one, one), 1.0)
    far = difference(one, one + np.where(np.arange(64).reshape(1, 8, 8) == 9, 0.5, 0.1).astype(np.float32))
    assert far.min() == far[0, 1, 1] == pytest.approx(-1.0) and far[0, 0, 0] == pytest.approx(0.6)


def test_accuracy_counts_both_kinds_of_right_answers() -> None:
    detector = Detector(tpr=Trials(55, 59), fpr=Trials(2, 59), threshold=0.5, backbone="small", kinds={})
    found = accuracy(detector)
    assert found is not None and (found["k"], found["n"]) == (55 + 57, 118)
    assert accuracy(None) is None


@pytest.mark.parametrize("name", names(SHIPPED))
def test_shipped_experiments_can_be_run_and_say_how(name: str) -> None:
    text = (SHIPPED / f"{name}.toml").read_text()
    head = text[: text.index("title =")]
    assert head.startswith(f"# latentprint reproduce {name} ")
    one = experiment(name, SHIPPED)
    if "full" in one.scales or one.uses is not None:
        assert f"# latentprint reproduce {name} --scale full --device cuda" in head
    assert "# Time: " in head and "# Expect" in head
    for scale in one.scales.values():
        for row in scale.rows:
            config = scale.config(row)
            assert config.seed == 0
            assert row.published is None or one.of(row) is not None
    if one.uses is not None:
        sizes = one.uses if isinstance(one.uses, Mapping) else SIZES
        for size in sizes:
            assert experiment(one.source(size), SHIPPED).kind != "pictures"


def test_a_figure_may_be_drawn_from_another_experiment_at_each_size(done: Path, tmp_path: Path) -> None:
    """Of the tiny table, whose model was trained for 30 steps: x_p does not come."""
    base = tmp_path / "copy"
    shutil.copytree(done, base)
    (base / "experiments" / "fig10.toml").write_text(
        CURVES.replace('uses = "table"', 'uses = { mini = "table" }')
    )
    where: dict[str, Any] = {
        "runs": base / "runs",
        "docs": base / "docs",
        "experiments": base / "experiments",
    }
    hits = reproduce("fig10", only=["24"], **where)["24"]["monte_carlo"]["hits"]
    drawn = (base / "docs" / "paper" / "mini" / "fig10.png").is_file()
    page = (base / "docs" / "paper.md").read_text()
    assert drawn is (hits > 0) and ("the finished rows hold no image of this kind" in page) is not drawn
    with pytest.raises(InputError, match="fig10 has no size 'cpu'"):
        reproduce("fig10", "cpu", **where)


def test_what_came_back_stands_above_its_difference_to_the_private_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    back = {"often": np.stack([target, -target]), "once": target[None]}

    def came_back(run: SimpleNamespace, folder: str, purpose: str, most: int) -> tuple[Any, None]:
        assert (folder, purpose) == ("model", "samples.model")
        return back[run.row], None

    def reopen(row: Path, *, root: None) -> SimpleNamespace:
        return SimpleNamespace(row=row.name, injection=SimpleNamespace(target=target))

    monkeypatch.setattr(pictures, "reopen", reopen)
    monkeypatch.setattr(pictures, "came_back", came_back)
    rows = {name: {"monte_carlo": {"hits": len(back.get(name, ()))}} for name in ("often", "never", "once")}
    png = figures.draw("fig10", "mini", rows, Record(Path()), Path, None)["fig10.png"]
    cell = 8 * 10 + 4
    seen = np.asarray(Image.open(BytesIO(png)).convert("L")).astype(float)
    assert seen.shape == (
        4 * cell + 4,
        3 * cell + 4,
    )  # none of the row without hits

    def image(row: int, column: int) -> Any:
        return seen[4 + row * cell : (row + 1) * cell, 4 + column * cell : (column + 1) * cell][::10, ::10]

    stored = np.rint((target[0] + 1) * 127.5)
    for row, column in ((0, 0), (0, 1), (2, 0), (2, 1)):
        assert np.array_equal(image(row, column), stored)
    assert np.array_equal(image(0, 2), np.rint((1 - target[0]) * 127.5))
    for row, column in ((1, 0), (1, 1), (3, 0), (3, 1)):
        assert np.all(image(row, column) == 255)  # x_p itself, to the last bit
    assert image(1, 2)[0, 0] == 0 and image(1, 2).max() > 240  # black where they differ most


def test_published_numbers_are_the_papers() -> None:
    first, second = experiment("table1", SHIPPED), experiment("table2", SHIPPED)
    assert [(one.images, one.expected, one.hits) for one in first.published] == [
        (1000, 150, 151),
        (5000, 30, 0),
        (10000, 15, 0),
        (20000, 7.5, 0),
        (50000, 3, 0),
    ]
    for one in first.published:  # E = n / N
        assert one.images is not None and one.samples == 150_000 and one.expected == 150_000 / one.images
    for one in second.published:
        assert one.images is not None and one.expected is not None and one.samples == 50_000
        assert one.expected == pytest.approx(50_000 / one.images, abs=0.06)
    assert {one.name: one.t_prime for one in second.published}["pneumoniamnist"] == 0.719


def test_differences_name_what_is_not_the_papers(done: Path) -> None:
    from latentprint.config import resolve
    from latentprint.settings import plain

    paper = resolve(preset="paper")
    same = differences({"settings": plain(paper), "fid": None}, paper)
    assert not any(one.startswith(("Training", "U-Net", "c_p", "c_id", "Arithmetic")) for one in same)
    half = resolve({"speed": {"detectors": {"precision": "bfloat16"}}}, preset="paper")
    told = [one for one in differences({"settings": plain(half), "fid": None}, paper) if one not in same]
    assert len(told) == 1 and "bfloat16 inside the networks in detectors, which" in told[0]
    entry = json.loads((done / "docs" / "paper" / "results.json").read_text())
    said = "\n".join(differences(entry["experiments"]["table"]["mini"]["24"], paper))
    assert "30 steps of 8 images" in said and "channels 32-64" in said
    assert "c_p is the backbone 'small'" in said and "ancestral with 3 steps" in said


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("steps = [10, 30]", "steps = [10, 31]"), "rising multiples of ten"),
        (("steps = [10, 30]", "steps = [10, 15, 30]"), "rising multiples of ten"),
        (("steps = [10, 30]", "steps = [30, 10]"), "rising multiples of ten"),
        (("order = 1", "ordre = 1"), "ordre is not a setting; did you mean order?"),
        (('name = "only"', 'nmae = "only"'), r"mini.rows\[0\].nmae is not a setting"),
        (('shows = "longer is worse."', 'shows = "x"\nuses = "table"'), "needs .* no `uses`"),
        (("sampler.steps", "sampler.stepps"), "stepps is not a setting"),
    ],
)
def test_files_are_read_strictly(experiments: Path, change: tuple[str, str], sentence: str) -> None:
    text = LENGTHS.replace(*change)
    assert text != LENGTHS
    (experiments / "fig3.toml").write_text(text)
    with pytest.raises((SettingsError, ExperimentError), match=sentence):
        experiment("fig3", experiments)


def test_bad_input_is_a_sentence_and_exit_2(tmp_path: Path, experiments: Path) -> None:
    def said(*words: str) -> str:
        answer = CliRunner().invoke(app, ["reproduce", *words, "--docs", str(tmp_path / "docs")])
        assert answer.exit_code == 2 and "Traceback" not in answer.output
        return answer.stderr

    here = ["--experiments", str(experiments), "--out", str(tmp_path / "runs")]
    assert "in one process" in said("fig3", "--processes", "2", *here)
    assert "'table9' is not an experiment; there are fig3, fig6, fig8, table" in said("table9", *here)
    assert "has no size 'full'" in said("table", "--scale", "full", *here)
    assert "has no row '99'; it has 24, absent" in said("table", "--only", "99", *here)
    assert "fig3 at size mini has no row '24'; it has only" in said("fig3", "--only", "24", *here)
    empty = tmp_path / "empty"
    assert "benchmarks/paper of the source tree" in said("table", "--experiments", str(empty))
    missing = said("table", "--only", "absent", "--root", str(tmp_path), *here)
    assert "chestmnist.npz" in missing and "--download" in missing


def test_the_page_is_written_again_without_running(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "docs", tmp_path / "docs")
    page = tmp_path / "docs" / "paper.md"
    before = page.read_text()
    page.unlink()
    words = ["reproduce", "page", "--docs", str(tmp_path / "docs")]
    answer = CliRunner().invoke(app, [*words, "--experiments", str(done / "experiments")])
    assert answer.exit_code == 0 and page.read_text() == before
    (tmp_path / "docs" / "paper" / "results.json").write_text('{"schema": "other"}')
    with pytest.raises(InputError, match="is of schema 'other'"):
        package.write_page(tmp_path / "docs", done / "experiments")


def test_the_committed_page_follows_from_the_committed_results(tmp_path: Path) -> None:
    if not (ROOT / "docs" / "paper" / "results.json").exists():
        pytest.skip("nothing has been reproduced yet")
    (tmp_path / "paper").mkdir()
    shutil.copy(ROOT / "docs" / "paper" / "results.json", tmp_path / "paper")
    package.write_page(tmp_path, SHIPPED)
    assert (tmp_path / "paper.md").read_text() == (ROOT / "docs" / "paper.md").read_text()


def test_claims_are_judged_by_what_was_run(tmp_path: Path) -> None:
    """Entries of the committed runs, with counts put to where the answer is known."""
    record = Record.read(ROOT / "docs" / "paper")
    answers = {one.judge.__name__: one.judge(record)[0] for one in claims.CLAIMS}
    assert answers["all_or_nothing"] == "does not"
    # Below 1/N by the tables' sampler; a row of `deviations` that is not is told beside it.
    assert answers["as_often"] == "does not"
    finer = record.rows("deviations", "cpu")["finer-sampler"]
    assert "sde-dpm-solver++2m: 11 of 5,000, where 1/N is 9.2." in claims.as_often(record)[1]
    # A rate between nothing and 1/N is one by the finer sampler too, of 500 images and not of 546.
    why = claims.all_or_nothing(record)[1]
    assert "So too for medmnist:pneumoniamnist, 500 images" in why and "5 of 10,000, where 1/N is 20." in why
    assert "Not so for medmnist:breastmnist, 546 images, after 20,000" in why and "4 of 50,000" not in why
    # "No more" is what counting says; an estimator of rarer events is told beside it.
    rarer = record.rows("deviations", "cpu")["finer-1000"]
    assert "Not never: path finds it at 9.1e-06 (6.2e-06 to 1.3e-05) by" in claims.turning_point(record)[1]
    assert "sde-dpm-solver++2m, 0.0091 of 1/N." in claims.turning_point(record)[1]
    rarer["estimates"]["path"]["reliable"] = False
    assert "Not never" not in claims.turning_point(record)[1]
    finer["monte_carlo"]["hits"] = 1
    assert "sde-dpm-solver++2m" not in claims.as_often(record)[1]
    # x_p's turn is below the paper's, that of all training images within it: both are told.
    names = ("pneumoniamnist-250", "pneumoniamnist-1000", "pneumoniamnist-4708")
    three = record.experiments["table1"]["cpu"]
    record.experiments["table1"]["cpu"] = {name: three[name] for name in names}
    answer, why = claims.turning_point(record)
    assert answer == "holds" and why.startswith("Training images come back with 1,000 training images")
    assert "The private image comes back with 250 training images and no more with 1,000 (cpu)." in why
    assert claims.falls(record)[0] == "holds" and "Too few rows for a test" in claims.falls(record)[1]
    del record.experiments["table1"]["cpu"]  # the largest size answers
    rows = record.rows("table1", "mini")
    by_images = sorted(rows.values(), key=lambda one: one["data"]["images"])
    for entry, value, hits in zip(by_images, (0.5, 0.4, 0.3, 0.2, 0.1), (50, 25, 0, 0, 0), strict=True):
        entry["t_prime"]["value"], entry["monte_carlo"]["hits"] = value, hits
    assert claims.falls(record)[0] == "holds" and "200" in claims.turning_point(record)[1]
    assert claims.turning_point(record)[0] == "cannot be told"  # the paper's turn is elsewhere
    for entry in by_images:
        entry["data"]["images"] *= 10
        entry["monte_carlo"]["samples"] *= 10
    assert claims.turning_point(record)[0] == "holds"
    # Where x_p tells no turn, all training images are asked, by the verdict of each row's audit.
    compared = record.rows("table2", "cpu")["breastmnist"]["whole_set"]
    for entry, verdict in zip(by_images, ["reproduces"] * 2 + ["not found"] * 3, strict=True):
        entry["monte_carlo"]["hits"] = 0
        entry |= {"whole_set": compared, "verdict": verdict}
    assert claims.turning_point(record)[1].startswith("Training images come back with 2,000 training images")
    assert "and no more with 4,000" in claims.turning_point(record)[1]
    # FID's gap: the claim needs one pair in the other order, of x_p's rates or of any training image.
    sets = sorted(record.rows("table2", "cpu").values(), key=lambda one: one["data"]["images"])
    for one, gap, hits, verdict in zip(
        sets, (1, 2, 3), (20, 0, 0), ("reproduces",) * 2 + ("not found",), strict=True
    ):
        one["fid"] = one["fid"] | {"train": 5, "test": 5 + gap}
        one["monte_carlo"]["hits"], one["verdict"] = hits, verdict
    assert claims.fid_gap(record)[0] == "holds" and "less often" in claims.fid_gap(record)[1]
    sets[0]["monte_carlo"]["hits"] = 0
    assert "come back from the latter, and not from the former" in claims.fid_gap(record)[1]
    sets[2]["fid"]["test"] = 5
    assert claims.fid_gap(record)[0] == "cannot be told"
    for one, hits in zip(sets, (92, 46, 0), strict=True):  # of 50,000, as often as each; the largest never
        one["monte_carlo"]["hits"] = hits
    assert claims.as_often(record)[0] == "holds" and "2 sets" in claims.as_often(record)[1]
    # A longer training: by x_p where it differs, else by all training images.
    assert claims.longer(record)[0] == "holds" and "93 (p" in claims.longer(record)[1]
    (lengths,) = (entry["lengths"] for entry in record.rows("fig3", "cpu").values())
    lengths[:] = record.rows("fig3", "mini")["digits-100"]["lengths"]
    first, last = lengths[0]["monte_carlo"], lengths[-1]["monte_carlo"]
    first["hits"], last["hits"] = 0, 5  # of 1,000 each: 0.5 ** 5 and a little less
    assert claims.longer(record)[0] == "holds" and "p = 0.031;" in claims.longer(record)[1]
    last["hits"] = 4
    for one, k in zip(lengths, (10, 20, 40, 80, 120, 160, 200), strict=True):
        one["whole_set"] = compared | {"copies": {"k": k, "n": 1000}, "at_least": k // 20}
    assert claims.longer(record)[0] == "holds"
    lengths[-1]["whole_set"]["at_least"] = 0
    assert claims.longer(record)[0] == "cannot be told"
    nothing = Record(tmp_path)
    assert {one.judge(nothing)[0] for one in claims.CLAIMS} == {"cannot be told"}


def test_the_rank_test_of_falling_values_is_exact() -> None:
    assert claims.rank_p([5, 4, 3, 2, 1]) == pytest.approx(1 / 120)
    assert claims.rank_p([1, 2, 3, 4]) == 1
    found = kendalltau([1, 2, 3, 4, 5, 6], [9, 7, 8, 3, 4, 1], alternative="less", method="exact")
    assert claims.rank_p([9, 7, 8, 3, 4, 1]) == pytest.approx(found.pvalue)
