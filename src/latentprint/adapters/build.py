"""Networks from untrusted configurations.

The class is chosen from a literal table and never imported by a name in a file; every setting is checked
against a range. The network is first built without memory (torch's "meta" device), which gives the shapes of
its weights. Only if the files hold exactly these is anything loaded. So no configuration can allocate more
memory than the size of the files (twice that for half precision).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import nn

from latentprint.adapters.fields import (
    Field,
    a_flag,
    a_number,
    a_size,
    a_whole,
    either,
    maybe,
    nothing,
    one_of,
    read_fields,
    several,
    short,
)
from latentprint.adapters.files import inside, load_into, read_json, read_tensors, weight_files
from latentprint.adapters.openai import OPENAI
from latentprint.adapters.text.networks import CONDITIONAL, TRANSFORMER
from latentprint.networks import ModelError
from latentprint.networks.edm import EDMUNet
from latentprint.networks.openai import OpenAIUNet

MAX_SIDE = 4096
"""The longest side of the images of a model, in pixels."""

_AVERAGING = (
    "decay",
    "min_decay",
    "optimization_step",
    "update_after_step",
    "use_ema_warmup",
    "inv_gamma",
    "power",
)
"""What diffusers' EMAModel writes into the configuration of the network that it averages."""

MAX_COMPUTED = 2**26
"""The most numbers that a network may compute itself, in addition to its weights."""

_LEVELS, _LAYERS, _CHANNELS = 8, 16, 8192
_CHANNEL = a_whole(1, _CHANNELS)
_ACTIVATION = one_of("silu", "swish", "mish", "gelu", "relu")
_DOWN = (
    "DownBlock2D",
    "AttnDownBlock2D",
    "ResnetDownsampleBlock2D",
    "SkipDownBlock2D",
    "AttnSkipDownBlock2D",
)
_UP = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D")

UNET: dict[str, Field] = {
    "sample_size": maybe(a_size(MAX_SIDE)),
    "in_channels": a_whole(1, 64),
    "out_channels": a_whole(1, 128),
    "center_input_sample": a_flag,
    "time_embedding_type": one_of("positional", "learned", "fourier"),
    "time_embedding_dim": maybe(_CHANNEL),
    "freq_shift": a_whole(0, 1),
    "flip_sin_to_cos": a_flag,
    "down_block_types": several(one_of(*_DOWN), 1, _LEVELS),
    "mid_block_type": maybe(one_of("UNetMidBlock2D")),
    "up_block_types": several(one_of(*_UP), 1, _LEVELS),
    "block_out_channels": several(_CHANNEL, 1, _LEVELS),
    "layers_per_block": a_whole(1, _LAYERS),
    "mid_block_scale_factor": a_number(1e-3, 1e3),
    "downsample_padding": a_whole(0, 2),
    "downsample_type": one_of("conv", "resnet"),
    "upsample_type": one_of("conv", "resnet"),
    "dropout": a_number(0.0, 1.0),
    "act_fn": _ACTIVATION,
    "attention_head_dim": maybe(_CHANNEL),
    "norm_num_groups": a_whole(1, _CHANNELS),
    "attn_norm_num_groups": maybe(_CHANNEL),
    "norm_eps": a_number(0.0, 1.0),
    "resnet_time_scale_shift": one_of("default", "scale_shift"),
    "add_attention": a_flag,
    "class_embed_type": nothing,
    "num_class_embeds": maybe(a_whole(1, 10**6)),
    "num_train_timesteps": maybe(a_whole(1, 100_000)),
}

_AUTOENCODER: dict[str, Field] = {
    "in_channels": a_whole(1, 16),
    "out_channels": a_whole(1, 16),
    "down_block_types": several(one_of("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), 1, _LEVELS),
    "up_block_types": several(one_of("UpDecoderBlock2D", "AttnUpDecoderBlock2D"), 1, _LEVELS),
    "block_out_channels": several(_CHANNEL, 1, _LEVELS),
    "layers_per_block": a_whole(1, _LAYERS),
    "act_fn": _ACTIVATION,
    "latent_channels": a_whole(1, 64),
    "norm_num_groups": a_whole(1, _CHANNELS),
    "sample_size": a_size(MAX_SIDE),
    "scaling_factor": a_number(1e-6, 1e6),
    "force_upcast": a_flag,
    "mid_block_add_attention": a_flag,
}

AUTOENCODER_KL: dict[str, Field] = _AUTOENCODER | {
    "shift_factor": maybe(a_number(-1e6, 1e6)),
    "latents_mean": nothing,
    "latents_std": nothing,
    "use_quant_conv": a_flag,
    "use_post_quant_conv": a_flag,
}

VQ: dict[str, Field] = _AUTOENCODER | {
    "num_vq_embeddings": a_whole(1, 10**6),
    "vq_embed_dim": maybe(a_whole(1, _CHANNELS)),
    "norm_type": one_of("group", "spatial"),
    "lookup_from_codebook": a_flag,
}

_KERNELS = several(several(a_whole(1, 63), 0, _LEVELS), 1, _LEVELS)
_BLOCK, _NORM = one_of("ResBlock", "EfficientViTBlock"), one_of("rms_norm", "batch_norm")

AUTOENCODER_DC: dict[str, Field] = {
    "in_channels": a_whole(1, 16),
    "latent_channels": a_whole(1, 256),
    "attention_head_dim": _CHANNEL,
    "encoder_block_types": either(_BLOCK, several(_BLOCK, 1, _LEVELS)),
    "decoder_block_types": either(_BLOCK, several(_BLOCK, 1, _LEVELS)),
    "encoder_block_out_channels": several(_CHANNEL, 1, _LEVELS),
    "decoder_block_out_channels": several(_CHANNEL, 1, _LEVELS),
    "encoder_layers_per_block": several(a_whole(0, 64), 1, _LEVELS),
    "decoder_layers_per_block": several(a_whole(0, 64), 1, _LEVELS),
    "encoder_qkv_multiscales": _KERNELS,
    "decoder_qkv_multiscales": _KERNELS,
    "upsample_block_type": one_of("pixel_shuffle", "interpolate"),
    "downsample_block_type": one_of("pixel_unshuffle", "Conv"),
    "decoder_norm_types": either(_NORM, several(_NORM, 1, _LEVELS)),
    "decoder_act_fns": either(_ACTIVATION, several(_ACTIVATION, 1, _LEVELS)),
    "encoder_out_shortcut": a_flag,
    "decoder_in_shortcut": a_flag,
    "decoder_conv_act_fn": _ACTIVATION,
    "scaling_factor": a_number(1e-6, 1e6),
}

DIT: dict[str, Field] = TRANSFORMER | {"norm_type": one_of("ada_norm_zero")}

EDM: dict[str, Field] = {
    "kind": one_of("SongUNet", "DhariwalUNet"),
    "sample_size": a_whole(1, MAX_SIDE),
    "in_channels": a_whole(1, 64),
    "out_channels": a_whole(1, 64),
    "model_channels": _CHANNEL,
    "mults": several(a_whole(1, 64), 1, _LEVELS),
    "mult_noise": a_whole(1, 64),
    "mult_emb": a_whole(1, 64),
    "blocks": a_whole(1, _LAYERS),
    "attention": several(a_whole(1, MAX_SIDE), 0, _LEVELS),
    "fourier": a_flag,
    "residual": a_flag,
    "filter": several(a_number(-1e3, 1e3), 1, 16),
    "classes": maybe(a_whole(1, 10**6)),
    "augmented": maybe(a_whole(1, 1000)),
}

_KINDS: dict[str, tuple[Callable[..., nn.Module], dict[str, Field]]] = {
    "UNet2DModel": (UNet2DModel, UNET),
    "AutoencoderKL": (AutoencoderKL, AUTOENCODER_KL),
    "VQModel": (VQModel, VQ),
    "AutoencoderDC": (AutoencoderDC, AUTOENCODER_DC),
    "DiTTransformer2DModel": (DiTTransformer2DModel, DIT),
    **CONDITIONAL,
    "OpenAIUNet": (OpenAIUNet, OPENAI),
    "EDMUNet": (EDMUNet, EDM),
}


def build(
    config: Mapping[str, object], folder: Path, allowed: tuple[str, ...]
) -> tuple[nn.Module, list[Path]]:
    """The network that ``config`` describes with the weights of ``folder``, and the files these came from.

    It is in evaluation mode, in float32, on the CPU, without gradients.

    Raises:
        ModelError: the class is not in ``allowed``, a setting is refused, or the weights are missing, damaged
            or not those of this network.
    """
    name = config.get("_class_name")
    if name == "UNet2DConditionModel" and name not in allowed:
        raise ModelError(
            "its network (UNet2DConditionModel) is conditioned by cross-attention, and what it looks at is "
            "not part of the folder: a text-to-image folder has tokenizer/, text_encoder/ and vae/ beside it "
            "(save the whole pipeline); of another condition, audit what it generates: --samples FOLDER"
        )
    if not isinstance(name, str) or name not in allowed:
        raise ModelError(f"a network of class {short(name)} is not supported; {' or '.join(allowed)} is")
    kind, fields = _KINDS[name]
    values = read_fields(config, fields, name)
    if values.get("time_embedding_type") == "learned" and values.get("num_train_timesteps") is None:
        raise ModelError("a UNet2DModel with a learned time embedding must state num_train_timesteps")
    files = weight_files(folder)
    try:
        with torch.device("meta"):
            network = kind(**values)
    except Exception as error:  # diffusers' constructors raise errors of any type on contradictory settings
        raise ModelError(f"the settings of {name} do not fit together: {short(error)}") from error
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    tensors = read_tensors(files, expected)
    left = {key: buffer.numel() for key, buffer in network.named_buffers() if key not in expected}
    if left:  # computed by the constructor and not saved, such as the positions of a transformer's patches
        if sum(left.values()) > MAX_COMPUTED:
            raise ModelError(f"{name} would compute {sum(left.values()):,} numbers for {next(iter(left))!r}")
        with torch.random.fork_rng(devices=[]):  # it draws weights, which are replaced at once
            network = kind(**values)
    return load_into(network, tensors), files


def read_network(folder: Path, allowed: tuple[str, ...]) -> tuple[nn.Module, dict[str, Any], list[Path]]:
    """``build`` from the folder's own ``config.json``; also returns that configuration, with its defaults.

    Raises:
        ModelError: see ``build``.
    """
    config = read_json(inside(folder, "config.json"))
    if config.get("optimization_step") == 0:
        raise ModelError(
            f"the averaged weights of {folder.name!r} have seen 0 steps: they are what the network was "
            "before training; where the folder unet/ beside holds the model, take unet_ema/ away"
        )
    config = {key: value for key, value in config.items() if key not in _AVERAGING}
    network, files = build(config, folder, allowed)
    return network, {**dict(cast(Any, network).config), **config}, files


def sides(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """One side or both, as (height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
