"""The state dicts of a checkpoint: which exist, which of them generates images, and what the user is told.

Averaged weights (EMA) come first, because the trainers of diffusion models sample from them. If several could
be meant, none is taken until the user names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from latentprint.adapters.fields import short
from latentprint.networks import ModelError

Tensors = Mapping[str, Tensor]
Groups = Mapping[str, Tensors]
"""The state dicts of a file, by the keys that lead to each ("model", "ema/ema_model")."""

SEPARATOR = "\n"
_EMA = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "ema_weights", "params_ema")
_SHADOWS = ("shadow_params", "collected_params")
_UNTRAINED = "its EMA has seen 0 steps: it holds what the network was before training"


@dataclass(frozen=True)
class Told:
    """What is known about a checkpoint in addition to its tensors.

    Attributes:
        name: of its file.
        beside: the names of the files in its folder.
        take: which of several state dicts was asked for.
        flags: the settings that it was trained with, by name; None if not given.
    """

    name: str
    beside: tuple[str, ...] = ()
    take: str | None = None
    flags: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Parts:
    """The content of the folder that a checkpoint of a known training code becomes, for ``--model``.

    Attributes:
        configs: JSON objects by the names of their files.
        weights: state dicts by the folder that each is written to, "" for the model's own.
        said: what was taken and what was left out, in sentences.
    """

    configs: Mapping[str, Mapping[str, object]]
    weights: Mapping[str, Tensors]
    said: tuple[str, ...] = field(default=())


def groups_of(tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    """The state dicts among tensors named by the keys that lead to each, without those of optimisers."""
    out: dict[str, dict[str, Tensor]] = {}
    for path, one in tensors.items():
        *keys, name = path.split(SEPARATOR)
        where = "/".join(keys)
        if "optimizer" in where or "optim" in keys or "opt" in keys or where.startswith("scaler"):
            continue
        out.setdefault(where, {})[name] = one
    whole = {where: group for where, group in out.items() if any(one.ndim > 1 for one in group.values())}
    return whole or out


def one_of_them(groups: Groups, take: str | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The one state dict (the only one, the named one, or the EMA), and what the user is told about it."""
    shown = ", ".join(f"{name or 'the top'} ({len(one)} tensors)" for name, one in sorted(groups.items()))
    if take is not None and take not in groups:
        raise ModelError(f"--take {short(take)} names none of its state dicts; there are {shown or 'none'}")
    averages = [one for one in groups if one.split("/")[-1] in _EMA]
    if take is not None:
        chosen = take
    elif len(groups) == 1:
        chosen = next(iter(groups))
    elif len(averages) == 1:
        chosen = averages[0]
    else:
        raise ModelError(
            f"it holds {len(groups)} state dicts, and which of them generates images is not written: name "
            f"one with --take ({shown})"
        )
    last = chosen.split("/")[-1]
    if last in _SHADOWS:
        raise ModelError("its averaged weights are a list without names, so which is which is not known")
    weights = dict(groups[chosen])
    mean = averaged(weights)
    average = bool(mean) or last in _EMA
    for counter in ("step", "num_updates", "optimization_step"):
        require_steps(weights.get(counter) if average else None)
    weights = mean or weights
    rest = [f"{name or 'the top'} ({len(one)} tensors)" for name, one in groups.items() if name != chosen]
    said = (
        f"taken: {chosen or 'the state dict itself'}, {len(weights)} tensors, "
        f"{'averaged (EMA)' if average else 'not averaged: no EMA was found or asked for'}",
        f"left: {', '.join(rest) if rest else 'nothing'}",
    )
    return weights, said


def require_steps(count: Tensor | None) -> None:
    """Check that an average has seen at least one step; ``count`` None: unknown."""
    if count is not None and int(count) == 0:
        raise ModelError(_UNTRAINED)


def without(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, by the rest of their names."""
    return {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}


def averaged(weights: Tensors) -> dict[str, Tensor]:
    """CompVis's "model_ema.", whose names have lost their dots -> the averaged weights by their names."""
    short_names = {name.replace(".", ""): name for name in weights if not name.startswith("model_ema.")}
    shadows = without("model_ema.", weights)
    require_steps(shadows.pop("num_updates", None))
    shadows.pop("decay", None)
    if not shadows:
        return {}
    named = {short_names.get(f"model{name}", ""): one for name, one in shadows.items()}
    if "" in named or len(named) != len(shadows):
        raise ModelError("its averaged weights (model_ema) do not match the names of its network")
    rest = {n: one for n, one in weights.items() if not n.startswith("model_ema.") and n not in named}
    return rest | named


def likely(weights: Tensors) -> str:
    """What the names look like, in words that complete a sentence."""
    signs = (
        ("model.map_layer0.weight", "a network of EDM (Karras et al.)"),
        ("noise_estimator.in_conv.conv.weight", "medfusion"),
    )
    found = next((words for name, words in signs if name in weights), None)
    return "" if found is None else f" (they look like {found})"
