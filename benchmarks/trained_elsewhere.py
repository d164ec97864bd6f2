"""Networks of MONAI, denoising-diffusion-pytorch and diffusers, trained until they repeat images, audited.

Compares two audits of one network, trained through its library's own noise and saved as that library saves
it: against the images that it was trained on, and against as many others, of which it is the clean twin. The
first must end in "reproduces", the second must not.

    python benchmarks/trained_elsewhere.py [--quick] [--images N] [--json] [--out FILE] [--library NAME ...]
        [--keep DIR]

--quick trains on 8 images in place of 50; tests/test_trained_elsewhere.py runs it. --images N trains on N.
With --keep what was interrupted goes on: a trained model is not trained again, and an audit continues.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from record import add_output, record, tell
from torch import Tensor, nn

from latentprint import resolve, run_audit
from latentprint.adapters.convert import convert
from latentprint.data import load

FULL, QUICK = (50, 900, 200), (8, 260, 60)
"""(images, optimiser steps, samples of each audit); of 50 images at least 149 samples can say "not found"."""

TIMESTEPS = 10
NOISE = {"num_train_timesteps": TIMESTEPS, "beta_start": 0.1, "beta_end": 0.7}
SETTINGS: dict[str, Any] = {
    "identity": {"epochs": 4, "draws": 256},
    "sampler": {"name": "own"},
    "search": {"levels": 2, "tries": 2},
    "baseline": {"images": 0},
    "likelihood": {"images": 0},
    "membership": {"images": 0},
}


def made(kind: Callable[..., Any], **settings: Any) -> Any:
    """A network whose weights leave torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return kind(**settings)


def trained(network: nn.Module, noisy: Any, call: Any, images: Tensor, steps: int) -> None:
    """Adam on the squared error of the noise; ``noisy(x, e, k)`` is the library's own forward process."""
    rng = torch.Generator().manual_seed(0)
    batch = torch.cat([images] * -(-24 // len(images)))
    optimiser = torch.optim.Adam(network.parameters(), betas=(0.9, 0.99))
    network.train()
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 6e-3 * min(1.0, (step + 1) / 20) * (1 - step / steps)
        e = torch.empty_like(batch).normal_(generator=rng)
        k = torch.empty(len(batch)).uniform_(0, TIMESTEPS, generator=rng).long()
        loss = (call(noisy(batch, e, k), k) - e).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval()


def by_monai(folder: Path, images: Tensor, steps: int) -> None:
    """A bundle's folder: safetensors beside the JSON that names its classes."""
    from monai.networks.nets import DiffusionModelUNet
    from monai.networks.schedulers import DDPMScheduler

    settings: dict[str, Any] = {
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 1,
        "channels": [16, 32],
        "attention_levels": [False, False],
        "num_res_blocks": 1,
        "num_head_channels": 8,
        "norm_num_groups": 8,
    }
    network, scheduler = made(DiffusionModelUNet, **settings), DDPMScheduler(**NOISE)
    trained(network, scheduler.add_noise, lambda x, k: network(x, timesteps=k), images, steps)
    folder.mkdir()
    config = {
        "network": {"_target_": "monai.networks.nets.DiffusionModelUNet", **settings},
        "scheduler": {"_target_": "monai.networks.schedulers.DDPMScheduler", **NOISE},
        "transform": {"_target_": "ScaleIntensityRanged", "a_min": 0, "a_max": 16, "b_min": -1, "b_max": 1},
    }
    (folder / "inference.json").write_text(json.dumps(config))
    safetensors.torch.save_file(network.state_dict(), folder / "model.safetensors")


def by_monai_volumes(folder: Path, images: Tensor, steps: int) -> None:
    """A latent model of volumes in MONAI's form: AutoencoderKL and a network of three axes in its space."""
    from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
    from monai.networks.schedulers import DDPMScheduler

    common: dict[str, Any] = {
        "spatial_dims": 3,
        "attention_levels": [False, False],
        "num_res_blocks": 1,
        "norm_num_groups": 8,
    }
    outer = common | {"in_channels": 1, "out_channels": 1, "channels": [16, 16], "latent_channels": 2}
    inner = common | {"in_channels": 2, "out_channels": 2, "channels": [16, 32], "num_head_channels": 8}
    coder, network = made(AutoencoderKL, **outer), made(DiffusionModelUNet, **inner)
    reconstructed(coder, images, 3 * steps)
    with torch.no_grad():
        latents = coder.encode(images)[0]
    scale = float(1 / latents.std())
    scheduler = DDPMScheduler(**NOISE)
    trained(network, scheduler.add_noise, lambda x, k: network(x, timesteps=k), scale * latents, 3 * steps)
    folder.mkdir()
    config = {
        "autoencoder": {"_target_": "monai.networks.nets.AutoencoderKL", **outer},
        "network": {"_target_": "monai.networks.nets.DiffusionModelUNet", **inner},
        "scheduler": {"_target_": "monai.networks.schedulers.DDPMScheduler", **NOISE},
        "scale_factor": scale,
        "transform": {"_target_": "ScaleIntensityRanged", "a_min": 0, "a_max": 255, "b_min": -1, "b_max": 1},
    }
    (folder / "inference.json").write_text(json.dumps(config))
    safetensors.torch.save_file(coder.state_dict(), folder / "autoencoder.safetensors")
    safetensors.torch.save_file(network.state_dict(), folder / "network.safetensors")


def reconstructed(coder: Any, images: Tensor, steps: int) -> None:
    """Adam on the squared error of what an autoencoder gives back, and a little of its divergence."""
    optimiser = torch.optim.Adam(coder.parameters())
    rng = torch.Generator().manual_seed(1)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 4e-3 * (1 - step / steps)
        mean, deviation = coder.encode(images)
        noise = torch.empty_like(mean).normal_(generator=rng)
        back = coder.decode(mean + deviation * noise)
        divergence = (mean.square() + deviation.square() - 1 - 2 * deviation.log()).mean()
        loss = (back - images).square().mean() + 1e-4 * divergence
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    coder.eval()


def by_lucidrains(folder: Path, images: Tensor, steps: int) -> None:
    """``model-N.pt`` of its trainer, converted; the weights outside its EMA are zeros."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    attention = {"full_attn": (False, False), "attn_heads": 1, "attn_dim_head": 8}
    network = made(Unet, dim=16, dim_mults=(1, 2), channels=1, **attention)
    diffusion = GaussianDiffusion(
        network, image_size=8, timesteps=TIMESTEPS, objective="pred_noise", beta_schedule="sigmoid"
    )
    trained(network, lambda x, e, k: diffusion.q_sample(x, k, e), network, images, steps)
    state = diffusion.state_dict()
    average = {f"ema_model.{name}": one for name, one in state.items()} | {"step": torch.tensor(steps)}
    plain = {name: 0 * one if name.startswith("model.") else one for name, one in state.items()}
    checkpoint = folder.with_suffix(".pt")
    torch.save({"step": steps, "model": plain, "ema": average}, checkpoint)
    convert(checkpoint, folder, trusted=True)


def by_diffusers(folder: Path, images: Tensor, steps: int) -> None:
    """The folder of a DDPMPipeline."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    network = made(
        UNet2DModel,
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        add_attention=False,
    )
    scheduler = DDPMScheduler(**NOISE)
    trained(network, scheduler.add_noise, lambda x, k: network(x, k).sample, images, steps)
    DDPMPipeline(network, scheduler).save_pretrained(folder)


LIBRARIES: dict[str, Callable[[Path, Tensor, int], None]] = {
    "monai": by_monai,
    "monai-volumes": by_monai_volumes,
    "denoising-diffusion-pytorch": by_lucidrains,
    "diffusers": by_diffusers,
}


SOURCES = {"monai-volumes": "phantom3d:400:8"}
"""Where the images come from; digits where nothing else is named."""


def compare(library: str, count: int, steps: int, samples: int, place: Path) -> dict[str, Any]:
    """What the audit says of the network against its own images, and against ``count`` others."""
    images = load(SOURCES.get(library, "digits"), seed=0, images=2 * count, heldout=0.2)
    stored = ((images.train.pixels[:, 0] + 1) * 127.5).round().astype(np.uint8)
    held = ((images.heldout.pixels[:, 0] + 1) * 127.5).round().astype(np.uint8)
    parts = {"own": stored[:count], "twin": stored[count:]}
    began = time.monotonic()
    own = torch.from_numpy(parts["own"].astype(np.float32) / 127.5 - 1)[:, None]
    took = place / "training.json"
    if not took.exists():
        shutil.rmtree(place / "model", ignore_errors=True)
        LIBRARIES[library](place / "model", own, steps)
        took.write_text(json.dumps({"training_seconds": time.monotonic() - began}))
    out: dict[str, Any] = json.loads(took.read_text())
    for name, part in parts.items():
        began = time.monotonic()
        source = place / f"{name}.npz"
        np.savez(source, train_images=part, test_images=held[:150])
        asked = {"data": {"source": str(source), "images": None}, "samples": {"count": samples}}
        settings = resolve(SETTINGS | asked, preset="demo")
        found: Any = run_audit(settings, place / f"run-{name}", model=place / "model", target=3)
        out[name] = {
            "verdict": found.verdict.state,
            "because": list(found.verdict.reasons),
            "seconds": time.monotonic() - began,
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="memorisers of three libraries and their twins, audited")
    parser.add_argument("--quick", action="store_true", help="8 images in place of 50")
    parser.add_argument("--images", type=int, metavar="N", help="N images in place of 50")
    parser.add_argument("--library", action="append", choices=LIBRARIES, help="all, where none is named")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where models and runs stay, to go on from")
    add_output(parser)
    arguments = parser.parse_args()
    count, steps, samples = QUICK if arguments.quick else FULL
    count = arguments.images or count
    result: dict[str, Any] = {"images": count, "steps": steps, "samples": samples}
    for library in arguments.library or LIBRARIES:
        print(f"{library}: {steps} steps on {count} images", file=sys.stderr)
        with tempfile.TemporaryDirectory() as passing:
            place = (arguments.keep or Path(passing)) / library
            place.mkdir(parents=True, exist_ok=True)
            result[library] = compare(library, count, steps, samples, place)
    tell(result | record(), arguments)


if __name__ == "__main__":
    main()
