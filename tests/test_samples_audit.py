"""Generated images in the place of a model, through the whole command: a leaky set and a clean one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stored_runs import Drawn
from stored_runs import results_of as drawn_results
from typer.testing import CliRunner

from latentprint.audit.quick import power
from latentprint.cli import app
from latentprint.data import load
from latentprint.report import RunFacts
from latentprint.report.first import first_screen
from latentprint.report.modelcard import model_card
from latentprint.results.read import read_results
from latentprint.results.whole_set import WholeSet
from latentprint.stats import Trials
from latentprint.store import Run
from latentprint.verify import verify

TINY = "[identity]\nepochs = 3\ndraws = 256\n"
COPIED = 30


def command(place: Path, *more: object) -> list[str]:
    config = place / "tiny.toml"
    config.write_text(TINY)
    every = ["audit", "digits", "--images", 60, "--preset", "demo", "--config", config, *more]
    return [str(one) for one in every]


def results_of(place: Path, samples: Path, out: Path, *more: object) -> dict[str, Any]:
    answer = CliRunner().invoke(app, command(place, "--samples", samples, "--out", out, "--json", *more))
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout)


def results_with(drawn: Drawn, seed: int) -> WholeSet:
    found = drawn_results(seed, drawn).whole_set
    assert found is not None
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of PNG of which 30 of 300 are training images, slightly noised, and clean ones as .npy."""
    folder = tmp_path_factory.mktemp("samples")
    split = load("digits", seed=0, images=60)
    rng = np.random.default_rng(0)
    clean = split.heldout.pixels[rng.permutation(len(split.heldout))[:300]]
    leaky = clean.copy()
    leaky[:COPIED] = split.train.pixels[:COPIED] + 0.05 * rng.standard_normal((COPIED, 1, 8, 8))
    np.save(folder / "clean.npy", clean)
    (folder / "leaky").mkdir()
    for i, image in enumerate(np.clip(leaky, -1, 1)):
        Image.fromarray(np.rint(127.5 * (image[0] + 1)).astype(np.uint8)).save(folder / f"leaky/{i:03}.png")
    return folder


@pytest.fixture(scope="module")
def leaky(place: Path) -> dict[str, Any]:
    return results_of(place, place / "leaky", place / "run", "--target", 3)


def test_a_leaky_folder_is_found_and_its_pairs_named(place: Path, leaky: dict[str, Any]) -> None:
    assert read_results(place / "run").plain() == leaky
    assert leaky["verdict"]["state"] == "reproduces"
    found, rows = leaky["whole_set"], Run.read(place / "run").rows("samples.model")
    copied = rows["whole_aligned"] < found["criteria"][0]["threshold"]
    assert found["copies"]["k"] == copied.sum() and found["copies"]["n"] == 300
    assert copied[:COPIED].sum() >= COPIED * 0.9 and copied[COPIED:].sum() <= 10
    same = rows["whole_aligned_of"][:COPIED] == np.arange(COPIED)
    assert same[copied[:COPIED]].mean() > 0.9 and found["memorised"]["k"] >= 25
    assert {one["training"] for one in found["exposed"]} < set(range(60))
    q = leaky["q"]["monte_carlo"]
    hit = rows["identity"] >= leaky["detectors"]["identity"]["threshold"]
    assert (q["samples"], q["hits"], q["network_evaluations"]) == (300, int(hit.sum()), 0)
    assert q["expected"] == pytest.approx(300 / 60)
    assert leaky["target"]["index"] == 3 and leaky["target"]["injected"] is False


def test_what_cannot_be_done_is_said(place: Path, leaky: dict[str, Any]) -> None:
    assert leaky["t_prime"] is None and leaky["likelihood"] is None
    assert "splitting" not in leaky["q"] and leaky["q"]["combined"] is None
    said = " ".join(leaky["not_done"])
    assert all(word in said for word in ("t'", "likelihood", "estimators"))
    page = (place / "run" / "report.html").read_text()
    assert "What could not be done" in page and "reverse process" in page
    assert "hold copies of training images" in page and "Copies by criterion" in page
    assert "data:image" not in page and str(place) not in page
    evidence = (place / "run" / "evidence" / "index.html").read_text()
    assert "nearest to training images" in evidence and evidence.count("<img") >= 60
    assert model_card(read_results(place / "run"), RunFacts.read(place / "run"), "samples")


def test_fid_sees_that_the_leaky_set_lies_near(place: Path, leaky: dict[str, Any]) -> None:
    assert leaky["fid"]["samples"] == 300 and leaky["fid"]["features"] == "pixels"
    assert 0 < leaky["fid"]["test"] < leaky["fid"]["train"]  # 270 of 300 are held-out images themselves


def test_the_run_verifies_and_continues(place: Path, leaky: dict[str, Any]) -> None:
    assert verify(place / "run").exit_code == 0
    assert results_of(place, place / "leaky", place / "run", "--target", 3) == leaky
    answer = CliRunner().invoke(
        app, command(place, "--samples", place / "clean.npy", "--out", place / "run", "--target", 3)
    )
    assert answer.exit_code == 2 and "samples_sha256" in answer.stderr


def test_a_clean_set_is_cleared_and_model_names_samples_too(place: Path) -> None:
    answer = CliRunner().invoke(
        app, command(place, "--model", place / "clean.npy", "--out", place / "clean", "--json")
    )
    assert answer.exit_code == 0, answer.output
    results = json.loads(answer.stdout)
    assert results["whole_set"]["beyond"] == 0 and results["whole_set"]["copies"]["k"] <= 10
    assert results["verdict"]["state"] != "reproduces" or results["q"]["monte_carlo"]["hits"] > 0
    assert results["model"]["kind"] == "samples"


def test_copies_in_another_range_are_refused_and_not_called_clean(place: Path, tmp_path: Path) -> None:
    """Exact copies stored as floats in [0, 1], and in 12 of 16 bits: both were NOT FOUND."""
    train = load("digits", seed=0, images=60).train.pixels
    unit = (train + 1) / 2
    np.save(tmp_path / "unit.npy", unit)
    np.save(tmp_path / "bits.npy", np.rint(4095 * unit[:, 0]).astype(np.uint16))
    for name in ("unit", "bits"):
        for more in (("--out", tmp_path / "run"), ("--quick",)):
            answer = CliRunner().invoke(app, command(place, "--samples", tmp_path / f"{name}.npy", *more))
            assert answer.exit_code == 2 and "in the same range" in answer.stderr, answer.output
    sought = ["filter", str(tmp_path / "bits.npy"), "--train", "digits", "--images", "60"]
    answer = CliRunner().invoke(app, sought)
    assert answer.exit_code == 2 and "in the same range" in answer.stderr


def test_flipped_copies_are_not_cleared(place: Path, tmp_path: Path) -> None:
    """Pixel by pixel nothing is a copy; the rule that sees flips counts them, and clears nothing."""
    split = load("digits", seed=0, images=60)
    clean = split.heldout.pixels[np.random.default_rng(1).permutation(len(split.heldout))[:150]]
    np.save(tmp_path / "flipped.npy", np.concatenate([clean, *[split.train.pixels[..., ::-1]] * 3]))
    found = results_of(place, tmp_path / "flipped.npy", tmp_path / "run", "--target", 3)
    assert not any(one["rejects"] for one in found["verdict"]["tests"])
    assert (
        found["whole_set"]["copies"]["k"] > found["returned"]["copies"]["k"] and found["whole_set"]["beyond"]
    )
    assert found["verdict"]["state"] == "inconclusive"
    first = first_screen(read_results(tmp_path / "run")).answers[0][1]
    assert first.startswith("It cannot be told") and "moved or changed" in first


def test_what_are_no_samples_is_one_sentence(place: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "large.npy", np.zeros((3, 9, 9), np.uint8))
    (tmp_path / "pickle.pkl").write_bytes(b"\x80\x04.")
    for path, said in (
        (tmp_path / "large.npy", "1x9x9"),
        (tmp_path / "nothing", "number of images, or a folder"),
        (tmp_path / "pickle.pkl", "pickle"),
    ):
        out = tmp_path / "run"
        answer = CliRunner().invoke(app, command(place, "--samples", path, "--out", out))
        assert answer.exit_code == 2 and said in answer.stderr
        assert len(answer.stderr.strip().splitlines()) == 1 and not out.exists()


def test_a_quick_look_says_what_it_found_and_what_it_could_have_missed(place: Path) -> None:
    def look(samples: Path, *more: str) -> str:
        answer = CliRunner().invoke(app, command(place, "--samples", samples, "--quick", *more))
        assert answer.exit_code == 0, answer.output
        return answer.stdout

    leaky, clean = (json.loads(look(place / one, "--json")) for one in ("leaky", "clean.npy"))
    assert leaky["whole_set"]["beyond"] > 0 and clean["whole_set"]["beyond"] == 0
    assert leaky["whole_set"]["copies"]["k"] >= COPIED and leaky["given"] == 300
    assert 0 < leaky["power"] < COPIED / 300 and leaky["seconds"] < 20
    said = look(place / "leaky")
    found = leaky["whole_set"]["copies"]
    assert f"{found['k']} of {found['n']}." in said.splitlines()[0] and "19 times in 20" in said
    assert not (place / "runs").exists() and not Path("runs/digits").exists()
    for more, words in (
        ((), "--samples"),
        (("--samples", place / "leaky", "--label", 0), "--label is asked of"),
    ):
        answer = CliRunner().invoke(app, command(place, "--quick", *more))
        assert answer.exit_code == 2 and words in answer.stderr


def test_the_power_of_a_look_is_that_of_looks_at_as_many_copies() -> None:
    """Of counts drawn at that share, 95 in 100 lie above what false alarms explain; at half of it fewer."""
    found = results_with(Drawn(whole=0.0, samples=1000), 4)
    share = power(found)
    assert share is not None and found.false_alarms is not None
    detected = min(found.criteria[0].planted[name].rate for name in ("plain", "flipped"))
    highest, rng = found.false_alarms.trials.upper(1 - 0.05 / 4), np.random.default_rng(0)
    for times, least, most in ((1.0, 0.9, 1.0), (0.5, 0.0, 0.8)):
        counts = rng.binomial(1000, times * share * detected + found.false_alarms.rate, 400)
        above = np.mean([Trials(int(k), 1000).lower(1 - 0.05 / 4) > highest for k in counts])
        assert least <= above <= most, times
