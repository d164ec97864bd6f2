"""Training: Eq. 4 against its own formula, what it converges to, and resume equal to a straight run."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from latentprint.denoiser import NetworkDenoiser
from latentprint.files import FileError
from latentprint.networks import UNetConfig, build_unet
from latentprint.schedule import VE, VP, Schedule, SubVP
from latentprint.streams import Streams
from latentprint.training import TrainConfig, TrainingError, draw_indices, draw_times, loop, loss_of, train

SCHEDULES: list[Schedule] = [SubVP(), VP(), VE()]
SHORT = TrainConfig(
    steps=40, batch=8, learning_rate=1e-3, warmup=5, decay="cosine", ema=0.9, parametrisation="edm"
)


class Small(nn.Module):
    """A perceptron of (x, time), for images of any shape: quick, and enough for known answers."""

    def __init__(self, pixels: int, width: int = 64, scale: float = 1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.scale = scale
        self.layers = nn.ParameterList()
        for n, m in ((pixels + 1, width), (width, width), (width, pixels)):
            self.layers.append(torch.randn(n, m, generator=generator) / n**0.5)
            self.layers.append(torch.randn(m, generator=generator) * 0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = torch.cat([x.flatten(1), time[:, None].to(x) * self.scale], dim=1)
        for w, b in zip(self.layers[::2], self.layers[1::2], strict=True):
            h = h @ w + b
            if w is not self.layers[-2]:
                h = nn.functional.silu(h)
        return h.reshape(x.shape)


def digits(n: int = 12) -> np.ndarray:
    return Streams(3).generator("test").uniform(-1, 1, (n, 1, 8, 8)).astype(np.float32)


def unet() -> nn.Module:
    return build_unet(UNetConfig((8, 16), 1, middle_attention=False, norm_groups=4), 1, 8, Streams(0))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("kind", ["epsilon", "likelihood", "v"])
def test_the_loss_is_equation_4(schedule: Schedule, kind: str):
    """lambda |s - grad log p(x_t given x_0)|^2 from the scores, lambda = sigma^2, g^2, or |v|^2's own."""
    parametrisation = "v" if kind == "v" else "epsilon"
    config = replace(
        SHORT, parametrisation=parametrisation, weighting="output" if kind != "likelihood" else kind
    )
    model = NetworkDenoiser(Small(4).double(), schedule, parametrisation)
    g = torch.Generator().manual_seed(1)
    images, noise = (torch.randn(5, 1, 2, 2, generator=g, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.97], dtype=torch.float64)
    loss = loss_of(config, model, images, t, noise)

    alpha, sigma = (f(t).reshape(-1, 1, 1, 1) for f in (schedule.alpha, schedule.sigma))
    x = alpha * images + sigma * noise
    raw = model.network(x, 1000 * t)
    if kind == "v":
        n = (alpha**2 + sigma**2).sqrt()
        expected = ((raw - (alpha * noise - sigma * images) / n) ** 2).mean()
    else:
        score, target = -raw / sigma, -noise / sigma
        lam = sigma**2 if kind == "epsilon" else schedule.diffusion2(t).reshape(-1, 1, 1, 1)
        expected = (lam * (score - target) ** 2).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_edm_weighs_the_networks_own_error(schedule: Schedule):
    """Karras et al. 2022, Eq. 8: |F - (y - c_skip (y + n)) / c_out|^2 in u = x / alpha."""
    model = NetworkDenoiser(Small(4).double(), schedule, "edm", sigma_data=0.6)
    g = torch.Generator().manual_seed(1)
    images, noise = (torch.randn(3, 1, 2, 2, generator=g, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    r = (schedule.sigma(t) / schedule.alpha(t)).reshape(-1, 1, 1, 1)
    u, d = images + r * noise, 0.6
    raw = model.network(u / (r**2 + d**2).sqrt(), r.flatten().log() / 4)
    target = (images - d**2 / (r**2 + d**2) * u) / (r * d / (r**2 + d**2).sqrt())
    loss = loss_of(SHORT, model, images, t, noise)
    assert loss.item() == pytest.approx(((raw - target) ** 2).mean().item(), rel=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_times_follow_their_distribution_and_are_stratified(schedule: Schedule):
    n = 2000
    even = draw_times(replace(SHORT, times="uniform"), schedule, Streams(1), 0, n).numpy()
    share = (even - schedule.end) / (schedule.start - schedule.end)
    assert (np.floor(share * n) == np.arange(n)).all()  # one time in each of n equal parts

    config = replace(SHORT, times="lognormal", log_ratio_mean=-0.5, log_ratio_std=1.2)
    times = torch.cat([draw_times(config, schedule, Streams(1), 10 * i, 10) for i in range(200)])
    logs = schedule.ratio(times).log().numpy()
    low, high = (float(schedule.ratio(e).log()) for e in (schedule.end, schedule.start))
    law = stats.truncnorm((low + 0.5) / 1.2, (high + 0.5) / 1.2, loc=-0.5, scale=1.2)
    assert stats.kstest(logs, law.cdf).pvalue > 0.001
    # Stratified in tens, an average is far closer to the truth than independent draws are.
    assert abs(logs.mean() - law.mean()) < 0.5 * law.std() / len(logs) ** 0.5
    assert logs.std() == pytest.approx(law.std(), rel=0.05)


def test_every_image_is_seen_equally_often_whatever_the_batch():
    streams = Streams(5)
    all_at_once = draw_indices(streams, 0, 7 * 13, 7)
    assert Counter(all_at_once.tolist()) == dict.fromkeys(range(7), 13)
    in_parts = np.concatenate([draw_indices(streams, first, 13, 7) for first in range(0, 7 * 13, 13)])
    assert (in_parts == all_at_once).all()
    assert (
        len({tuple(epoch) for epoch in all_at_once.reshape(13, 7).tolist()}) > 10
    )  # in another order each time


@pytest.mark.parametrize("parametrisation", ["edm", "epsilon", "v", "sample"])
def test_training_finds_the_expected_image(parametrisation: Any):
    """Of two images +c and -c the expected one is c tanh(alpha <x, c> / sigma^2): the minimum of Eq. 4."""
    c, schedule = 0.8, SubVP()
    images = np.array([c, -c], np.float32).reshape(2, 1, 1, 1)
    config = TrainConfig(
        steps=600,
        batch=64,
        learning_rate=1e-2,
        warmup=20,
        decay="cosine",
        ema=0.95,
        parametrisation=parametrisation,
        times="lognormal",
        log_ratio_mean=0.0,
    )
    network = Small(1, scale=1.0 if parametrisation == "edm" else 3e-3)
    last = list(train(images, network, schedule, config, Streams(2)))[-1]
    for t in (0.25, 0.35, 0.45):
        time = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = schedule.alpha(time).item(), schedule.sigma(time).item()
        x = torch.linspace(-alpha - 1.5 * sigma, alpha + 1.5 * sigma, 41).reshape(-1, 1, 1, 1)
        exact = c * torch.tanh(alpha * x * c / sigma**2)
        with torch.no_grad():
            found = last.denoiser(x, time)
        assert (
            found - exact
        ).square().mean().sqrt().item() < 0.12  # an answer off by alpha, 0.4 to 0.7 here, is wrong by 0.2


def test_a_network_need_not_learn_the_mean_of_images_that_are_mostly_background():
    images = np.where(np.random.default_rng(0).random((16, 1, 8, 8)) < 0.05, 1, -1).astype(np.float32)
    own = replace(SHORT, learning_rate=3e-3, times="lognormal")
    plain, measured = (
        list(train(images, unet(), SubVP(), replace(own, mean_data=mean), Streams(0)))
        for mean in (0.0, "measured")
    )
    assert (plain[-1].denoiser.mean_data, measured[-1].denoiser.mean_data) == (0.0, float(images.mean()))
    assert measured[0].loss < plain[0].loss / 2 and measured[-1].loss < 0.9 * plain[-1].loss


@pytest.mark.parametrize("stop", [20, 30])
def test_resume_equals_a_straight_run_bit_for_bit(tmp_path: Path, stop: int):
    straight = list(train(digits(), unet(), SubVP(), SHORT, Streams(1)))
    saving = replace(SHORT, checkpoint_seconds=0.0)
    for state in train(digits(), unet(), SubVP(), saving, Streams(1), checkpoint=tmp_path):
        if state.step == stop:
            break
    resumed = list(train(digits(), unet(), SubVP(), saving, Streams(1), checkpoint=tmp_path))
    assert [s.step for s in resumed] == list(range(stop + 10, 41, 10))
    assert [s.loss for s in resumed] == [s.loss for s in straight[stop // 10 :]]
    one, two = (s[-1].denoiser.network.state_dict() for s in (straight, resumed))
    assert all(torch.equal(one[k], two[k]) for k in one)
    again = list(train(digits(), unet(), SubVP(), saving, Streams(1), checkpoint=tmp_path))
    assert [(s.step, s.loss) for s in again] == [(40, None)]
    assert all(torch.equal(one[k], v) for k, v in again[-1].denoiser.network.state_dict().items())


def test_a_crash_while_saving_loses_no_more_than_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    straight = list(train(digits(), unet(), SubVP(), SHORT, Streams(1)))
    saving = replace(SHORT, checkpoint_seconds=0.0)
    run = train(digits(), unet(), SubVP(), saving, Streams(1), checkpoint=tmp_path)
    assert next(run).step == 10
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(FileError, match="killed"):
        next(run)
    monkeypatch.undo()
    resumed = list(train(digits(), unet(), SubVP(), saving, Streams(1), checkpoint=tmp_path))
    assert resumed[0].step == 20 and [s.loss for s in resumed] == [s.loss for s in straight[1:]]


def test_a_checkpoint_of_another_training_is_refused_by_name(tmp_path: Path):
    pixels_of_the_run = digits()

    def run(pixels: np.ndarray = pixels_of_the_run, config: TrainConfig = SHORT, seed: int = 1):
        return list(train(pixels, unet(), SubVP(), config, Streams(seed), checkpoint=tmp_path))

    run()
    with pytest.raises(TrainingError, match="of another training: its seed is 1, not 2"):
        run(seed=2)
    with pytest.raises(TrainingError, match="its images is '"):
        run(pixels=digits() * 0.5)
    with pytest.raises(TrainingError, match=r"its config\.batch is 8, not 9"):
        run(config=replace(SHORT, batch=9))
    next(tmp_path.glob("tensors-*")).write_bytes(b"")
    with pytest.raises(TrainingError, match="delete that folder to train again"):
        run()


def test_at_a_constant_rate_a_longer_training_begins_as_a_shorter_one(tmp_path: Path):
    """Same bits; with a rate that falls it is another training from the first step on."""

    def run(config: TrainConfig, folder: Path | None):
        states = train(digits(), unet(), SubVP(), config, Streams(1), checkpoint=folder)
        return [(state.step, state.loss) for state in states]

    long = replace(SHORT, decay="none")
    short = replace(long, steps=20)
    assert run(short, tmp_path / "a") + run(long, tmp_path / "a") == run(long, None)
    with pytest.raises(TrainingError, match="is of 40 steps, and 20 were asked for"):
        run(short, tmp_path / "a")
    falling = replace(short, decay="linear")
    run(falling, tmp_path / "b")
    with pytest.raises(TrainingError, match=r"its config\.steps is 20, not 40"):
        run(replace(falling, steps=40), tmp_path / "b")


def test_the_average_follows_its_recursion(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "REPORT", 1)
    network = Small(64)
    expected = [p.detach().double().clone() for p in network.parameters()]
    for state in train(digits(), network, SubVP(), replace(SHORT, ema=0.7), Streams(1)):
        keep = min(0.7, state.step / (9 + state.step))
        expected = [
            keep * e + (1 - keep) * p.detach().double()
            for e, p in zip(expected, network.parameters(), strict=True)
        ]
        for e, p in zip(expected, state.denoiser.network.parameters(), strict=True):
            torch.testing.assert_close(p.double(), e, rtol=1e-5, atol=1e-6)
    assert state.images == 40 * 8


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "REPORT", 1)
    network = Small(64)
    norms = []
    for _ in train(digits(), network, SubVP(), replace(SHORT, clip=1e-3, steps=5), Streams(1)):
        norms.append(
            torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).norm().item()
        )
    assert norms == pytest.approx([1e-3] * 5, rel=1e-3)


def test_the_learning_rate_rises_then_falls():
    linear = replace(SHORT, steps=105, learning_rate=1.0, decay="linear")
    assert [linear.rate(k) for k in (0, 2, 5)] == pytest.approx([1 / 6, 1 / 2, 1.0])
    assert [linear.rate(k) for k in (55, 104)] == pytest.approx([0.5, 0.01])
    assert replace(linear, decay="cosine").rate(55) == pytest.approx(0.5)
    assert replace(linear, decay="cosine").rate(30) == pytest.approx((1 + 0.5**0.5) / 2)
    assert replace(linear, decay="none").rate(104) == 1.0


def test_a_loss_that_is_not_finite_is_said_with_step_and_rate():
    class Breaks(Small):
        calls = 0

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x, time) * (float("nan") if self.calls == 14 else 1.0)

    with pytest.raises(TrainingError, match=r"the loss became nan at step 13 with learning rate 0\.00088"):
        list(train(digits(), Breaks(64), SubVP(), replace(SHORT), Streams(1)))


def test_images_that_cannot_be_trained_on_are_refused():
    good = digits()
    for wrong, said in (
        (good[:0], "N of 1 or more"),
        (good[:, 0], r"shape \(N, C, \*sides\)"),
        (good.astype(np.float64), "float64"),
        (np.where(good > 0.99, np.nan, good).astype(np.float32), "must be finite"),
    ):
        with pytest.raises(ValueError, match=said):
            next(train(wrong, Small(64), SubVP(), SHORT, Streams(1)))


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"ema": 1.0}, {"warmup": -1}, {"learning_rate": float("nan")}]
)
def test_settings_outside_their_range_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(SHORT, **wrong)
