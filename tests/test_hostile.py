"""Attacks beyond the readers' own tests, each through what a user would call: a sentence, and nothing run."""

from __future__ import annotations

import json
import struct
import warnings
import zipfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from latentprint.adapters import open_model
from latentprint.adapters.samples import open_samples
from latentprint.audit.images import place_of, read_images
from latentprint.cli import app
from latentprint.config import DataSettings, resolve
from latentprint.contracts import InputError
from latentprint.data import load
from latentprint.files import parse_toml
from latentprint.marks import FingerprintSettings

DEEP = 200_000


def png(width: int, height: int) -> bytes:
    """A grey PNG that states its size and holds one row of it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(width + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def refused(*given: object) -> str:
    answer = CliRunner().invoke(app, [str(one) for one in given])
    assert answer.exit_code == 2, answer.output
    assert "Traceback" not in answer.output
    (line,) = answer.stderr.strip().splitlines()
    return line


def test_depth_bombs_in_a_models_configuration_and_in_settings(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model_index.json").write_text("[" * DEEP)
    out = tmp_path / "run"
    assert "levels deep" in refused("audit", "digits", "--model", tmp_path / "m", "--out", out)
    (tmp_path / "m" / "model_index.json").write_text('{"a":' * DEEP + "1" + "}" * DEEP)
    assert "levels deep" in refused("audit", "digits", "--model", tmp_path / "m", "--out", out)
    (tmp_path / "deep.toml").write_text("a = " + "[" * DEEP + "]" * DEEP)
    assert "bytes" in refused("audit", "digits", "--config", tmp_path / "deep.toml", "--out", out)
    with pytest.raises(InputError, match="nested"):
        parse_toml("a = " + "[" * 5000, "it")
    assert not out.exists()


def test_an_archive_with_one_name_twice_shows_neither(tmp_path: Path) -> None:
    """A checker that reads the first and a reader of the last would see two different sets of images."""
    raw = BytesIO()
    np.save(raw, np.zeros((30, 8, 8), np.uint8))
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("images.npy", raw.getvalue())
        archive.writestr("images.npy", raw.getvalue())
    for reader in (lambda p: load(p, seed=0), open_samples):
        with pytest.raises(InputError, match="twice"):
            reader(tmp_path / "x.npz")


def test_a_mask_or_target_of_100_000_pixels_a_side_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "huge.png").write_bytes(png(100_000, 100_000))
    train = load("digits", seed=0, images=20).train
    with pytest.raises(InputError, match=r"100000|pixels"):
        FingerprintSettings(kind="natural", region=str(tmp_path / "huge.png")).mask(8, 8)
    with pytest.raises(InputError, match=r"100000|pixels"):
        place_of(train, tmp_path / "huge.png", DataSettings())
    # one side alone, which no limit on the area catches when the image is shrunk on request
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "long.png").write_bytes(png(100_000, 1))
    config = resolve({"data": {"source": str(tmp_path / "d"), "resize": 8, "images": None}}, preset="small")
    with pytest.raises(InputError, match="100000 x 1"):
        read_images(config, None, False)


def test_a_tiff_whose_pages_go_round_in_a_circle_ends(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.tif")
    raw = bytearray((tmp_path / "a.tif").read_bytes())
    at = struct.unpack("<I", raw[4:8])[0]
    entries = struct.unpack("<H", raw[at : at + 2])[0]
    raw[at + 2 + 12 * entries : at + 6 + 12 * entries] = struct.pack("<I", at)  # the next page is this one
    (tmp_path / "a.tif").write_bytes(bytes(raw))
    try:
        found = open_samples(tmp_path)
    except InputError:
        return
    assert len(found) == 1


def test_a_class_from_elsewhere_is_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = tmp_path / "m"
    for part, config in (
        ("unet", {"_class_name": "evil.Net", "_target_": "evil.Net", "auto_map": {"AutoModel": "evil.Net"}}),
        ("scheduler", {"_class_name": "evil.Scheduler"}),
    ):
        (model / part).mkdir(parents=True)
        name = "config.json" if part == "unet" else "scheduler_config.json"
        (model / part / name).write_text(json.dumps(config))
    (model / "model_index.json").write_text(
        json.dumps({"_class_name": ["evil", "Pipeline"], "unet": ["evil", "Net"]})
    )
    with pytest.raises(InputError, match="not supported"):
        open_model(model)
    (model / "model_index.json").unlink()
    with pytest.raises(InputError, match="not supported"):
        open_model(model)
    assert not (tmp_path / "ran").exists()


def test_an_npy_that_states_more_than_it_holds_sets_nothing_aside(tmp_path: Path) -> None:
    for shape in ((2**40, 8, 8), (2**62, 2**62, 2), (-1, 8, 8)):
        head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
        head += b" " * (-(len(head) + 11) % 64) + b"\n"
        (tmp_path / "x.npy").write_bytes(
            b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + b"\0" * 64
        )
        with pytest.raises(InputError):
            open_samples(tmp_path / "x.npy")


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(["png", "jpg", "tif", "dcm"]), st.binary(max_size=300), st.integers(0, 200))
def test_fuzz_every_reader_of_images(tmp_path: Path, suffix: str, raw: bytes, kept: int) -> None:
    """Any bytes, or a real file cut and overwritten, as samples, data, mask, target: images or a sentence."""
    file = tmp_path / f"x.{suffix}"
    body: Any = BytesIO()
    if suffix == "dcm":
        body.write(bytes(128) + b"DICM")
    else:
        kinds = {"png": "PNG", "jpg": "JPEG", "tif": "TIFF"}
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(body, kinds[suffix])
    file.write_bytes(body.getvalue()[:kept] + raw)
    train = load("digits", seed=0, images=20).train
    config = resolve({"data": {"source": str(tmp_path), "images": None}}, preset="small")
    for read in (
        lambda: open_samples(tmp_path),
        lambda: read_images(config, None, False),
        lambda: FingerprintSettings(kind="natural", region=str(file)).mask(8, 8),
        lambda: place_of(train, file, DataSettings()),
    ):
        said = ""
        try:
            read()
        except InputError as error:
            said = str(error)
        assert "\n" not in said and len(said) < 1000
    file.unlink()
