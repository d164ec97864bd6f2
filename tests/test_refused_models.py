"""Models that cannot be audited, tried as a user would: exit 2, and one sentence that says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from test_adapters import autoencoder, saved, scheduler_of, unet
from typer.testing import CliRunner

from latentprint.cli import app

TINY = """
[identity]
epochs = 1
draws = 64
[search]
levels = 2
tries = 1
[samples]
count = 4
[baseline]
images = 0
[likelihood]
images = 0
[membership]
images = 0
"""


def audited(place: Path, folder: Path, *more: str) -> Any:
    (place / "tiny.toml").write_text(TINY)
    settings = ["--preset", "demo", "--config", str(place / "tiny.toml"), "--out", str(place / "run")]
    return CliRunner().invoke(app, ["audit", "digits", "--model", str(folder), *settings, "--json", *more])


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def plain(folder: Path) -> Path:
    return saved(folder, unet(), scheduler_of("DDPMScheduler"))


def with_code(folder: Path) -> Path:
    (plain(folder) / "pipeline.py").write_text("raise SystemExit(3)")
    edit(folder / "model_index.json", _class_name=["pipeline", "Mine"])
    return folder


def bundle_with_code(folder: Path) -> Path:
    (folder / "configs").mkdir(parents=True)
    settings = {"spatial_dims": 2, "in_channels": "$__import__('os').system('touch ran')", "out_channels": 1}
    config = {"net": {"_target_": "monai.networks.nets.DiffusionModelUNet", **settings}}
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    safetensors.torch.save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    return folder


def unknown_scheduler(folder: Path) -> Path:
    edit(plain(folder) / "scheduler" / "scheduler_config.json", _class_name="MyScheduler")
    edit(folder / "model_index.json", scheduler=["diffusers", "DDPMScheduler"])
    return folder


def other_tensors(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        file = plain(folder) / "unet" / "diffusion_pytorch_model.safetensors"
        tensors = safetensors.torch.load(file.read_bytes())
        change(tensors)
        safetensors.torch.save_file(tensors, file)
        return folder

    return made


def latent(folder: Path) -> Path:
    network = unet(in_channels=2, out_channels=2, sample_size=4)
    scheduler = scheduler_of("DDIMScheduler", clip_sample=False)
    return saved(folder, network, scheduler, "LDMPipeline", vqvae=autoencoder(scaling_factor=1e-3))


def without_autoencoder(folder: Path) -> Path:
    for file in (latent(folder) / "vqvae").iterdir():
        file.unlink()
    (folder / "vqvae").rmdir()
    return folder


def bare_latents(folder: Path) -> Path:
    (without_autoencoder(folder) / "model_index.json").unlink()
    return folder


def untrained_average(folder: Path) -> Path:
    plain(folder)
    (folder / "unet").rename(folder / "unet_ema")
    edit(folder / "unet_ema" / "config.json", decay=0.99, optimization_step=0)
    return folder


BAD: list[tuple[Callable[[Path], Path], list[str]]] = [
    (with_code, ["pipeline", "never run"]),
    (
        bundle_with_code,
        ["in_channels of DiffusionModelUNet", "no code of a bundle is ever run", "write the value"],
    ),
    (unknown_scheduler, ["MyScheduler", "more (docs/models.md)", "from_module"]),
    (other_tensors(lambda t: [t.pop(name) for name in sorted(t)[:2]]), ["lack 2 of", "conv_in.bias"]),
    (
        other_tensors(lambda t: t.update(more=torch.zeros(1))),
        ["hold 1 that it has not ('more'", "two different networks"],
    ),
    (without_autoencoder, ["vqvae", "is not there"]),
    (bare_latents, ["2x4x4", "a model of latents, whose autoencoder"]),
    (latent, ["standard deviation of", "its scale is 0.001", "would give 1"]),
    (untrained_average, ["unet_ema", "0 steps", "take unet_ema/ away"]),
]


@pytest.mark.parametrize(("made", "words"), BAD, ids=[made.__name__ for made, _ in BAD])
def test_a_bad_model_is_refused_in_one_sentence(
    tmp_path: Path, made: Callable[[Path], Path], words: list[str]
) -> None:
    answer = audited(tmp_path, made(tmp_path / "model"))
    said = answer.stderr.strip().splitlines()[-1]
    assert answer.exit_code == 2, answer.output
    assert all(word in answer.stderr for word in words), said
    assert "Traceback" not in answer.stderr and not (tmp_path / "run" / "run.json").exists()
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.parametrize("sampler", ["own:3", "own"])
def test_an_audit_by_the_models_own_sampler(tmp_path: Path, sampler: str) -> None:
    folder = saved(tmp_path / "model", unet(), scheduler_of("DDPMScheduler", num_train_timesteps=4))
    answer = audited(tmp_path, folder, "--sampler", sampler, "--target", "3", "--images", "100")
    assert answer.exit_code == 0, answer.output
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["settings"]["sampler"]["name"] == sampler
    told = json.loads(answer.stdout)
    assert told["q"]["monte_carlo"]["sampler"]["of"] == "DDPMScheduler"
