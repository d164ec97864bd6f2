"""Marks put into a training folder before somebody trains with a script of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from test_given_model import TINY, ddpm
from typer.testing import CliRunner

from latentprint import resolve, run_audit
from latentprint.audit.given import as_it_is, given_images, open_given
from latentprint.audit.images import read_images
from latentprint.cli import app
from latentprint.cli.options import AuditOptions
from latentprint.contracts import InputError
from latentprint.data import image_sha256
from latentprint.data.files import decode
from latentprint.fingerprint import FingerprintError
from latentprint.marks import FingerprintSettings
from latentprint.marks.folder import mark_folder, read_mark

COUNT = 24


def images(folder: Path, suffix: str = ".png", colours: bool = False) -> Path:
    """Digits to train on and others held out, with captions as fine-tuning scripts read them."""
    bunch = load_digits()
    for side, first, count in (("train", 0, COUNT), ("val", COUNT, 40)):
        (folder / side).mkdir(parents=True)
        for i in range(first, first + count):
            pixels = (bunch.images[i] * 15).astype(np.uint8)
            one = Image.fromarray(np.stack([pixels] * 3, -1) if colours else pixels)
            one.save(folder / side / f"d{i:02d}{suffix}")
            (folder / side / f"d{i:02d}.txt").write_text(f"digit number {i}")
    return folder


def stored(path: Path) -> Any:
    return decode(path, path.name).stored


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp", ".jpg"])
@pytest.mark.parametrize("colours", [False, True])
def test_one_image_is_marked_and_the_others_stay_as_they_are(
    tmp_path: Path, suffix: str, colours: bool
) -> None:
    folder = images(tmp_path / "set", suffix, colours or suffix == ".webp")
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*.*"))}
    done = mark_folder(folder, tmp_path / "m.json", seed=3)
    after = {path: path.read_bytes() for path in sorted(folder.rglob("*.*"))}
    (changed,) = [path for path in before if before[path] != after[path]]
    assert list(before) == list(after) and changed == folder / done.image
    assert changed.parent.name == "train"  # what is held out is never marked
    original = stored(tmp_path / f"m.original{suffix}")
    assert (tmp_path / f"m.original{suffix}").read_bytes() == before[changed]
    marked, inside = stored(changed), done.region
    slack = 24 if suffix == ".jpg" else 0  # a format that loses bits
    outside = np.abs(marked.astype(int) - original.astype(int))[~inside]
    assert outside.max() <= slack
    assert np.abs(marked[inside].astype(int) - 128).max() <= 1 + slack  # middle grey
    assert done.sha256 == image_sha256(marked) and done.original_sha256 == image_sha256(original)


def test_the_file_of_a_mark_says_it_again(tmp_path: Path) -> None:
    folder = images(tmp_path / "set")
    done = mark_folder(folder, tmp_path / "m.json", kind=FingerprintSettings(kind="cross"))
    again = read_mark(tmp_path / "m.json")
    assert again.plain() == done.plain() and np.array_equal(again.region, done.region)
    assert again.describe()["kind"] == "cross"
    whole, half = again.mask(8, 8), again.mask(16, 16)
    assert np.array_equal(half, np.kron(whole, np.ones((2, 2), bool)))


def test_the_same_seed_marks_the_same(tmp_path: Path) -> None:
    first = mark_folder(images(tmp_path / "a"), tmp_path / "a.json", seed=5)
    second = mark_folder(images(tmp_path / "b"), tmp_path / "b.json", seed=5)
    other = mark_folder(images(tmp_path / "c"), tmp_path / "c.json", seed=6)
    assert first.plain() == second.plain() != other.plain()


def test_an_image_with_a_copy_is_never_drawn(tmp_path: Path) -> None:
    folder = images(tmp_path / "set")
    files = sorted((folder / "train").glob("*.png"))
    for i, path in enumerate(files[:-2]):  # all but two have a copy
        (folder / "train" / f"copy{i}.png").write_bytes(path.read_bytes())
    for seed in range(4):
        done = mark_folder(folder, tmp_path / f"{seed}.json", seed=seed)
        assert done.image in {f"train/{path.name}" for path in files[-2:]}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"image": "nowhere.png"}, "0 images of .* are named 'nowhere.png'"),
        ({"kind": FingerprintSettings(kind="none")}, "'none' cannot be put into a folder"),
        ({"mark": "INSIDE"}, "must lie outside the folder"),
        ({"folder": "NOWHERE"}, "is not a folder of images"),
        ({"pattern": "*.gif"}, "matches --files"),
    ],
)
def test_what_cannot_be_marked_is_said(tmp_path: Path, given: dict[str, Any], says: str) -> None:
    folder = images(tmp_path / "set")
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*.*"))}
    place = {"mark": tmp_path / "m.json", "folder": folder}
    place |= {"mark": folder / "m.json"} if given.pop("mark", None) else {}
    place |= {"folder": tmp_path / "no"} if given.pop("folder", None) else {}
    with pytest.raises(InputError, match=says):
        mark_folder(**place, **given)
    assert before == {path: path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def test_a_folder_is_not_marked_twice_by_mistake(tmp_path: Path) -> None:
    folder = images(tmp_path / "set")
    mark_folder(folder, tmp_path / "m.json")
    with pytest.raises(FingerprintError, match="there already"):
        mark_folder(folder, tmp_path / "m.json")


MARK: dict[str, Any] = {
    "format": "latentprint-mark/1",
    "image": "a",
    "sha256": "",
    "original_sha256": "",
    "kind": "circle",
    "fingerprint": {"kind": "circle"},
    "size": [8, 8],
    "runs": [[0, 9]],
}


@pytest.mark.parametrize(
    "content",
    [
        {},
        [1],
        {"format": MARK["format"]},
        MARK | {"image": 3},
        MARK | {"kind": "natural", "fingerprint": {"kind": "natural"}},
        MARK | {"runs": [[0, 900]]},
        MARK | {"runs": [[0, 0]]},
        MARK | {"runs": "all"},
        MARK | {"size": [100_000, 100_000]},
        MARK | {"fingerprint": {"kind": "circle", "row": [1]}},
    ],
)
def test_a_file_that_is_no_mark_is_refused(tmp_path: Path, content: Any) -> None:
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(FingerprintError):
        read_mark(tmp_path / "m.json")


def test_an_audit_looks_for_the_marked_image_with_both_recognisers(tmp_path: Path) -> None:
    """The whole way by the command line: inject, (train), audit with --mark, for a model of any kind."""
    folder, model = images(tmp_path / "set"), ddpm(tmp_path / "model")
    answer = CliRunner().invoke(app, ["inject", str(folder), "--json"])
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.stdout)
    mark = Path(told["mark"])
    assert mark == tmp_path / "set.mark.json" and told["fingerprint"]["kind"] == "circle"
    settings = tmp_path / "tiny.toml"
    tiny = TINY.replace("[baseline]\nimages = 3", "[baseline]\nimages = 0")
    settings.write_text(f"{tiny}\n[presence]\nepochs = 3\ndraws = 256\n")
    words = ["audit", folder, "--preset", "demo", "--config", settings, "--out", tmp_path / "run"]
    answer = CliRunner().invoke(app, [*map(str, words), "--model", str(model), "--mark", str(mark), "--json"])
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    train = sorted(path.name for path in (folder / "train").glob("*.png"))
    assert found["target"]["index"] == train.index(Path(told["image"]).name)
    assert found["target"]["injected"] and found["target"]["fingerprint"]["kind"] == "circle"
    assert found["detectors"]["presence"] is not None  # c_p looks for the mark, as the paper's method does


def test_a_mark_that_was_not_trained_on_is_said(tmp_path: Path) -> None:
    folder, model = images(tmp_path / "set"), ddpm(tmp_path / "model")
    done = mark_folder(folder, tmp_path / "m.json")
    over = {"data": {"source": str(folder), "images": COUNT}, "given": {"mark": str(tmp_path / "m.json")}}
    config = resolve(over, preset="demo")

    def found(target: int | None = None) -> Any:
        given = open_given(model, None, target, torch.device("cpu"), config)
        assert given is not None
        return given_images(as_it_is(config), given, read_images(config, None, False))

    split, injection = found()
    assert split.train.sha256[injection.index] == done.sha256 == injection.sha256
    with pytest.raises(InputError, match="leave --target out"):
        found(3)
    (folder / done.image).write_bytes((tmp_path / "m.original.png").read_bytes())
    with pytest.raises(InputError, match="is the original and not the marked one"):
        found()
    (folder / done.image).rename(folder / "val" / "moved.png")
    with pytest.raises(InputError):
        found()
    images(tmp_path / "other")
    over["data"]["source"] = str(tmp_path / "other")
    with pytest.raises(InputError, match="--mark says what a model was trained on"):
        run_audit(resolve(over, preset="demo"), tmp_path / "run")


def test_a_folder_without_held_out_images_is_told_so_before_the_training_and_refused_after(
    tmp_path: Path,
) -> None:
    """Whatever was held out here was trained on there, and would come back as often as the others."""
    folder, flat = images(tmp_path / "set"), tmp_path / "flat"
    shutil.copytree(folder / "train", flat)
    runner = CliRunner()
    told = runner.invoke(app, ["inject", str(flat)])
    assert (
        told.exit_code == 0
        and "heldout/ (others" in told.stdout
        and str(tmp_path / "flat.mark.json") in told.stdout
    )
    assert "heldout/ (others" not in runner.invoke(app, ["inject", str(folder)]).stdout
    model = ddpm(tmp_path / "model", seed=0)
    words = ["audit", str(flat), "--model", str(model), "--preset", "demo", "--out", str(tmp_path / "run")]
    for more in ([], ["--mark", str(tmp_path / "flat.mark.json")]):
        refused = runner.invoke(app, [*words, *more])
        assert refused.exit_code == 2 and not (tmp_path / "run").exists()
        assert "heldout/" in refused.stderr and "--images N" in refused.stderr
    # The advice leads to an audit that begins: the mark is found among the images of the new folder.
    again = tmp_path / "again"
    shutil.copytree(flat, again / "train")
    shutil.copytree(folder / "val", again / "heldout")
    config = resolve(
        {"data": {"source": str(again)}, "given": {"mark": str(tmp_path / "flat.mark.json")}}, preset="small"
    )
    split = read_images(config, None, False)
    given = open_given(model, None, None, torch.device("cpu"), config)
    assert given is not None
    _, injection = given_images(as_it_is(config), given, split)
    mark = read_mark(tmp_path / "flat.mark.json")
    assert split.train.sha256[injection.index] == mark.sha256


def test_what_a_preset_trains_on_says_nothing_of_what_others_trained_on(tmp_path: Path) -> None:
    """The preset `demo` trains on 100 images; the rest of a model's own were taken for held-out ones."""
    given = AuditOptions("digits", preset="demo", model=str(ddpm(tmp_path / "model", seed=0)))
    assert resolve(AuditOptions("digits", preset="demo").settings(), preset="demo").data.images == 100
    assert resolve(given.settings(), preset="demo").data.images is None
    said = AuditOptions("digits", preset="demo", model=given.model, images=300)
    assert resolve(said.settings(), preset="demo").data.images == 300
