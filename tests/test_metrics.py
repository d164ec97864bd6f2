"""Distances against closed forms and against the slow way."""

from __future__ import annotations

import math
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import linalg

from latentprint.files import FileError
from latentprint.metrics import (
    InceptionFeatures,
    Moments,
    PixelFeatures,
    frechet,
    mae,
    moments,
    mse,
    psnr,
)
from latentprint.metrics.frechet import MetricError
from latentprint.streams import Streams


def images(n: int, side: int = 4, purpose: str = "images") -> torch.Tensor:
    return torch.from_numpy(
        Streams(0).generator(purpose).uniform(-1, 1, (n, 1, side, side)).astype(np.float32)
    )


def exact(mean: np.ndarray, covariance: np.ndarray, count: int = 11) -> Moments:
    return Moments(count, mean, covariance * (count - 1))


def spd(d: int, purpose: str) -> np.ndarray:
    a = Streams(1).generator(purpose).standard_normal((d, d))
    return a @ a.T + 0.1 * np.eye(d)


def test_errors_are_in_units_of_pixels_from_0_to_1():
    target = torch.zeros(1, 2, 2)
    half = torch.tensor([[[0.5, -0.5], [0.5, 0.5]]])  # a quarter of the whole range everywhere
    white_to_black = (torch.ones(1, 1, 2, 2), -torch.ones(1, 2, 2))
    assert mse(half[None], target).tolist() == [0.0625]
    assert mae(half[None], target).tolist() == [0.25]
    assert mse(*white_to_black).tolist() == mae(*white_to_black).tolist() == [1.0]
    assert psnr(half[None], target).item() == pytest.approx(20 * math.log10(4))
    assert psnr(half[None], half).item() == math.inf


def test_errors_are_per_image_and_finer_than_float32():
    many = images(3)
    many[1] = many[0] + 2e-6
    assert mae(many, many[0])[0] == 0 and mae(many, many[0]).shape == (3,)
    assert mse(many, many[0])[2].item() == pytest.approx(
        ((many[2] - many[0]).numpy() ** 2).mean() / 4, rel=1e-6
    )
    assert mse(many, many[0])[1].item() == pytest.approx(1e-12, rel=0.1)
    with pytest.raises(ValueError, match=r"got \(4, 4\) for \(3, 1, 4, 4\)"):
        mse(many, many[0, 0])


def test_frechet_between_gaussians_with_a_closed_form():
    """Diagonal covariances: sum of (m1 - m2)^2 + (sqrt v1 - sqrt v2)^2."""
    m1, m2 = np.array([0.0, 1.0, -2.0]), np.array([1.0, 1.5, -2.0])
    v1, v2 = np.array([1.0, 4.0, 0.25]), np.array([9.0, 4.0, 0.0])
    expected = ((m1 - m2) ** 2).sum() + ((v1**0.5 - v2**0.5) ** 2).sum()
    assert frechet(exact(m1, np.diag(v1)), exact(m2, np.diag(v2))) == pytest.approx(expected, rel=1e-12)


def test_frechet_with_covariances_that_do_not_commute():
    """Against scipy's square root of the (not symmetric) product."""
    a, b = spd(6, "a"), spd(6, "b")
    assert not np.allclose(a @ b, b @ a)
    expected = np.trace(a) + np.trace(b) - 2 * np.trace(linalg.sqrtm(a @ b).real)
    assert frechet(exact(np.zeros(6), a), exact(np.zeros(6), b)) == pytest.approx(expected, rel=1e-8)


def test_frechet_is_accurate_where_covariances_are_singular():
    """Fewer images than features: a shift by c is at |c|^2, and stretching by 2 at tr C + |m|^2."""
    rng = Streams(2).generator("few")
    few = rng.standard_normal((10, 50))
    one = Moments.of(few)
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet(one, Moments.of(few + 3.0)) == pytest.approx(50 * 9.0, rel=1e-8)
    assert frechet(one, Moments.of(few * 2.0)) == pytest.approx(
        np.trace(one.covariance) + (one.mean**2).sum(), rel=1e-6
    )


def test_frechet_does_not_see_a_rotation():
    rng = Streams(2).generator("rotation")
    a, b = rng.standard_normal((40, 5)), rng.standard_normal((40, 5)) * 2 + 1
    turn, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    assert frechet(Moments.of(a @ turn), Moments.of(b @ turn)) == pytest.approx(
        frechet(Moments.of(a), Moments.of(b)), rel=1e-10
    )


def test_moments_are_those_of_all_images_at_once():
    """Far from 0 and narrow, where a sum of squares would lose everything."""
    rows = Streams(2).generator("rows").standard_normal((101, 4)) * 1e-3 + 1e4
    total = Moments.of(rows[:1]) + Moments.of(rows[1:60])
    total = Moments.of(rows[60:]) + total
    assert total.count == 101
    np.testing.assert_allclose(total.mean, rows.mean(0), rtol=1e-14)
    np.testing.assert_allclose(total.covariance, np.cov(rows.T), rtol=1e-6, atol=1e-12)


def test_moments_of_batches_do_not_depend_on_the_batches():
    many = images(30)
    whole = moments([many], PixelFeatures())
    parts = moments(many.split(7), PixelFeatures())
    assert whole.mean == pytest.approx(((many.flatten(1).double() + 1) / 2).mean(0).numpy(), rel=1e-12)
    np.testing.assert_allclose(parts.scatter, whole.scatter, rtol=1e-10)


def test_moments_refuse_what_has_none():
    with pytest.raises(ValueError, match="at least one image"):
        moments([], PixelFeatures())
    with pytest.raises(ValueError, match="finite"):
        Moments.of(np.array([[1.0], [np.nan]]))
    with pytest.raises(ValueError, match="2 images or more, got 1"):
        frechet(Moments.of(np.ones((1, 2))), Moments.of(np.ones((3, 2))))
    with pytest.raises(ValueError, match="same features"):
        frechet(Moments.of(np.ones((3, 2))), Moments.of(np.ones((3, 1))))


def test_inception_weights_are_read_by_path_and_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    file = tmp_path / "weights.safetensors"
    with pytest.raises(FileError, match="could not be read: it does not exist"):
        _ = InceptionFeatures(file, "0" * 64).network
    save_file({"fc.weight": torch.zeros(2)}, file)
    digest = sha256(file.read_bytes()).hexdigest()
    with pytest.raises(FileError, match=f"has sha256 {digest}, not the '0000"):
        _ = InceptionFeatures(file, "0" * 64).network
    with pytest.raises(MetricError, match="does not hold torch-fidelity's Inception network"):
        _ = InceptionFeatures(file, digest).network

    # The real weights cannot be had here: the network's own, with the loading skipped, stand for them.
    monkeypatch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = module.FeatureExtractorInceptionV3("inception", ["2048"])
    monkeypatch.undo()
    save_file(theirs.state_dict(), file)
    ours = InceptionFeatures(file, sha256(file.read_bytes()).hexdigest())
    grey = images(2, side=8)
    stored = ((grey + 1) * 127.5).round().to(torch.uint8).repeat(1, 3, 1, 1)
    with torch.no_grad():
        assert torch.equal(ours(grey), theirs(stored)[0]) and ours(grey).shape == (2, 2048)
        volumes, mean = torch.stack([grey, -grey], dim=2), (ours(grey) + ours(-grey)) / 2
        assert torch.allclose(ours(volumes), mean, atol=1e-4)  # slice by slice
    assert ours.name == f"inception 2048 (sha256 {ours.sha256[:12]})"
