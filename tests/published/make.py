"""What the published code of training codes answers, kept as numbers for the tests.

    python tests/published/make.py openai PATH      a checkout of github.com/openai/guided-diffusion
    python tests/published/make.py improved PATH    of github.com/openai/improved-diffusion
    python tests/published/make.py compvis PATH     of github.com/CompVis/latent-diffusion
    python tests/published/make.py medfusion PATH   of github.com/mueller-franzes/medfusion
    python tests/published/make.py edm PATH         of github.com/NVIDIA/physicsnemo at v0.1.0 (Apache-2.0),
                                                    whose networks are those of EDM, by their names

These libraries are no packages that a test could install. Weights, inputs and noise are functions of a seed
(``filled``, ``drawn``), so a test makes the same ones; stored is only what their networks and samplers gave.
"""

from __future__ import annotations

import subprocess
import sys
import types
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

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
LOOKS: dict[str, Any] = {"use_spatial_transformer": True, "transformer_depth": 2, "context_dim": 24}
GUIDED = {"label": 3, "null": CLASSES, "scale": 3.0}
"""Of the one conditioned by cross-attention: CLASSES + 1 embeddings, of which the last stands for none."""


@torch.no_grad()
def compvis(source: Path) -> dict[str, np.ndarray]:
    """Of both autoencoders: encoded and decoded images, and latents by DDIM of the U-Net, eta 1, 50 steps."""
    sys.path.insert(0, str(source))
    from ldm.models.diffusion.ddim import DDIMSampler
    from ldm.modules.diffusionmodules.model import Decoder, Encoder
    from ldm.modules.diffusionmodules.openaimodel import UNetModel
    from ldm.modules.diffusionmodules.util import make_beta_schedule

    listed = types.ModuleType("omegaconf.listconfig")
    listed.ListConfig = type("ListConfig", (list,), {})
    sys.modules["omegaconf.listconfig"] = sys.modules["omegaconf"] = listed

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
        latents = sampled(DDIMSampler, betas, z, lambda x, t, c, unet=unet: unet(x, t))
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
            f"{name}.latents": latents.numpy(),
        }
    unet = UNetModel(16, 3, 32, 3, 1, (2,), channel_mult=(1, 2), num_heads=2, **LOOKS)
    classes = nn.Embedding(CLASSES + 1, LOOKS["context_dim"])
    model = nn.ModuleDict({"model": nn.ModuleDict({"diffusion_model": unet})})
    model["cond_stage_model"] = nn.ModuleDict({"embedding": classes})
    filled(model)
    told = [classes(torch.full((2, 1), GUIDED[key])) for key in ("label", "null")]
    guided = {"unconditional_guidance_scale": GUIDED["scale"], "unconditional_conditioning": told[1]}
    latents = sampled(DDIMSampler, betas, 3, unet, told[0], **guided)
    names = sorted(f"{n} {tuple(v.shape)}" for n, v in model.state_dict().items())
    out |= {"looks.names": np.array(names), "looks.latents": latents.numpy()}
    return out | {"betas": betas.numpy()}


def sampled(kind: Any, betas: Tensor, z: int, model: Any, condition: Any = None, **more: Any) -> Tensor:
    """Latents by their DDIM, eta 1, 50 steps."""
    import ldm.models.diffusion.ddim as module

    held = types.SimpleNamespace(
        num_timesteps=1000,
        betas=betas,
        alphas_cumprod=torch.cumprod(1 - betas.double(), 0).float(),
        device=torch.device("cpu"),
        apply_model=model,
    )
    held.alphas_cumprod_prev = torch.cat([torch.ones(1), held.alphas_cumprod[:-1]])
    held.sqrt_one_minus_alphas_cumprod = (1 - held.alphas_cumprod).sqrt()
    sampler = kind(held)
    sampler.make_schedule(50, ddim_eta=1.0, verbose=False)
    x = drawn(1, 2, z, 16, 16)
    for place, step in enumerate(reversed(sampler.ddim_timesteps)):
        module.noise_like = lambda *_, place=place: drawn(100 + place, 2, z, 16, 16)
        x, _ = sampler.p_sample_ddim(x, condition, torch.full((2,), int(step)), 49 - place, **more)
    return x


MEDFUSION: dict[str, dict[str, Any]] = {
    "pixels": {"clip_x0": True, "do_input_centering": True},
    "start": {"estimator_objective": "x_0", "clip_x0": True, "do_input_centering": True},
    "latents": {"clip_x0": False, "do_input_centering": False, "use_ema": True},
    "variance": {"clip_x0": False, "do_input_centering": True, "estimate_variance": True},
    "plain": {"clip_x0": False, "do_input_centering": True},
}
"""Settings of its DiffusionPipeline by name of the case; "latents" has a VAE and classes."""

MEDFUSION_UNET: dict[str, Any] = {
    "spatial_dims": 2,
    "hid_chs": [32, 64],
    "kernel_sizes": [3, 3],
    "strides": [1, 2],
    "deep_supervision": False,
    "use_attention": "none",
}
MEDFUSION_STEPS = 40


@torch.no_grad()
def medfusion(source: Path) -> dict[str, np.ndarray]:
    """Of each case: its tensors' names and settings, noised images at every timestep, and its own samples."""
    sys.path.insert(0, str(source))
    for name in ("streamlit", "pytorch_msssim", "lpips", "torchio", "pytorch_lightning.utilities.migration"):
        sys.modules[name] = mock.MagicMock()
    lightning = types.ModuleType("pytorch_lightning")
    lightning.LightningModule = type("LightningModule", (nn.Module,), {"save_hyperparameters": _nothing})
    sys.modules |= {
        "pytorch_lightning": lightning,
        "pytorch_lightning.utilities": types.ModuleType("utilities"),
    }
    sys.modules["pytorch_lightning.utilities.cloud_io"] = mock.MagicMock()
    from medical_diffusion.models.embedders import LabelEmbedder, TimeEmbbeding
    from medical_diffusion.models.embedders.latent_embedders import VAE
    from medical_diffusion.models.estimators import UNet
    from medical_diffusion.models.noise_schedulers import GaussianNoiseScheduler
    from medical_diffusion.models.pipelines import DiffusionPipeline

    VAE.load_from_checkpoint = lambda _: VAE(1, 1, emb_channels=2, **SMALL_VAE)
    lightning.LightningModule.device = torch.device("cpu")
    out = dict[str, np.ndarray]()
    for name, settings in MEDFUSION.items():
        latents = name == "latents"
        channels = 2 if latents else 1
        unet = {"in_ch": channels, "out_ch": channels, **MEDFUSION_UNET, "use_res_block": name != "plain"}
        unet |= {"time_embedder": TimeEmbbeding, "time_embedder_kwargs": {"emb_dim": 64}}
        if name == "variance":
            unet["deep_supervision"] = True
        if latents:
            unet |= {
                "cond_embedder": LabelEmbedder,
                "cond_embedder_kwargs": {"emb_dim": 64, "num_classes": 3},
            }
        if settings.get("estimate_variance"):
            unet["estimate_variance"] = True
        pipeline = DiffusionPipeline(
            GaussianNoiseScheduler,
            UNet,
            VAE if latents else None,
            noise_scheduler_kwargs={"timesteps": MEDFUSION_STEPS, "schedule_strategy": "scaled_linear"},
            noise_estimator_kwargs=unet,
            **settings,
        )
        filled(pipeline)
        scheduler = pipeline.noise_scheduler
        buffers = GaussianNoiseScheduler(MEDFUSION_STEPS, schedule_strategy="scaled_linear").state_dict()
        scheduler.load_state_dict(buffers)
        every = torch.arange(MEDFUSION_STEPS)
        clean, noise = drawn(2, MEDFUSION_STEPS, 1, 2, 2), drawn(3, MEDFUSION_STEPS, 1, 2, 2)
        out[f"{name}.noisy"] = scheduler.estimate_x_t(clean, every, noise).numpy()
        told = {"condition": torch.tensor([1, 1]), "guidance_scale": 3.0} if latents else {}
        for steps in (None, 7):
            drawn_so_far = iter(range(1000))
            with mock.patch("torch.randn_like", lambda x, of=drawn_so_far: _of_step(next(of), x)):
                images = pipeline.denoise(drawn(1, 2, channels, 8, 8), steps=steps, **told)
            out[f"{name}.{steps or 'all'}"] = images.numpy()
        if latents:
            images = drawn(5, 2, 1, 16, 16).clamp(-1, 1)
            h = pipeline.latent_embedder.inc(images)
            for encoder in pipeline.latent_embedder.encoders:
                h = encoder(h)
            out[f"{name}.encoded"] = pipeline.latent_embedder.out_enc(h)[:, :2].numpy()
        names = sorted(f"{n} {tuple(v.shape)}" for n, v in pipeline.state_dict().items())
        out[f"{name}.names"] = np.array(names)
        out["betas"] = scheduler.betas.numpy()
    return out


SMALL_VAE: dict[str, Any] = {
    "hid_chs": [16, 32],
    "kernel_sizes": [3, 3],
    "strides": [1, 2],
    "perceiver": None,
    "deep_supervision": True,
}


EDM: dict[str, dict[str, Any]] = {
    "ddpmpp": {"model_type": "SongUNet", "model_channels": 32, "label_dim": 3, "augment_dim": 9},
    "ncsnpp": {
        "model_type": "SongUNet",
        "model_channels": 32,
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "channel_mult_noise": 2,
        "resample_filter": [1, 3, 3, 1],
    },
    "adm": {"model_type": "DhariwalUNet", "model_channels": 64, "label_dim": 3},
}
EDM_SHAPE: dict[str, Any] = {
    "img_resolution": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
}
EDM_STEPS = 6


@torch.no_grad()
def edm(source: Path) -> dict[str, np.ndarray]:
    """Of each network: its tensors' names, its answer, and images by algorithm 1 of Karras et al. 2022."""
    for name in ("modulus", "modulus.models", "modulus.models.diffusion"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(source / name.replace(".", "/"))]
    meta = types.ModuleType("modulus.models.meta")
    meta.ModelMetaData = type("ModelMetaData", (), {})
    module = types.ModuleType("modulus.models.module")
    module.Module = type(
        "Module", (nn.Module,), {"__init__": lambda self, meta=None: nn.Module.__init__(self)}
    )
    sys.modules |= {"modulus.models.meta": meta, "modulus.models.module": module}
    inner = sys.modules["modulus.models.diffusion"]
    with mock.patch("typing.Dict", dict):  # it writes Dict[str], which newer versions of typing refuse
        for name in ("utils", "layers"):
            vars(inner).update(vars(import_module(f"modulus.models.diffusion.{name}")))
        kinds = {
            "SongUNet": import_module("modulus.models.diffusion.song_unet").SongUNet,
            "DhariwalUNet": import_module("modulus.models.diffusion.dhariwa_unet").DhariwalUNet,
        }
    out = dict[str, np.ndarray]()
    for name, settings in EDM.items():
        given = EDM_SHAPE | settings
        kind = kinds[given.pop("model_type")]
        network = filled(kind(in_channels=2, out_channels=2, **given))
        for key, one in network.state_dict().items():
            if key.endswith("resample_filter"):  # no weights, though ``filled`` took them for some
                taps = torch.tensor(settings.get("resample_filter", [1.0, 1.0]), dtype=torch.float32)
                one.copy_(taps.outer(taps)[None, None] / taps.sum() ** 2)
        labels = torch.tensor([[0.0, 1.0, 0.0]] * 2) if "label_dim" in settings else None
        x, time = drawn(1, 2, 2, 16, 16), torch.tensor([0.3, -1.2])
        out[f"{name}.output"] = network(x, time, labels).numpy()
        out[f"{name}.images"] = algorithm_1(network, x, labels).numpy()
        kept = {key: one for key, one in network.state_dict().items() if key != "map_noise.freqs"}
        if settings.get("embedding_type") == "fourier":
            kept["map_noise.freqs"] = network.map_noise.freqs
        out[f"{name}.names"] = np.array(sorted(f"model.{n} {tuple(v.shape)}" for n, v in kept.items()))
    return out


def algorithm_1(network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
    """Karras et al. 2022, algorithm 1 with S_churn = 0, in float64, rho = 7, sigma from 80 to 0.002."""

    def denoised(x: Tensor, sigma: Tensor) -> Tensor:
        root = (sigma**2 + 0.25).sqrt()
        inner = network((x / root).float(), (sigma.log() / 4).float().expand(len(x)), labels).double()
        return x * 0.25 / root**2 + inner * sigma * 0.5 / root

    place = torch.arange(EDM_STEPS, dtype=torch.float64) / (EDM_STEPS - 1)
    times = (80 ** (1 / 7) + place * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    times = torch.cat([times, torch.zeros(1, dtype=torch.float64)])
    x = noise.double() * times[0]
    for t, s in pairwise(times):
        slope = (x - denoised(x, t)) / t
        following = x + (s - t) * slope
        if s > 0:
            following = x + (s - t) * (slope + (following - denoised(following, s)) / s) / 2
        x = following
    return x.float()


def _nothing(*_: object, **__: object) -> None: ...


def _of_step(place: int, x: Tensor) -> Tensor:
    """The noise of a step: its pipeline draws two at each, of which the second is used."""
    return drawn(100 + place // 2, *x.shape)


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
    makers = {"openai": openai, "improved": improved, "compvis": compvis, "medfusion": medfusion}
    makers["edm"] = edm
    found = makers[which](source)
    commit = subprocess.run(["git", "-C", source, "rev-parse", "HEAD"], capture_output=True, text=True)
    np.savez_compressed(HERE / f"{which}.npz", commit=commit.stdout.strip() or "unknown", **found)
    numbers = {name: one for name, one in found.items() if one.dtype.kind == "f"}
    print({name: (float(np.abs(one).max()), float(np.abs(one).mean())) for name, one in numbers.items()})


if __name__ == "__main__":
    main()
