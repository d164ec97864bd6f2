"""What becomes of checkpoints: which weights are taken, what is said of the rest, and what is refused."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from test_adapters import made, saved, scheduler_of, seeded, unet
from test_own_sampler import ours

from latentprint.adapters import Asked, ModelError, open_model, recognise
from latentprint.adapters.convert import convert

PIXELS = seeded(0, 4, 1, 8, 8).clamp(-1, 1).numpy()


def taken(tmp_path: Path, content: Any, target: str = "out.safetensors", **more: Any) -> tuple[Any, str]:
    """(what was written, what was said) of a checkpoint."""
    source = tmp_path / "checkpoint.pt"
    torch.save(content, source)
    done = convert(source, tmp_path / target, trusted=True, **more)
    out = tmp_path / target
    return (safetensors.torch.load_file(out) if out.is_file() else out), " | ".join(done.said)


W, V = {"conv.weight": torch.ones(2, 2), "conv.bias": torch.ones(2)}, {"conv.weight": torch.zeros(2, 2)}


@pytest.mark.parametrize(
    ("content", "key", "words"),
    [
        (W, "conv.weight", "the state dict itself, 2 tensors, not averaged"),
        ({"state_dict": W, "epoch": 3}, "conv.weight", "state_dict, 2 tensors, not averaged"),
        (
            {"model": V, "ema": W, "optimizer": {"state": {0: {"exp_avg": V["conv.weight"]}}}},
            "conv.weight",
            "ema",
        ),
        ({"unet_state_dict": W, "scale_factor": torch.tensor(0.9)}, "conv.weight", "unet_state_dict"),
        (
            {"state_dict": W, "hyper_parameters": argparse.Namespace(lr=1)},
            "conv.weight",
            "objects of argparse.Namespace were left unread",
        ),
    ],
)
def test_the_weights_are_taken_and_said(tmp_path: Path, content: Any, key: str, words: str) -> None:
    found, said = taken(tmp_path, content)
    assert torch.equal(found[key], torch.ones(2, 2))
    assert words in said


def test_the_ema_is_said_to_be_one_and_what_is_left_is_named(tmp_path: Path) -> None:
    _, said = taken(tmp_path, {"model": V, "ema": W})
    assert "averaged (EMA)" in said and "left: model (1 tensors)" in said


def test_averages_whose_names_lost_their_dots_are_taken_first(tmp_path: Path) -> None:
    """CompVis: model_ema holds "diffusion_modelconvweight" for "model.diffusion_model.conv.weight"."""
    content = {
        "state_dict": {
            "model.diffusion_model.conv.weight": torch.zeros(2, 2),
            "model_ema.diffusion_modelconvweight": torch.ones(2, 2),
            "model_ema.decay": torch.tensor(0.99),
            "model_ema.num_updates": torch.tensor(7),
            "first_stage_model.conv.weight": torch.full((2, 2), 5.0),
        }
    }
    found, said = taken(tmp_path, content)
    assert torch.equal(found["model.diffusion_model.conv.weight"], torch.ones(2, 2))
    assert torch.equal(found["first_stage_model.conv.weight"], torch.full((2, 2), 5.0))
    assert len(found) == 2 and "averaged (EMA)" in said
    content["state_dict"]["model_ema.num_updates"] = torch.tensor(0)
    with pytest.raises(ModelError, match="0 steps"):
        taken(tmp_path, content, "again.safetensors")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model": W, "net": V}, "2 state dicts.*--take"),
        ({"epoch": 3}, "holds no tensors"),
        ({"state_dict": W | {"bad": torch.full((2, 2), float("nan"))}}, "NaN"),
        ({"state_dict": W, "more": torch.nn.Linear(1, 1).__class__}, "holds more than tensors"),
    ],
)
def test_nothing_is_guessed(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said) as error:
        taken(tmp_path, content)
    assert "weights_only" not in str(error.value) and "\x1b" not in str(error.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_one_of_several_is_named(tmp_path: Path) -> None:
    found, said = taken(tmp_path, {"model": W, "net": V}, take="net")
    assert torch.equal(found["conv.weight"], torch.zeros(2, 2)) and "model (2 tensors)" in said
    with pytest.raises(ModelError, match="names none of its state dicts; there are model"):
        taken(tmp_path, {"model": W, "net": V}, "b.safetensors", take="other")


def test_a_network_without_settings_becomes_a_file_only(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not say which network"):
        taken(tmp_path, W, "folder")
    edm = {f"model.map_layer{k}.weight": torch.ones(2, 2) for k in range(2)}
    with pytest.raises(ModelError, match="EDM"):
        taken(tmp_path, edm, "folder")


# --- diffusers


def test_a_whole_pipeline_of_pickles_becomes_a_model(tmp_path: Path) -> None:
    folder = saved(tmp_path / "pipeline", unet(), scheduler_of("DDPMScheduler"))
    plain = open_model(folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(safetensors.torch.load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ModelError, match=r"latentprint convert .*--i-trust-this-file"):
        open_model(folder)
    done = convert(folder, tmp_path / "whole", trusted=True)
    assert any("unet (UNet2DModel)" in one for one in done.said)
    x, t = seeded(0, 2, 1, 8, 8), torch.tensor(0.5)
    assert torch.equal(open_model(tmp_path / "whole").denoiser(x, t), plain.denoiser(x, t))


def test_the_folder_of_a_training_script(tmp_path: Path) -> None:
    """Pipeline, ``checkpoint-N`` with ``unet_ema``, ``.bin`` files beside; the averaged weights are taken."""
    folder = saved(tmp_path, unet(), scheduler_of("DDPMScheduler"))
    point = folder / "checkpoint-500"
    average = unet(act_fn="mish")
    average.save_pretrained(point / "unet_ema")
    unet().save_pretrained(point / "unet")
    (point / "optimizer.bin").write_bytes(b"")
    config = json.loads((point / "unet_ema" / "config.json").read_text())
    moving = {
        "decay": 0.99,
        "optimization_step": 500,
        "use_ema_warmup": True,
        "inv_gamma": 1.0,
        "power": 0.75,
    }
    (point / "unet_ema" / "config.json").write_text(json.dumps(config | moving))
    opened = open_model(point, asked=Asked(beside=folder))
    assert any("unet_ema" in note for note in opened.notes)
    with torch.no_grad():
        x, t = seeded(0, 2, 1, 8, 8), torch.tensor(0.5)
        e = average(x, torch.tensor(499)).sample
        alpha, sigma = (getattr(opened.denoiser.schedule, name)(t) for name in ("alpha", "sigma"))
        expected = ((x - float(sigma) * e) / float(alpha)).clamp(-1, 1)
    assert torch.allclose(opened.denoiser(x, t), expected, atol=1e-4)
    with pytest.raises(ModelError, match=r"no scheduler_config.json.*--checkpoints OUT .*cp -r "):
        open_model(point)
    (point / "unet_ema" / "config.json").write_text(json.dumps(config | moving | {"optimization_step": 0}))
    with pytest.raises(ModelError, match="0 steps"):
        open_model(point, asked=Asked(beside=folder))


# --- denoising-diffusion-pytorch


def trained_by_lucidrains(objective: str, schedule: str, **more: Any) -> tuple[Any, dict[str, Any]]:
    """(its diffusion, a checkpoint as its trainer writes it, with other weights outside the EMA)."""
    library = pytest.importorskip("denoising_diffusion_pytorch")
    network = made(library.Unet, dim=8, dim_mults=(1, 2), channels=1, full_attn=(False, True))
    diffusion = library.GaussianDiffusion(
        network, image_size=8, timesteps=30, objective=objective, beta_schedule=schedule, **more
    )
    state = diffusion.state_dict()
    average = {f"ema_model.{name}": one for name, one in state.items()}
    online = {f"online_model.{name}": torch.zeros_like(one) for name, one in state.items()}
    counters = {"initted": torch.tensor(True), "step": torch.tensor(700)}
    plain = {name: 0 * one if name.startswith("model.") else one for name, one in state.items()}
    checkpoint = {"step": 7000, "model": plain, "opt": {"state": {}}, "ema": average | online | counters}
    return diffusion.eval(), checkpoint | {"scaler": None, "version": "2.0"}


LUCIDRAINS: list[tuple[str, str, dict[str, Any]]] = [
    ("pred_v", "sigmoid", {}),
    ("pred_noise", "linear", {}),
    ("pred_x0", "cosine", {}),
    ("pred_v", "cosine", {"min_snr_loss_weight": True}),
]


@pytest.mark.parametrize(("objective", "schedule", "more"), LUCIDRAINS)
@pytest.mark.usefixtures("unpickled_here")
def test_lucidrains_goes_in_by_its_ema_and_samples_as_it_does(
    tmp_path: Path, objective: str, schedule: str, more: dict[str, Any]
) -> None:
    diffusion, checkpoint = trained_by_lucidrains(objective, schedule, **more)
    folder, said = taken(tmp_path, checkpoint, "model")
    assert "ema / ema_model.model, averaged (EMA), after 700 steps" in said and "not averaged" in said
    assert recognise(folder) == "lucidrains"
    opened = open_model(folder, asked=Asked(images=lambda: PIXELS))
    levels = opened.denoiser.schedule.alpha(opened.denoiser.schedule.time_of(torch.arange(30)))  # type: ignore[attr-defined]
    assert torch.allclose(levels**2, diffusion.alphas_cumprod.double(), rtol=1e-5)
    x, e, k = seeded(0, 30, 1, 2, 2), seeded(1, 30, 1, 2, 2), torch.arange(30)
    t = (k.double() + 1) / 30
    sch = opened.denoiser.schedule
    mixed = sch.alpha(t).reshape(-1, 1, 1, 1) * x + sch.sigma(t).reshape(-1, 1, 1, 1) * e
    assert torch.allclose(mixed.float(), diffusion.q_sample(x, k, e), atol=2e-6)

    start, noises = seeded(7, 2, 1, 8, 8), [seeded(100 + i, 2, 1, 8, 8) for i in range(30)]
    expected = start
    with torch.no_grad():
        for place, step in enumerate(reversed(range(30))):
            mean, _, log_variance, _ = diffusion.p_mean_variance(
                x=expected, t=torch.full((2,), step), clip_denoised=True
            )
            noise = noises[place] if step > 0 else torch.zeros_like(start)
            expected = mean + (0.5 * log_variance).exp() * noise
    assert float((ours(opened, start, noises) - expected).abs().max()) < 1e-4

    for fewer, count in (({"most": 10}, 10), ({"steps": 7}, 7)):
        own = open_model(folder, asked=Asked(images=lambda: PIXELS, **fewer)).own
        assert own is not None and own.pipeline_steps == 30 and not own.exact
        times = own.sampler.grid(opened.denoiser.schedule)
        assert len(times) == count and float(times[0]) == 1 and float(times[-1]) == pytest.approx(1 / 30)


@pytest.mark.usefixtures("unpickled_here")
def test_what_of_lucidrains_cannot_be_audited_is_refused(tmp_path: Path) -> None:
    _, checkpoint = trained_by_lucidrains("pred_v", "sigmoid")
    without = {name: one for name, one in checkpoint.items() if name != "ema"}
    with pytest.raises(ModelError, match=r"without its EMA.*--take model"):
        taken(tmp_path, without, "a")
    _, said = taken(tmp_path, without, "b", take="model")
    assert "not averaged, as you asked" in said
    checkpoint["ema"]["step"] = torch.tensor(0)
    with pytest.raises(ModelError, match="0 steps"):
        taken(tmp_path, checkpoint, "c")
    checkpoint["ema"]["step"] = torch.tensor(9)
    checkpoint["ema"]["ema_model.loss_weight"] = torch.full((30,), 3.0)
    with pytest.raises(ModelError, match="what the network predicts is not known"):
        taken(tmp_path, checkpoint, "d")


# --- a network within a larger module


def lightning(path: Path, state: dict[str, Any], **more: Any) -> Path:
    """A checkpoint as Lightning writes it, with an object of the user's own among its settings."""
    settings = {"lr": 1e-4, "config": argparse.Namespace(a=1), "kind": Mine()}
    torch.save(
        {"state_dict": state, "pytorch-lightning_version": "2.6", "hyper_parameters": settings} | more, path
    )
    return path


class Mine:
    """What a LightningModule may keep beside its weights."""


def test_a_network_of_diffusers_in_a_lightning_module_by_its_prefix(tmp_path: Path) -> None:
    plain = saved(tmp_path / "plain", unet(), scheduler_of("DDPMScheduler"))
    folder = tmp_path / "mine"
    shutil.copytree(plain / "unet", folder)
    shutil.copy(plain / "scheduler" / "scheduler_config.json", folder)
    weights = safetensors.torch.load_file(folder / "diffusion_pytorch_model.safetensors")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    state = {f"net.{name}": 0 * one for name, one in weights.items()}
    state |= {f"ema.module.{name}": one for name, one in weights.items()} | {"loss.w": torch.ones(2, 2)}
    source = lightning(tmp_path / "last.ckpt", state)
    with pytest.raises(
        ModelError, match=r"UNet2DModel of diffusers in a checkpoint of Lightning.*--prefix ema\.module\."
    ):
        recognise(source)
    with pytest.raises(ModelError, match=r"no name begins with the prefix 'no\.'; they begin with ema"):
        convert(source, folder / "w.safetensors", trusted=True, prefix="no.")
    convert(source, folder / "wrong.safetensors", trusted=True)
    with pytest.raises(ModelError, match=r"--prefix ema\.module\. or --prefix net\."):
        open_model(folder)
    (folder / "wrong.safetensors").unlink()
    done = convert(source, folder / "w.safetensors", trusted=True, prefix="ema.module.")
    assert "averaged (EMA)" in done.said[0] and "Mine" in " ".join(done.said)
    x, t = seeded(0, 2, 1, 8, 8), torch.tensor(0.5)
    assert torch.equal(open_model(folder).denoiser(x, t), open_model(plain).denoiser(x, t))


@pytest.mark.usefixtures("unpickled_here")
def test_a_known_network_in_a_lightning_module_is_found_and_its_average_first(tmp_path: Path) -> None:
    diffusion, checkpoint = trained_by_lucidrains("pred_v", "sigmoid")
    state = {f"diffusion.{name}": 0 * one for name, one in diffusion.state_dict().items()}
    state |= {f"ema.{name}": one for name, one in checkpoint["ema"].items()}
    source = lightning(tmp_path / "last.ckpt", state)
    done = convert(source, tmp_path / "model", trusted=True)
    assert "averaged (EMA), under 'state_dict / ema.ema_model'" in done.said[0]
    assert (
        open_model(tmp_path / "model", asked=Asked(images=lambda: PIXELS)).kind
        == "denoising-diffusion-pytorch"
    )
    state["ema.step"] = torch.tensor(0)
    with pytest.raises(ModelError, match="0 steps"):
        convert(lightning(source, state), tmp_path / "other", trusted=True)
    with pytest.raises(ModelError, match="loss_weight"):  # the weights that training goes on with: all zeros
        convert(source, tmp_path / "other", trusted=True, prefix="diffusion.")


@pytest.mark.usefixtures("unpickled_here")
def test_the_averages_of_lightnings_callbacks_are_known(tmp_path: Path) -> None:
    """WeightAveraging puts them in the place of the weights; others keep theirs with the callback."""
    raw = {name: 0 * one for name, one in W.items()}
    averaging = {"current_model_state": raw, "averaging_state": {"n_averaged": torch.tensor(5)}}
    done = convert(lightning(tmp_path / "a.ckpt", W, **averaging), tmp_path / "a.safetensors", trusted=True)
    assert "taken: state_dict, 2 tensors, averaged (EMA)" in done.said[0]
    averaging["averaging_state"]["n_averaged"] = torch.tensor(0)
    with pytest.raises(ModelError, match="0 steps"):
        convert(lightning(tmp_path / "b.ckpt", W, **averaging), tmp_path / "b.safetensors", trusted=True)
    kept = {"callbacks": {"EMACallback": {"ema_state_dict": W}}}
    done = convert(lightning(tmp_path / "c.ckpt", raw, **kept), tmp_path / "c.safetensors", trusted=True)
    assert "taken: callbacks/EMACallback/ema_state_dict" in done.said[0]
    assert torch.equal(safetensors.torch.load_file(tmp_path / "c.safetensors")["conv.bias"], torch.ones(2))


# --- folders that are no model

OPENAI = {"input_blocks.0.0.weight": torch.ones(2, 2), "time_embed.0.weight": torch.ones(2, 2)}
LDM = {f"model.diffusion_model.{name}": one for name, one in OPENAI.items()} | {"betas": torch.ones(9)}
BY_LUCIDRAINS = {"model": {"model.init_conv.weight": torch.ones(2, 2), "betas": torch.ones(9)}}
MONAIS = {"unet_state_dict": {"conv_in.conv.weight": torch.ones(2, 2), "time_embed.0.weight": torch.ones(2)}}


UNET = {"conv_in.weight": torch.ones(2, 2), "time_embedding.linear_1.weight": torch.ones(2, 2)}
BY_LIGHTNING = {"state_dict": W, "pytorch-lightning_version": "2.6"}


def folder(tmp_path: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save = safetensors.torch.save_file if name.endswith(".safetensors") else torch.save
        (tmp_path / name).write_bytes(b"") if content is None else save(content, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"model-9.pt": BY_LUCIDRAINS, "model-10.pt": BY_LUCIDRAINS}, ["lucidrains", "model-10.pt OUT"]),
        (
            {"hparams.yaml": None, "checkpoints/last.ckpt": BY_LIGHTNING},
            ["Lightning", "last.ckpt", "factory"],
        ),
        ({"ema_0.99_9.pt": OPENAI, "a.ckpt": W, "opt9.pt": W}, ["openai", "ema_0.99_9.pt OUT", "$MODEL"]),
        ({"last.ckpt": {"state_dict": LDM}, "log.txt": None}, ["CompVis", "--flags project.yaml"]),
        ({"model.pt": MONAIS}, ["UNet of MONAI", "inference.json", "FOLDER/weights.safetensors"]),
        ({"models/model.pt": W, "docs/a.png": None, "metadata.json": None}, ["bundle of MONAI", "model.pt"]),
        ({"model.pt": torch.nn.Linear(1, 1)}, ["torch.nn.modules.linear.Linear", "state_dict()"]),
        ({"network-snapshot-1.pkl": W, "training_options.json": None}, ["EDM", "docs/models.md"]),
        ({"random_states_0.pkl": None, "model.safetensors": UNET}, ["UNet2DModel", "put config.json"]),
        ({"weights.safetensors": None, "a.png": None}, ["weights.safetensors", "header"]),
        ({"a.png": None, "b.png": None}, ["2 files of images", "--samples"]),
        ({"notes.txt": None}, ["neither a configuration nor weights"]),
    ],
)
def test_a_folder_that_is_no_model_is_told_what_it_looks_like(
    tmp_path: Path, files: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ModelError) as error:
        open_model(folder(tmp_path, files))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_folder_of_models_names_one(tmp_path: Path) -> None:
    saved(tmp_path / "run-1", unet(), scheduler_of("DDPMScheduler"))
    with pytest.raises(ModelError, match=r"--model .*run-1"):
        open_model(tmp_path)


def test_a_pipeline_of_text_and_a_network_conditioned_on_images_say_so(tmp_path: Path) -> None:
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.30.0"}
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"text_encoder": ["transformers", "CLIP"]}))
    with pytest.raises(ModelError, match=r"part 'text_encoder' is of class 'CLIP' from 'transformers'"):
        open_model(tmp_path)
    (tmp_path / "model_index.json").unlink()
    masked = saved(tmp_path / "masked", unet(in_channels=2), scheduler_of("DDPMScheduler"))
    with pytest.raises(ModelError, match=r"takes 2 channels and gives 1: it is conditioned on an image"):
        open_model(masked)
    shutil.rmtree(masked)
