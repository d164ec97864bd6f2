"""Checkpoints of CompVis' latent-diffusion (``.ckpt`` of Lightning): openai's U-Net on latents.

    unet/config.json        OpenAIUNet, from ``model.diffusion_model``, its averaged weights if it has EMA
    vae/config.json         AutoencoderKL or VQModel of diffusers, renamed by diffusers' own converter
    scheduler/...           the buffer ``betas``; DDIM with eta 1 in 50 steps, as scripts/sample_diffusion.py

What the tensors do not show stands in the project's .yaml: image_size, num_heads or num_head_channels,
parameterization (eps where it is silent), scale_factor (where no buffer of that name holds it; 1 where the
whole .yaml is silent). Conditional ones are read where the condition is a class (ClassEmbedder).

Sources: CompVis/latent-diffusion (MIT); diffusers, loaders.single_file_utils; Rombach et al. 2022.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor

from latentprint.adapters.fields import a_number, a_whole, one_of, short
from latentprint.adapters.openai import heads_of, settings_of
from latentprint.adapters.statedict import Groups, Parts, Tensors, Told, averaged, without
from latentprint.files import Raw
from latentprint.networks import ModelError

_NETWORK, _FIRST_STAGE, _CONDITION = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
_STEPS = 50
_PREDICTS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def converted(groups: Groups, told: Told) -> Parts | None:
    """The folder that a checkpoint becomes; None if it is not a CompVis checkpoint."""
    found = [name for name, one in groups.items() if f"{_NETWORK}input_blocks.0.0.weight" in one]
    if len(found) != 1:
        return None
    every = dict(groups[found[0]])
    mean = averaged(every)
    network = without(_NETWORK, mean or every)
    classes = _classes(told.name, network, without(_CONDITION, every))
    if told.flags is None:
        raise ModelError(
            f"{told.name!r} looks like a latent diffusion model of CompVis, whose tensors do not show all "
            "settings: add --flags project.yaml, the file it was trained with (image_size, num_heads or "
            "num_head_channels, parameterization and scale_factor are read)"
        )
    flags = _settings(told.flags)
    if "betas" not in every:
        raise ModelError("it holds no betas, without which the noise it was trained with is not known")
    network |= classes
    settings = _network(network, flags)
    kind = one_of(*_PREDICTS)(flags.get("parameterization", "eps"), "parameterization")
    scheduler = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": len(every["betas"]),
        "trained_betas": every["betas"].double().tolist(),
        "prediction_type": _PREDICTS[kind],
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "num_inference_steps": _STEPS,
        "eta": 1.0,
    }
    configs: dict[str, Mapping[str, Any]] = {
        "unet/config.json": {"_class_name": "OpenAIUNet", **settings},
        "scheduler/scheduler_config.json": scheduler,
    }
    weights: dict[str, Tensors] = {"unet": network}
    what = "a model of pixels"
    first = without(_FIRST_STAGE, every)
    if first:
        configs["vae/config.json"], weights["vae"], what = _autoencoder(first, every, flags, settings)
    elif "first_stage_config" in flags or "scale_factor" in every:
        raise ModelError(
            f"{told.name!r} is a model of latents, and its autoencoder (first_stage_model) is absent"
        )
    left = len(every) - len(network) - len(first) - (len(network) - len(classes) if mean else 0)
    if classes:
        what += (
            f"; {settings['num_class_embeds']} classes (ClassEmbedder), of which null_class in "
            "unet/config.json may name the one that stands for none, for --guidance"
        )
    said = (
        f"CompVis' latent diffusion: taken are {len(network)} tensors of {_NETWORK[:-1]}, "
        f"{'averaged (EMA)' if mean else 'not averaged: it has no EMA'}; {what}",
        f"widths {tuple(settings['widths'])}, {len(every['betas'])} timesteps (from its tensors); "
        f"it predicts {kind}{'' if 'parameterization' in flags else ', for its settings are silent'}",
        f"left: {'the weights that are not averaged, ' if mean else ''}{max(0, left)} other tensors",
    )
    return Parts(configs, weights, said)


def _network(network: Tensors, flags: Mapping[str, Any]) -> Raw:
    """The settings of its U-Net."""
    if "image_size" not in flags:
        raise ModelError("its settings do not say image_size, the side of its latents; add it")
    settings = settings_of(network, heads_of({"num_heads": -1, **flags}), flags["image_size"])
    if settings["in_channels"] != settings["out_channels"]:
        raise ModelError(
            f"its network takes {settings['in_channels']} channels and gives {settings['out_channels']}: it "
            "is conditioned on an image; generate images as you would publish them, and audit these: "
            "--samples FOLDER"
        )
    return settings if "context" not in settings else {**settings, "null_class": flags.get("null_class")}


def _classes(file: str, network: Tensors, condition: Tensors) -> dict[str, Tensor]:
    """The embedding of classes that its transformers look at, by our name; empty where there is none.

    Raises:
        ModelError: it is conditioned on something else.
    """
    looks = any(".transformer_blocks." in name for name in network)
    if looks and set(condition) == {"embedding.weight"}:
        return {"class_embedding.weight": condition["embedding.weight"]}
    if not looks and not condition:
        return {}
    raise ModelError(
        f"{file!r} is a latent diffusion model of CompVis that is conditioned on text or images, and not on "
        "classes alone (cond_stage_model), which this converter does not read: of Stable Diffusion, "
        "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER) makes a folder that --model "
        "takes; of others, generate images as you would publish them, and audit these: --samples FOLDER"
    )


def _scale(flags: Mapping[str, Any], every: Tensors) -> tuple[float, str]:
    """(what latents are multiplied by, where that is written).

    Raises:
        ModelError: it is written nowhere.
    """
    if "scale_factor" in every:
        return float(every["scale_factor"]), "its buffer scale_factor"
    if "scale_factor" in flags:
        return a_number(1e-6, 1e6)(flags["scale_factor"], "scale_factor"), "its settings"
    if "first_stage_config" not in flags:
        raise ModelError(
            "neither its tensors nor its settings say scale_factor, by which latents are multiplied: add it "
            "to the flags (--scale_factor 0.18215), or give the whole .yaml of the project"
        )
    return 1.0, "the default of its code, for its tensors and its .yaml name none"


def _settings(flags: Mapping[str, Any]) -> Raw:
    """The project's settings by name: those of its model, and of the U-Net within."""
    model = flags.get("model")
    params = cast(Any, model).get("params") if isinstance(model, dict) else flags
    if not isinstance(params, dict):
        params = dict(flags)
    inner = cast(Raw, params).get("unet_config")
    unet = cast(Any, inner).get("params") if isinstance(inner, dict) else None
    return {**(cast(Raw, unet) if isinstance(unet, dict) else {}), **cast(Raw, params)}


def _autoencoder(
    first: Tensors, every: Tensors, flags: Mapping[str, Any], network: Mapping[str, Any]
) -> tuple[Raw, Tensors, str]:
    """(configuration, tensors by diffusers' names, what it is) of the first stage."""
    kept = {name: one for name, one in first.items() if not name.startswith("loss.")}
    shape = {name: tuple(one.shape) for name, one in kept.items()}
    quantised = "quantize.embedding.weight" in shape
    scale, where = _scale(flags, every)
    try:
        levels = 1 + max(int(name.split(".")[2]) for name in shape if name.startswith("encoder.down."))
        blocks = len({n for n in shape if re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv2\.weight", n)})
        attends = [f"encoder.down.{k}.attn.0.q.weight" in shape for k in range(levels)]
        widths = [shape[f"encoder.down.{k}.block.0.conv2.weight"][0] for k in range(levels)]
        channels = shape["decoder.conv_in.weight"][1]
        latents = shape["post_quant_conv.weight"][1]
        ends = shape["encoder.conv_in.weight"][1], shape["decoder.conv_out.weight"][0]
    except (KeyError, ValueError) as error:
        raise ModelError(f"its autoencoder is not one that is known: {short(error)} is lacking") from error
    if latents != channels and not quantised:
        raise ModelError(
            f"its autoencoder has {channels} channels within and {latents} latents, which differ"
        )
    config = {
        "_class_name": "VQModel" if quantised else "AutoencoderKL",
        "in_channels": ends[0],
        "out_channels": ends[1],
        "down_block_types": [f"{'Attn' * on}DownEncoderBlock2D" for on in attends],
        "up_block_types": [f"{'Attn' * on}UpDecoderBlock2D" for on in reversed(attends)],
        "block_out_channels": widths,
        "layers_per_block": blocks,
        "latent_channels": channels,
        "sample_size": a_whole(1, 4096)(network["sample_size"], "image_size") * 2 ** (levels - 1),
        "scaling_factor": a_number(1e-6, 1e6)(scale, "scale_factor"),
    }
    if quantised:
        config |= dict(
            zip(("num_vq_embeddings", "vq_embed_dim"), shape["quantize.embedding.weight"], strict=True)
        )
    named = cast(Raw, convert_ldm_vae_checkpoint(dict(kept), config))
    named = {name: one for name, one in named.items() if ".attn." not in name}
    for name, one in kept.items():
        if name.startswith("quantize."):
            named[name] = one
        elif ".attn." in name:
            named[_attention(name, levels)] = one.flatten(1) if one.ndim == 4 else one
    return config, named, f"with its {config['_class_name']}, latents times {scale:g} ({where})"


_PARTS = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def _attention(name: str, levels: int) -> str:
    """diffusers' name for the attention between the blocks of a level, which its converter omits."""
    side, way, level, _, place, part, kind = name.split(".")
    at = int(level) if way == "down" else levels - 1 - int(level)
    return f"{side}.{way}_blocks.{at}.attentions.{place}.{_PARTS[part]}.{kind}"
