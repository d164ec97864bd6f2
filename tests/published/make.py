"""What the published code of training codes answers, kept as numbers for the tests.

    python tests/published/make.py openai PATH      a checkout of github.com/openai/guided-diffusion
    python tests/published/make.py improved PATH    of github.com/openai/improved-diffusion

These libraries are no packages that a test could install. Weights, inputs and noise are functions of a seed
(``filled``, ``drawn``), so a test makes the same ones; stored is only what their networks and samplers gave.
"""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HERE = Path(__file__).parent


def drawn(seed: int, *shape: int) -> Tensor:
    """Normal numbers that torch draws alike on every machine."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(network: nn.Module) -> nn.Module:
    """The network with weights that follow from their order by name; none is 0, as fresh ones are."""
    for place, (name, one) in enumerate(sorted(network.state_dict().items())):
        if one.is_floating_point():
            norm = 1.0 if one.ndim == 1 and name.endswith("weight") else 0.0
            one.copy_(norm + 0.05 * drawn(1000 + place, *one.shape))
    return network.eval()


OPENAI: dict[str, dict[str, Any]] = {
    "plain": {"num_heads": 2, "num_heads_upsample": 4, "use_scale_shift_norm": False},
    "learned": {"num_head_channels": 16, "learn_sigma": True, "resblock_updown": True},
    "classes": {"num_heads": 2, "use_new_attention_order": True, "class_cond": True},
    "cosine": {"num_heads": 2, "noise_schedule": "cosine", "diffusion_steps": 40, "rescale_timesteps": True},
    "start": {"num_heads": 2, "predict_xstart": True, "sigma_small": True, "diffusion_steps": 30},
    "ddim": {"num_heads": 2, "timestep_respacing": "ddim10"},
}
"""Flags by name of the case; of all of them: SHAPE."""

SHAPE: dict[str, Any] = {
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": "8",
    "diffusion_steps": 50,
    "timestep_respacing": "",
    "use_scale_shift_norm": True,
}
CLASSES = 5


def openai(source: Path) -> dict[str, np.ndarray]:
    """Of each case: the network's answer, and the images of its own sampler, from kept noise."""
    sys.path.insert(0, str(source))
    sys.modules["mpi4py"] = types.ModuleType("mpi4py")  # which only its trainer calls
    from guided_diffusion import script_util

    script_util.NUM_CLASSES = CLASSES
    out = dict[str, np.ndarray]()
    for name, flags in OPENAI.items():
        every = script_util.model_and_diffusion_defaults() | SHAPE | flags
        small = every.pop("sigma_small", False)
        network, diffusion = script_util.create_model_and_diffusion(**every)
        if small:
            diffusion = script_util.create_gaussian_diffusion(
                steps=every["diffusion_steps"], sigma_small=True, predict_xstart=every["predict_xstart"]
            )
        out |= {f"{name}.{key}": one for key, one in answers(filled(network), diffusion, every).items()}
    return out


def improved(source: Path) -> dict[str, np.ndarray]:
    """The same of the older library: one case is enough, for its network is the newer one's by default."""
    sys.path.insert(0, str(source))
    sys.modules["mpi4py"] = types.ModuleType("mpi4py")
    from improved_diffusion import script_util, unet

    network = unet.UNetModel(3, 32, 3, 1, (2,), channel_mult=(1, 2), num_heads=2, use_scale_shift_norm=True)
    diffusion = script_util.create_gaussian_diffusion(steps=50, rescale_timesteps=True)
    return {f"improved.{k}": one for k, one in answers(filled(network), diffusion, {}).items()}


@torch.no_grad()
def answers(network: nn.Module, diffusion: Any, flags: dict[str, Any]) -> dict[str, np.ndarray]:
    """The network at two timesteps, noised images at every one, and the sampler's images."""
    told = {"y": torch.tensor([1, 4])} if flags.get("class_cond") else {}
    x, steps = drawn(1, 2, 3, 16, 16), diffusion.num_timesteps
    wrapped = diffusion._wrap_model(network)
    k = torch.tensor([0, steps - 1])
    every = torch.arange(steps)
    noisy = diffusion.q_sample(drawn(2, steps, 1, 2, 2), every, noise=drawn(3, steps, 1, 2, 2))
    image, ddim = x, "ddim" in str(flags.get("timestep_respacing", ""))
    for place, step in enumerate(reversed(range(steps))):
        t = torch.full((2,), step)
        if ddim:
            image = diffusion.ddim_sample(network, image, t, model_kwargs=told)["sample"]
            continue
        found = diffusion.p_mean_variance(network, image, t, clip_denoised=True, model_kwargs=told)
        noise = drawn(100 + place, *x.shape) if step else torch.zeros_like(x)
        image = found["mean"] + (0.5 * found["log_variance"]).exp() * noise
    return {
        "output": wrapped(x, k, **told).numpy(),
        "noisy": noisy.numpy(),
        "images": image.numpy(),
    }


def main() -> None:
    which, source = sys.argv[1], Path(sys.argv[2])
    found = {"openai": openai, "improved": improved}[which](source)
    commit = subprocess.run(["git", "-C", source, "rev-parse", "HEAD"], capture_output=True, text=True)
    np.savez_compressed(HERE / f"{which}.npz", commit=commit.stdout.strip() or "unknown", **found)
    print({name: (float(np.abs(one).max()), float(np.abs(one).mean())) for name, one in found.items()})


if __name__ == "__main__":
    main()
