"""The folder of a run: what in it names anybody, who may read it, and what happens where files are lost."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentprint import Where, resolve, run_audit
from latentprint.cli import answer
from latentprint.config import AuditConfig
from latentprint.data import DataError, load
from latentprint.gate import starter

SECRET = "mueller_hans"
PUBLIC = ("dossier.html", "dossier.json", "report.html", "results.json")

SMALL: dict[str, Any] = {
    "model": {
        "network": {
            "channels": [8, 8, 8],
            "layers_per_block": 1,
            "middle_attention": False,
            "norm_groups": 4,
        },
        "training": {"steps": 12, "batch": 8, "checkpoint_seconds": 0.0},
    },
    "presence": {"epochs": 2, "draws": 128},
    "identity": {"epochs": 2, "draws": 128},
    "sampler": {"steps": 3},
    "search": {"levels": 2, "tries": 2},
    "baseline": {"images": 0},
    "profile": {"targets": 0},
    "samples": {"count": 24},
    "likelihood": {"images": 0},
    "fid": {"samples": 24, "features": "pixels"},
}


def small(source: Path) -> AuditConfig:
    return resolve(SMALL, {"data": {"source": str(source), "images": 20}, "control": False}, preset="demo")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of 30 x 30, a side that no U-Net halves twice, in a folder that names a person."""
    folder = tmp_path_factory.mktemp("ward") / f"{SECRET}_scans"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(60):
        pixels = rng.integers(0, 60, (30, 30), dtype=np.uint8)
        pixels[5 + i // 4 : 12 + i // 4, 4 + i % 15 : 14 + i % 15] += np.uint8(150)
        Image.fromarray(pixels).save(folder / f"{SECRET}_{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A run on them, of one of them by its name."""
    out = tmp_path_factory.mktemp("run") / "run"
    trained = load(images, seed=0, images=20).train.names
    assert trained is not None
    run_audit(small(images), out, target=images / trained[3])
    return out


def test_only_what_is_made_to_be_passed_on_can_be_read_by_others(finished: Path) -> None:
    (finished.parent / "policy.toml").write_text(starter())
    before = os.umask(0)  # the most open there is
    try:
        assert answer(["dossier", str(finished), "--policy", str(finished.parent / "policy.toml")]) == 0
    finally:
        os.umask(before)
    assert "padded to 32 x 32" in (finished / "report.html").read_text()
    assert stat.S_IMODE(finished.stat().st_mode) == 0o700
    for path in finished.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        public = path.parent == finished and path.name in PUBLIC
        assert mode == (0o644 if public else 0o700 if path.is_dir() else 0o600), path


def test_what_is_passed_on_names_neither_source_nor_target(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """run.json does, says so itself, and only its owner can read it (docs/files.md)."""
    record = (finished / "run.json").read_text()
    assert SECRET in record and "name places and files of private images" in record
    assert SECRET in json.loads(record)["settings"]["data"]["source"]
    (finished.parent / "policy.toml").write_text(starter())
    other = finished.with_name("other")
    shutil.copytree(finished, other, dirs_exist_ok=True)
    page = finished.parent / "page.html"
    for given in (
        ["report", str(finished)],
        ["card", str(finished), "--into", str(finished.parent / "README.md")],
        ["dossier", str(finished), "--policy", str(finished.parent / "policy.toml")],
        ["compare", str(finished), str(other), "--page", str(page)],
        ["verify", str(finished), "--json"],
        ["gate", str(finished), "--policy", str(finished.parent / "policy.toml"), "--json"],
        ["card", str(finished)],
    ):
        answer(given)
    said = capsys.readouterr()
    files = [*(finished / name for name in PUBLIC), page, finished.parent / "README.md"]
    texts = [said.out, said.err, *(file.read_text() for file in files)]
    named = {
        one for text in texts for one in (SECRET, "ward", record[record.index(SECRET) :][:20]) if one in text
    }
    assert not named


def test_the_same_run_one_image_at_a_time_and_with_its_features_lost(finished: Path, images: Path) -> None:
    """Features are drawn again where arrays/ is gone; no digit of the distance depends on the batch."""

    def interrupt(stage: str, done: int, total: int, unit: str) -> None:
        if stage == "Frechet distance":
            raise KeyboardInterrupt

    out = finished.with_name("again")
    settings = small(images)
    names = load(images, seed=0, images=20).train.names
    assert names is not None
    target = images / names[3]
    with pytest.raises(KeyboardInterrupt):
        run_audit(settings, out, target=target, where=Where(batch=1, say=interrupt))
    assert list((out / "arrays").rglob("*.safetensors"))
    shutil.rmtree(out / "arrays")
    found = run_audit(settings, out, target=target, where=Where(batch=1)).plain()
    expected = json.loads((finished / "results.json").read_text())
    assert found["fid"] == expected["fid"] and found["fid"]["samples"] == 24
    assert found["t_prime"]["hits"] == expected["t_prime"]["hits"]
    assert found["q"]["monte_carlo"] == expected["q"]["monte_carlo"]


@pytest.mark.parametrize("kind", ["folder", "captions"])
def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, images: Path, kind: str) -> None:
    """What it holds might have been trained on. Tried by a process without the rights of root."""
    shutil.copytree(images, tmp_path / "set")
    shut = tmp_path / "set" / "train"
    shut.mkdir()
    shutil.copy(images / f"{SECRET}_00.png", shut)
    for path in (*tmp_path.parents, tmp_path, tmp_path / "set"):
        if path.stat().st_uid == os.geteuid() and str(path).startswith(("/tmp/pytest", str(tmp_path))):
            path.chmod(0o755)
    shut.chmod(0o000)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said = "it was read"
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            if kind == "folder":
                load(tmp_path / "set", seed=0)
            else:
                from latentprint.data.captions import captions

                captions(str(tmp_path / "set"), (), None)
        except DataError as error:
            said = f"refused: {error}"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(write, said.encode())
            os._exit(0)
    os.waitpid(child, 0)
    shut.chmod(0o700)
    said = os.read(read, 10_000).decode()
    assert said.startswith("refused: ") and "cannot be read" in said and "make it readable" in said, said
