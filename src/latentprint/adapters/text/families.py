"""What pipelines of diffusers do with a prompt, from text encoders to the arguments of a network; one row
each.

    Stable Diffusion 1, 2   CLIP's last layer                                       UNet2DConditionModel
    Stable Diffusion XL     the last but one of two CLIPs, side by side, the second's summary, sizes
    PixArt                  T5 in lower case, with its mask                         PixArtTransformer2DModel
    Stable Diffusion 3      both CLIPs, padded to T5's width, then T5's tokens      SD3Transformer2DModel
    Flux                    T5's tokens, CLIP's summary; the scale of guidance is an input
                                                                                FluxTransformer2DModel
    Sana                    Gemma after a fixed instruction, with its mask          SanaTransformer2DModel

Equality with the pipelines' own images on the same noise is tested (tests/test_text_model.py).

Sources: the ``encode_prompt`` of each pipeline of diffusers 0.35 to 0.42.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from latentprint.adapters.text.encoders import Tokenizer
from latentprint.networks import ModelError

Rows = Mapping[str, Tensor]
"""The network's input besides x and time: each (n, ...), a row per prompt."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A text encoder with its tokenizer."""

    encoder: nn.Module
    tokenizer: Tokenizer

    def ids(self, prompts: Sequence[str], length: int | None = None) -> tuple[Tensor, Tensor]:
        """(ids, mask), (n, length), where the encoder is."""
        found = self.tokenizer(prompts, length)
        place = next(self.encoder.parameters()).device
        return found.ids.to(place), found.mask.to(place)


@dataclass(frozen=True)
class About:
    """What else an encoding depends on: (height, width) of the images, settings of network and pipeline."""

    size: tuple[int, int]
    network: Mapping[str, Any]
    index: Mapping[str, Any]


Encode = Callable[[Mapping[str, Reader], Sequence[str], About], Rows]
Ask = Callable[[nn.Module, Tensor, Tensor, Rows], Tensor]


@dataclass(frozen=True)
class Part:
    """A text encoder of a pipeline: its folder, its tokenizer's, its allowed classes, and whether it may be
    missing."""

    encoder: str
    tokenizer: str
    classes: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True)
class Family:
    """A pipeline.

    Attributes:
        network: the class of its network, in ``folder``.
        parts: its text encoders.
        encode: prompts -> rows.
        ask: (network, x, time, rows) -> the prediction.
        guidance, steps: its defaults.
        zeros: whether the unconditional input is zeros and not the empty prompt, unless its index says
            otherwise.
        free: encodes the unconditional input, where the pipeline reads its words in another way.
        distilled: whether the scale of guidance is an input of the network (guidance_embeds), in the row
            ``guidance``; a network without that input takes no guidance.
        even: whether the pipeline walks sigmas from 1 to 1 / steps.
        packs: the side of the squares of latents that are one token's channels.
        side: of the latents, where the network's settings do not state it.
        autoencoder: its class.
        length: the most tokens of the encoder whose limit counts; None: its tokenizer's.
        cap: how the pipeline changes the words first.
    """

    network: str
    folder: str
    parts: tuple[Part, ...]
    encode: Encode
    ask: Ask
    guidance: float
    steps: int
    zeros: bool = False
    free: Encode | None = None
    distilled: bool = False
    even: bool = False
    packs: int = 1
    side: int | None = None
    autoencoder: str = "AutoencoderKL"
    length: int | None = None
    words: Callable[[str], str] = str


def _plain(readers: Mapping[str, Reader], prompts: Sequence[str], about: About) -> Rows:
    reader = readers["text_encoder"]
    ids, mask = reader.ids(prompts)
    uses = bool(getattr(cast(Any, reader.encoder).config, "use_attention_mask", False))
    hidden = cast(Any, reader.encoder)(ids, attention_mask=mask if uses else None)[0]
    return {"hidden": hidden}


def _unet(network: nn.Module, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
    more = {name: rows[name] for name in ("text_embeds", "time_ids") if name in rows}
    return network(
        x, time, encoder_hidden_states=rows["hidden"], added_cond_kwargs=more or None, return_dict=False
    )[0]


def _clips(
    readers: Mapping[str, Reader], prompts: Sequence[str], names: Sequence[str]
) -> tuple[Tensor, list[Tensor]]:
    """The second-last layer of the encoders side by side (n, L, D), and the summary of each (n, d)."""
    hidden, pooled = list[Tensor](), list[Tensor]()
    for name in names:
        found = cast(Any, readers[name].encoder)(readers[name].ids(prompts)[0], output_hidden_states=True)
        hidden.append(found.hidden_states[-2])
        pooled.append(found[0])
    return torch.cat(hidden, dim=-1), pooled


def _xl(readers: Mapping[str, Reader], prompts: Sequence[str], about: About) -> Rows:
    names = [name for name in ("text_encoder", "text_encoder_2") if name in readers]
    hidden, pooled = _clips(readers, prompts, names)
    sizes = [*about.size, 0, 0, *about.size]  # size of the original, corner of the crop, size of the image
    times = torch.tensor([sizes], dtype=hidden.dtype, device=hidden.device)
    return {"hidden": hidden, "text_embeds": pooled[-1], "time_ids": times.expand(len(prompts), -1)}


def _pixart(readers: Mapping[str, Reader], prompts: Sequence[str], about: About) -> Rows:
    reader = readers["text_encoder"]
    ids, mask = reader.ids(prompts, 120 if "Alpha" in str(about.index.get("_class_name")) else 300)
    hidden = cast(Any, reader.encoder)(ids, attention_mask=mask)[0]
    rows = {"hidden": hidden, "mask": mask}
    if (
        about.network.get("sample_size") == 128
        and about.network.get("use_additional_conditions") is not False
    ):
        height, width = about.size
        size = torch.tensor([[float(height), float(width)]], dtype=hidden.dtype, device=hidden.device)
        rows["resolution"] = size.expand(len(prompts), -1)
        rows["aspect_ratio"] = (size[:, :1] / size[:, 1:]).expand(len(prompts), -1)
    return rows


def _patches(network: nn.Module, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
    more = {name: rows.get(name) for name in ("resolution", "aspect_ratio")}
    return network(
        x,
        encoder_hidden_states=rows["hidden"],
        encoder_attention_mask=rows["mask"],
        timestep=time,
        added_cond_kwargs=more,
        return_dict=False,
    )[0]


def _three(readers: Mapping[str, Reader], prompts: Sequence[str], about: About) -> Rows:
    clips, pooled = _clips(readers, prompts, ("text_encoder", "text_encoder_2"))
    width = int(about.network["joint_attention_dim"])
    if "text_encoder_3" in readers:
        reader = readers["text_encoder_3"]
        t5 = cast(Any, reader.encoder)(reader.ids(prompts, 256)[0])[0]
    else:  # as the pipeline does without it
        t5 = clips.new_zeros(len(prompts), 256, width)
    if clips.shape[-1] > t5.shape[-1]:
        raise ModelError(
            f"the text encoders give {clips.shape[-1]} numbers a token, the network takes {t5.shape[-1]}"
        )
    padded = nn.functional.pad(clips, (0, t5.shape[-1] - clips.shape[-1]))
    return {"hidden": torch.cat([padded, t5], dim=-2), "pooled": torch.cat(pooled, dim=-1)}


def _joint(network: nn.Module, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
    return network(
        hidden_states=x,
        timestep=time,
        encoder_hidden_states=rows["hidden"],
        pooled_projections=rows["pooled"],
        return_dict=False,
    )[0]


def _flux(readers: Mapping[str, Reader], prompts: Sequence[str], about: About) -> Rows:
    clip, t5 = readers["text_encoder"], readers["text_encoder_2"]
    pooled = cast(Any, clip.encoder)(clip.ids(prompts)[0]).pooler_output
    return {"hidden": cast(Any, t5.encoder)(t5.ids(prompts, 512)[0])[0], "pooled": pooled}


def _packed(network: nn.Module, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
    """Flux's transformer takes squares of 2 x 2 latents as tokens, each with its place."""
    squares = nn.functional.pixel_unshuffle(x, 2)
    height, width = squares.shape[2:]
    down, right = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    out = network(
        hidden_states=squares.flatten(2).transpose(1, 2),
        timestep=time / 1000,
        guidance=rows["guidance"] if guided(cast(Any, network).config) else None,
        pooled_projections=rows["pooled"],
        encoder_hidden_states=rows["hidden"],
        txt_ids=x.new_zeros(rows["hidden"].shape[1], 3),
        img_ids=torch.stack([torch.zeros_like(down), down, right], dim=-1).flatten(0, 1).to(x),
        return_dict=False,
    )[0]
    return nn.functional.pixel_shuffle(out.transpose(1, 2).unflatten(2, (height, width)), 2)


def guided(config: Mapping[str, Any]) -> bool:
    """Whether a network of a distilled family takes the scale of guidance as an input."""
    return bool(config["guidance_embeds"])


_SANA_TOKENS = 300


def _instruction() -> str:
    """What Sana's pipeline puts before every prompt."""
    from diffusers.pipelines.sana.pipeline_sana import SanaPipeline  # which imports transformers

    return "\n".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)


def _sana(readers: Mapping[str, Reader], prompts: Sequence[str], about: About) -> Rows:
    reader, before = readers["text_encoder"], _instruction()
    known = len(reader.tokenizer.own(before).input_ids)
    ids, mask = reader.ids([before + one for one in prompts], known + _SANA_TOKENS - 2)
    hidden = cast(Any, reader.encoder)(ids, attention_mask=mask)[0]
    kept = [0, *range(1 - _SANA_TOKENS, 0)]  # the first token, and those from the instruction's last one on
    return {"hidden": hidden[:, kept], "mask": mask[:, kept]}


def _sana_free(readers: Mapping[str, Reader], prompts: Sequence[str], about: About) -> Rows:
    reader = readers["text_encoder"]
    ids, mask = reader.ids(prompts, _SANA_TOKENS)
    return {"hidden": cast(Any, reader.encoder)(ids, attention_mask=mask)[0], "mask": mask}


def _linear(network: nn.Module, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
    return network(
        x,
        encoder_hidden_states=rows["hidden"],
        encoder_attention_mask=rows["mask"],
        timestep=time * cast(Any, network).config.timestep_scale,
        return_dict=False,
    )[0]


_CLIP = Part("text_encoder", "tokenizer", ("CLIPTextModel",))
_PROJECTED = ("CLIPTextModelWithProjection",)
_T5 = ("T5EncoderModel",)


def _lower(text: str) -> str:
    return text.lower().strip()


_SD = Family("UNet2DConditionModel", "unet", (_CLIP,), _plain, _unet, 7.5, 50)
_PIXART = Family(
    "PixArtTransformer2DModel",
    "transformer",
    (Part("text_encoder", "tokenizer", _T5),),
    _pixart,
    _patches,
    4.5,
    20,
    length=120,
    words=_lower,
)

FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": _SD,
    "StableDiffusionXLPipeline": Family(
        "UNet2DConditionModel",
        "unet",
        (
            Part("text_encoder", "tokenizer", ("CLIPTextModel",), optional=True),
            Part("text_encoder_2", "tokenizer_2", _PROJECTED),
        ),
        _xl,
        _unet,
        5.0,
        50,
        zeros=True,
    ),
    "PixArtAlphaPipeline": _PIXART,
    "PixArtSigmaPipeline": _PIXART,
    "StableDiffusion3Pipeline": Family(
        "SD3Transformer2DModel",
        "transformer",
        (
            Part("text_encoder", "tokenizer", _PROJECTED),
            Part("text_encoder_2", "tokenizer_2", _PROJECTED),
            Part("text_encoder_3", "tokenizer_3", _T5, optional=True),
        ),
        _three,
        _joint,
        7.0,
        28,
    ),
    "FluxPipeline": Family(
        "FluxTransformer2DModel",
        "transformer",
        (_CLIP, Part("text_encoder_2", "tokenizer_2", _T5)),
        _flux,
        _packed,
        3.5,
        28,
        distilled=True,
        even=True,
        packs=2,
        side=128,
        length=512,
    ),
    "SanaPipeline": Family(
        "SanaTransformer2DModel",
        "transformer",
        (Part("text_encoder", "tokenizer", ("Gemma2Model",)),),
        _sana,
        _linear,
        4.5,
        20,
        free=_sana_free,
        autoencoder="AutoencoderDC",
        length=_SANA_TOKENS - 1,
        words=_lower,
    ),
}
"""Pipelines by the class that their index names. A new one is a row, and the settings of its network."""
