"""Every estimator of q, the search and the likelihood on models of volumes whose answers are known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch

from latentprint import calibrate
from latentprint.attacks.nearest import nearest
from latentprint.attacks.whole_set import Copies
from latentprint.calibrate import COUNT, Case
from latentprint.denoiser import IdentityCodec
from latentprint.known import Gaussian, Memorised
from latentprint.likelihood import Hutchinson, log_likelihood
from latentprint.probe import ModelProbe, from_image
from latentprint.rate import ESTIMATORS, Subject
from latentprint.sampler.sampler import Sampler
from latentprint.sampler.steps import Ancestral, DPMSolverPP2M
from latentprint.schedule import VP
from latentprint.stats import Trials
from latentprint.streams import Streams

SHAPES = [(1, 5, 6, 7), (3, 4, 4)]
NAMES = (COUNT, *(one.name for one in ESTIMATORS))


def alike(shape: tuple[int, ...], estimator: str, count: int = 6) -> Case:
    """``count`` images, each with a block of its own: none is unlike another, so q is 1 / count."""
    dims = math.prod(shape)
    flat = -torch.ones(count, dims, dtype=torch.float64)
    for i, block in enumerate(torch.arange(dims - dims % count).chunk(count)):
        flat[i, block] = 1.0
    images = flat.reshape(count, *shape)
    sampler = Sampler(Ancestral(), 16) if estimator == "path" else Sampler(DPMSolverPP2M(), 12, "log-snr")
    near = float((flat[1] - flat[0]).norm()) / 2
    model = Memorised(images, VP(end=1e-4))
    push = calibrate.SamplerPushforward(model, sampler, shape)
    about = Subject(
        push,
        sampler,
        calibrate.within(images[0], near),
        calibrate.distance(images[0]),
        images[0],
        model,
        images[1:],
    )
    return Case("alike", 1 / count, about)


@pytest.mark.parametrize("estimator", NAMES)
def test_estimators_find_the_truth_at_every_shape(estimator: str) -> None:
    found = [calibrate.row(alike(shape, estimator), estimator, 5, samples=1500) for shape in SHAPES]
    for one in found:
        assert one.reliable and one.inside, one.diagnostic
    flat = calibrate.row(alike((1, 15, 14), estimator), estimator, 5, samples=1500)
    # the same noise in another shape: the very same numbers, to rounding
    assert (flat.rate, flat.low, flat.high) == pytest.approx((found[0].rate, found[0].low, found[0].high))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_likelihood_and_search_at_every_shape(shape: tuple[int, ...]) -> None:
    std, schedule = torch.tensor(0.4, dtype=torch.float64), VP(end=1e-4)
    mean = calibrate.pictures(1, shape, 1)[0]
    gaussian, x = Gaussian(mean, std, schedule), calibrate.pictures(3, shape, 2)
    found = log_likelihood(gaussian, x, Hutchinson(4, Streams(4)), ids=np.arange(3))
    exact = gaussian.log_density(x, torch.tensor(schedule.end, dtype=torch.float64))
    assert found.nats.tolist() == pytest.approx(exact.tolist(), rel=5e-3)  # x_T is not quite normal

    case = alike(shape, COUNT)
    model, target = cast(Memorised, case.subject.model), case.subject.target
    inside = case.subject.inside

    @dataclass(frozen=True)
    class Known:
        name: str = "identity"
        threshold: float = 0.5
        rates: Any = None

        def __call__(self, images: torch.Tensor, /) -> torch.Tensor:
            return inside(images).double()

    streams = Streams(1)
    probe = ModelProbe(
        model,
        Sampler(Ancestral(), 12),
        from_image(target, model, streams, "search", IdentityCodec()),
        streams,
        "search",
        target,
        Known(),
        None,
    )
    for t in (0.35, 0.6):
        seen = probe(np.full(400, t), np.arange(400))
        truth = model.return_probability(0, t, Streams(9))
        low, high = Trials(int(seen.hit.sum()), 400).interval(0.999)
        assert low <= truth.value <= high
        assert (seen.columns["mse"][seen.hit] < 1e-6).all()


@pytest.mark.parametrize("shape", [(1, 6, 7, 6), (3, 8, 8)], ids=str)
def test_copies_are_found_at_every_shape(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    train, heldout = (rng.uniform(-1, 1, (60, *shape)).astype(np.float32) for _ in range(2))
    counted = Copies(train, heldout)
    counted.update(np.concatenate([rng.uniform(-1, 1, (30, *shape)), train[:12] + 0.02]).astype(np.float32))
    found = counted.compute().copies
    assert 12 <= found.k <= 13 and found.n == 42  # one false alarm in a hundred may be
    near = nearest(torch.from_numpy(train[:12] + 0.02), torch.from_numpy(train))
    assert near.index[:, 0].tolist() == [*range(12)]
    assert near.distance[:, 0].tolist() == pytest.approx([0.01] * 12, rel=1e-3)
