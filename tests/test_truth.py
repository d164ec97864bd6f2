"""The question of truth before an audit: a known denoiser beats a blur, a wrong mapping of it does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentprint.adapters import from_module
from latentprint.adapters.opened import Opened
from latentprint.adapters.truth import RATIOS, Denoising, answer, beaten, denoising, recognised
from latentprint.data import load
from latentprint.denoiser import epsilon_from_denoised
from latentprint.known import Memorised
from latentprint.schedule import VP

CPU = torch.device("cpu")


class Noise(nn.Module):
    """The noise that the exact denoiser of some images finds, told t in another unit."""

    def __init__(self, images: Tensor, sign: float = 1.0, unit: float = 999.0) -> None:
        super().__init__()
        self.known, self.sign, self.unit = Memorised(images, VP()), sign, unit
        self.images = nn.Parameter(images)

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        t = (k.double() / self.unit).clamp(1e-3, 1.0)
        return self.sign * epsilon_from_denoised(VP(), x, self.known(x, t), t)


def opened(network: nn.Module, predicts: str = "epsilon", unit: float = 999.0) -> Opened:
    return from_module(network, VP(), predicts, shape=(1, 8, 8), time=lambda t: unit * t)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    split = load("digits", seed=0, images=60)
    return split.train.pixels, split.heldout.pixels


def test_a_memoriser_beats_a_blur_and_shows_its_memory(images: tuple[np.ndarray, np.ndarray]) -> None:
    train, heldout = images
    levels = denoising(opened(Noise(torch.from_numpy(train))), train, heldout, CPU)
    assert len(levels) == len(RATIOS) and not beaten(levels)
    small = [one for one in levels if one.ratio < 0.3]
    assert small and all(one.train < 1e-3 < one.heldout for one in small)
    assert all(one.train < one.blur for one in levels)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda train: opened(Noise(train, sign=-1.0)),
        lambda train: opened(Noise(train), "v"),
        lambda train: opened(Noise(train), "denoised"),
    ],
)
def test_a_wrong_mapping_loses_against_a_blur(images: tuple[np.ndarray, np.ndarray], wrong: object) -> None:
    train, heldout = images
    levels = denoising(wrong(torch.from_numpy(train)), train, heldout, CPU)  # type: ignore[operator]
    assert len(beaten(levels)) >= 2


def test_the_best_blur_is_never_worse_than_none(images: tuple[np.ndarray, np.ndarray]) -> None:
    """Without any blur the error is the noise itself, ratio^2 / variance, to sampling."""
    train, heldout = images
    for one in denoising(opened(Noise(torch.from_numpy(train))), train, heldout, CPU):
        spread = float(train[:8].std(ddof=1))
        assert one.blur < 1.2 * (one.ratio / spread) ** 2


def test_the_first_question_is_answered_in_words() -> None:
    good, bad = Denoising(0.3, 0.1, 0.2, 0.5), Denoising(1.0, 0.6, 0.7, 0.5)
    assert answer((good, good)) == "yes: better than a plain blur at 2 of 2 noise levels"
    assert answer((good, bad)).startswith("in part: ") and answer((bad,)).startswith("no: ")
    known = Denoising(1.0, 0.01, 0.2, 0.5)
    assert "at noise 1 training images come out 20 times better than held-out" in answer((good, known))


def test_what_was_recognised_is_said(images: tuple[np.ndarray, np.ndarray]) -> None:
    model = opened(Noise(torch.from_numpy(images[0])))
    said = recognised(replace(model, kind="python"))
    assert said["it predicts"] == "epsilon" and said["conditioned on"] == "nothing"
    assert said["noise"].startswith("VP, sigma/alpha from") and said["weights sha256"] == model.weights_sha256
