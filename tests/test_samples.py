"""Samples only: read as they come, and a leaky set told from a clean one."""

from __future__ import annotations

import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from latentprint.adapters.samples import (
    open_samples,
)
from latentprint.contracts import InputError
from latentprint.data import DataError, ImageSet, stack
from latentprint.networks import ModelError


def drawn(count: int, seed: int) -> np.ndarray:
    """Images of a population: independent pixels, so that no two of them are alike."""
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)


def images(stored: np.ndarray) -> ImageSet:
    return stack(stored, "test")


def test_every_form_gives_the_same_images(tmp_path: Path) -> None:
    stored = drawn(5, 0)
    for i, image in enumerate(stored):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    np.savez(tmp_path / "a.npz", samples=stored)
    np.savez(tmp_path / "b.npz", stored[..., None])
    np.save(tmp_path / "c.npy", stored[:, None])
    np.save(tmp_path / "d.npy", (2 * (stored / 255.0) - 1).astype(np.float32))
    expected = images(stored)
    for name in (".", "a.npz", "b.npz", "c.npy"):
        found = open_samples(tmp_path / name)
        assert np.array_equal(found.pixels, expected.pixels), name
        assert name in ("b.npz", "c.npy") or found.sha256 == expected.sha256  # hashed in the shape stored
    assert np.allclose(open_samples(tmp_path / "d.npy").pixels, expected.pixels, atol=1e-6)


def png_of(side: int) -> bytes:
    """A grey PNG of side x side pixels, all zero, in a few kilobytes: a bomb where side is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" * (side + 1)
    body = zlib.compressobj(9)
    packed = b"".join(body.compress(row) for _ in range(min(side, 2000))) + body.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def test_images_of_100_000_pixels_a_side_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_of(100_000))
    assert (tmp_path / "a.png").stat().st_size < 1_000_000
    with pytest.raises(DataError, match=r"100000|more than"):
        open_samples(tmp_path)


def npy_header(shape: Any, dtype: str = "|u1") -> bytes:
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        npy_header((10**9, 100_000, 100_000)) + b"x",
        npy_header((1, 100_000, 8)) + bytes(800_000),
        npy_header((2, 8, 8)) + bytes(100),  # truncated
        npy_header((8, 8)) + bytes(64),
        npy_header((0, 8, 8)),
        npy_header((-1, 8, 8)) + bytes(64),
        npy_header((1, 8, 8), "|O") + pickle.dumps([1]),
        npy_header((1, 8, 8), "<c16") + bytes(1024),
        npy_header((1, 8, 8), "<i8") + bytes(512),
        b"\x93NUMPY\x09\x00",
        b"",
    ],
)
def test_arrays_that_are_no_samples_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError):
        open_samples(tmp_path / "a.npy")


def test_a_zip_bomb_and_a_pickle_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", samples=np.zeros((20_000, 64, 64), dtype=np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 200_000
    with pytest.raises(DataError, match="would grow"):
        open_samples(tmp_path / "bomb.npz")
    with pytest.raises(ModelError, match="pickle"):
        open_samples(tmp_path / "samples.pkl")
    np.savez(tmp_path / "two.npz", samples=drawn(2, 0), images=drawn(2, 1))
    with pytest.raises(DataError, match="one of samples"):
        open_samples(tmp_path / "two.npz")
    for nothing in ("none.npy", "none.npz", "none.txt"):
        with pytest.raises(DataError):
            open_samples(tmp_path / nothing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no"):
        open_samples(tmp_path / "empty")


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from([".npy", ".npz"]),
    st.one_of(
        st.binary(max_size=200),
        st.tuples(
            st.lists(st.integers(-2, 20), max_size=5),
            st.sampled_from(["|u1", "<f4", "<u2", "|O", "|S3", "<i4"]),
            st.binary(max_size=99),
        ),
    ),
)
def test_fuzz_arrays(tmp_path: Path, suffix: str, content: Any) -> None:
    file = tmp_path / f"x{suffix}"
    file.write_bytes(
        content if isinstance(content, bytes) else npy_header(tuple(content[0]), content[1]) + content[2]
    )
    try:
        open_samples(file)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
