"""Training codes that are no packages: converted, and compared with what their published code answered.

The numbers are those of ``tests/published/make.py``, made from checkouts whose commits they name.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_adapters import made
from test_own_sampler import ours
from torch import Tensor

from latentprint.adapters import Asked, ModelError, open_model
from latentprint.adapters.convert import convert
from latentprint.adapters.flags import flags_of
from latentprint.networks.openai import OpenAIUNet

sys.path.insert(0, str(Path(__file__).parent / "published"))

import make

pytestmark = pytest.mark.usefixtures("unpickled_here")

DATA = Path(make.__file__).parent
SETTINGS: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 32,
    "widths": (32, 64),
    "num_res_blocks": 1,
    "attention": (False, True),
    "heads": (2, 2),
}


def stored(which: str, case: str) -> dict[str, Tensor]:
    with np.load(DATA / f"{which}.npz") as found:
        return {
            key.removeprefix(f"{case}."): torch.from_numpy(found[key])
            for key in found.files
            if key.startswith(f"{case}.") and found[key].dtype.kind == "f"
        }


def checkpoint(path: Path, **settings: Any) -> Path:
    """A file as the trainer writes it: a state dict and nothing more."""
    network = make.filled(made(OpenAIUNet, **(SETTINGS | settings)))
    torch.save(network.state_dict(), path)
    return path


CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("plain", {"heads": (2, 4), "scale_shift": False}, {}),
    ("learned", {"out_channels": 6, "resample_blocks": True}, {}),
    ("classes", {"num_class_embeds": make.CLASSES}, {}),
    ("cosine", {}, {}),
    ("start", {}, {}),
    ("ddim", {}, {}),
    ("improved", {}, {"num_heads": 2, "rescale_timesteps": True}),
]


@pytest.mark.parametrize(("case", "settings", "more"), CASES)
def test_openais_networks_noise_and_samplers(
    tmp_path: Path, case: str, settings: dict[str, Any], more: dict[str, Any]
) -> None:
    flags = {"rescale_timesteps": False} | make.SHAPE | make.OPENAI.get(case, {}) | more
    source = checkpoint(tmp_path / "ema_0.9999_000100.pt", **settings)
    done = convert(source, tmp_path / "model", trusted=True, flags=flags)
    assert "averaged (its name begins with ema_)" in done.said[0]
    expected = stored("improved" if case == "improved" else "openai", case)
    label = 1 if "num_class_embeds" in settings else None
    opened = open_model(tmp_path / "model", asked=Asked(label=label))
    schedule: Any = opened.denoiser.schedule
    own = opened.own
    assert own is not None and own.exact

    network = opened.networks[0]
    x, steps = make.drawn(1, 2, 3, 16, 16), len(expected["noisy"])
    at = schedule.timestep(torch.tensor(own.sampler.at, dtype=torch.float64)).float()
    given = {"class_labels": torch.tensor([1, 4])} if label is not None else {}
    with torch.no_grad():
        found = network(x, at[[-1, 0]], **given)
    assert torch.allclose(found, expected["output"], atol=1e-5)

    clean, noise = make.drawn(2, steps, 1, 2, 2), make.drawn(3, steps, 1, 2, 2)
    t = torch.tensor(own.sampler.at, dtype=torch.float64).flip(0)
    mixed = schedule.alpha(t).reshape(-1, 1, 1, 1) * clean + schedule.sigma(t).reshape(-1, 1, 1, 1) * noise
    assert torch.allclose(mixed.float(), expected["noisy"], atol=3e-6)

    noises = [make.drawn(100 + place, *x.shape) for place in range(steps)]
    images = ours(opened, x, noises)
    rows = slice(0, 1) if label is not None else slice(None)  # the other row is of another class
    assert float((images - expected["images"])[rows].abs().max()) < 1e-4


def latent_checkpoint(path: Path, case: str, **more: Any) -> Path:
    """A ``.ckpt`` of Lightning by the names that the published code gives its tensors."""
    tensors = dict[str, Tensor]()
    with np.load(DATA / "compvis.npz") as found:
        for line in found[f"{case}.names"].tolist():
            name, _, shape = line.partition(" ")
            tensors[name] = torch.zeros(ast.literal_eval(shape))
        betas = torch.from_numpy(found["betas"])
    make.fill(tensors)
    own = [name for name in tensors if name.startswith("model.")]
    average = {f"model_ema.{name[6:].replace('.', '')}": tensors[name] for name in own}
    average |= {"model_ema.num_updates": torch.tensor(9), "model_ema.decay": torch.tensor(0.99)}
    raw = {name: 0 * one if name in own else one for name, one in tensors.items()}
    torch.save({"state_dict": raw | average | {"betas": betas} | more, "global_step": 9}, path)
    return path


PROJECT = {"model": {"params": make.LATENT | {"unet_config": {"params": {"num_heads": 2}}}}}


@pytest.mark.parametrize("case", list(make.AUTOENCODERS))
def test_latent_diffusion_of_compvis_with_both_autoencoders(tmp_path: Path, case: str) -> None:
    source, project = latent_checkpoint(tmp_path / "last.ckpt", case), tmp_path / "project.json"
    project.write_text(json.dumps(PROJECT))
    done = convert(source, tmp_path / "model", trusted=True, flags=flags_of(str(project)))
    assert "averaged (EMA)" in done.said[0] and "latents times 0.7" in done.said[0]
    opened = open_model(tmp_path / "model")
    assert opened.image_shape == (3, 32, 32) and opened.own is not None and opened.own.exact
    expected, z = stored("compvis", case), make.AUTOENCODERS[case]["z_channels"]
    images = make.drawn(5, 2, 3, 32, 32).clamp(-1, 1)
    with torch.no_grad():
        encoded = opened.codec.encode(images)
        assert torch.allclose(encoded / 0.7, expected["encoded"], atol=1e-5)
        assert torch.allclose(opened.codec.decode(encoded), expected["decoded"], atol=1e-4)
    start, noises = make.drawn(1, 2, z, 16, 16), [make.drawn(100 + k, 2, z, 16, 16) for k in range(50)]
    latents = ours(opened, start, noises)
    assert float((latents - expected["latents"]).abs().max() / expected["latents"].abs().max()) < 1e-4


def test_latent_diffusion_under_a_class_with_and_without_guidance(tmp_path: Path) -> None:
    """Cross-attention to a ClassEmbedder, as of the model that CompVis trained on ImageNet."""
    source = latent_checkpoint(tmp_path / "last.ckpt", "looks")
    done = convert(source, tmp_path / "model", trusted=True, flags=PROJECT)
    assert "6 classes (ClassEmbedder)" in done.said[0]
    asked = Asked(label=make.GUIDED["label"], guidance=make.GUIDED["scale"])
    with pytest.raises(ModelError, match="this network has none"):
        open_model(tmp_path / "model", asked=asked)
    config = tmp_path / "model" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"null_class": make.GUIDED["null"]}))
    with pytest.raises(ModelError, match=r"from 0 to 5 \(--label\)"):
        open_model(tmp_path / "model")
    noises = [make.drawn(100 + k, 2, 3, 16, 16) for k in range(50)]
    latents = ours(open_model(tmp_path / "model", asked=asked), make.drawn(1, 2, 3, 16, 16), noises)
    expected = stored("compvis", "looks")["latents"]
    assert float((latents - expected).abs().max() / expected.abs().max()) < 1e-4


SILENT = {"image_size": 16, "num_heads": 2}


def test_the_scale_of_latents_is_read_or_asked_for(tmp_path: Path) -> None:
    source = latent_checkpoint(tmp_path / "last.ckpt", "kl")
    with pytest.raises(ModelError, match=r"say scale_factor, .*--scale_factor"):
        convert(source, tmp_path / "a", trusted=True, flags=SILENT)
    done = convert(source, tmp_path / "b", trusted=True, flags=SILENT | {"first_stage_config": {}})
    assert "latents times 1 (the default of its code" in done.said[0]


@pytest.mark.parametrize(
    ("more", "flags", "words"),
    [
        ({}, None, ["CompVis", "--flags project.yaml"]),
        ({"cond_stage_model.weight": torch.ones(2, 2)}, PROJECT, ["conditioned", "from_single_file"]),
        ({"model_ema.num_updates": torch.tensor(0)}, PROJECT, ["0 steps"]),
        ({}, {"model": {"params": {"num_heads": 2}}}, ["image_size"]),
        ({}, {"image_size": 16}, ["neither num_heads nor num_head_channels"]),
    ],
)
def test_nothing_of_compvis_is_guessed(
    tmp_path: Path, more: dict[str, Tensor], flags: dict[str, Any] | None, words: list[str]
) -> None:
    source = latent_checkpoint(tmp_path / "last.ckpt", "kl", **more)
    with pytest.raises(ModelError) as error:
        convert(source, tmp_path / "model", trusted=True, flags=flags)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_model_of_latents_without_its_autoencoder_is_refused(tmp_path: Path) -> None:
    source = latent_checkpoint(tmp_path / "last.ckpt", "kl")
    state = torch.load(source, weights_only=True)["state_dict"]
    kept = {name: one for name, one in state.items() if not name.startswith("first_stage_model.")}
    torch.save({"state_dict": kept | {"scale_factor": torch.tensor(0.2)}}, source)
    with pytest.raises(ModelError, match=r"its autoencoder \(first_stage_model\) is absent"):
        convert(source, tmp_path / "model", trusted=True, flags=PROJECT)


README = (
    "--image_size 16 --num_channels 32 --num_res_blocks 1 --num_heads 2 --diffusion_steps 50 "
    "--noise_schedule linear --rescale_timesteps False"
)


def test_what_the_flags_do_not_say_is_printed_with_the_librarys_default(tmp_path: Path) -> None:
    done = convert(checkpoint(tmp_path / "x.pt"), tmp_path / "model", trusted=True, flags=flags_of(README))
    assert "num_head_channels -1" in done.said[2] and "num_heads 2" not in done.said[2]
    assert "the file does not say" in done.said[0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (None, ["guided-", "--flags", "$MODEL_FLAGS", "image_size"]),
        ("--num_channels 32", ["image_size"]),
        (README.replace("channels 32", "channels 64"), ["num_channels '64'", "the weights show 32"]),
        (README + " --learn_sigma True", ["learn_sigma", "False"]),
        (README.replace("--rescale_timesteps False", ""), ["rescale_timesteps", "two libraries differ"]),
        (README.replace("num_heads 2", "num_heads 3"), ["heads must divide"]),
        (README.replace("linear", "sqrt"), ["noise_schedule must be one of linear, cosine"]),
        (README + " --timestep_respacing 10,20", ["timestep_respacing is one count"]),
    ],
)
def test_nothing_of_openais_is_guessed(tmp_path: Path, flags: str | None, words: list[str]) -> None:
    given, source = None if flags is None else flags_of(flags), checkpoint(tmp_path / "x.pt")
    with pytest.raises(ModelError) as error:
        convert(source, tmp_path / "model", trusted=True, flags=given)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "model").exists()


def test_the_averaged_weights_beside_are_named_before_others_are_taken(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "model000100.pt")
    checkpoint(tmp_path / "ema_0.9999_000100.pt")
    with pytest.raises(ModelError, match=r"not averaged, and beside it lies 'ema_0.9999_000100.pt'"):
        convert(source, tmp_path / "a", trusted=True, flags=flags_of(README))
    convert(source, tmp_path / "a", trusted=True, flags=flags_of(README), take="model")


def test_tensors_that_are_lacking_or_left_over_are_counted(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "x.pt")
    tensors = torch.load(source, weights_only=True)
    del tensors["input_blocks.1.0.in_layers.2.weight"]
    torch.save(tensors | {"more": torch.zeros(2)}, source)
    with pytest.raises(ModelError, match=r"1 are lacking, 1 are left over, .*input_blocks.1.0.in_layers.2"):
        convert(source, tmp_path / "model", trusted=True, flags=flags_of(README))


@pytest.mark.parametrize("text", ["image_size 64", "--image_size", "--image_size 64 32", "--a 'b", "no.yaml"])
def test_flags_that_are_none(text: str) -> None:
    with pytest.raises(ModelError, match="flags"):
        flags_of(text)
