"""Folders as diffusers' fine-tuning scripts leave them, made in small by the calls that those scripts make.

train_text_to_image         the whole pipeline; checkpoint-N/ with unet/, unet_ema/ and accelerate's states
train_dreambooth            the same with its text encoder trained too
train_text_to_image_lora    pytorch_lora_weights.safetensors, and checkpoint-N/ with the same
train_dreambooth_lora       with the text encoder's
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import text_pipelines as tiny
import torch
from diffusers.training_utils import EMAModel
from diffusers.utils import convert_state_dict_to_diffusers
from test_text_model import PROMPT, images_of, noise, ours_of

from latentprint.adapters import Asked, ModelError, open_model, with_prompt

STEPS = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved(tiny.sd(), tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(autouse=True)
def quiet() -> Generator[None]:
    """Without the libraries' remarks; and what they draw is put back."""
    with tiny.Silent(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def trained(folder: Path, base: Path, *, encoder: bool = False, averaged: bool = False) -> Path:
    """The loop of the scripts that train whole networks: epsilon, AdamW, a checkpoint after every step."""
    from accelerate import Accelerator

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    unet, text, vae = pipeline.unet, pipeline.text_encoder, pipeline.vae
    accelerator = Accelerator(project_dir=str(folder / "logs"), cpu=True)
    ema = EMAModel(unet.parameters(), model_cls=diffusers.UNet2DConditionModel, model_config=unet.config)

    def save_model_hook(models: list[Any], weights: list[Any], output: str) -> None:
        if averaged:
            ema.save_pretrained(os.path.join(output, "unet_ema"))
        for model in models:
            of_unet = isinstance(accelerator.unwrap_model(model), diffusers.UNet2DConditionModel)
            model.save_pretrained(os.path.join(output, "unet" if of_unet else "text_encoder"))
            weights.pop()

    accelerator.register_save_state_pre_hook(save_model_hook)
    networks = [unet, text] if encoder else [unet]
    rates = [one for network in networks for one in network.parameters()]
    optimizer = accelerator.prepare(torch.optim.AdamW(rates, lr=5e-2))
    prepared = [accelerator.prepare(one) for one in networks]
    schedule = diffusers.DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    ids = pipeline.tokenizer(
        [PROMPT] * 2, padding="max_length", max_length=tiny.LENGTH, return_tensors="pt"
    ).input_ids
    for step in range(1, STEPS + 1):
        latents = vae.encode(images).latent_dist.sample() * vae.config.scaling_factor
        drawn, times = torch.randn_like(latents), torch.randint(0, 1000, (2,))
        seen = schedule.add_noise(latents, drawn, times)
        loss = (prepared[0](seen, times, text(ids)[0]).sample - drawn).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        accelerator.save_state(str(folder / f"checkpoint-{step}"))
    if averaged:
        ema.copy_to(unet.parameters())
    done = {
        name: accelerator.unwrap_model(one)
        for name, one in zip(("unet", "text_encoder"), prepared, strict=False)
    }
    diffusers.StableDiffusionPipeline.from_pretrained(base, **done, safety_checker=None).save_pretrained(
        folder
    )
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "logs" / "events.out.tfevents.1.host.1.0").write_bytes(b"\x00")
    (folder / "README.md").write_text("---\nlicense: other\n---\n")
    return folder


def pipeline_of(folder: Path, **parts: Any) -> Any:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def same(folder: Path, pipeline: Any, **asked: Any) -> tuple[str, ...]:
    """That the folder is opened as the pipeline that its script would load; returns the notes."""
    opened = with_prompt(open_model(folder, asked=Asked(steps=4, **asked)), PROMPT, 3.0)
    start = noise(opened)
    assert float((ours_of(opened, start) - images_of(pipeline, start, PROMPT, 3.0)).abs().max()) < 1e-4
    return opened.notes


@pytest.mark.parametrize("averaged", [False, True])
def test_train_text_to_image(base: Path, tmp_path: Path, averaged: bool) -> None:
    out = trained(tmp_path / "out", base, averaged=averaged)
    left = {one.name for one in (out / "checkpoint-2").iterdir()}
    assert {"unet", "optimizer.bin", "random_states_0.pkl"} <= left and ("unet_ema" in left) == averaged
    same(out, pipeline_of(out))
    own = "unet_ema" if averaged else "unet"
    unet = diffusers.UNet2DConditionModel.from_pretrained(out / "checkpoint-2", subfolder=own)
    notes = same(out / "checkpoint-2", pipeline_of(base, unet=unet), beside=base)
    assert any("text_encoder, tokenizer, vae, scheduler are those of the model" in one for one in notes)
    assert any("averaged weights (unet_ema)" in one for one in notes) == averaged
    assert same(
        out / "checkpoint-2", pipeline_of(base, unet=unet)
    )  # its other parts are in the folder around it
    alone = tmp_path / "alone"
    (out / "checkpoint-2").rename(alone)
    with pytest.raises(ModelError, match=r"checkpoint of a text-to-image model .* --base FOLDER"):
        open_model(alone)


def test_train_dreambooth_with_its_text_encoder(base: Path, tmp_path: Path) -> None:
    out = trained(tmp_path / "out", base, encoder=True)
    same(out, pipeline_of(out))
    from transformers import CLIPTextModel

    place = out / "checkpoint-1"
    parts = {
        "unet": diffusers.UNet2DConditionModel.from_pretrained(place, subfolder="unet"),
        "text_encoder": CLIPTextModel.from_pretrained(place, subfolder="text_encoder"),
    }
    notes = same(place, pipeline_of(base, **parts), beside=base)
    assert any("tokenizer, vae, scheduler are those of" in one and "text_encoder" not in one for one in notes)


@pytest.mark.parametrize("encoder", [False, True])
def test_lora_scripts(base: Path, tmp_path: Path, encoder: bool) -> None:
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline, out = pipeline_of(base), tmp_path / "out"
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    pipeline.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=targets))
    layers = {"unet_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.unet))}
    if encoder:
        from peft import inject_adapter_in_model

        names = ["q_proj", "k_proj", "v_proj", "out_proj"]
        of_text = LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=names)
        inject_adapter_in_model(of_text, pipeline.text_encoder)
        kept = get_peft_model_state_dict(pipeline.text_encoder)
        layers["text_encoder_lora_layers"] = convert_state_dict_to_diffusers(kept)
    checkpoint = out / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    torch.save({"state": {}}, checkpoint / "optimizer.bin")
    torch.save({"step": 5}, checkpoint / "random_states_0.pkl")
    for folder in (checkpoint, out):
        diffusers.StableDiffusionPipeline.save_lora_weights(folder, **layers, safe_serialization=True)
        same(base, pipeline, lora=folder)
        with pytest.raises(ModelError, match=r"holds a LoRA .* --model BASE --lora"):
            open_model(folder)
