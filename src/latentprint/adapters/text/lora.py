"""A LoRA, merged into the weights that it adapts.

    W + w (alpha / r) B A        A (r, in), B (out, r); alpha / r is 1 unless the file says otherwise

It reads the forms that training scripts write: diffusers' (``lora_A``, and ``lora.down`` before 0.21), peft's
``adapter_model.safetensors`` with its ``adapter_config.json``, and kohya's (``lora_unet_...``) if its names
are diffusers'. The tensors must fit the model; none is ignored.

Source: Hu et al. 2022, section 4.1; Kalajdzievski 2023 (alpha / sqrt(r), ``use_rslora``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import safetensors
import torch
from torch import Tensor, nn

from latentprint.adapters.fields import number, short
from latentprint.adapters.files import inside, read_header, read_json, read_tensors, refuse_pickle
from latentprint.networks import ModelError

NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
MAX_METADATA = 2**22

_SIDES = {
    "lora_A.weight": "down",
    "lora_A.default.weight": "down",
    "lora.down.weight": "down",
    "lora_linear_layer.down.weight": "down",
    "lora_down.weight": "down",
    "lora_B.weight": "up",
    "lora_B.default.weight": "up",
    "lora.up.weight": "up",
    "lora_linear_layer.up.weight": "up",
    "lora_up.weight": "up",
    "alpha": "alpha",
}
_PROCESSOR = re.compile(r"(.*?)(?:\.processor)?\.(to_(?:q|k|v|out))_lora\.(down|up)\.weight")
_OF_CLIP = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_KOHYA = {
    "lora_unet_": None,
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}


@dataclass(frozen=True)
class Said:
    """The values stored with the tensors: by prefix of a part, its alpha and how that scales."""

    values: Mapping[str, object] = field(default_factory=dict[str, object])

    def scale(self, part: str, name: str, rank: int, alpha: float | None) -> float:
        """The factor of B A for the module ``name`` of a part."""
        prefix = f"{part}." if any(key.startswith(f"{part}.") for key in self.values) else ""
        if self.values.get(f"{prefix}use_dora"):
            raise ModelError("the LoRA has learned magnitudes too (DoRA), which is not supported")
        if alpha is None:
            told = self.values.get(f"{prefix}lora_alpha")
            pattern = self.values.get(f"{prefix}alpha_pattern") or {}
            for key, value in cast(dict[str, object], pattern).items() if isinstance(pattern, dict) else ():
                if name == key or name.endswith(f".{key}"):
                    told = value
            alpha = None if told is None else number(told, "the alpha of the LoRA", 0.0, 1e6)
        if alpha is None:
            return 1.0
        return alpha / (rank**0.5 if self.values.get(f"{prefix}use_rslora") else rank)


def lora_file(path: Path) -> Path:
    """The safetensors file at ``path``, or in that folder."""
    if path.is_dir():
        found = [inside(path, name) for name in NAMES if (path / name).is_file()]
        if not found:
            refuse_pickle(next((one.name for one in sorted(path.iterdir()) if one.suffix == ".bin"), ""))
            raise ModelError(f"{str(path)!r} holds no LoRA; it needs {' or '.join(NAMES)}")
        return found[0]
    refuse_pickle(path.name)
    if not path.is_file():
        raise ModelError(f"there is no LoRA {str(path)!r}")
    if path.suffix != ".safetensors":
        raise ModelError(f"a LoRA is a .safetensors file, got {path.name!r}")
    return path


def add_lora(parts: Mapping[str, nn.Module], network: str, file: Path, weight: float) -> int:
    """Merge the LoRA of a file into the weights of the parts, in place; returns how many it changed.

    Args:
        parts: the model's networks by their folders, "unet" and "text_encoder" for two.
        network: which of them generates.

    Raises:
        ModelError: the file is damaged, has unsupported settings, or belongs to another architecture.
    """
    stated = read_header(file)
    tensors = read_tensors([file], {name: one.shape for name, one in stated.items()})
    said = _said(file)
    pairs = dict[tuple[str, str], dict[str, Tensor]]()
    for key, tensor in tensors.items():
        part, name, side = _place(key, parts, network)
        pairs.setdefault((part, name), {})[side] = tensor
    for (part, name), pair in pairs.items():
        if "down" not in pair or "up" not in pair:
            raise ModelError(f"the LoRA holds one half only of its change to {short(name)}")
        module = parts[part].get_submodule(name)
        alpha = None if "alpha" not in pair else float(pair["alpha"].reshape(-1)[0])
        rank = pair["down"].shape[0]
        scale = weight * said.scale(part, name, rank, alpha)
        own = cast(Tensor, module.weight)
        with torch.no_grad():
            own.add_((scale * _product(pair["up"], pair["down"], own, name)).to(own.dtype))
    return len(pairs)


def _said(file: Path) -> Said:
    """The metadata of diffusers, or peft's configuration in the same folder."""
    beside = file.with_name("adapter_config.json")
    if beside.is_file():
        return Said(read_json(inside(file.parent, beside.name)))
    with safetensors.safe_open(file, "pt") as opened:
        text = (opened.metadata() or {}).get("lora_adapter_metadata", "{}")
    try:
        found: object = json.loads(text) if len(text) <= MAX_METADATA else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ModelError(f"the metadata of {file.name!r} cannot be read as JSON")
    return Said(cast(dict[str, object], found))


def _place(key: str, parts: Mapping[str, nn.Module], network: str) -> tuple[str, str, str]:
    """(part, module, side) of a tensor."""
    name, side = key, ""
    if match := _PROCESSOR.fullmatch(key):
        name, side = f"{match[1]}.{match[2]}", match[3]
    else:
        for end, what in _SIDES.items():
            if key.endswith(f".{end}"):
                name, side = key.removesuffix(f".{end}"), what
                break
    if not side:
        raise ModelError(
            f"the LoRA holds the tensor {short(key)}, which is no part of one (lora_A, lora_B, alpha) and is "
            "not supported; a file of whole weights belongs into the folder of a model"
        )
    for prefix, of in _KOHYA.items():
        if name.startswith(prefix):
            part, flat = of or network, name.removeprefix(prefix)
            known = (
                {one.replace(".", "_"): one for one, _ in parts[part].named_modules()}
                if part in parts
                else {}
            )
            found = known.get(flat) or known.get(flat.removeprefix("text_model_"))
            if found is None:
                raise _other(key)
            return part, found, side
    name = name.removeprefix("base_model.model.")
    part, dot, rest = name.partition(".")
    if part not in parts or not dot:
        part, rest = network, name
    modules = dict(parts[part].named_modules())
    ends = [rest, f"{rest}.0", rest.removeprefix("text_model."), f"text_model.{rest}"]
    path, _, last = rest.rpartition(".")
    if last in _OF_CLIP:
        ends += [f"{path.removeprefix('text_model.')}.{_OF_CLIP[last]}", f"{path}.{_OF_CLIP[last]}"]
    for one in ends:
        if isinstance(getattr(modules.get(one), "weight", None), Tensor):
            return part, one, side
    raise _other(key)


def _other(key: str) -> ModelError:
    return ModelError(
        f"the LoRA was trained for another architecture: it changes {short(key)}, which this model lacks; "
        "name the model that it was trained on with --model"
    )


def _product(up: Tensor, down: Tensor, weight: Tensor, name: str) -> Tensor:
    """B A in the weight's shape."""
    fits = up.ndim == down.ndim and up.ndim >= 2 and up.shape[1] == down.shape[0]
    if fits and up.ndim == 4 and up.shape[2:] == (1, 1):
        out = torch.einsum("or,r...->o...", up[:, :, 0, 0], down)
    elif fits and up.ndim == 2:
        out = up @ down
    else:
        raise ModelError(f"the two halves of the LoRA's change to {short(name)} do not fit each other")
    if out.numel() != weight.numel() or out.shape[0] != weight.shape[0]:
        raise ModelError(
            f"the LoRA was trained for another architecture: its change to {short(name)} is of shape "
            f"{tuple(out.shape)}, the model's weight of shape {tuple(weight.shape)}"
        )
    return out.reshape(weight.shape)
