"""Text-to-image pipelines of diffusers: opened part by part, equal to the pipeline's own images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import text_pipelines as tiny
import torch
from safetensors.torch import load_file, save_file
from test_own_sampler import ours

from latentprint.adapters import Asked, ModelError, Opened, open_model
from latentprint.adapters.text.opening import with_prompt

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

PROMPT = "a photo of the digit seven"

PIPELINES = {
    "StableDiffusionPipeline": tiny.sd,
    "StableDiffusionXLPipeline": tiny.xl,
    "PixArtAlphaPipeline": tiny.pixart,
    "PixArtSigmaPipeline": lambda: tiny.pixart(sigma=True),
    "StableDiffusion3Pipeline": tiny.sd3,
    "SD3 without T5": lambda: tiny.sd3(t5=False),
    "FluxPipeline": tiny.flux,
    "SanaPipeline": tiny.sana,
    "Sana by Euler's steps": lambda: tiny.sana(euler=True),
}


def noise(opened: Opened) -> torch.Tensor:
    return torch.zeros(2, *opened.shape).normal_(generator=torch.Generator().manual_seed(8))


def images_of(pipeline: Any, start: torch.Tensor, prompt: str, guidance: float, **given: Any) -> torch.Tensor:
    """The pipeline's own images in [-1, 1], (n, C, H, W)."""
    side = start.shape[-1] * 2
    name = type(pipeline).__name__
    if "PixArt" in name or "Sana" in name:
        given |= {"use_resolution_binning": False}
    if "Flux" in name:
        start = pipeline._pack_latents(start, *start.shape)
    with tiny.Silent():
        made = pipeline(
            [prompt] * len(start),
            latents=start,
            guidance_scale=guidance,
            num_inference_steps=4,
            output_type="np",
            height=side,
            width=side,
            **given,
        ).images
    return torch.from_numpy(np.moveaxis(made, -1, 1)) * 2 - 1


def ours_of(opened: Opened, start: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return opened.codec.decode(ours(opened, start, [])).clamp(-1, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved(tiny.sd(), tmp_path_factory.mktemp("sd") / "pipeline")


def copied(folder: Path, place: Path) -> Path:
    return shutil.copytree(folder, place / "copy")


@pytest.mark.parametrize("name", list(PIPELINES))
def test_images_are_the_pipelines_own_with_guidance_and_without(name: str, tmp_path: Path) -> None:
    pipeline = PIPELINES[name]()
    opened = open_model(tiny.saved(pipeline, tmp_path), asked=Asked(steps=4))
    start = noise(opened)
    found = {}
    for prompt, guidance in ((PROMPT, 1.0), (PROMPT, 5.0), ("", 1.0)):
        asked = with_prompt(opened, prompt, guidance)
        found[prompt, guidance] = ours_of(asked, start)
        expected = images_of(pipeline, start, prompt, guidance)
        assert float((found[prompt, guidance] - expected).abs().max()) < 1e-4
    assert float((found[PROMPT, 1.0] - found[PROMPT, 5.0]).abs().max()) > 1e-3  # else the test could not fail
    assert float((found[PROMPT, 1.0] - found["", 1.0]).abs().max()) > 1e-3


def lora_pipeline(folder: Path, place: Path, text_encoder: bool) -> Any:
    """A pipeline with a random LoRA of peft, as diffusers' training scripts make and save it."""
    import diffusers
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    with tiny.Silent():
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    layers = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        pipeline.unet.add_adapter(
            LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False)
        )
        layers["unet_lora_layers"] = get_peft_model_state_dict(pipeline.unet)
        if text_encoder:
            own = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
            inject_adapter_in_model(own, pipeline.text_encoder)
            layers["text_encoder_lora_layers"] = get_peft_model_state_dict(pipeline.text_encoder)
    told = pipeline.unet.peft_config["default"].to_dict()
    pipeline.save_lora_weights(place, **layers, unet_lora_adapter_metadata=told)
    return pipeline


@pytest.mark.parametrize(("text_encoder", "weight"), [(False, 1.0), (False, 0.5), (True, 1.0)])
def test_a_lora_gives_the_images_of_the_pipeline_that_loads_it(
    folder: Path, tmp_path: Path, text_encoder: bool, weight: float
) -> None:
    import diffusers

    pipeline = lora_pipeline(folder, tmp_path, text_encoder)
    if not text_encoder:  # transformers asks for a newer peft before it loads one into a text encoder
        with tiny.Silent():
            pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
            pipeline.load_lora_weights(tmp_path)
            pipeline.set_adapters(pipeline.get_list_adapters()["unet"], weight)
        pipeline.set_progress_bar_config(disable=True)
    asked = Asked(steps=4, lora=tmp_path / "pytorch_lora_weights.safetensors", lora_weight=weight)
    opened, plain = open_model(folder, asked=asked), open_model(folder, asked=Asked(steps=4))
    start = noise(opened)
    for guidance in (1.0, 5.0):
        found = ours_of(with_prompt(opened, PROMPT, guidance), start)
        assert float((found - images_of(pipeline, start, PROMPT, guidance)).abs().max()) < 1e-4
        assert float((found - ours_of(with_prompt(plain, PROMPT, guidance), start)).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "FluxPipeline", "SanaPipeline"])
def test_a_lora_of_a_transformer_gives_the_images_of_the_pipeline(name: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model_state_dict

    pipeline = PIPELINES[name]()
    folder = tiny.saved(pipeline, tmp_path / "model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        adapter = LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False)
        pipeline.transformer.add_adapter(adapter)
    layers = get_peft_model_state_dict(pipeline.transformer)
    told = pipeline.transformer.peft_config["default"].to_dict()
    pipeline.save_lora_weights(
        tmp_path, transformer_lora_layers=layers, transformer_lora_adapter_metadata=told
    )
    opened, plain = (
        with_prompt(open_model(folder, asked=Asked(steps=4, lora=lora)), PROMPT, 3.0)
        for lora in (tmp_path, None)
    )
    start = noise(opened)
    found = ours_of(opened, start)
    assert float((found - images_of(pipeline, start, PROMPT, 3.0)).abs().max()) < 1e-4
    assert float((found - ours_of(plain, start)).abs().max()) > 1e-3


def test_a_flux_that_was_distilled_to_do_without_guidance_takes_none(tmp_path: Path) -> None:
    pipeline = tiny.flux(distilled=False, shifting=False)
    opened = open_model(tiny.saved(pipeline, tmp_path), asked=Asked(steps=4))
    assert opened.text is not None and opened.text.guidance == 1.0
    start, asked = noise(opened), with_prompt(opened, PROMPT, 1.0)
    expected = images_of(pipeline, start, PROMPT, 3.5)  # which it does not see
    assert float((ours_of(asked, start) - expected).abs().max()) < 1e-4
    with pytest.raises(ModelError, match="distilled to do without; leave --guidance out"):
        with_prompt(opened, PROMPT, 3.5)
    with pytest.raises(ModelError, match="distilled to do without"):
        open_model(tmp_path, asked=Asked(guidance=3.5))


@pytest.mark.parametrize("name", ["SanaPipeline", "FluxPipeline"])
def test_words_beyond_what_the_model_reads_are_counted(name: str, tmp_path: Path) -> None:
    opened = open_model(tiny.saved(PIPELINES[name](), tmp_path))
    assert opened.text is not None
    kept, cut = ("a" * 298, 2) if name == "SanaPipeline" else (" ".join(["photo"] * 511), 2)
    longer = kept + ("bc" if name == "SanaPipeline" else " heart heart")
    assert opened.text.lost([PROMPT, kept, longer]) == (0, 0, cut)
    assert torch.equal(opened.text.rows(longer)["hidden"][:, -1], opened.text.rows(kept)["hidden"][:, -1])


def test_older_forms_of_a_lora_change_the_same_weights(folder: Path, tmp_path: Path) -> None:
    lora_pipeline(folder, tmp_path, text_encoder=True)
    tensors = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    before = {
        key.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v for key, v in tensors.items()
    }
    kohya = {}
    for key, value in tensors.items():
        part, _, rest = key.partition(".")
        name, _, side = rest.rpartition(".lora_")
        flat = ("lora_unet_" if part == "unet" else "lora_te_") + name.replace(".", "_")
        kohya[f"{flat}.lora_{'down' if side.startswith('A') else 'up'}.weight"] = value
        kohya[f"{flat}.alpha"] = torch.tensor(2.0)  # r: a scale of 1, as where nothing is said
    asked = {}
    for form, given in {"today": tensors, "before": before, "kohya": kohya}.items():
        save_file(given, tmp_path / f"{form}.safetensors")
        opened = open_model(folder, asked=Asked(lora=tmp_path / f"{form}.safetensors"))
        asked[form] = opened.networks[0].state_dict() | opened.networks[2].state_dict()
    for form in ("before", "kohya"):
        assert all(torch.equal(asked["today"][key], asked[form][key]) for key in asked["today"])


def changed(folder: Path, name: str, **values: Any) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: shutil.rmtree(f / "text_encoder"), "the text encoder 'text_encoder' is missing"),
        (lambda f: shutil.rmtree(f / "tokenizer"), "the tokenizer 'tokenizer' is missing"),
        (lambda f: (f / "text_encoder/model.safetensors").unlink(), "holds no weights"),
        (lambda f: changed(f, "model_index.json", unet=["my_code", "Net"]), "no other code is run"),
        (lambda f: changed(f, "model_index.json", extra=["my_code", "Net"]), "are not run"),
        (
            lambda f: changed(f, "model_index.json", _class_name="MyPipeline"),
            "the code of a pipeline is never",
        ),
        (lambda f: changed(f, "model_index.json", text_encoder="x"), "must be a library and a class"),
        (lambda f: changed(f, "text_encoder/config.json", hidden_size=48), "must have shape"),
        (lambda f: changed(f, "text_encoder/config.json", num_attention_heads=5), "do not fit together"),
        (lambda f: changed(f, "text_encoder/config.json", hidden_size=10**9), "hidden_size of CLIPTextModel"),
        (lambda f: (f / "tokenizer/tokenizer.json").write_text("{}"), "the tokenizer 'tokenizer' cannot be"),
        (lambda f: changed(f, "unet/config.json", encoder_hid_dim=3), "encoder_hid_dim"),
        (
            lambda f: (
                (f / "text_encoder/model.safetensors").rename(f / "text_encoder/pytorch_model.bin") and None
            ),
            "are a pickle",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(folder: Path, tmp_path: Path, spoil: Any, says: str) -> None:
    spoilt = copied(folder, tmp_path)
    spoil(spoilt)
    with pytest.raises(ModelError, match=says):
        open_model(spoilt)


def test_what_is_wrong_with_a_lora_is_said(folder: Path, tmp_path: Path) -> None:
    def refused(name: str, says: str, tensors: dict[str, torch.Tensor] | None = None) -> None:
        if tensors is not None:
            save_file(tensors, tmp_path / name)
        with pytest.raises(ModelError, match=says):
            open_model(folder, asked=Asked(lora=tmp_path / name))

    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    (tmp_path / "lora.bin").write_bytes(b"pickle")
    refused("lora.bin", "is a pickle")
    refused("none.safetensors", "there is no LoRA")
    refused("half.safetensors", "one half only", {f"{key}.lora_A.weight": torch.ones(2, 16)})
    other = {f"{key}.lora_A.weight": torch.ones(2, 64), f"{key}.lora_B.weight": torch.ones(64, 2)}
    refused("wide.safetensors", "another architecture.*shape", other)
    other = {"unet.nowhere.to_q.lora_A.weight": torch.ones(2, 16)}
    refused("where.safetensors", "another architecture.*nowhere", other)
    refused("what.safetensors", "not supported", {"unet.weight": torch.ones(2)})


def test_a_prompt_beyond_the_limit_is_counted(folder: Path) -> None:
    text = open_model(folder).text
    assert text is not None
    long = " ".join(["photo"] * 20)
    assert text.lost([PROMPT, long]) == (0, 20 + 2 - tiny.LENGTH)
    assert torch.equal(text.rows(long)["hidden"], text.rows(" ".join(["photo"] * 14))["hidden"])


def test_images_of_a_size_that_the_model_cannot_make_are_refused(folder: Path) -> None:
    def opened(height: int, width: int) -> Opened:
        images = np.zeros((3, 3, height, width), np.float32)
        return open_model(folder, asked=Asked(images=lambda: images))

    assert opened(24, 16).shape == (4, 12, 8)
    assert any("size of the training images" in note for note in opened(24, 16).notes)
    with pytest.raises(ModelError, match="multiples of 4: --resize 16"):
        opened(18, 18)
