"""All generated images against all training images: the answer of the slow way, whatever the block."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentprint.attacks import nearest as module
from latentprint.attacks.nearest import columns, nearest
from latentprint.streams import Streams


def images(n: int, side: int = 4, purpose: str = "images") -> torch.Tensor:
    return torch.from_numpy(
        Streams(0).generator(purpose).uniform(-1, 1, (n, 1, side, side)).astype(np.float32)
    )


def slow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    apart = a.reshape(len(a), 1, -1).astype(np.float64) - b.reshape(1, len(b), -1)
    return np.sqrt(((apart / 2) ** 2).mean(2))


@pytest.mark.parametrize("block", [3, 1000])
def test_neighbours_are_those_of_the_slow_way(block: int):
    queries, reference = images(7), images(20, purpose="reference")
    expected = slow(queries.numpy(), reference.numpy())
    found = nearest(queries, reference.numpy(), 4, block=block)
    assert (found.index.numpy() == expected.argsort(1)[:, :4]).all()
    np.testing.assert_allclose(found.distance.numpy(), np.sort(expected, 1)[:, :4], rtol=1e-12)


@pytest.mark.parametrize("block", [3, 1000])
def test_a_copy_is_at_distance_0_and_a_near_copy_near(block: int):
    reference = images(20) * 0.9
    queries = reference[[11, 4]].clone()
    queries[1] += 1e-6
    found = nearest(queries, reference, block=block)
    assert found.index[:, 0].tolist() == [11, 4]
    assert found.distance[0, 0] == 0 and found.distance[1, 0].item() == pytest.approx(5e-7, rel=0.05)


@pytest.mark.parametrize("block", [3, 1000])
def test_no_image_is_its_own_neighbour(block: int):
    many = images(10)
    many[7] = many[2]
    found = nearest(many, many, same=True, block=block)
    assert found.index[2, 0] == 7 and found.index[7, 0] == 2
    assert (found.index[:, 0] != torch.arange(10)).all()


def test_neighbours_refuse_what_cannot_be_compared():
    with pytest.raises(ValueError, match="one shape"):
        nearest(images(2), images(2, side=5))
    with pytest.raises(ValueError, match="the 1 candidates, got 2"):
        nearest(images(2), images(2), 2, same=True)
    with pytest.raises(ValueError, match="one size"):
        nearest(images(2), images(3), same=True)
    assert nearest(images(0), images(3), 2).index.shape == (0, 2)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(2, 40), st.integers(1, 12), st.integers(1, 50), st.sampled_from([1, 7, 4096]), st.data())
def test_any_sizes_and_many_equal_images(m: int, k: int, n: int, block: int, data: st.DataObject):
    """Grey levels of few values: most distances occur several times, and the lowest index must win."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    reference, queries = (rng.integers(0, 2, (c, 1, 2, 2)).astype(np.float32) for c in (m, n))
    k = min(k, m)
    found = nearest(queries, reference, k, block=block)
    expected = slow(queries, reference)
    assert (found.index.numpy() == expected.argsort(1, kind="stable")[:, :k]).all()
    np.testing.assert_allclose(found.distance.numpy(), np.sort(expected, 1)[:, :k], rtol=1e-12)


def test_images_closer_than_float32_can_tell_are_told_apart(monkeypatch: pytest.MonkeyPatch):
    """Forty images that differ from one another by 1e-6 around a bright one: products cannot rank them."""
    rng = np.random.default_rng(3)
    base = rng.uniform(0.9, 1, (1, 1, 16, 16))
    reference = np.concatenate(
        [base + 1e-6 * rng.normal(size=(40, 1, 16, 16)), rng.uniform(-1, 1, (60, 1, 16, 16))]
    ).astype(np.float32)
    queries = (base + 1e-6 * rng.normal(size=(8, 1, 16, 16))).astype(np.float32)
    searched = list[int]()
    again = module._slow
    monkeypatch.setattr(module, "_slow", lambda q, *rest: searched.append(len(q)) or again(q, *rest))
    found = nearest(queries, reference, 3)
    assert (found.index.numpy() == slow(queries, reference).argsort(1)[:, :3]).all()
    assert sum(searched) == 8
    searched.clear()
    nearest(reference[40:], reference[40:], 3, same=True)
    assert not searched  # images that are apart need no second search


def test_rows_to_keep_do_not_depend_on_their_neighbours_in_a_batch():
    queries, reference = images(9), images(30, purpose="reference")
    whole = columns(queries, reference)
    parts = [columns(queries[i : i + 2], reference) for i in range(0, 9, 2)]
    for name, column in whole.items():
        assert np.array_equal(column, np.concatenate([p[name] for p in parts])), name
    expected = np.sort(slow(queries.numpy(), reference.numpy()), 1)
    np.testing.assert_allclose(whole["ten"], expected[:, :10].mean(1), rtol=1e-12)
    np.testing.assert_allclose(whole["second_distance"], expected[:, 1], rtol=1e-12)
    few = columns(queries, reference[:2])
    np.testing.assert_allclose(few["ten"], slow(queries.numpy(), reference[:2].numpy()).mean(1), rtol=1e-12)


def test_memory_mapped_images_are_read_a_block_at_a_time(tmp_path):
    stored = images(50, side=8).numpy()
    np.save(tmp_path / "a.npy", stored)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    found = nearest(mapped, stored, block=16)
    assert (found.index[:, 0].numpy() == np.arange(50)).all() and not found.distance.any()
