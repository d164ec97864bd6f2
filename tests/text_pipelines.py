"""Tiny text-to-image pipelines, built and saved by diffusers and transformers: for tests and prompts.py."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

_TEXT = (
    "a an the of and with in on photo scan digit zero one two three four five six seven eight nine large "
    "small thin thick left right slanted upright chest heart lung clear patient number from old young "
    "bright dark drawn written person hand sks film axial frontal plain style image"
)
WORDS = tuple(_TEXT.split())

LENGTH = 16


def clip_tokenizer(words: Sequence[str] = WORDS) -> CLIPTokenizer:
    """A tokenizer that knows each of the words as one token, and other words by their letters."""
    order, split = tuple(words), tuple(words)
    for _ in words:  # an earlier word's pairs may split a later one, which then goes before it
        made = _clip_tokenizer(order)
        split = tuple(word for word in order if len(made(word).input_ids) != 3)
        if not split:
            return made
        order = (*split, *(word for word in order if word not in split))
    raise ValueError(f"no order of the words keeps {split} whole")


def _clip_tokenizer(words: Sequence[str]) -> CLIPTokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary: dict[str, int] = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    merges: list[tuple[str, str]] = []
    for one in [*letters, *(f"{letter}</w>" for letter in letters)]:
        vocabulary.setdefault(one, len(vocabulary))
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
            parts[:2] = ["".join(pair)]
            vocabulary.setdefault(parts[0], len(vocabulary))
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def t5_tokenizer() -> T5TokenizerFast:
    """The same for T5."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"\u2581{one}", -2.0) for one in WORDS)]
    pieces += [(letter, -9.0) for letter in "\u2581abcdefghijklmnopqrstuvwxyz"]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=LENGTH)


def gemma_tokenizer() -> GemmaTokenizer:
    """Each letter is a token, after the token of the beginning."""
    vocabulary = {name: i for i, name in enumerate(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"))}
    for one in map(chr, range(32, 127)):
        vocabulary.setdefault(one, len(vocabulary))
    vocabulary["\u2581"] = len(vocabulary)
    made = GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=4096)
    begins = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    made.backend_tokenizer.post_processor = begins
    return made


def clip(kind: Any = CLIPTextModel, **settings: Any) -> Any:
    usual = {
        "vocab_size": len(clip_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 37,
        "projection_dim": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    return kind(CLIPTextConfig(**{**usual, **settings})).eval()


def _t5(width: int = 32) -> Any:
    return T5EncoderModel(
        T5Config(vocab_size=128, d_model=width, d_ff=37, d_kv=8, num_layers=2, num_heads=4)
    ).eval()


def vae(channels: int = 4, colours: int = 3, **settings: Any) -> diffusers.AutoencoderKL:
    levels = settings.setdefault("block_out_channels", (8, 8))
    return diffusers.AutoencoderKL(
        in_channels=colours,
        out_channels=colours,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * len(levels),
        up_block_types=("UpDecoderBlock2D",) * len(levels),
        latent_channels=channels,
        **settings,
    )


def unet(**settings: Any) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "norm_num_groups": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "layers_per_block": 1,
            **settings,
        }
    )


def ddim(**settings: Any) -> diffusers.DDIMScheduler:
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **settings,
    )


def sd(colours: int = 3, **parts: Any) -> Any:
    """Stable Diffusion; its text encoder's last layer is made larger, so that prompts matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = {
            "vae": vae(colours=colours),
            "text_encoder": clip(CLIPTextModel),
            "tokenizer": clip_tokenizer(),
            "unet": unet(),
            "scheduler": ddim(),
            "safety_checker": None,
            "feature_extractor": None,
        }
        return _quiet(diffusers.StableDiffusionPipeline(**{**made, **parts}, requires_safety_checker=False))


def xl() -> Any:
    """Stable Diffusion XL."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return _quiet(
            diffusers.StableDiffusionXLPipeline(
                vae=vae(),
                text_encoder=clip(CLIPTextModel),
                text_encoder_2=clip(CLIPTextModelWithProjection),
                tokenizer=clip_tokenizer(),
                tokenizer_2=clip_tokenizer(),
                unet=unet(
                    cross_attention_dim=64,
                    addition_embed_type="text_time",
                    addition_time_embed_dim=8,
                    projection_class_embeddings_input_dim=24 + 6 * 8,
                    transformer_layers_per_block=(1, 2),
                ),
                scheduler=ddim(),
                add_watermarker=False,
            )
        )


def pixart(sigma: bool = False) -> Any:
    """PixArt-alpha or -sigma."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = diffusers.PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=16,
            caption_channels=32,
            sample_size=8,
            patch_size=2,
            use_additional_conditions=False,
            norm_num_groups=4,
        )
        kind = diffusers.PixArtSigmaPipeline if sigma else diffusers.PixArtAlphaPipeline
        parts = {"vae": vae(), "text_encoder": _t5(), "tokenizer": t5_tokenizer()}
        return _quiet(kind(**parts, transformer=_awake(network), scheduler=ddim()))


def sd3(t5: bool = True) -> Any:
    """Stable Diffusion 3."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        network = diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=64,
            caption_projection_dim=32,
            pooled_projection_dim=48,
            out_channels=16,
            pos_embed_max_size=16,
        )
        return _quiet(
            diffusers.StableDiffusion3Pipeline(
                vae=vae(16, shift_factor=0.06, scaling_factor=1.5),
                text_encoder=clip(CLIPTextModelWithProjection),
                text_encoder_2=clip(CLIPTextModelWithProjection),
                text_encoder_3=_t5(64) if t5 else None,
                tokenizer=clip_tokenizer(),
                tokenizer_2=clip_tokenizer(),
                tokenizer_3=t5_tokenizer() if t5 else None,
                transformer=_awake(network),
                scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            )
        )


def flux(distilled: bool = True, shifting: bool = True) -> Any:
    """Flux; ``distilled`` with the scale of guidance as an input (dev), or without (schnell)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network = diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=distilled,
            axes_dims_rope=(4, 4, 8),
        )
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
            shift=3.0 if shifting else 1.0, use_dynamic_shifting=shifting
        )
        return _quiet(
            diffusers.FluxPipeline(
                vae=vae(shift_factor=0.06, scaling_factor=1.5),
                text_encoder=clip(CLIPTextModel),
                text_encoder_2=_t5(),
                tokenizer=clip_tokenizer(),
                tokenizer_2=t5_tokenizer(),
                transformer=_awake(network),
                scheduler=scheduler,
            )
        )


def sana(euler: bool = False) -> Any:
    """Sana with either of the schedulers that its converter writes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        network = diffusers.SanaTransformer2DModel(
            in_channels=32,
            out_channels=32,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=16,
            qk_norm="rms_norm_across_heads",
        )
        compressing = diffusers.AutoencoderDC(
            latent_channels=32,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 32),
            decoder_block_out_channels=(8, 32),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            upsample_block_type="interpolate",
            downsample_block_type="Conv",
            scaling_factor=0.41407,
        )
        tokens = gemma_tokenizer()
        gemma = Gemma2Model(
            Gemma2Config(
                vocab_size=len(tokens),
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                initializer_range=0.3,
            )
        ).eval()
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
        scheduler = (
            diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
            if euler
            else diffusers.DPMSolverMultistepScheduler(**flow)
        )
        return _quiet(
            diffusers.SanaPipeline(
                vae=compressing,
                text_encoder=gemma,
                tokenizer=tokens,
                transformer=_awake(network),
                scheduler=scheduler,
            )
        )


def _awake(network: Any) -> Any:
    """Weights that begin at 0 drawn too, so that every part of the network has a say."""
    for one in network.parameters():
        if not bool(one.any()):
            torch.nn.init.normal_(one, std=0.2)
    return network


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def saved(pipeline: Any, folder: Path) -> Path:
    """The pipeline's folder, as its ``save_pretrained`` leaves it."""
    with Silent():
        pipeline.save_pretrained(folder)
    return folder


class Silent:
    """Without the libraries' remarks and bars."""

    def __enter__(self) -> None:
        self.level = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        logging.getLogger("diffusers").setLevel(logging.ERROR)

    def __exit__(self, *error: object) -> None:
        transformers.logging.set_verbosity(self.level)
        transformers.logging.enable_progress_bar()
        logging.getLogger("diffusers").setLevel(logging.WARNING)
