"""Text encoders and tokenizers of transformers, opened without trust in their files.

Classes come from literal tables. As in ``adapters.build``, an encoder is first built without memory, and its
files must hold exactly its weights. Only the settings of the network are read from a configuration, each
within a range; everything else that transformers writes there has no effect here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from latentprint.adapters.build import MAX_COMPUTED
from latentprint.adapters.fields import (
    Field,
    a_flag,
    a_number,
    a_whole,
    maybe,
    never,
    nothing,
    one_of,
    several,
    short,
)
from latentprint.adapters.files import inside, load_into, read_json, read_tensors, weight_files
from latentprint.networks import ModelError

MAX_TOKENIZER = 2**26
"""The most bytes of one file of a tokenizer (64 MiB)."""

MAX_TOKENS = 4096

_WIDE = a_whole(1, 65536)
_TOKEN = maybe(a_whole(0, 10**7))

_CLIP: dict[str, Field] = {
    "vocab_size": a_whole(1, 10**7),
    "hidden_size": _WIDE,
    "intermediate_size": _WIDE,
    "projection_dim": _WIDE,
    "num_hidden_layers": a_whole(1, 256),
    "num_attention_heads": a_whole(1, 256),
    "max_position_embeddings": a_whole(2, MAX_TOKENS),
    "hidden_act": one_of("quick_gelu", "gelu", "gelu_new"),
    "layer_norm_eps": a_number(0.0, 1.0),
    "attention_dropout": a_number(0.0, 1.0),
    "pad_token_id": _TOKEN,
    "bos_token_id": _TOKEN,
    "eos_token_id": a_whole(0, 10**7),  # where it stands the prompt is summed up
}

_T5: dict[str, Field] = {
    "vocab_size": a_whole(1, 10**7),
    "d_model": _WIDE,
    "d_kv": _WIDE,
    "d_ff": _WIDE,
    "num_layers": a_whole(1, 256),
    "num_heads": a_whole(1, 256),
    "relative_attention_num_buckets": a_whole(1, 4096),
    "relative_attention_max_distance": a_whole(1, 65536),
    "dropout_rate": a_number(0.0, 1.0),
    "layer_norm_epsilon": a_number(0.0, 1.0),
    "feed_forward_proj": one_of("relu", "gated-gelu"),
    "tie_word_embeddings": a_flag,
    "pad_token_id": _TOKEN,
    "eos_token_id": _TOKEN,
}


def _rope(value: object, name: str) -> dict[str, object]:
    said = cast(dict[str, object], value) if isinstance(value, dict) else {}
    if set(said) - {"rope_theta", "rope_type"} or said.get("rope_type", "default") != "default":
        raise ModelError(f"{name} must be a rope_theta of the default type, got {short(value)}")
    return {"rope_type": "default", "rope_theta": a_number(1.0, 1e9)(said.get("rope_theta"), name)}


def _layers(value: object, name: str) -> list[str]:
    return list(several(one_of("sliding_attention", "full_attention"), 1, 256)(value, name))


_GEMMA: dict[str, Field] = {
    "vocab_size": a_whole(1, 10**7),
    "hidden_size": _WIDE,
    "intermediate_size": _WIDE,
    "num_hidden_layers": a_whole(1, 256),
    "num_attention_heads": a_whole(1, 256),
    "num_key_value_heads": a_whole(1, 256),
    "head_dim": a_whole(1, 4096),
    "hidden_activation": one_of("gelu_pytorch_tanh", "gelu"),
    "max_position_embeddings": a_whole(2, 10**6),
    "rms_norm_eps": a_number(0.0, 1.0),
    "rope_theta": a_number(1.0, 1e9),
    "rope_parameters": _rope,
    "rope_scaling": nothing,
    "attention_bias": a_flag,
    "query_pre_attn_scalar": a_whole(1, 65536),
    "sliding_window": maybe(a_whole(1, 10**6)),
    "layer_types": maybe(_layers),
    "final_logit_softcapping": maybe(a_number(0.0, 1e6)),
    "attn_logit_softcapping": maybe(a_number(0.0, 1e6)),
    "use_bidirectional_attention": maybe(never),
    "pad_token_id": _TOKEN,
    "bos_token_id": _TOKEN,
}

ENCODERS: dict[str, tuple[str, dict[str, Field], str]] = {
    "CLIPTextModel": ("CLIPTextConfig", _CLIP, "CLIPTokenizer"),
    "CLIPTextModelWithProjection": ("CLIPTextConfig", _CLIP, "CLIPTokenizer"),
    "T5EncoderModel": ("T5Config", _T5, "T5TokenizerFast"),
    "Gemma2Model": ("Gemma2Config", _GEMMA, "GemmaTokenizer"),
}
"""A class of transformers: the class of its configuration, its allowed settings, and its usual tokenizer."""

TOKENIZERS = {
    "CLIPTokenizer": "CLIPTokenizer",
    "CLIPTokenizerFast": "CLIPTokenizer",
    "T5Tokenizer": "T5TokenizerFast",
    "T5TokenizerFast": "T5TokenizerFast",
    "GemmaTokenizer": "GemmaTokenizer",
    "GemmaTokenizerFast": "GemmaTokenizer",
}
"""A tokenizer's name in an index, and the class that reads its files."""

_TIED = {"encoder.embed_tokens.weight": "shared.weight"}
_POSITIONS = "embeddings.position_ids"


def transformers() -> Any:
    """The library."""
    try:
        import transformers as library
    except ImportError as error:
        raise ModelError(
            "this model is conditioned on text, and reading its text encoder needs transformers: "
            "pip install 'latentprint[text]'"
        ) from error
    return library


def read_encoder(folder: Path, kind: str) -> tuple[nn.Module, list[Path]]:
    """The encoder of class ``kind`` in a folder, in float32, evaluation mode, and the files it came from."""
    if not folder.is_dir():
        raise ModelError(
            f"the text encoder {folder.name!r} is missing: {str(folder)!r} is no folder; save the whole "
            "pipeline (save_pretrained), or copy the encoder of the model that was fine-tuned into it"
        )
    named, fields, _ = ENCODERS[kind]
    config = read_json(inside(folder, "config.json"))
    values = {key: fields[key](config[key], f"{key} of {kind}") for key in fields if key in config}
    library = transformers()

    def made() -> nn.Module:
        return cast(nn.Module, getattr(library, kind)(getattr(library, named)(**values)))

    level = library.logging.get_verbosity()
    library.logging.set_verbosity_error()
    try:
        with torch.device("meta"):
            network = made()
        expected = {key: tuple(one.shape) for key, one in network.state_dict().items() if key not in _TIED}
        files = weight_files(folder, "model.safetensors")
        tensors = read_tensors(files, expected, _renamed, lambda name: name.endswith(_POSITIONS))
        computed = sum(buffer.numel() for _, buffer in network.named_buffers())
        if computed > MAX_COMPUTED:
            raise ModelError(f"{kind} would compute {computed:,} numbers beside its weights")
        with torch.random.fork_rng(devices=[]):  # it draws weights, which are replaced at once
            network = made()
    except ModelError:
        raise
    except Exception as error:  # constructors of transformers raise errors of any type
        raise ModelError(f"the settings of {kind} do not fit together: {short(error)}") from error
    finally:
        library.logging.set_verbosity(level)
    whole = dict(tensors) | {tied: tensors[own] for tied, own in _TIED.items() if own in tensors}
    return load_into(network, whole), files


def _renamed(name: str, expected: Mapping[str, tuple[int, ...]]) -> str:
    """Today's name of a tensor: transformers once kept CLIP's tensors below text_model, and T5's tied ones
    twice; a language model keeps its encoder's below model."""
    plain = name.removeprefix("text_model."), name.removeprefix("model.")
    for one in (name, *plain, f"text_model.{name}", _TIED.get(name, name)):
        if one in expected:
            return one
    return name


@dataclass(frozen=True)
class Tokens:
    """Prompts in the form that an encoder takes.

    Attributes:
        ids, mask: (n, length).
        lost: for each prompt, how many tokens were cut off at its end.
    """

    ids: Tensor
    mask: Tensor
    lost: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer of transformers.

    Attributes:
        most: tokens of a prompt that its encoder takes.
        known: tokens that its encoder knows; they are numbered from 0.
    """

    own: Any
    most: int
    known: int

    def __call__(self, prompts: Sequence[str], length: int | None = None) -> Tokens:
        """Prompts padded and cut to ``length`` tokens (None: the most that the encoder takes).

        Raises:
            ModelError: a token that the encoder does not know.
        """
        size = length or self.most
        level = transformers().logging.get_verbosity()
        transformers().logging.set_verbosity_error()  # the report says what is cut off
        try:
            cut = self.own(
                list(prompts), padding="max_length", max_length=size, truncation=True, return_tensors="pt"
            )
            lost = tuple(max(0, len(self.own(one).input_ids) - size) for one in prompts)
        finally:
            transformers().logging.set_verbosity(level)
        if len(cut.input_ids) and (highest := int(cut.input_ids.max())) >= self.known:
            raise ModelError(
                f"the tokenizer gives token {highest:,}, and the text encoder knows {self.known:,} from 0 on:"
                " they are not of one model"
            )
        return Tokens(cut.input_ids, cut.attention_mask, lost)


_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
)


def read_tokenizer(folder: Path, kind: str, most: int, known: int) -> Tokenizer:
    """The tokenizer of class ``kind`` in a folder, for an encoder as `Tokenizer` describes it."""
    files = [inside(folder, name) for name in _FILES]
    there = [file for file in files if file.is_file()]
    if not there:
        raise ModelError(
            f"the tokenizer {folder.name!r} is missing in {str(folder.parent)!r}; save the whole pipeline "
            "(save_pretrained), or copy the tokenizer of the model that was fine-tuned into it"
        )
    if large := next((file for file in there if file.stat().st_size > MAX_TOKENIZER), None):
        raise ModelError(f"{large.name!r} has more than {MAX_TOKENIZER:,} bytes, the most that is read")
    for file in there:
        if file.suffix == ".json" and file.name != "tokenizer.json" and file.name != "vocab.json":
            read_json(file)
    library = transformers()
    try:
        own = getattr(library, TOKENIZERS[kind]).from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        own.padding_side = "right"  # Gemma's pads on the left, and Sana's pipeline changes that
        length = int(min(own.model_max_length, most))
        padded = own(["a"], padding="max_length", max_length=length, truncation=True)
        if length < 2 or len(own("a").input_ids) < 1 or len(padded.input_ids[0]) != length:
            raise ValueError(f"it takes {length} tokens")
    except Exception as error:  # parsers of transformers raise errors of any type
        raise ModelError(f"the tokenizer {folder.name!r} cannot be read: {short(error)}") from error
    return Tokenizer(own, length, known)
