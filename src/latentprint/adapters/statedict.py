"""The state dicts of a checkpoint: which exist, which of them generates images, and what the user is told.

Averaged weights (EMA) come first, because the trainers of diffusion models sample from them. If several could
be meant, none is taken until the user names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import Tensor

from latentprint.adapters.fields import short
from latentprint.adapters.peek import form_of, is_average, prefixes
from latentprint.networks import ModelError

Kind = TypeVar("Kind")
Tensors = Mapping[str, Tensor]
Groups = Mapping[str, Tensors]
"""The state dicts of a file, by the keys that lead to each ("model", "ema/ema_model")."""

SEPARATOR = "\n"
_EMA = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "ema_weights", "params_ema")
_SHADOWS = ("shadow_params", "collected_params")
_UNTRAINED = "its EMA has seen 0 steps: it holds the untrained network"


@dataclass(frozen=True)
class Told:
    """What is known about a checkpoint in addition to its tensors.

    Attributes:
        name: of its file.
        beside: the names of the files in its folder.
        take: which of several state dicts was asked for.
        flags: the settings that it was trained with, by name; None: none were given.
        plain: numbers and words that it holds, by the keys that lead to them.
        how: whether its weights are averaged, where that has been found out.
    """

    name: str
    beside: tuple[str, ...] = ()
    take: str | None = None
    flags: Mapping[str, object] | None = None
    plain: Mapping[str, object] = field(default_factory=dict[str, object])
    how: str | None = None


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
    # Lightning's WeightAveraging replaces the weights by their average, and stores them separately
    require_steps(tensors.get(f"averaging_state{SEPARATOR}n_averaged"))
    return whole or out


def _averages(groups: Groups) -> list[str]:
    """The state dicts that hold averaged weights, by their keys."""
    if "current_model_state" in groups:
        return ["state_dict"]
    return [one for one in groups if one.split("/")[-1] in _EMA]


def chosen_of(groups: Groups, take: str | None) -> tuple[str, bool]:
    """(the key of the one state dict that generates images, whether it is averaged).

    It is the only one, the one that is named ("top" is that without a key), or the EMA.
    """
    shown = ", ".join(f"{name or 'top'} ({len(one)} tensors)" for name, one in sorted(groups.items()))
    averages = _averages(groups)
    if take is not None:
        chosen = "" if take == "top" and take not in groups else take
        if chosen not in groups:
            raise ModelError(
                f"--take {short(take)} names none of its state dicts; there are {shown or 'none'}"
            )
    elif len(groups) == 1:
        chosen = next(iter(groups))
    elif len(averages) == 1:
        chosen = averages[0]
    else:
        raise ModelError(
            f"it holds {len(groups)} state dicts, and which of them generates images is not written: name "
            f"one with --take ({shown})"
        )
    if chosen.split("/")[-1] in _SHADOWS:
        raise ModelError(
            "its averaged weights are a list without names, so which is which is not known; where it was "
            "trained, ema.copy_to(network.parameters()) and torch.save(network.state_dict(), FILE) name them"
        )
    return chosen, chosen in averages


def one_of_them(
    groups: Groups, take: str | None, prefix: str | None = None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The one state dict, its names without ``prefix``, and what the user is told about it."""
    chosen, average = chosen_of(groups, take)
    weights = dict(groups[chosen])
    mean = averaged(weights)
    average = average or bool(mean)
    for counter in ("step", "num_updates", "optimization_step"):
        require_steps(weights.get(counter) if average else None)
    weights = mean or weights
    rest = [f"{name or 'the top'} ({len(one)} tensors)" for name, one in groups.items() if name != chosen]
    where = chosen or "the state dict itself"
    if prefix is not None:
        whole, weights = weights, below(prefix, weights)
        if others := len(whole) - len(weights):
            rest += [f"{others} tensors whose names do not begin with {prefix!r}"]
        where, average = f"{where}, {prefix!r}", average or is_average(prefix)
    said = (
        f"taken: {where}, {len(weights)} tensors, {_how(average)}",
        f"left: {', '.join(rest) if rest else 'nothing'}",
    )
    return weights, said


def below(prefix: str, weights: Tensors) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it.

    Raises:
        ModelError: there are none.
    """
    found = without(prefix, weights)
    if not found:
        tops = dict[str, int]()
        for name in weights:
            top = name.split(".")[0] + "."
            tops[top] = tops.get(top, 0) + 1
        shown = ", ".join(f"{top} ({count} tensors)" for top, count in sorted(tops.items())[:10])
        raise ModelError(f"no name begins with the prefix {short(prefix)}; they begin with {shown}")
    return found


def wrapped(groups: Groups, told: Told, prefix: str | None) -> tuple[Groups, Told] | None:
    """The one known network that a larger module holds (a LightningModule, as a rule), by its own names.

    Of several with the same names the averaged one is taken; None where no known network is within.
    """
    chosen, average = chosen_of(groups, told.take)
    weights = groups[chosen]
    form = form_of(weights)
    if prefix is None:
        found = () if form is None else prefixes(weights, form)
        means = [one for one in found if is_average(one)]
        if len(found) > 1 and len(means) != 1:
            raise ModelError(
                f"it holds {len(found)} networks of the same kind, and which of them generates images is not "
                f"written: name one with --prefix ({', '.join(map(repr, found))})"
            )
        if not found or (found == ("",) and not chosen):
            return None
        prefix = means[0] if means else found[0]
    inner = below(prefix, weights) if prefix else dict(weights)
    average = average or is_average(prefix)
    for counter in ("step", "num_updates", "n_averaged"):  # of what holds the average, one level up
        above = prefix.rstrip(".").rpartition(".")[0]
        require_steps(weights.get(f"{above}.{counter}") if average and above else None)
    place = " / ".join(one for one in (chosen, prefix.rstrip(".")) if one)
    return {"": inner}, replace(told, how=f"{_how(average)}, under {place!r}")


def _how(average: bool) -> str:
    return "averaged (EMA)" if average else "not averaged: no EMA was found or asked for"


def require_steps(count: Tensor | None) -> None:
    """Check that an average has seen at least one step; ``count`` None: unknown."""
    if count is not None and int(count) == 0:
        raise ModelError(_UNTRAINED)


def without(prefix: str, named: Mapping[str, Kind]) -> dict[str, Kind]:
    """The tensors, or shapes, whose names begin with ``prefix``, by the rest of their names."""
    return {name.removeprefix(prefix): one for name, one in named.items() if name.startswith(prefix)}


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors by their names."""
    return {name: tuple(one.shape) for name, one in tensors.items()}


def require_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], said: str
) -> None:
    """Check that names and shapes are those of a network; the refusal begins with ``said``."""
    lacking, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    other = sorted(name for name in set(found) & set(expected) if found[name] != expected[name])
    if lacking or extra or other:
        raise ModelError(
            f"{said}: {len(lacking)} are lacking, {len(extra)} are left over, {len(other)} have another "
            f"shape, {short((lacking + extra + other)[0])} for one"
        )


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


def plain_below(plain: Mapping[str, object], *keys: str) -> dict[str, object]:
    """Plain values, and lists of them, below these keys, by name."""
    head = SEPARATOR.join(keys) + SEPARATOR
    out, lists = dict[str, object](), dict[str, dict[int, object]]()
    for path, value in plain.items():
        name, *rest = path.removeprefix(head).split(SEPARATOR) if path.startswith(head) else ("", "", "")
        if not rest:
            out[name] = value
        elif len(rest) == 1 and rest[0].isdecimal():
            lists.setdefault(name, {})[int(rest[0])] = value
    return out | {name: [one[k] for k in sorted(one)] for name, one in lists.items()}


def likely(weights: Tensors) -> str:
    """What the names look like, in words that go on a sentence."""
    form = form_of(weights)
    return "" if form is None else f" (they look like {form.name})"
