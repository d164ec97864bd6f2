"""The allowed settings of MONAI's networks and schedulers: a literal table, by class."""

from __future__ import annotations

from typing import Any, cast

from latentprint.adapters.fields import (
    Field,
    a_flag,
    a_number,
    a_whole,
    maybe,
    one_of,
    several,
)

_CHANNEL = a_whole(1, 8192)
_COUNTS = several(_CHANNEL, 1, 8)


def _one_or_several(field: Field) -> Field:
    many = several(field, 1, 8)
    return lambda value, name: many(value, name) if isinstance(value, list | tuple) else field(value, name)


_COMMON: dict[str, Field] = {
    "spatial_dims": a_whole(2, 3),
    "in_channels": a_whole(1, 64),
    "out_channels": a_whole(1, 128),
    "num_res_blocks": _one_or_several(a_whole(1, 16)),
    "channels": _COUNTS,
    "attention_levels": several(a_flag, 1, 8),
    "norm_num_groups": _CHANNEL,
    "norm_eps": a_number(0.0, 1.0),
    "include_fc": a_flag,
    "use_combined_linear": a_flag,
    "use_flash_attention": a_flag,
}

_UNET: dict[str, Field] = _COMMON | {
    "resblock_updown": a_flag,
    "num_head_channels": _one_or_several(a_whole(0, 8192)),
    "with_conditioning": a_flag,
    "transformer_num_layers": a_whole(1, 64),
    "cross_attention_dim": maybe(_CHANNEL),
    "num_class_embeds": maybe(a_whole(1, 10**6)),
    "upcast_attention": a_flag,
    "dropout_cattn": a_number(0.0, 1.0),
}

_AUTOENCODER: dict[str, Field] = _COMMON | {
    "latent_channels": a_whole(1, 64),
    "with_encoder_nonlocal_attn": a_flag,
    "with_decoder_nonlocal_attn": a_flag,
    "use_checkpoint": a_flag,
    "use_convtranspose": a_flag,
}

_STRIDE = _one_or_several(several(a_whole(0, 64), 4, 5))
_VQVAE: dict[str, Field] = {
    "spatial_dims": a_whole(2, 3),
    "in_channels": a_whole(1, 64),
    "out_channels": a_whole(1, 64),
    "channels": _COUNTS,
    "num_res_layers": a_whole(1, 16),
    "num_res_channels": _one_or_several(_CHANNEL),
    "downsample_parameters": lambda value, name: _strides(value, name, 4),
    "upsample_parameters": lambda value, name: _strides(value, name, 5),
    "num_embeddings": a_whole(1, 10**6),
    "embedding_dim": _CHANNEL,
    "embedding_init": one_of("normal", "kaiming_uniform"),
    "commitment_cost": a_number(0.0, 1e3),
    "decay": a_number(0.0, 1.0),
    "epsilon": a_number(0.0, 1.0),
    "dropout": a_number(0.0, 1.0),
    "act": maybe(one_of("RELU", "relu", "LEAKYRELU", "leakyrelu", "SWISH", "swish", "GELU", "gelu")),
    "output_act": maybe(one_of("tanh", "TANH", "sigmoid", "SIGMOID")),
    "ddp_sync": a_flag,
    "use_checkpointing": a_flag,
}

_SCHEDULE: dict[str, Field] = {
    "num_train_timesteps": a_whole(2, 100_000),
    "schedule": one_of("linear_beta", "scaled_linear_beta", "sigmoid_beta", "cosine"),
    "beta_start": a_number(0.0, 1.0),
    "beta_end": a_number(0.0, 1.0),
    "sig_range": a_number(0.1, 100.0),
    "s": a_number(0.0, 1.0),
    "prediction_type": one_of("epsilon", "sample", "v_prediction"),
    "clip_sample": a_flag,
    "clip_sample_min": a_number(-1e3, 1e3),
    "clip_sample_max": a_number(-1e3, 1e3),
    "variance_type": one_of("fixed_small", "fixed_large", "learned", "learned_range"),
    "set_alpha_to_one": a_flag,
    "steps_offset": a_whole(0, 100_000),
    "skip_prk_steps": a_flag,
}

_RFLOW: dict[str, Field] = {
    "num_train_timesteps": a_whole(2, 100_000),
    "use_discrete_timesteps": a_flag,
    "sample_method": one_of("uniform", "logit-normal"),
    "loc": a_number(-100.0, 100.0),
    "scale": a_number(1e-6, 100.0),
    "use_timestep_transform": a_flag,
    "transform_scale": a_number(1e-6, 1e6),
    "steps_offset": a_whole(0, 100_000),
    "base_img_size_numel": a_whole(1, 10**9),
    "spatial_dim": a_whole(2, 3),
}

NETWORKS: dict[str, dict[str, Field]] = {
    "DiffusionModelUNet": _UNET,
    "AutoencoderKL": _AUTOENCODER,
    "VQVAE": _VQVAE,
}
SCHEDULERS: dict[str, dict[str, Field]] = {
    "DDPMScheduler": _SCHEDULE,
    "DDIMScheduler": _SCHEDULE,
    "PNDMScheduler": _SCHEDULE,
    "RFlowScheduler": _RFLOW,
}


def _strides(value: object, name: str, count: int) -> Any:
    one = several(a_whole(0, 64), count, count)
    nested = isinstance(value, list | tuple) and any(isinstance(v, list | tuple) for v in cast(Any, value))
    return several(one, 1, 8)(value, name) if nested else one(value, name)
