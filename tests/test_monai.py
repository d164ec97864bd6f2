"""Models of MONAI against MONAI's own schedulers and inferers: noise, steps and images; code is never run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from test_adapters import made, seeded
from test_own_sampler import ours
from torch import Tensor

from latentprint.adapters import Asked, ModelError, Opened, open_model, recognise
from latentprint.adapters.convert import convert
from latentprint.adapters.latent import require_spread
from latentprint.adapters.monai import MonaiCodec

pytest.importorskip("monai.networks.schedulers")
nets = pytest.importorskip("monai.networks.nets")
from monai.networks import schedulers as library  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

UNET = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 1,
    "channels": [8, 16],
    "attention_levels": [False, True],
    "num_res_blocks": 1,
    "num_head_channels": 8,
    "norm_num_groups": 8,
}
KL = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 1,
    "channels": [8, 8],
    "attention_levels": [False, False],
    "num_res_blocks": 1,
    "latent_channels": 2,
    "norm_num_groups": 8,
}
PIXELS = np.linspace(-1, 1, 6 * 64, dtype=np.float32).reshape(6, 1, 8, 8)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (6, 1, 16, 16)).astype(np.float32)


def network(name: str, settings: Mapping[str, Any]) -> Any:
    """A network of MONAI with random weights, its last (zero) layer filled too."""
    net = made(getattr(nets, name), **settings)
    with torch.no_grad():
        for i, one in enumerate(net.parameters()):
            if not bool(one.any()):
                one.copy_(0.05 * seeded(i, *one.shape))
    return net


def folder_of(
    folder: Path,
    networks: Mapping[str, tuple[Any, Mapping[str, Any]]],
    scheduler: Mapping[str, Any],
    **more: Any,
) -> Path:
    """Safetensors and a JSON that names the classes, as FLIP and bundles write it."""
    config: dict[str, Any] = {
        f"{name}_def": {"_target_": f"monai.networks.nets.{type(net).__name__}", **settings}
        for name, (net, settings) in networks.items()
    }
    config |= {"noise_scheduler": dict(scheduler), **more}
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "models").mkdir(exist_ok=True)
    for name, (net, _) in networks.items():
        safetensors.torch.save_file(net.state_dict(), folder / "models" / f"{name}.safetensors")
    return folder


def scheduler(name: str, **settings: Any) -> dict[str, Any]:
    return {"_target_": f"monai.networks.schedulers.{name}", **settings}


def opened_of(folder: Path, images: Any = PIXELS, **more: Any) -> Opened:
    return open_model(folder, asked=Asked(images=lambda: images, **({"unit": False} | more)))


def theirs(net: Any, made_scheduler: Any, start: Tensor, flow: bool) -> tuple[Tensor, list[Tensor]]:
    """MONAI's loop, as DiffusionInferer.sample writes it."""
    x, generator, noises = start, torch.Generator().manual_seed(11), list[Tensor]()
    every = [int(t) for t in made_scheduler.timesteps]
    with torch.no_grad():
        for t, below in zip(every, [*every[1:], 0], strict=True):
            out = net(x, timesteps=torch.full((len(x),), float(t)))
            before = generator.get_state()
            if flow:
                x, _ = made_scheduler.step(out, t, x, below)
            elif "generator" in made_scheduler.step.__code__.co_varnames:
                x, _ = made_scheduler.step(out, t, x, generator=generator)
            else:
                x, _ = made_scheduler.step(out, t, x)
            fresh = torch.Generator()
            fresh.set_state(before)
            noises.append(torch.randn(x.shape, generator=fresh))
    return x, noises


PIXELS_BY: list[tuple[str, dict[str, Any], int]] = [
    ("DDPMScheduler", {"num_train_timesteps": 20, "beta_start": 0.01, "beta_end": 0.3}, 20),
    (
        "DDPMScheduler",
        {"num_train_timesteps": 20, "schedule": "cosine", "prediction_type": "v_prediction"},
        20,
    ),
    (
        "DDPMScheduler",
        {
            "num_train_timesteps": 20,
            "schedule": "scaled_linear_beta",
            "beta_start": 0.01,
            "beta_end": 0.1,
            "prediction_type": "sample",
        },
        20,
    ),
    (
        "DDPMScheduler",
        {"num_train_timesteps": 20, "schedule": "sigmoid_beta", "variance_type": "fixed_large"},
        20,
    ),
    ("DDIMScheduler", {"num_train_timesteps": 20, "beta_start": 0.01, "beta_end": 0.3}, 20),
    ("DDIMScheduler", {"num_train_timesteps": 30, "beta_end": 0.2, "clip_sample": False}, 30),
    ("DDIMScheduler", {"num_train_timesteps": 30, "beta_end": 0.2, "prediction_type": "v_prediction"}, 30),
    ("DDIMScheduler", {"num_train_timesteps": 30, "beta_end": 0.2, "prediction_type": "sample"}, 30),
    ("RFlowScheduler", {"num_train_timesteps": 1000}, 30),
    (
        "RFlowScheduler",
        {"use_timestep_transform": True, "base_img_size_numel": 16, "spatial_dim": 2},
        10,
    ),
]


@pytest.mark.parametrize(("name", "settings", "steps"), PIXELS_BY)
def test_a_model_of_pixels_has_the_noise_and_the_samples_of_its_scheduler(
    tmp_path: Path, name: str, settings: dict[str, Any], steps: int
) -> None:
    net = network("DiffusionModelUNet", UNET)
    folder = folder_of(tmp_path, {"network": (net, UNET)}, scheduler(name, **settings))
    assert recognise(folder) == "monai"
    opened = opened_of(folder, steps=steps)
    library_scheduler, flow = getattr(library, name)(**settings), name == "RFlowScheduler"
    train = library_scheduler.num_train_timesteps
    k = torch.arange(int(flow), train)
    x, e = seeded(0, len(k), 1, 2, 2), seeded(1, len(k), 1, 2, 2)
    schedule = opened.denoiser.schedule
    t = k.double() / train if flow else (k.double() + 1) / train
    mixed = schedule.alpha(t).reshape(-1, 1, 1, 1) * x + schedule.sigma(t).reshape(-1, 1, 1, 1) * e
    assert torch.allclose(mixed.float(), library_scheduler.add_noise(x, e, k), atol=5e-6)

    library_scheduler.set_timesteps(steps, **({"input_img_size_numel": 64} if flow else {}))
    start = seeded(7, 3, 1, 8, 8)
    expected, noises = theirs(net, library_scheduler, start, flow)
    found = ours(opened, start, noises)
    if settings.get("clip_sample", not flow):
        found, expected = found.clamp(-1, 1), expected.clamp(-1, 1)
    assert float((found - expected).abs().max()) < 1e-4 * max(1.0, float(expected.abs().max()))

    fewer = opened_of(folder, most=5).own
    assert fewer is not None and fewer.pipeline_steps == (30 if flow else train)
    assert len(fewer.sampler.grid(fewer.denoiser.schedule)) == 5 and fewer.exact == flow


def test_a_ddim_that_stays_at_the_first_timestep_is_nearest(tmp_path: Path) -> None:
    """Its last step goes from abar_0 to abar_0, which leaves x; ours gives the image."""
    settings = {"num_train_timesteps": 20, "beta_start": 0.05, "beta_end": 0.2, "set_alpha_to_one": False}
    net = network("DiffusionModelUNet", UNET)
    folder = folder_of(tmp_path, {"network": (net, UNET)}, scheduler("DDIMScheduler", **settings))
    own = opened_of(folder, steps=20).own
    assert library.DDIMScheduler(**settings).final_alpha_cumprod < 1
    assert own is not None and not own.exact and own.sampler.of == "nearest to DDIMScheduler"


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_a_latent_model_has_the_inferers_latents(tmp_path: Path, unit: bool, scale: float | None) -> None:
    """LatentDiffusionInferer: latent = scale encode(image), image = decode(latent / scale)."""
    coder = network("AutoencoderKL", KL)
    settings = UNET | {"in_channels": 2, "out_channels": 2}
    more: dict[str, Any] = {} if scale is None else {"scale_factor": scale}
    low = {True: 0.0, False: -1.0}[unit]
    more |= {
        "transforms": [
            {"_target_": "ScaleIntensityRanged", "a_min": 0, "a_max": 255, "b_min": low, "b_max": 1}
        ]
    }
    parts = {"diffusion": (network("DiffusionModelUNet", settings), settings), "autoencoder": (coder, KL)}
    folder = folder_of(tmp_path, parts, scheduler("DDPMScheduler", num_train_timesteps=20), **more)
    images = torch.from_numpy(IMAGES)
    given = (images + 1) / 2 if unit else images
    with torch.no_grad():
        mean, _ = coder.encode(given)
    with torch.no_grad():
        for one in (coder.quant_conv_mu.conv.weight, coder.quant_conv_mu.conv.bias):
            one.mul_(1.0 / (float(mean.std()) * (scale or 1.0)))
        mean, _ = coder.encode(given)
    safetensors.torch.save_file(coder.state_dict(), folder / "models" / "autoencoder.safetensors")
    opened = opened_of(folder, IMAGES, unit=None)
    assert (opened.kind, opened.shape, opened.image_shape) == ("monai latent", (2, 8, 8), (1, 16, 16))
    factor = 1 / float(mean.std()) if scale is None else scale
    assert isinstance(opened.codec, MonaiCodec) and opened.codec.scale == pytest.approx(factor, rel=1e-5)
    with torch.no_grad():
        assert torch.allclose(opened.codec.encode(images), factor * mean, atol=1e-5)
        back = coder.decode_stage_2_outputs(mean)
        assert torch.allclose(opened.codec.decode(factor * mean), back * 2 - 1 if unit else back, atol=1e-5)
    words = " ".join(opened.notes)
    assert ("[0, 1]" if unit else "[-1, 1]") in words
    assert ("measured on 6 training images" if scale is None else "as the folder states") in words


def test_a_scale_that_cannot_be_right_is_refused(tmp_path: Path) -> None:
    settings = UNET | {"in_channels": 2, "out_channels": 2}
    parts = {
        "d": (network("DiffusionModelUNet", settings), settings),
        "a": (network("AutoencoderKL", KL), KL),
    }
    folder = folder_of(tmp_path, parts, scheduler("DDPMScheduler"), scale_factor=1e-3)
    with pytest.raises(ModelError, match=r"standard deviation of .*its scale is 0.001; .* would give 1"):
        require_spread(opened_of(folder, IMAGES).codec, torch.from_numpy(IMAGES))


def test_the_scale_that_maisi_keeps_beside_its_weights_is_taken(tmp_path: Path) -> None:
    """Its checkpoints are a dictionary of unet_state_dict and scale_factor."""
    settings = UNET | {"in_channels": 2, "out_channels": 2}
    parts = {
        "d": (network("DiffusionModelUNet", settings), settings),
        "a": (network("AutoencoderKL", KL), KL),
    }
    folder = folder_of(tmp_path / "folder", parts, scheduler("DDPMScheduler"))
    checkpoint = {
        "unet_state_dict": parts["d"][0].state_dict(),
        "scale_factor": torch.tensor(0.75),
        "epoch": 3,
    }
    torch.save(checkpoint, tmp_path / "diff_unet.pt")
    kept = folder / "models" / "d.safetensors"
    kept.unlink()
    said = convert(tmp_path / "diff_unet.pt", kept, trusted=True).said
    assert "unet_state_dict" in said[0] and "kept beside them: scale_factor 0.75" in said
    opened = opened_of(folder, IMAGES)
    assert opened.codec.scale == 0.75 and any("as the folder states" in note for note in opened.notes)
    (folder / "scale.json").write_text('{"scale_factor": 0.5}')
    with pytest.raises(ModelError, match=r"scale_factor '0.5' and 'd.safetensors' says 0.75"):
        opened_of(folder, IMAGES)


VQ = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 1,
    "channels": [8, 8],
    "num_res_layers": 1,
    "num_res_channels": [8, 8],
    "downsample_parameters": [[2, 4, 1, 1], [2, 4, 1, 1]],
    "upsample_parameters": [[2, 4, 1, 1, 0], [2, 4, 1, 1, 0]],
    "num_embeddings": 16,
    "embedding_dim": 2,
}


def test_a_vector_quantised_model_has_the_inferers_latents(tmp_path: Path) -> None:
    coder = network("VQVAE", VQ)
    settings = UNET | {"in_channels": 2, "out_channels": 2}
    parts = {"d": (network("DiffusionModelUNet", settings), settings), "a": (coder, VQ)}
    opened = opened_of(folder_of(tmp_path, parts, scheduler("DDPMScheduler")), IMAGES)
    images = torch.from_numpy(IMAGES)
    assert isinstance(opened.codec, MonaiCodec)
    with torch.no_grad():
        latents = coder.encode_stage_2_inputs(images)
        assert torch.allclose(opened.codec.encode(images), opened.codec.scale * latents, atol=1e-5)
        back = opened.codec.decode(opened.codec.scale * latents)
        assert torch.allclose(back, coder.decode_stage_2_outputs(latents), atol=1e-5)


def test_a_class_conditional_model_is_asked_for_its_class(tmp_path: Path) -> None:
    settings = UNET | {"num_class_embeds": 3}
    net = network("DiffusionModelUNet", settings)
    folder = folder_of(tmp_path, {"n": (net, settings)}, scheduler("DDPMScheduler", prediction_type="sample"))
    with pytest.raises(ModelError, match="from 0 to 2"):
        opened_of(folder)
    x = 0.1 * seeded(0, 2, 1, 8, 8)
    opened = opened_of(folder, label=2)
    with torch.no_grad():
        out = net(x, timesteps=torch.full((2,), 499.0), class_labels=torch.tensor([2, 2]))
        assert torch.allclose(opened.denoiser(x, torch.tensor(0.5)), out.clamp(-1, 1), atol=1e-6)


def test_yaml_references_and_old_names(tmp_path: Path) -> None:
    """MONAI Generative's target, argument and tensor names; ``@`` is followed to a literal."""
    net = network("DiffusionModelUNet", UNET)
    (tmp_path / "bundle.yaml").write_text(
        "image_channels: 1\n"
        "network:\n  _target_: generative.networks.nets.DiffusionModelUNet\n  spatial_dims: 2\n"
        "  in_channels: '@image_channels'\n  out_channels: '@image_channels'\n  num_channels: [8, 16]\n"
        "  attention_levels: [false, true]\n  num_res_blocks: 1\n  num_head_channels: 8\n  "
        "norm_num_groups: 8\n"
        "noise:\n  _target_: DDPMScheduler\n"
        "trainer:\n  _target_: some.Trainer\n  code: $__import__('os').system('touch /tmp/never')\n"
    )
    old = dict[str, Tensor]()
    for name, value in net.state_dict().items():
        was = (
            name.replace("postconv", "conv")
            .replace(".attn.out_proj.", ".proj_attn.")
            .replace(".attn.to_", ".to_")
        )
        old[was] = value
    assert set(old) != set(net.state_dict())
    safetensors.torch.save_file(old, tmp_path / "weights.safetensors")
    x, t = seeded(0, 2, 1, 8, 8), torch.tensor(0.5)
    folder = folder_of(tmp_path / "new", {"n": (net, UNET)}, scheduler("DDPMScheduler"))
    assert torch.allclose(opened_of(tmp_path).denoiser(x, t), opened_of(folder).denoiser(x, t), atol=1e-6)
    again = made(nets.DiffusionModelUNet, **UNET)
    again.load_old_state_dict(dict(old))  # the library's own reading of the old names
    assert all(torch.equal(one, net.state_dict()[name]) for name, one in again.state_dict().items())


def broken(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return config | {"network_def": config["network_def"] | changes}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: broken(c, in_channels="$1"), "in_channels of DiffusionModelUNet of inference.json"),
        (lambda c: broken(c, channels="%other.json"), "never|ever run"),
        (lambda c: broken(c, in_channels="@nowhere"), "which is not there"),
        (lambda c: broken(c, in_channels="@a") | {"a": "@a"}, "refers to itself"),
        (lambda c: broken(c, norm_num_groups=5), "do not fit together"),
        (lambda c: broken(c, favourite=5), "favourite"),
        (lambda c: broken(c, spatial_dims=3), "safetensors files hold the weights"),
        (lambda c: broken(c, channels=[8, 32]), "0 of the folder's 1 safetensors files.*lacks"),
        (
            lambda c: broken(c, _target_="monai.networks.nets.UNet"),
            "nets.UNet is not known here",
        ),
        (lambda c: {k: v for k, v in c.items() if k != "noise_scheduler"}, "scheduler.json"),
        (
            lambda c: c | {"noise_scheduler": scheduler("EulerScheduler")},
            "no configuration of the folder names a scheduler",
        ),
        (lambda c: c | {"other": scheduler("DDPMScheduler", beta_end=0.5)}, "different noise"),
        (
            lambda c: c | {"noise_scheduler": scheduler("DDPMScheduler", schedule="mine")},
            "one of linear_beta",
        ),
    ],
)
def test_what_is_not_understood_is_refused_by_name(tmp_path: Path, change: Any, said: str) -> None:
    folder = folder_of(
        tmp_path, {"network": (network("DiffusionModelUNet", UNET), UNET)}, scheduler("DDPMScheduler")
    )
    file = folder / "configs" / "inference.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(ModelError, match=said):
        opened_of(folder)


def test_weights_and_ranges_that_are_not_there(tmp_path: Path) -> None:
    net = network("DiffusionModelUNet", UNET)
    folder = folder_of(tmp_path, {"network": (net, UNET)}, scheduler("DDPMScheduler"))
    with pytest.raises(ModelError, match="--value-range"):
        opened_of(folder, unit=None)
    with pytest.raises(ModelError, match="size of its images"):
        open_model(folder)
    weights = folder / "models" / "network.safetensors"
    safetensors.torch.save_file(net.state_dict() | {"more": torch.zeros(1)}, weights)
    with pytest.raises(ModelError, match="holds 1 others"):
        opened_of(folder)
    weights.unlink()
    (folder / "models" / "model.pt").write_bytes(b"")
    with pytest.raises(ModelError, match="convert"):
        opened_of(folder)
    wide = UNET | {"in_channels": 3}
    other = folder_of(
        tmp_path / "w", {"n": (network("DiffusionModelUNet", wide), wide)}, scheduler("DDPMScheduler")
    )
    with pytest.raises(ModelError, match=r"takes 3 channels and gives 1.*--samples"):
        opened_of(other)
    context = UNET | {"with_conditioning": True, "cross_attention_dim": 4}
    other = folder_of(
        tmp_path / "c", {"n": (network("DiffusionModelUNet", context), context)}, scheduler("DDPMScheduler")
    )
    with pytest.raises(ModelError, match="cross-attention"):
        opened_of(other)


def of_volumes(settings: Mapping[str, Any]) -> dict[str, Any]:
    return dict(settings) | {"spatial_dims": 3}


def test_a_latent_model_of_volumes_samples_as_monai_does(tmp_path: Path) -> None:
    """AutoencoderKL, DiffusionModelUNet and RFlow of three dimensions: MONAI's own loop, step by step."""
    volumes = np.random.default_rng(0).uniform(-1, 1, (4, 1, 8, 8, 8)).astype(np.float32)
    inner, outer = of_volumes(UNET) | {"in_channels": 2, "out_channels": 2}, of_volumes(KL)
    unet, coder = network("DiffusionModelUNet", inner), network("AutoencoderKL", outer)
    flow = scheduler("RFlowScheduler", num_train_timesteps=100, use_discrete_timesteps=True)
    folder = folder_of(
        tmp_path, {"network": (unet, inner), "autoencoder": (coder, outer)}, flow, scale_factor=0.5
    )
    images = torch.from_numpy(volumes)
    with torch.no_grad():
        mean = coder.encode(images)[0]
        scale = float(1 / mean.std())
    folder_of(tmp_path, {"network": (unet, inner), "autoencoder": (coder, outer)}, flow, scale_factor=scale)
    found = opened_of(folder, volumes, steps=5)
    assert found.shape == (2, 4, 4, 4) and found.image_shape == (1, 8, 8, 8)
    with torch.no_grad():
        assert torch.allclose(found.codec.encode(images), mean * scale, atol=1e-5)
        assert torch.allclose(found.codec.decode(mean * scale), coder.decode_stage_2_outputs(mean), atol=1e-4)
    made_scheduler = library.RFlowScheduler(num_train_timesteps=100, use_discrete_timesteps=True)
    made_scheduler.set_timesteps(5, input_img_size_numel=64)
    start = seeded(3, 2, 2, 4, 4, 4)
    expected, noises = theirs(unet, made_scheduler, start, flow=True)
    assert torch.allclose(ours(found, start, noises).float(), expected, atol=1e-4)


def test_axes_of_model_and_data_must_agree(tmp_path: Path) -> None:
    flat = network("DiffusionModelUNet", UNET)
    folder_of(tmp_path / "flat", {"network": (flat, UNET)}, scheduler("DDPMScheduler"))
    solid = network("DiffusionModelUNet", of_volumes(UNET))
    folder_of(tmp_path / "solid", {"network": (solid, of_volumes(UNET))}, scheduler("DDPMScheduler"))
    volumes = np.zeros((4, 1, 8, 8, 8), np.float32)
    with pytest.raises(ModelError, match=r"made for images \(two axes\), and these are volumes"):
        opened_of(tmp_path / "flat", volumes)
    with pytest.raises(ModelError, match=r"made for volumes \(three axes\), and these are images"):
        opened_of(tmp_path / "solid", PIXELS)


def test_a_bundle_of_monais_own_tools_is_opened(tmp_path: Path) -> None:
    """``init_bundle``, ``ConfigParser.export_config_file``, torch.save, then ``latentprint convert``."""
    from monai.bundle import ConfigParser, init_bundle

    inner, outer = of_volumes(UNET) | {"in_channels": 2, "out_channels": 2}, of_volumes(KL)
    unet, coder = network("DiffusionModelUNet", inner), network("AutoencoderKL", outer)
    init_bundle(str(tmp_path / "brain"))
    bundle = tmp_path / "brain"

    def by_name(settings: Mapping[str, Any]) -> dict[str, Any]:
        return dict(settings) | {"spatial_dims": "@spatial_dims"}

    noise = {"num_train_timesteps": 100, "schedule": "scaled_linear_beta", "beta_start": 0.0015}
    common: dict[str, Any] = {
        "imports": ["$import torch", "$from pathlib import Path"],
        "bundle_root": ".",
        "model_dir": "$@bundle_root + '/models'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "spatial_dims": 3,
        "scale_factor": 0.9,
        "autoencoder_def": {"_target_": "monai.networks.nets.AutoencoderKL", **by_name(outer)},
        "load_autoencoder": "$@autoencoder_def.load_state_dict(torch.load(@model_dir + '/autoencoder.pt'))",
        "autoencoder": "$@autoencoder_def.to(@device)",
        "network_def": {"_target_": "monai.networks.nets.DiffusionModelUNet", **by_name(inner)},
        "diffusion": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "ScaleIntensityRanged", "keys": "image", "b_min": -1, "b_max": 1}],
        },
    }
    sampling = {"noise_scheduler": {"_target_": "monai.networks.schedulers.DDIMScheduler", **noise}}
    training = {"noise_scheduler": {"_target_": "monai.networks.schedulers.DDPMScheduler", **noise}}
    ConfigParser.export_config_file(common | sampling, str(bundle / "configs" / "inference.json"), indent=4)
    ConfigParser.export_config_file(common | training, str(bundle / "configs" / "train.yaml"), fmt="yaml")
    models = bundle / "models"
    models.mkdir(exist_ok=True)
    torch.save(coder.state_dict(), models / "autoencoder.pt")
    torch.save(unet.state_dict(), models / "model.pt")
    volumes = np.random.default_rng(0).uniform(-1, 1, (4, 1, 8, 8, 8)).astype(np.float32)
    for name, said in (("autoencoder", "a pickle"), ("model", r"'model\.pt', a pickle: if you know")):
        with pytest.raises(ModelError, match=said):
            opened_of(bundle, volumes)
        convert(models / f"{name}.pt", models / f"{name}.safetensors", trusted=True)
    found = opened_of(bundle, volumes)
    assert found.kind == "monai latent" and found.shape == (2, 4, 4, 4)
    assert found.own is not None and found.own.sampler.step.name == "ddim"
    images = torch.from_numpy(volumes)
    with torch.no_grad():
        assert torch.allclose(found.codec.encode(images), coder.encode(images)[0] * 0.9, atol=1e-5)
