"""t'-guided training: what it converges to where that is known (docs/remedies.md), stop rule, resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from latentprint.denoiser import NetworkDenoiser
from latentprint.known import Memorised, Mixture
from latentprint.schedule import VP
from latentprint.settings import SettingsError, read
from latentprint.streams import Streams
from latentprint.training import Guidance, TrainConfig, TrainingError, TrainState, train
from latentprint.training.augment import moved
from latentprint.training.guided import Guide

VP_ = VP()
DIMS = 16
RATIO = 0.3
"""sigma / alpha of the one noise level that most tests train."""


def sets(n: int = 6, m: int = 40, spread: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """n images to train on and m of the same law, (., 1, 4, 4)."""
    rng = np.random.default_rng(seed)
    both = np.clip(rng.normal(0, spread, (n + m, 1, 4, 4)), -1, 1).astype(np.float32)
    return both[:n], both[n:]


def one_level(**settings: object) -> TrainConfig:
    """A training at sigma / alpha = RATIO alone, of a network that answers with D itself."""
    plain = TrainConfig(
        steps=750,
        batch=30,
        learning_rate=2e-3,
        warmup=1,
        ema=0.9,
        clip=1e9,
        parametrisation="sample",
        times="lognormal",
        log_ratio_mean=float(np.log(RATIO)),
        log_ratio_std=0.002,
        guided=True,
    )
    return replace(plain, **settings)


class Kernels(nn.Module):
    """D = k x + (1 - k alpha) x_near: a mixture of well separated kernels, whose width is the weight k."""

    def __init__(self, images: np.ndarray, k: float):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(k))
        self.images = torch.from_numpy(images)
        self.alpha = alpha()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        near = torch.cdist(x.flatten(1), self.alpha * self.images.flatten(1)).argmin(1)
        return self.k * x + (1 - self.k * self.alpha) * self.images[near]


def ended(
    images: np.ndarray,
    network: nn.Module,
    config: TrainConfig,
    heldout: np.ndarray | None = None,
    folder: Path | None = None,
) -> TrainState:
    return list(train(images, network, VP_, config, Streams(0), checkpoint=folder, heldout=heldout))[-1]


def alpha() -> float:
    return float(VP_.alpha(VP_.time(torch.tensor(RATIO, dtype=torch.float64))))


def strangers_apart(train_set: np.ndarray, heldout: np.ndarray) -> float:
    """delta^2: mean squared distance per pixel from a held-out image to the training image it is drawn to."""
    rng = np.random.default_rng(1)
    x = heldout + RATIO * rng.normal(size=(200, *heldout.shape))
    x, of = x.reshape(-1, DIMS), np.tile(np.arange(len(heldout)), 200)
    flat = train_set.reshape(-1, DIMS)
    near = ((x[:, None] - flat[None]) ** 2).sum(-1).argmin(1)
    return float(((flat[near] - heldout.reshape(-1, DIMS)[of]) ** 2).mean())


@pytest.mark.parametrize("gap", [0.3, 0.6])
def test_levels_stop_at_the_width_of_the_closed_form(gap: float) -> None:
    """k* = delta sqrt(1 - gap) / (sigma sqrt(gap) + alpha delta sqrt(1 - gap)); unguided it goes on to 0."""
    images, heldout = sets()
    config = one_level(guidance=Guidance(gap=gap, every=1, levels=2))
    last = ended(images, Kernels(images, 1.0), config, heldout)
    delta, a = strangers_apart(images, heldout) ** 0.5, alpha()
    sigma = RATIO * a
    wanted = delta * (1 - gap) ** 0.5 / (sigma * gap**0.5 + a * delta * (1 - gap) ** 0.5)
    found = float(last.denoiser.network.k.detach())
    assert found == pytest.approx(wanted, rel=0.06)

    last = ended(images, Kernels(images, 1.0), replace(config, guided=False))
    assert abs(float(last.denoiser.network.k.detach())) < 0.2

    # k is the mixture of width h: alpha h^2 / (alpha^2 h^2 + sigma^2) = k, and its q is known exactly.
    width = (found * sigma**2 / (a - found * a**2)) ** 0.5
    mixture, centre = Mixture(torch.from_numpy(images), width, VP_), torch.from_numpy(images[0])
    radius = 0.5 * delta * DIMS**0.5
    assert mixture.q(centre, radius) < 0.1 / len(images)


class Shares(nn.Module):
    """D of a memoriser whose images count by weights that are learnt: the family that holds the optimum."""

    def __init__(self, images: np.ndarray):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(len(images)))
        self.images = torch.from_numpy(images)
        self.model = Memorised(self.images, VP_)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        near = self.model.weights(x, time.double() / 1000).log() + self.logits.double()
        return (near.softmax(1).float() @ self.images.flatten(1)).reshape(x.shape)


def guide(config: TrainConfig, images: np.ndarray, heldout: np.ndarray) -> Guide:
    return Guide.begin(config, VP_, Streams(0), torch.from_numpy(images), torch.from_numpy(heldout))


def fit(model: NetworkDenoiser, steered: Guide, steps: int, ratio: float, rate: float) -> None:
    """Minimise the guided loss itself at one level, with fresh noise at each step."""
    optimiser = torch.optim.Adam(model.network.parameters(), lr=rate)
    count = len(steered.pixels)
    rows = torch.arange(count).repeat(40)
    t = VP_.time(torch.full((len(rows),), ratio, dtype=torch.float64))
    for step in range(steps):
        ids = range(step * len(rows), (step + 1) * len(rows))
        noise = Streams(1).noise("test", ids, 0, tuple(steered.pixels.shape[1:]))
        loss = steered.loss(model, rows, steered.pixels[rows], t, noise)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def test_an_image_left_out_is_given_back_by_no_memoriser() -> None:
    """ "images": the optimum is the memoriser of the others; its closed form, D against D."""
    images, heldout = sets(spread=0.25)
    config = one_level(guidance=Guidance(variant="images", levels=2))
    steered = guide(config, images, heldout)
    steered.law.fill_(0.0)
    steered.reach[2] = 1.0  # known from everywhere
    model, ratio = NetworkDenoiser(Shares(images), VP_, "sample"), 1.0
    fit(model, steered, 300, ratio, 0.1)
    others = Memorised(torch.from_numpy(np.delete(images, 2, 0)), VP_)
    t = VP_.time(torch.tensor(ratio, dtype=torch.float64))
    x = Memorised(torch.from_numpy(images), VP_).draw(Streams(2), "x", range(500), float(t))
    whole = Memorised(torch.from_numpy(images), VP_)
    off = (model(x, t) - others(x, t)).detach().square().mean().sqrt()
    assert float(off) < 0.2 * float((whole(x, t) - others(x, t)).square().mean().sqrt())


def test_repulsion_ends_where_the_error_is_that_of_the_held_out_law() -> None:
    """k sigma = sqrt((1 - gap) m) from a network that had it by heart (k = 0.02): the hinge's closed form."""
    images, heldout = sets()
    gap, m = 0.2, 0.01
    config = one_level(guidance=Guidance(variant="repulsion", gap=gap, levels=2))
    steered = guide(config, images, heldout)
    steered.law.fill_(0.0)
    steered.reach.fill_(1.0)
    steered.strangers.fill_(m)
    model = NetworkDenoiser(Kernels(images, 0.02), VP_, "sample")
    fit(model, steered, 300, RATIO, 5e-3)
    # Each image's own error scatters about k^2 sigma^2 by a few per cent, and the hinge sees each.
    assert float(model.network.k.detach()) == pytest.approx(
        ((1 - gap) * m) ** 0.5 / (RATIO * alpha()), rel=0.05
    )


def test_the_search_within_training_returns_as_often_as_the_exact_weights_say() -> None:
    images, heldout = sets(n=8, spread=0.3)
    config = one_level(times="uniform", guidance=Guidance(variant="images", levels=4, images=8, steps=96))
    steered = guide(config, images, heldout)
    exact = Memorised(torch.from_numpy(images), VP_)
    back = torch.stack([steered.returns(exact, steered.pixels, torch.arange(8), turn) for turn in range(12)])
    for level, t in enumerate(steered.grid.tolist()):
        wanted = float(np.mean([exact.return_probability(i, t, Streams(3), 500).value for i in range(8)]))
        k, n = int(back[:, :, level].sum()), 96
        assert binom.ppf(0.0005, n, wanted) <= k <= binom.ppf(0.9995, n, wanted), (t, k / n, wanted)
    # What it never saw it turns into what it saw: only from almost no noise can a stranger come back.
    others = steered.returns(exact, steered.heldout[:8], torch.full((8,), -1), 0)
    assert not others.any()


def test_known_is_what_lies_above_the_held_out_law() -> None:
    images, heldout = sets()
    steered = guide(one_level(guidance=Guidance(variant="images")), images, heldout)
    rows, t = torch.arange(6), torch.full((6,), 0.4, dtype=torch.float64)
    steered.reach[:] = torch.tensor([0.0, 0.3, 0.45, 0.6, 0.8, 0.9])
    assert not steered.known(rows, t).any()  # nothing is known of the held-out law yet
    steered.law[:] = torch.linspace(0.1, 0.5, steered.law.numel()).reshape(steered.law.shape)
    assert steered.known(rows, t).tolist() == [False, False, False, True, True, True]
    assert not steered.known(rows, torch.full((6,), 0.2, dtype=torch.float64)).any()  # strangers come back


class Small(nn.Module):
    def __init__(self, width: int = 64):
        super().__init__()
        draw = np.random.default_rng(0).normal
        sides = ((DIMS + 1, width), (width, DIMS))
        self.layers = nn.ParameterList(torch.tensor(draw(size=s) / s[0] ** 0.5).float() for s in sides)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = torch.cat([x.flatten(1), time[:, None] / 1000], 1) @ self.layers[0]
        return (nn.functional.silu(h) @ self.layers[1]).reshape(x.shape)


def short(**guidance: object) -> TrainConfig:
    how = Guidance(search_every=20, images=4, levels=4, every=2, **guidance)
    return TrainConfig(
        steps=60,
        batch=8,
        learning_rate=1e-2,
        warmup=5,
        ema=0.9,
        parametrisation="edm",
        guided=True,
        guidance=how,
    )


@pytest.mark.parametrize("variant", ["levels", "images", "repulsion", "augmentation"])
def test_resumed_training_is_the_straight_one(tmp_path: Path, variant: str) -> None:
    images, heldout = sets(n=8)
    config = replace(
        short(variant=variant, stop=0.99 if variant == "levels" else None), checkpoint_seconds=0.0
    )
    straight = ended(images, Small(), config, heldout)
    for state in train(images, Small(), VP_, config, Streams(0), checkpoint=tmp_path, heldout=heldout):
        if state.step == 30:
            break
    again = ended(images, Small(), config, heldout, tmp_path)
    assert (again.step, again.known) == (straight.step, straight.known)
    for one, other in zip(
        again.denoiser.network.parameters(), straight.denoiser.network.parameters(), strict=True
    ):
        assert torch.equal(one, other)
    with pytest.raises(TrainingError, match="heldout"):
        list(train(images, Small(), VP_, config, Streams(0), checkpoint=tmp_path, heldout=heldout[1:]))


def test_training_stops_when_too_many_images_are_known(tmp_path: Path) -> None:
    """Three images and a network that learns them by heart: it ends early, and stays ended."""
    images, heldout = sets(n=3)
    config = replace(short(stop=0.6), steps=3000, learning_rate=5e-3)
    states = list(train(images, Small(), VP_, config, Streams(0), checkpoint=tmp_path, heldout=heldout))
    last = states[-1]
    assert last.stopped and last.known is not None and last.known > 0.6
    assert last.step < 3000 and last.step % 20 == 1  # the search is made before a step, which is then done
    assert not any(state.stopped for state in states[:-1])
    again = list(train(images, Small(), VP_, config, Streams(0), checkpoint=tmp_path, heldout=heldout))
    assert [(s.step, s.stopped) for s in again] == [(last.step, True)]


def test_what_cannot_be_guided_is_a_sentence() -> None:
    images, heldout = sets()
    with pytest.raises(TrainingError, match="held out, and none were given"):
        next(train(images, Small(), VP_, short(), Streams(0)))
    with pytest.raises(TrainingError, match="like those trained on"):
        next(train(images, Small(), VP_, short(), Streams(0), heldout=heldout[..., :3]))
    for values, said in (
        ({"guided": True, "steps": 50, "guidance": {"stop": 0.5}}, "first search comes after 100 steps"),
        ({"guidance": {"stop": 0.5}}, "it can never fire"),
        ({"guided": True, "guidance": {"stop": 1.5}}, "less than 1"),
        ({"guided": True, "guidance": {"varant": "levels"}}, "did you mean"),
    ):
        with pytest.raises(SettingsError, match=said):
            read(TrainConfig, values)


def test_augmented_images_are_shifted_by_a_pixel_or_mirrored() -> None:
    images = torch.from_numpy(sets(n=40)[0])
    out, how = moved(images, 0.5, Streams(0), 7)
    changed = (out != images).flatten(1).any(1)
    assert 8 <= int(changed.sum()) <= 32
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    for i in changed.nonzero()[:, 0].tolist():
        allowed = [padded[i, :, y : y + 4, x : x + 4] for y in range(3) for x in range(3)]
        allowed.append(images[i].numpy()[..., ::-1])
        assert any((out[i].numpy() == one).all() for one in allowed)
    assert torch.equal(out[10:], moved(images[10:], 0.5, Streams(0), 17)[0])
    assert (changed == (how > 0)).all()
    assert torch.equal(out[how == 1], images[how == 1].flip(-1))
    volumes = images.reshape(40, 1, 2, 2, 4)
    assert moved(volumes, 1.0, Streams(0), 0)[0].shape == volumes.shape


class Table(nn.Module):
    """An image for each label, whatever it is shown: what training makes of it is a mean, in closed form."""

    def __init__(self, told: bool) -> None:
        super().__init__()
        self.config = {"num_class_embeds": 10 if told else None}
        self.images = nn.Parameter(torch.zeros(10, 1, 4, 4))

    def forward(self, x: Tensor, time: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return self.images[torch.zeros_like(time).long() if class_labels is None else class_labels] + 0 * x


def test_a_network_that_is_told_of_changes_gives_images_as_they_are() -> None:
    image = torch.from_numpy(sets(n=1)[0])
    how = one_level(steps=250, augment=0.5, batch=100, learning_rate=0.03, guided=False)
    every, orbit = moved(image.expand(4096, -1, -1, -1), 0.5, Streams(1), 0)[0], {}
    for told in (False, True):
        *_, last = train(image.numpy(), Table(told), VP_, how, Streams(0))
        made = last.denoiser(torch.zeros_like(image), torch.tensor(0.5, dtype=torch.float64)).detach()
        orbit[told] = made, last.denoiser.network.images.detach()
    assert torch.allclose(orbit[True][0], image, atol=0.02)
    assert torch.allclose(orbit[False][0], every.mean(0, keepdim=True), atol=0.05)
    assert (every.mean(0, keepdim=True) - image).abs().max() > 0.2
    # Each label has learnt its own change: mirrored, then shifted in eight directions.
    assert torch.allclose(orbit[True][1][1], image[0].flip(-1), atol=0.02)
    padded = nn.functional.pad(image, (1, 1, 1, 1), mode="replicate")[0]
    shifts = [padded[:, y : y + 4, x : x + 4] for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    for found in orbit[True][1][2:]:
        assert min(float((found - one).abs().max()) for one in shifts) < 0.02


def test_changes_that_a_network_is_not_told_of_are_refused() -> None:
    how = one_level(guidance=Guidance(variant="augmentation"))
    images, heldout = sets()
    with pytest.raises(TrainingError, match="without saying so"):
        next(train(images, Table(told=True), VP_, how, Streams(0), heldout=heldout))
