"""Networks of text-to-image models: the allowed settings of each (see ``adapters.build``)."""

from __future__ import annotations

from collections.abc import Callable

from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from latentprint.adapters.fields import (
    Field,
    a_flag,
    a_number,
    a_size,
    a_whole,
    either,
    maybe,
    never,
    nothing,
    one_of,
    several,
)

_SIDE, _LEVELS, _CHANNELS = 4096, 8, 16384
_CHANNEL = a_whole(1, _CHANNELS)
_DEPTH = a_whole(1, 64)
_DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
_UP = ("CrossAttnUpBlock2D", "UpBlock2D")

UNET: dict[str, Field] = {
    "sample_size": maybe(a_size(_SIDE)),
    "in_channels": a_whole(1, 64),
    "out_channels": a_whole(1, 128),
    "center_input_sample": a_flag,
    "flip_sin_to_cos": a_flag,
    "freq_shift": a_whole(0, 1),
    "down_block_types": several(one_of(*_DOWN), 1, _LEVELS),
    "mid_block_type": maybe(one_of("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")),
    "up_block_types": several(one_of(*_UP), 1, _LEVELS),
    "only_cross_attention": either(a_flag, several(a_flag, 1, _LEVELS)),
    "block_out_channels": several(_CHANNEL, 1, _LEVELS),
    "layers_per_block": either(a_whole(1, 16), several(a_whole(1, 16), 1, _LEVELS)),
    "downsample_padding": a_whole(0, 2),
    "mid_block_scale_factor": a_number(1e-3, 1e3),
    "dropout": a_number(0.0, 1.0),
    "act_fn": one_of("silu", "swish", "mish", "gelu", "relu"),
    "norm_num_groups": maybe(a_whole(1, _CHANNELS)),
    "norm_eps": a_number(0.0, 1.0),
    "cross_attention_dim": either(_CHANNEL, several(_CHANNEL, 1, _LEVELS)),
    "transformer_layers_per_block": either(_DEPTH, several(_DEPTH, 1, _LEVELS)),
    "reverse_transformer_layers_per_block": nothing,
    "encoder_hid_dim": nothing,
    "encoder_hid_dim_type": nothing,
    "attention_head_dim": either(_CHANNEL, several(_CHANNEL, 1, _LEVELS)),
    "num_attention_heads": maybe(either(_CHANNEL, several(_CHANNEL, 1, _LEVELS))),
    "dual_cross_attention": a_flag,
    "use_linear_projection": a_flag,
    "class_embed_type": nothing,
    "addition_embed_type": maybe(one_of("text_time")),
    "addition_time_embed_dim": maybe(_CHANNEL),
    "num_class_embeds": nothing,
    "upcast_attention": maybe(a_flag),
    "resnet_time_scale_shift": one_of("default", "scale_shift"),
    "resnet_skip_time_act": a_flag,
    "resnet_out_scale_factor": a_number(1e-3, 1e3),
    "time_embedding_type": one_of("positional"),
    "time_embedding_dim": maybe(_CHANNEL),
    "time_embedding_act_fn": maybe(one_of("silu", "swish", "mish", "gelu", "relu")),
    "timestep_post_act": maybe(one_of("silu", "swish", "mish", "gelu", "relu")),
    "time_cond_proj_dim": nothing,
    "conv_in_kernel": a_whole(1, 7),
    "conv_out_kernel": a_whole(1, 7),
    "projection_class_embeddings_input_dim": maybe(a_whole(1, 2**16)),
    "attention_type": one_of("default"),
    "class_embeddings_concat": a_flag,
    "mid_block_only_cross_attention": maybe(a_flag),
    "cross_attention_norm": maybe(one_of("layer_norm", "group_norm")),
    "addition_embed_type_num_heads": a_whole(1, 256),
}

_PATCHES: dict[str, Field] = {
    "num_attention_heads": a_whole(1, 256),
    "attention_head_dim": _CHANNEL,
    "in_channels": a_whole(1, 256),
    "out_channels": maybe(a_whole(1, 256)),
    "num_layers": a_whole(0, 256),
    "patch_size": a_whole(1, 64),
}
"""The settings that all transformers share."""

TRANSFORMER: dict[str, Field] = _PATCHES | {
    "dropout": a_number(0.0, 1.0),
    "norm_num_groups": a_whole(1, _CHANNELS),
    "attention_bias": a_flag,
    "sample_size": a_whole(1, _SIDE),
    "activation_fn": one_of("gelu", "gelu-approximate", "geglu"),
    "num_embeds_ada_norm": maybe(a_whole(1, 10**6)),
    "upcast_attention": a_flag,
    "norm_elementwise_affine": a_flag,
    "norm_eps": a_number(0.0, 1.0),
}
"""The settings that diffusers' DiT and PixArt share."""

PIXART: dict[str, Field] = TRANSFORMER | {
    "cross_attention_dim": maybe(_CHANNEL),
    "norm_type": one_of("ada_norm_single"),
    "interpolation_scale": maybe(a_number(1e-3, 1e3)),
    "use_additional_conditions": maybe(a_flag),
    "caption_channels": maybe(_CHANNEL),
    "attention_type": maybe(one_of("default")),
}

SD3: dict[str, Field] = _PATCHES | {
    "sample_size": a_whole(1, _SIDE),
    "joint_attention_dim": _CHANNEL,
    "caption_projection_dim": _CHANNEL,
    "pooled_projection_dim": _CHANNEL,
    "pos_embed_max_size": a_whole(1, 1024),
    "dual_attention_layers": several(a_whole(0, 255), 0, 256),
    "qk_norm": maybe(one_of("rms_norm")),
}

FLUX: dict[str, Field] = _PATCHES | {
    "num_single_layers": a_whole(0, 256),
    "joint_attention_dim": _CHANNEL,
    "pooled_projection_dim": _CHANNEL,
    "guidance_embeds": a_flag,
    "axes_dims_rope": several(a_whole(2, 1024), 3, 3),
}

SANA: dict[str, Field] = _PATCHES | {
    "num_cross_attention_heads": maybe(a_whole(1, 256)),
    "cross_attention_head_dim": maybe(_CHANNEL),
    "cross_attention_dim": maybe(_CHANNEL),
    "caption_channels": _CHANNEL,
    "mlp_ratio": a_number(1e-3, 64.0),
    "dropout": a_number(0.0, 1.0),
    "attention_bias": a_flag,
    "sample_size": a_whole(1, _SIDE),
    "norm_elementwise_affine": a_flag,
    "norm_eps": a_number(0.0, 1.0),
    "interpolation_scale": maybe(a_number(1e-3, 1e3)),
    "guidance_embeds": never,
    "guidance_embeds_scale": a_number(0.0, 1e3),
    "qk_norm": maybe(one_of("rms_norm_across_heads")),
    "timestep_scale": a_number(1e-6, 1e6),
}

CONDITIONAL: dict[str, tuple[Callable[..., nn.Module], dict[str, Field]]] = {
    "UNet2DConditionModel": (UNet2DConditionModel, UNET),
    "PixArtTransformer2DModel": (PixArtTransformer2DModel, PIXART),
    "SD3Transformer2DModel": (SD3Transformer2DModel, SD3),
    "FluxTransformer2DModel": (FluxTransformer2DModel, FLUX),
    "SanaTransformer2DModel": (SanaTransformer2DModel, SANA),
}
