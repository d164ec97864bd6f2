"""Checkpoints of openai's improved- and guided-diffusion: state dicts that say nothing about noise or heads.

Widths, depth, attention, classes and a learned variance follow from the tensors. The rest are the flags that
the model was trained with. A flag that is not given has the library's default, and the result says so.

    unet/config.json                      OpenAIUNet (``latentprint.networks.openai``)
    scheduler/scheduler_config.json       DDPM of diffusers: linear or cosine betas, with their variance

Sources: openai's guided- and improved-diffusion (MIT), script_util, gaussian_diffusion, respace.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from latentprint.adapters.fields import Field, a_flag, a_whole, maybe, one_of, several, short
from latentprint.adapters.statedict import (
    Groups,
    Parts,
    Tensors,
    Told,
    require_shapes,
    shapes_of,
    without,
)
from latentprint.files import Raw
from latentprint.networks import ModelError
from latentprint.networks.openai import OpenAIUNet

_CHANNEL = a_whole(1, 8192)
_HEADS = a_whole(1, 1024)

OPENAI: dict[str, Field] = {
    "sample_size": a_whole(1, 4096),
    "in_channels": a_whole(1, 64),
    "out_channels": a_whole(1, 128),
    "model_channels": _CHANNEL,
    "widths": several(_CHANNEL, 1, 8),
    "num_res_blocks": a_whole(1, 16),
    "attention": several(a_flag, 1, 8),
    "heads": several(_HEADS, 2, 2),
    "head_channels": maybe(_CHANNEL),
    "new_order": a_flag,
    "scale_shift": a_flag,
    "resample_blocks": a_flag,
    "num_class_embeds": maybe(a_whole(1, 10**6)),
    "timestep_scale": lambda value, name: _scale(value, name),
    "context": maybe(_CHANNEL),
    "depth": a_whole(1, 64),
    "null_class": maybe(a_whole(0, 10**6)),
}
"""The allowed settings of an ``OpenAIUNet``."""

DEFAULTS: Raw = {
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "use_new_attention_order": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
    "sigma_small": False,
    "timestep_respacing": "",
    "use_ddim": False,
}
"""Flags that the weights do not show, with both libraries' defaults."""

_ELSEWHERE = ("image_size", "rescale_timesteps")
_SEEN = {
    "num_channels": "model_channels",
    "num_res_blocks": "num_res_blocks",
    "use_scale_shift_norm": "scale_shift",
    "resblock_updown": "resample_blocks",
}
"""Flags that the weights show too; both must agree."""

_FIRST = "input_blocks.0.0.weight"
_CLASSES = ("label_emb.weight", "class_embedding.weight")
_TRAINED = re.compile(r"model(\d*)\.pt")


def converted(groups: Groups, told: Told) -> Parts | None:
    """The folder that a checkpoint becomes; None if it is not an openai checkpoint."""
    weights = groups.get("")
    if weights is None or _FIRST not in weights or len(groups) != 1 or "time_embed.0.weight" not in weights:
        return None
    average = _average(told) if told.how is None else told.how
    if told.flags is None:
        raise ModelError(
            f"{told.name!r} looks like a U-Net of openai's guided- or improved-diffusion, whose weights do "
            'not say how it is sampled: add --flags "$MODEL_FLAGS $DIFFUSION_FLAGS", the words of its '
            "training command (image_size at least; docs/models.md lists the others)"
        )
    flags = dict(told.flags)
    if "image_size" not in flags:
        raise ModelError("the flags do not say image_size, which the weights do not show; add --image_size")
    network = settings_of(weights, heads_of(flags), flags["image_size"])
    _require_agreement(flags, network)
    steps = a_whole(2, 100_000)(_flag(flags, "diffusion_steps"), "diffusion_steps")
    rescaled = a_flag(flags.get("rescale_timesteps", False), "rescale_timesteps")
    if steps != 1000 and "rescale_timesteps" not in flags:
        raise ModelError(
            "whether timesteps are rescaled is not among the flags, and the two libraries differ in it: say "
            "--rescale_timesteps True (improved-diffusion's default) or False (guided-diffusion's)"
        )
    network["timestep_scale"] = 1000 / steps if rescaled else 1.0
    silent = [f"{name} {_shown(value)}" for name, value in DEFAULTS.items() if name not in flags]
    said = (
        f"openai's U-Net: taken are all {len(weights)} tensors of {told.name}, {average}",
        f"widths {tuple(network['widths'])}, {network['num_res_blocks']} residual blocks a level, "
        f"{network['num_class_embeds'] or 'no'} classes (from the tensors)",
        f"not among the flags, so the library's defaults: {', '.join(silent) or 'nothing'}",
    )
    learned = network["out_channels"] == 2 * network["in_channels"]
    configs = {
        "unet/config.json": {"_class_name": "OpenAIUNet", **network},
        "scheduler/scheduler_config.json": _scheduler(flags, steps, learned),
    }
    return Parts(configs, {"unet": weights}, said)


def _average(told: Told) -> str:
    """Whether these are averaged weights, by the file's name, because the trainer writes both."""
    if told.name.startswith("ema_"):
        return "averaged (its name begins with ema_)"
    mean = [name for name in told.beside if name.startswith("ema_") and name.endswith(".pt")]
    if _TRAINED.fullmatch(told.name) and mean and told.take != "model":
        raise ModelError(
            f"{told.name!r} holds the weights that are not averaged, and beside it lies {mean[-1]!r}, from "
            "which images are sampled: convert that one, or say --take model if this one will be published"
        )
    return "whether they are averaged (EMA) the file does not say"


def heads_of(flags: Mapping[str, Any]) -> Raw:
    """The settings of attention that flags give."""
    count = a_whole(-1, 1024)(_flag(flags, "num_heads"), "num_heads")
    above = a_whole(-1, 1024)(_flag(flags, "num_heads_upsample"), "num_heads_upsample")
    width = a_whole(-1, 8192)(_flag(flags, "num_head_channels"), "num_head_channels")
    if count < 1 and width < 1:
        raise ModelError(
            "the flags say neither num_heads nor num_head_channels, and the weights do not show them"
        )
    order = a_flag(_flag(flags, "use_new_attention_order"), "use_new_attention_order")
    heads = [max(1, count), above if above > 0 else max(1, count)]
    return {"heads": heads, "head_channels": width if width > 0 else None, "new_order": order}


def _flag(flags: Mapping[str, Any], name: str) -> Any:
    return flags.get(name, DEFAULTS[name])


def _shown(value: object) -> str:
    return repr(value) if value == "" else str(value)


def settings_of(weights: Tensors, heads: Mapping[str, Any], size: object) -> Raw:
    """The settings of the ``OpenAIUNet`` of these tensors, except heads and size, which they do not show."""
    shape = {name: tuple(one.shape) for name, one in weights.items()}
    count = 1 + max(
        (int(name.split(".")[1]) for name in shape if name.startswith("output_blocks.")), default=-1
    )
    stages = [without(f"output_blocks.{place}.", shape) for place in range(min(count, 200))]
    ups = [any(_rises(name) for name in stage) for stage in stages]
    blocks = ups.index(True) + 1 if any(ups) else max(1, count)
    try:
        levels = [stages[place] for place in range(0, count, blocks)][::-1]
        widths = [stage["0.out_layers.3.weight"][0] for stage in levels]
        network: Raw = {
            "sample_size": size,
            "in_channels": shape[_FIRST][1],
            "out_channels": shape["out.2.weight"][0],
            "model_channels": shape["time_embed.0.weight"][1],
            "widths": widths,
            "num_res_blocks": blocks - 1,
            "attention": ["1.qkv.weight" in s or "1.proj_in.weight" in s for s in levels],
            **heads,
            "scale_shift": shape["middle_block.0.emb_layers.1.weight"][0] == 2 * widths[-1],
            "resample_blocks": any(
                name.endswith(".in_layers.2.weight") and name[0] != "0" for s in stages for name in s
            ),
            "num_class_embeds": next((shape[n][0] for n in _CLASSES if n in shape), None),
        }
        if (looks := "middle_block.1.transformer_blocks.0.attn2.to_k.weight") in shape:
            depth = {n.split(".")[3] for n in shape if n.startswith("middle_block.1.transformer_blocks.")}
            network |= {"context": shape[looks][1], "depth": len(depth)}
    except (KeyError, IndexError) as error:
        raise ModelError(
            f"the tensors are not those of openai's U-Net: {short(error)} is not there"
        ) from error
    _require_same(network, shape)
    return network


def _rises(name: str) -> bool:
    """Whether a later part of a stage changes the side."""
    return name.endswith(".conv.weight") or _second(name)


def _second(name: str) -> bool:
    """Whether this belongs to a residual block that is not the first of its stage."""
    return name.endswith(".in_layers.2.weight") and not name.startswith("0.")


def _require_same(network: Mapping[str, Any], shape: Mapping[str, tuple[int, ...]]) -> None:
    values = {key: OPENAI[key](value, key) for key, value in network.items()}
    try:
        with torch.device("meta"):
            expected = shapes_of(OpenAIUNet(**values).state_dict())
    except ValueError as error:
        raise ModelError(f"the flags and the weights do not fit together: {error}") from error
    require_shapes(shape, expected, "the tensors are not those of openai's U-Net")


def _require_agreement(flags: Mapping[str, Any], network: Mapping[str, Any]) -> None:
    """Refuse flags that the weights contradict."""
    seen = {name: network[key] for name, key in _SEEN.items()}
    seen |= {
        "learn_sigma": network["out_channels"] == 2 * network["in_channels"],
        "class_cond": network["num_class_embeds"] is not None,
    }
    for name, value in seen.items():
        if name in flags and flags[name] != value:
            raise ModelError(f"the flags say {name} {short(flags[name])}, but the weights show {value}")


def _scheduler(flags: Mapping[str, Any], steps: int, learned: bool) -> Raw:
    kind = one_of("linear", "cosine")(_flag(flags, "noise_schedule"), "noise_schedule")
    start = a_flag(_flag(flags, "predict_xstart"), "predict_xstart")
    small = a_flag(_flag(flags, "sigma_small"), "sigma_small")
    spaced = str(_flag(flags, "timestep_respacing"))
    ddim = spaced.startswith("ddim") or a_flag(_flag(flags, "use_ddim"), "use_ddim")
    taken = spaced.removeprefix("ddim") or str(steps)
    if not taken.isdecimal() or not 1 <= int(taken) <= steps:
        raise ModelError(
            f"timestep_respacing is one count of timesteps, or ddim and one, got {short(spaced)}"
        )
    if spaced.startswith("ddim") and steps % int(taken):
        raise ModelError(f"timestep_respacing {short(spaced)} does not divide the {steps} timesteps")
    noise = {
        "num_train_timesteps": steps,
        "beta_schedule": "squaredcos_cap_v2" if kind == "cosine" else "linear",
        "beta_start": 1e-4 * 1000 / steps,
        "beta_end": 0.02 * 1000 / steps,
        "prediction_type": "sample" if start else "epsilon",
        "clip_sample": True,
        "num_inference_steps": int(taken),
        "timestep_spacing": "leading" if spaced.startswith("ddim") else "linspace",
    }
    if ddim:
        return {"_class_name": "DDIMScheduler", "use_clipped_model_output": True, **noise}
    variance = "learned_range" if learned else "fixed_small" if small else "fixed_large"
    return {"_class_name": "DDPMScheduler", "variance_type": variance, **noise}


def _scale(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-6 <= value <= 1e6:
        raise ModelError(f"{name} must be a number from 1e-6 to 1e6, got {short(value)}")
    return float(value)
