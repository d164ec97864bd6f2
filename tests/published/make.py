"""What the published code of training codes answers, kept as numbers for the tests.

    python tests/published/make.py openai PATH      a checkout of github.com/openai/guided-diffusion
    python tests/published/make.py improved PATH    of github.com/openai/improved-diffusion
    python tests/published/make.py compvis PATH     of github.com/CompVis/latent-diffusion

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
    fill(network.state_dict())
    return network.eval()


def fill(tensors: dict[str, Tensor]) -> None:
    """The same of tensors, in place."""
    for place, (name, one) in enumerate(sorted(tensors.items())):
        if one.is_floating_point():
            norm = 1.0 if one.ndim == 1 and name.endswith("weight") else 0.0
            one.copy_(norm + 0.05 * drawn(1000 + place, *one.shape))


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


AUTOENCODERS: dict[str, dict[str, Any]] = {
    "kl": {"double_z": True, "z_channels": 4, "attn_resolutions": []},
    "vq": {"double_z": False, "z_channels": 3, "attn_resolutions": [16]},
}
DDCONFIG: dict[str, Any] = {
    "resolution": 32,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "dropout": 0.0,
}
LATENT: dict[str, Any] = {"num_heads": 2, "parameterization": "eps", "image_size": 16, "scale_factor": 0.7}
CODES = 20


@torch.no_grad()
def compvis(source: Path) -> dict[str, np.ndarray]:
    """Of both autoencoders: encoded and decoded images, and latents by DDIM of the U-Net, eta 1, 50 steps."""
    sys.path.insert(0, str(source))
    from ldm.models.diffusion.ddim import DDIMSampler
    from ldm.modules.diffusionmodules.model import Decoder, Encoder
    from ldm.modules.diffusionmodules.openaimodel import UNetModel
    from ldm.modules.diffusionmodules.util import make_beta_schedule

    DDIMSampler.register_buffer = lambda self, name, value: setattr(self, name, value)  # theirs wants CUDA
    out = dict[str, np.ndarray]()
    betas = torch.tensor(make_beta_schedule("linear", 1000, 0.0015, 0.0195), dtype=torch.float32)
    for name, config in AUTOENCODERS.items():
        z, double = config["z_channels"], config["double_z"]
        unet = UNetModel(16, z, 32, z, 1, (2,), channel_mult=(1, 2), num_heads=2)
        stage = nn.ModuleDict(
            {"encoder": Encoder(**DDCONFIG, **config), "decoder": Decoder(**DDCONFIG, **config)}
        )
        stage["quant_conv"] = nn.Conv2d(z * (1 + double), z * (1 + double), 1)
        stage["post_quant_conv"] = nn.Conv2d(z, z, 1)
        if not double:
            stage["quantize"] = nn.ModuleDict({"embedding": nn.Embedding(CODES, z)})
        model = nn.ModuleDict({"model": nn.ModuleDict({"diffusion_model": unet}), "first_stage_model": stage})
        filled(model)
        held = types.SimpleNamespace(
            num_timesteps=1000,
            betas=betas,
            alphas_cumprod=torch.cumprod(1 - betas.double(), 0).float(),
            device=torch.device("cpu"),
            apply_model=lambda x, t, c, unet=unet: unet(x, t),
        )
        held.alphas_cumprod_prev = torch.cat([torch.ones(1), held.alphas_cumprod[:-1]])
        held.sqrt_one_minus_alphas_cumprod = (1 - held.alphas_cumprod).sqrt()
        sampler = DDIMSampler(held)
        sampler.make_schedule(50, ddim_eta=1.0, verbose=False)
        steps, x = list(reversed(sampler.ddim_timesteps)), drawn(1, 2, z, 16, 16)
        for place, step in enumerate(steps):
            import ldm.models.diffusion.ddim as module

            module.noise_like = lambda *_, place=place, z=z: drawn(100 + place, 2, z, 16, 16)
            x, _ = sampler.p_sample_ddim(x, None, torch.full((2,), int(step)), 49 - place)
        images = drawn(5, 2, 3, 32, 32).clamp(-1, 1)
        code = stage["quant_conv"](stage["encoder"](images))
        code = code[:, :z]  # the mean of a posterior; all of it where there is none
        whole = code
        if not double:
            table = stage["quantize"]["embedding"].weight
            flat = code.movedim(1, -1).reshape(-1, z)
            whole = table[torch.cdist(flat, table).argmin(1)].reshape(2, 16, 16, z).movedim(-1, 1)
        out |= {
            f"{name}.names": np.array(sorted(f"{n} {tuple(v.shape)}" for n, v in model.state_dict().items())),
            f"{name}.encoded": code.numpy(),
            f"{name}.decoded": stage["decoder"](stage["post_quant_conv"](whole)).numpy(),
            f"{name}.latents": x.numpy(),
        }
    return out | {"betas": betas.numpy()}


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
    found = {"openai": openai, "improved": improved, "compvis": compvis}[which](source)
    commit = subprocess.run(["git", "-C", source, "rev-parse", "HEAD"], capture_output=True, text=True)
    np.savez_compressed(HERE / f"{which}.npz", commit=commit.stdout.strip() or "unknown", **found)
    numbers = {name: one for name, one in found.items() if one.dtype.kind == "f"}
    print({name: (float(np.abs(one).max()), float(np.abs(one).mean())) for name, one in numbers.items()})


if __name__ == "__main__":
    main()
