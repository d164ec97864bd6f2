"""The result of every adapter: a model that somebody else trained, ready to be audited."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latentprint.adapters.fields import short
from latentprint.adapters.own import Own
from latentprint.denoiser import Codec, Denoiser, checked
from latentprint.networks import ModelError
from latentprint.schedule import Schedule, expand

if TYPE_CHECKING:
    from latentprint.adapters.text.model import Text

_LOOKS = 5  # noise levels at which a schedule is recorded and a model is tested


@dataclass(frozen=True)
class Asked:
    """What is audited of a model, and what its files do not say.

    Attributes:
        label: the class, for a class-conditional model.
        guidance: scale of classifier-free guidance; None: none.
        steps: of its own sampler; None: as many as its pipeline takes, but no more than ``most``.
        images: returns the training images (n, C, H, W) in [-1, 1], for values that are measured on them.
        unit: whether its images lie in [0, 1]; False: in [-1, 1]; None: as its files say.
        beside: the folder of the model that this is a checkpoint of, for everything that the checkpoint
            lacks.
        lora: a LoRA to add to its weights, ``lora_weight`` times.
    """

    label: int | None = None
    guidance: float | None = None
    steps: int | None = None
    most: int | None = None
    images: Callable[[], NDArray[np.float32]] | None = None
    unit: bool | None = None
    beside: Path | None = None
    lora: Path | None = None
    lora_weight: float = 1.0


@dataclass(frozen=True)
class Opened:
    """A model from outside.

    Attributes:
        denoiser: E[x_0 | x_t] in the space the model works in, with its schedule.
        codec: from images (n, *image_shape) in [-1, 1] to that space and back; the identity for a model of
            pixels.
        shape: (C, H, W) of that space: noise is drawn in this shape, and added to ``codec.encode(images)``.
        image_shape: (C, H, W) of the images.
        sampler_hint: the sampler nearest to the model's own, as ``sampler_from`` reads it.
        weights_sha256: of the file of weights; of several, that of the lines "sha256  name" of each.
        kind: "latentprint", "diffusers", "diffusers latent", "edm" or "python".
        notes: sentences for the report: what was assumed, and which parts of the original were left out.
        networks: the modules behind denoiser and codec.
        identity: plain values, in addition to the weights, from which its numbers follow; a run only
            continues with these.
        own: the sampler it came with, and the model as that sampler sees it; None if it came without one.
        text: asks a text-to-image model under any prompt; ``denoiser`` and ``own`` are under the empty one.
    """

    denoiser: Denoiser
    codec: Codec
    shape: tuple[int, ...]
    image_shape: tuple[int, ...]
    sampler_hint: Mapping[str, object]
    weights_sha256: str
    kind: str
    notes: tuple[str, ...]
    networks: tuple[nn.Module, ...]
    identity: Mapping[str, object] = field(default_factory=dict[str, object])
    own: Own | None = None
    text: Text | None = None

    def to(self, device: torch.device | str) -> Opened:
        """This model, with its networks moved (in place) to a device."""
        for network in self.networks:
            network.to(device)
        return self

    def sampled(self, own: bool) -> Denoiser:
        """The model as it is sampled from, by its own sampler or by another."""
        return self.own.denoiser if own and self.own is not None else self.denoiser


def written_down(schedule: Schedule) -> dict[str, list[float]]:
    """alpha and sigma at five times: plain values that identify a schedule."""
    t = torch.linspace(schedule.end, schedule.start, _LOOKS, dtype=torch.float64)
    values = {"alpha": schedule.alpha(t), "sigma": schedule.sigma(t)}
    return {name: [float(f"{v:.9g}") for v in value.tolist()] for name, value in values.items()}


def sha256_of(*parts: object) -> str:
    """The sha256 of networks (all their tensors, with names, types and shapes), tensors and plain values."""
    digest = sha256()

    def feed(name: str, value: object) -> None:
        digest.update(f"{name} {type(value).__name__} ".encode())
        if isinstance(value, nn.Module):
            for key, tensor in sorted(value.state_dict().items()):
                feed(key, tensor)
        elif isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous()
            digest.update(f"{plain.dtype} {tuple(plain.shape)} ".encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
        elif isinstance(value, bool | int | float | str | None):
            digest.update(repr(value).encode())
        elif isinstance(value, list | tuple):
            for place, one in enumerate(cast(list[object], value)):
                feed(f"{name}.{place}", one)
        elif is_dataclass(value) and not isinstance(value, type):
            for one in fields(value):
                feed(one.name, getattr(value, one.name))
        else:
            raise ModelError(
                f"the weights behind {short(type(value).__name__)} cannot be seen, so a run could not tell "
                "whether it goes on with the same model; give a torch.nn.Module, or name the networks that a "
                "function calls: from_module(function, ..., networks=[network])"
            )

    for place, part in enumerate(parts):
        feed(str(place), part)
    return digest.hexdigest()


@torch.no_grad()
def require_sound(opened: Opened, shape: tuple[int, ...], device: torch.device) -> None:
    """Check that the model is a function of (x, t), of each row separately, and finite at all noise levels.

    Raises:
        ModelError: it fails, returns another shape or NaN, or the same input had two answers, because it
            draws noise, keeps state between calls, or lets the rows of a batch influence one another.
    """
    denoiser, generator = opened.denoiser, torch.Generator(device).manual_seed(0)
    schedule = denoiser.schedule
    noise = torch.zeros((3, *shape), device=device).normal_(generator=generator)
    for level in torch.linspace(schedule.start, schedule.end, _LOOKS, dtype=torch.float64):
        t = level.expand(len(noise))
        x = expand(torch.hypot(schedule.alpha(t) / 2, schedule.sigma(t)), noise) * noise
        try:
            first, again = checked(denoiser, x, t), checked(denoiser, x, t)
            alone = checked(denoiser, x[:1], t[:1])
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"the model does not answer for inputs of shape {tuple(x.shape)} at noise level "
                f"{float(level):.3g}: {short(error)}"
            ) from error
        slack = 1e-3 * (1 + float(first.abs().max()))
        if float((first - again).abs().max()) > slack:
            raise ModelError(
                "the model gave two answers to the same input: it draws noise of its own or keeps state "
                "between calls, so nothing measured on it could be repeated; call network.eval(), and pass "
                "in what it remembers"
            )
        if float((first[:1] - alone).abs().max()) > slack:
            raise ModelError(
                "the model gives another answer for an image alone than in a batch: rows influence one"
                " another (batch normalisation in training mode?); call network.eval()"
            )
