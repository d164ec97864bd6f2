"""Samples only: read as they come, and a leaky set told from a clean one."""

from __future__ import annotations

import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binom

from latentprint.adapters.samples import (
    CANNOT,
    audit_samples,
    copy_threshold,
    nearness_p_value,
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


def test_a_leaky_set_is_told_from_a_clean_one() -> None:
    train, heldout = drawn(300, 1), drawn(400, 2)
    clean = drawn(500, 3)
    leaky = clean.copy()
    copied = np.arange(0, 60)
    noise = np.random.default_rng(4).integers(-6, 7, (60, 8, 8))
    leaky[copied] = np.clip(train[copied // 3].astype(int) + noise, 0, 255)
    found = audit_samples(images(leaky), images(train), images(heldout))
    assert found.leaks and 60 <= found.copies.k <= 75 and found.distinct >= 20
    assert {p.sample for p in found.pairs} <= set(copied.tolist()) and all(p.copy for p in found.pairs)
    assert all(p.training == p.sample // 3 and p.relative < 0.2 for p in found.pairs)
    scores = [p.score for p in found.pairs]
    assert scores == sorted(scores) and len(scores) == 20
    first = found.pairs[0]
    exact = np.sqrt((((leaky[first.sample].astype(float) - train[first.training]) / 255) ** 2).mean())
    assert first.distance == pytest.approx(exact, rel=1e-5)
    none = audit_samples(images(clean), images(train), images(heldout))
    assert not none.leaks and none.copies.rate < 0.04 and none.hits is None
    assert min(p.relative for p in none.pairs) > 0.7 and none.cannot == CANNOT
    assert none.expected.k <= 4 and none.expected.n == 400


def test_backgrounds_are_nearest_distances() -> None:
    train, heldout, samples = drawn(40, 1), drawn(30, 2), drawn(20, 3)
    found = audit_samples(images(samples), images(train), images(heldout))

    def brute(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        d = np.sqrt((((a[:, None].astype(float) - b) / 255) ** 2).mean((2, 3)))
        return d

    own = brute(train, train) + np.where(np.eye(40) > 0, np.inf, 0)
    assert np.allclose(found.train_to_train, own.min(1), rtol=1e-5)
    assert np.allclose(found.heldout_to_train, brute(heldout, train).min(1), rtol=1e-5)
    assert np.allclose(found.sample_to_train, brute(samples, train).min(1), rtol=1e-5)
    # the threshold by the formula: the least score of any held-out image (30 are fewer than 1 / share)
    typical = np.median(own.min(1)), np.median(np.sort(own)[:, 0] / np.sort(own)[:, :10].mean(1))
    near = np.sort(brute(heldout, train))[:, :10]
    scores = np.maximum(near[:, 0] / typical[0], near[:, 0] / near.mean(1) / typical[1])
    assert found.threshold == pytest.approx(scores.min(), rel=1e-5)
    assert [p.sample for p in found.pairs[:1]] == [
        int(np.argmin([_score(s, train, typical) for s in samples]))
    ]


def _score(image: np.ndarray, train: np.ndarray, typical: tuple[float, float]) -> float:
    near = np.sort(np.sqrt((((image.astype(float) - train) / 255) ** 2).mean((1, 2))))[:10]
    return max(near[0] / typical[0], near[0] / near.mean() / typical[1])


def test_smooth_images_are_near_to_everything_and_copies_of_nothing() -> None:
    """Grey averages lie nearer to every training image than held-out images do: by distance, all leak."""
    train, heldout = drawn(300, 1), drawn(400, 2)
    smooth = drawn(200, 3).astype(float) / 8 + 112
    found = audit_samples(images(smooth.astype(np.uint8)), images(train), images(heldout))
    assert (found.sample_to_train < found.heldout_to_train.min()).all()
    assert not found.leaks and found.copies.k == 0


def test_five_perfect_copies_among_five_hundred_leak_and_of_copied_images_too() -> None:
    train, heldout = drawn(300, 1), drawn(400, 2)
    train[12:24] = train[0]  # an image that was trained on thirteen times has thirteen nearest at once
    samples = drawn(500, 3)
    samples[7:12] = train[0]
    found = audit_samples(images(samples), images(train), images(heldout))
    assert found.leaks and found.same.k == 5 and found.same_expected.k == 0
    assert found.repeated == 12 and found.distinct >= 1
    assert {p.sample for p in found.pairs[:5]} == {7, 8, 9, 10, 11} and found.pairs[0].training == 0


def test_the_test_of_nearness_is_exact() -> None:
    """Both thresholds by counting all orders of 3 samples and 2 held-out images."""
    # the two nearest of five are samples: 3 of 10 orders; with j = 0 in both places
    assert nearness_p_value(np.array([1.0, 2.0, 5.0]), np.array([3.0, 4.0]), 0.01) == pytest.approx(0.6)
    assert nearness_p_value(np.array([1.0, 2.0, 2.5]), np.array([3.0, 4.0]), 0.01) == pytest.approx(0.2)
    # j = 0: no sample below; j = 1: 1 of 3 below the second held-out score, 9 orders of 10, doubled
    assert nearness_p_value(np.array([3.5, 5.0, 6.0]), np.array([3.0, 4.0]), 0.5) == 1.0
    rng = np.random.default_rng(0)
    wrong = sum(nearness_p_value(*np.split(rng.normal(size=300), [150])) <= 0.1 for _ in range(400))
    assert wrong <= binom.ppf(0.9995, 400, 0.1)


@pytest.mark.parametrize("few", [1, 3])
def test_too_few_distinct_training_images_are_refused(few: int) -> None:
    train = np.concatenate([drawn(few, 0)] * 5)
    with pytest.raises(DataError, match="no copies of each other"):
        audit_samples(images(drawn(5, 1)), images(train), images(drawn(5, 2)))


def test_the_threshold_lets_the_share_through() -> None:
    background = np.arange(1000.0)
    assert copy_threshold(background, 0.01) == 10.0  # 0 .. 9 lie below
    assert copy_threshold(background[:50], 0.01) == 0.0
    for wrong in (0.0, 1.0):
        with pytest.raises(DataError, match="share"):
            copy_threshold(background, wrong)


class Bright:
    """Fires on images whose first pixel is bright."""

    def __init__(self, name: str, row: int) -> None:
        self.name, self.row, self.threshold = name, row, 0.5

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, self.row, 0].gt(0).float()


def test_hits_need_every_detector() -> None:
    samples = drawn(700, 3)
    detectors = [Bright("presence", 0), Bright("identity", 5)]
    found = audit_samples(
        images(samples), images(drawn(20, 1)), images(drawn(20, 2)), detectors=detectors, batch=64
    )
    fired = samples[:, [0, 5], 0] > 127
    assert {k: v.k for k, v in found.fired.items()} == dict(
        zip(("presence", "identity"), fired.sum(0).tolist(), strict=True)
    )
    assert found.hits is not None and (found.hits.k, found.hits.n) == (int(fired.all(1).sum()), 700)


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


def test_sets_that_cannot_be_compared_are_refused() -> None:
    a, b = images(drawn(5, 0)), images(np.zeros((5, 8, 9), dtype=np.uint8))
    with pytest.raises(DataError, match="one shape"):
        audit_samples(a, b, a)
    with pytest.raises(DataError, match="held-out image or more"):
        audit_samples(a, a.take([0]), a)
    with pytest.raises(DataError, match="alpha"):
        audit_samples(a, a, a, alpha=1.0)


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
