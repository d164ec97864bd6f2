"""Watching other people's training loops: the gap is what it says, takes its share of time, and stops."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentprint.adapters import ddpm_schedule, from_function
from latentprint.callbacks import (
    Canary,
    CanaryWarning,
    Watch,
    WatchError,
    attach,
    csv_curve,
    lightning_callback,
    tensorboard_curve,
)
from latentprint.contracts import InputError
from latentprint.data import load
from latentprint.known import Gaussian, Memorised
from latentprint.schedule import VP
from latentprint.streams import Streams

SPLIT = load("digits", seed=0, images=8)
TRAIN, HELD = torch.from_numpy(SPLIT.train.pixels), torch.from_numpy(SPLIT.heldout.pixels[:200])


class Net(nn.Module):
    """A perceptron that predicts the noise of 8 x 8 images from (x, timestep)."""

    def __init__(self, width: int = 256):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Linear(66, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 64)
            )

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        k = k.to(x).reshape(-1, 1) / 1000
        return self.layers(torch.cat([x.flatten(1), k, k.sqrt()], 1)).reshape(x.shape)


def loss_of(net: nn.Module, images: Tensor, step: int) -> Tensor:
    """Ho et al. 2020 on a batch, per image."""
    streams, ids = Streams(5), range(step * len(images), (step + 1) * len(images))
    noise = streams.noise("n", ids, 0, (1, 8, 8))
    k = (streams.uniform("k", ids, 0, (1,))[:, 0] * 1000).long()
    bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[k].reshape(-1, 1, 1, 1)
    noisy = bar.sqrt() * images + (1 - bar).sqrt() * noise
    return (net(noisy, k) - noise).square().flatten(1).mean(1)


def watch(net: nn.Module, **settings: object) -> Watch:
    plain = {"every": 20, "share": 1.0, "images": 8}
    return Watch(from_function(net, ddpm_schedule(), predicts="epsilon"), TRAIN, HELD, **(plain | settings))


def looked(model: object, train: Tensor, heldout: Tensor, **settings: object) -> Watch:
    found = Watch(model, train, heldout, every=1, share=1.0, **settings)
    found.step(0)
    time.sleep(0.005)
    found._chunk_seconds = 0.0
    found._began -= 60.0  # a minute of training
    found.step(1)
    return found


def test_a_memoriser_has_its_images_by_heart_and_a_law_knows_none() -> None:
    by_heart = looked(Memorised(TRAIN, VP()), TRAIN, HELD).curve[0]
    assert by_heart.low > 0.6
    assert by_heart.t_prime is not None and by_heart.t_prime > 0.3
    # The exact law of both sides: the interval holds 0 in about 95 of 100 audits.
    law, rng, inside = Gaussian(torch.zeros(1, 4, 4), torch.tensor(1.0), VP()), np.random.default_rng(0), 0
    for seed in range(60):
        both = torch.from_numpy(rng.normal(size=(64, 1, 4, 4))).float()
        look = looked(law, both[:32], both[32:], seed=seed).curve[0]
        inside += look.low <= 0 <= look.high
    assert inside >= 51  # P(fewer | 0.95, 60) = 3e-3


def test_audits_take_their_share_of_the_time() -> None:
    class Slow(nn.Module):
        def forward(self, x: Tensor, k: Tensor) -> Tensor:
            time.sleep(0.004)
            return x

    found = watch(Slow(), every=1, share=0.1)
    for k in range(200):
        time.sleep(0.005)
        found.step(k)
    # The first chunk is taken without knowing what it costs, and paid back by waiting.
    assert found.curve and found.time_share <= 0.1
    assert found.spent == pytest.approx(sum(look.seconds for look in found.curve))


def test_the_network_trains_on_as_it_was() -> None:
    net = Net()
    net.train()
    states = []
    net.layers[0].register_forward_hook(lambda m, i, o: states.append(m.training))
    found = watch(net)
    before = torch.get_rng_state()
    found.step(0)
    found.step(20)
    assert states and not any(states)
    assert net.training
    assert torch.equal(before, torch.get_rng_state())


def test_a_plain_loop_of_pytorch_stops_and_leaves_a_curve(tmp_path: Path) -> None:
    net = Net()
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    found = watch(net, stop=0.3, log=csv_curve(tmp_path / "curve.csv"))
    for k in range(1, 600):
        loss = loss_of(net, TRAIN.repeat(4, 1, 1, 1), k).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        if found.step(k):
            break
    assert k < 500
    assert found.curve[0].low < 0.2 < 0.3 < found.curve[-1].low
    rows = list(csv.DictReader((tmp_path / "curve.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == [look.step for look in found.curve]
    assert float(rows[-1]["gap"]) == pytest.approx(found.curve[-1].gap, rel=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_lightnings_trainer(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.loggers import CSVLogger
    from torch.utils.data import DataLoader, TensorDataset

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch, index):
            return loss_of(self.net, batch[0], self.global_step).mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 3e-3)

    module = Module()
    found = watch(module.net, stop=0.3)
    with torch.random.fork_rng(devices=[]):
        trainer = lightning.Trainer(
            max_steps=600,
            accelerator="cpu",
            callbacks=[lightning_callback(found)],
            logger=CSVLogger(tmp_path, name="", version=""),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(TensorDataset(TRAIN.repeat(400, 1, 1, 1)), batch_size=32))
    assert trainer.global_step < 500
    assert found.curve[-1].low > 0.3
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [float(row["latentprint/gap"]) for row in rows if row["latentprint/gap"]] == pytest.approx(
        [look.gap for look in found.curve], rel=1e-4
    )


@pytest.mark.filterwarnings("ignore")
def test_an_engine_of_ignite() -> None:
    engines = pytest.importorskip("ignite.engine")
    net = Net()
    adam = torch.optim.Adam(net.parameters(), 3e-3)

    def update(engine, batch):
        loss = loss_of(net, batch["image"], engine.state.iteration).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss.item()

    engine, found = engines.Engine(update), watch(net, stop=0.3)
    attach(found, engine, images=lambda batch: batch["image"])
    engine.run([{"image": TRAIN.repeat(4, 1, 1, 1)}] * 600, max_epochs=1)
    assert engine.state.iteration < 500
    assert found.curve[-1].low > 0.3


@pytest.mark.filterwarnings("ignore")
def test_a_script_of_diffusers_with_accelerate_and_tensorboard(tmp_path: Path) -> None:
    """The loop of diffusers' train_unconditional.py, with its own scheduler and a UNet2DModel."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler, UNet2DModel
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = UNet2DModel(
            8, 1, 1, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False,
        )  # fmt: skip
    noise_scheduler, accelerator = DDPMScheduler(1000), Accelerator(cpu=True)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    model, optimiser = accelerator.prepare(model, optimiser)
    writer = SummaryWriter(tmp_path)
    found = watch(model, every=5, log=tensorboard_curve(writer), steps=15)
    generator = torch.Generator().manual_seed(0)
    for step in range(16):
        noise = torch.randn(TRAIN.shape, generator=generator)
        timesteps = torch.randint(0, 1000, (len(TRAIN),), generator=generator)
        noisy = noise_scheduler.add_noise(TRAIN, noise, timesteps)
        accelerator.backward((model(noisy, timesteps).sample - noise).square().mean())
        optimiser.step()
        optimiser.zero_grad()
        found.step(step)
    writer.close()
    assert [look.step for look in found.curve] == [5, 10, 15]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [one.value for one in events.Scalars("latentprint/gap")] == pytest.approx(
        [look.gap for look in found.curve], rel=1e-4
    )


def test_a_run_of_wandb_takes_the_curve(tmp_path: Path) -> None:
    import wandb

    quiet = wandb.Settings(
        silent=True, console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True
    )
    net = Net()
    with wandb.init(mode="offline", dir=tmp_path, project="latentprint", settings=quiet) as run:
        found = watch(net, every=5, log=run.log, steps=15)
        for step in range(1, 16):
            found.step(step)
        run.log({"the end": 1}, 16)  # a step is only summed up once the next has begun
        assert run.summary["_step"] == 15
        assert run.summary["latentprint/gap"] == pytest.approx(found.curve[-1].gap)


def wide(images: Tensor) -> Tensor:
    return nn.functional.pad(images, (1, 1, 1, 1), "replicate")


def covered(images: Tensor) -> Tensor:
    out = images.clone()
    out[..., :3, :3] = 0
    return out


def canary() -> Canary:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[0:3, 0:3] = True
    image = TRAIN[3].clone()
    image[:, mask] = torch.tensor([0.9, -0.9, 0.9, -0.9, 0.9, -0.9, 0.9, -0.9, 0.9])
    return Canary(image, mask)


def shown(found: Canary, change, losses=None, batches: int = 3) -> str | None:
    images = TRAIN.clone()
    images[3] = found.image
    for _ in range(batches):
        found.see(change(images), losses, len(TRAIN))
    return found.complaint()


def test_a_mark_that_reaches_the_loss_is_no_complaint() -> None:
    found = canary()
    assert shown(found, lambda images: images) is None
    assert (found.seen, found.marked, found.images) == (3, 3, 24)
    assert shown(canary(), lambda images: images.flip(-1)) is None
    # Shifted down and right, all of the mark stays in the frame.
    assert shown(canary(), lambda images: wide(images)[..., :8, :8]) is None


@pytest.mark.parametrize(
    ("change", "losses", "said"),
    [
        (lambda images: images[:3].repeat(2, 1, 1, 1), None, "not in the loader"),
        (lambda images: wide(images)[..., 2:, 2:], None, "cuts or covers"),
        (covered, None, "cuts or covers"),
        (lambda images: images, torch.where(torch.arange(8) == 3, 0.0, 1.0), "its loss was 0"),
    ],
)
def test_a_mark_that_does_not_reach_the_loss_is_said(change, losses, said) -> None:
    found = canary()
    batches = 8 if said == "not in the loader" else 3
    with pytest.warns(CanaryWarning, match=said):
        assert said in (shown(found, change, losses, batches) or "")


def test_what_cannot_be_watched_is_a_sentence() -> None:
    with pytest.raises(WatchError, match="can never fire"):
        watch(Net(), stop=1.5)
    with pytest.raises(WatchError, match="can never fire"):
        watch(Net(), stop=0.5, steps=10)
    with pytest.raises(WatchError, match="of one shape"):
        Watch(Memorised(TRAIN, VP()), TRAIN[:4], HELD)
    with pytest.raises(WatchError, match="share"):
        watch(Net(), share=0.0)
    with pytest.raises(InputError, match="a part of its image"):
        Canary(TRAIN[0], torch.ones(8, 8))
    with pytest.raises(InputError, match="the batch has"):
        canary().see(TRAIN[..., :4], None, 16)
