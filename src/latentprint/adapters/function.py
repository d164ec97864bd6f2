"""Any network or function, with a schedule, as a model to audit.

Example: your own network, which predicts the noise from (x, a timestep from 0 to 999):

    >>> import torch
    >>> from latentprint.adapters import ddpm_schedule, from_module
    >>> class Mine(torch.nn.Module):
    ...     def forward(self, x, k):
    ...         return x * 0.5
    >>> model = from_module(Mine(), ddpm_schedule(), predicts="epsilon", shape=(1, 8, 8))
    >>> model.denoiser(torch.zeros(2, 1, 8, 8), torch.tensor(0.5)).shape
    torch.Size([2, 1, 8, 8])

``model`` is what ``run_audit(..., model=model)`` takes. Sources of the conversions: ``latentprint.denoiser``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from latentprint.adapters.discrete import DiscreteSchedule, alphas_cumprod, discrete_schedule
from latentprint.adapters.fields import short
from latentprint.adapters.opened import Opened, sha256_of, written_down
from latentprint.denoiser import (
    Codec,
    Denoiser,
    IdentityCodec,
    denoised_from_epsilon,
    denoised_from_flow,
    denoised_from_score,
    denoised_from_v,
)
from latentprint.networks import ModelError
from latentprint.schedule import Schedule

Predicts = Literal["denoised", "epsilon", "v", "score", "flow", "reverse flow"]
Time = Callable[[Tensor], Tensor]

_METHODS = tuple(name for name in vars(Schedule) if not name.startswith("_"))


@dataclass(frozen=True, eq=False)
class FunctionDenoiser:
    """``function`` as a denoiser; see ``from_function``."""

    function: Callable[[Tensor, Tensor], Any]
    schedule: Schedule
    predicts: Predicts
    time: Time | None

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        rows = torch.as_tensor(t, dtype=torch.float64).expand(len(x))
        out = self.function(x, self.given_time(rows).to(device=x.device, dtype=x.dtype))
        if not isinstance(out, Tensor):
            out = getattr(out, "sample", out)  # as diffusers' networks do
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out)
        if found != tuple(x.shape):
            raise ValueError(
                f"the function was given shape {tuple(x.shape)} and must return the same, got {found}"
            )
        out = cast(Tensor, out).to(x.dtype)
        if self.predicts == "epsilon":
            return denoised_from_epsilon(self.schedule, x, out, t)
        if self.predicts == "v":
            return denoised_from_v(self.schedule, x, out, t)
        if self.predicts in ("flow", "reverse flow"):
            return denoised_from_flow(self.schedule, x, out if self.predicts == "flow" else -out, t)
        return denoised_from_score(self.schedule, x, out, t) if self.predicts == "score" else out

    def given_time(self, t: Tensor) -> Tensor:
        """The time that the function receives at t (B,), float64."""
        if self.time is not None:
            return self.time(t)
        return self.schedule.timestep(t) if isinstance(self.schedule, DiscreteSchedule) else t


def from_function(
    function: Callable[[Tensor, Tensor], Any],
    schedule: Schedule,
    *,
    predicts: Predicts = "denoised",
    time: Time | None = None,
) -> FunctionDenoiser:
    """A denoiser from ``function(x, time)``.

    Args:
        function: x (B, ...) and the time of each row (B,), in x's type and on x's device -> its prediction,
            shaped as x, or an object with it as ``.sample``.
        schedule: the noise it was trained with: ``ddpm_schedule(...)`` for discrete timesteps, VP, SubVP, VE,
            EDM of ``latentprint.schedule``, or any object with these methods.
        predicts: "denoised" (E[x_0 | x_t]), "epsilon", "v", "score", "flow" (e - x_0) or "reverse flow".
        time: from our times t (B,), float64 in (0, T], to the function's own time; None: the timestep 0, ...,
            N - 1 for a ``DiscreteSchedule``, and t itself for any other schedule.

    Raises:
        ModelError: ``predicts`` is unknown or ``schedule`` is not a schedule. Later a ValueError, if the
            function returns another shape.
    """
    if predicts not in get_args(Predicts):
        raise ModelError(f"a function predicts one of {', '.join(get_args(Predicts))}; got {predicts!r}")
    missing = [name for name in _METHODS if isinstance(schedule, type) or not hasattr(schedule, name)]
    if missing:
        raise ModelError(
            f"a schedule says how much noise there is at each time; {short(schedule)} of type "
            f"{type(schedule).__name__} cannot answer {missing[0]!r}: give ddpm_schedule(...) for discrete "
            "timesteps, or VP(), SubVP(), VE() or EDM() of latentprint.schedule"
        )
    return FunctionDenoiser(function, schedule, predicts, time)


def ddpm_schedule(
    beta_schedule: str = "linear",
    *,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    timesteps: int = 1000,
    betas: Sequence[float] | None = None,
    predicts: str = "epsilon",
) -> DiscreteSchedule:
    """The noise of DDPM's discrete timesteps: "linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid".

    Args:
        beta_schedule: how betas rise, by diffusers' names; Stable Diffusion's is "scaled_linear" from
            0.00085 to 0.012.
        beta_start: beta of the first timestep.
        beta_end: beta of the last one.
        timesteps: how many there are.
        betas: the betas themselves, in place of all these.
        predicts: what the network predicts; it matters if nothing of the image is left at the last timestep.

    Raises:
        ModelError: they are not betas in (0, 1).
    """
    config = {
        "beta_schedule": beta_schedule,
        "beta_start": beta_start,
        "beta_end": beta_end,
        "num_train_timesteps": timesteps,
        "trained_betas": None if betas is None else [float(beta) for beta in betas],
    }
    return discrete_schedule(alphas_cumprod(config), predicts)


def from_module(
    network: nn.Module | Callable[[Tensor, Tensor], Any],
    schedule: Schedule,
    predicts: Predicts = "epsilon",
    *,
    shape: tuple[int, ...],
    time: Time | None = None,
    codec: Codec | None = None,
    image_shape: tuple[int, ...] | None = None,
    networks: Sequence[nn.Module] = (),
) -> Opened:
    """Your own network as a model to audit, for ``run_audit(model=...)``.

    The network is put into evaluation mode. A hash of all its tensors identifies the weights, so an
    interrupted run only continues with the same ones.

    Args:
        network: ``network(x, time)`` -> its prediction, see ``from_function``.
        schedule: the noise it was trained with.
        predicts: "denoised" (E[x_0 | x_t]), "epsilon", "v", "score", "flow" (e - x_0) or "reverse flow".
        shape: (C, H, W) of its input, in [-1, 1] for images.
        time: from our times to its own, see ``from_function``.
        codec: from images to its input, for a latent model.
        image_shape: (C, H, W) of the images, if a codec changes it.
        networks: the modules that do the work, if ``network`` is a function that calls them.

    Raises:
        ModelError: an argument is none of these, or the weights behind ``network`` cannot be found.
    """
    own = (network,) if isinstance(network, nn.Module) else ()
    modules = (*own, *networks, *((codec,) if isinstance(codec, nn.Module) else ()))
    for module in modules:
        module.eval()
    denoiser = from_function(network, schedule, predicts=predicts, time=time)
    weights = sha256_of(*(own or tuple(networks) or (network,)), codec)
    t = torch.linspace(schedule.end, schedule.start, 5, dtype=torch.float64)
    times = [float(f"{value:.9g}") for value in denoiser.given_time(t).tolist()]
    shapes = _shape(shape, "shape"), _shape(image_shape or shape, "image_shape")
    return _opened(denoiser, codec, shapes, modules, weights, {"predicts": predicts, "time": times})


def as_opened(model: Opened | Denoiser, shape: Callable[[], tuple[int, ...]]) -> Opened:
    """Whatever a caller has, as a model to audit.

    Args:
        model: the result of an adapter or of ``from_module``; or a denoiser with its own schedule.
        shape: of the images, needed for a denoiser.

    Raises:
        ModelError: it is neither.
    """
    if isinstance(model, Opened):
        return model
    if hasattr(model, "schedule"):
        modules = (model,) if isinstance(model, nn.Module) else _modules(model)
        return _opened(model, None, (shape(), shape()), modules, sha256_of(model), {})
    if callable(model):
        raise ModelError(
            "a network by itself does not say with which noise it was trained: give"
            " adapters.from_module(network, schedule, shape=(C, H, W)), its schedule such as ddpm_schedule()"
        )
    raise ModelError(
        f"a model is a folder, what from_module or open_model gave, or a denoiser; got {type(model).__name__}"
    )


def _opened(
    denoiser: Denoiser,
    codec: Codec | None,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    networks: tuple[nn.Module, ...],
    weights: str,
    identity: dict[str, object],
) -> Opened:
    schedule = denoiser.schedule
    hint: dict[str, object] = {"step": "ancestral", "steps": 96, "spacing": "karras"}
    if isinstance(schedule, DiscreteSchedule):
        hint |= {"steps": min(999, schedule.timesteps - 1), "spacing": "uniform"}
    return Opened(
        denoiser=denoiser,
        codec=IdentityCodec() if codec is None else codec,
        shape=shapes[0],
        image_shape=shapes[1],
        sampler_hint=hint,
        weights_sha256=weights,
        kind="python",
        notes=("its code is that of whoever ran the audit, and was run as it is",),
        networks=networks,
        identity=identity | {"schedule": written_down(schedule)},
    )


def _modules(denoiser: Denoiser) -> tuple[nn.Module, ...]:
    """The networks among a denoiser's own attributes."""
    return tuple(value for value in vars(denoiser).values() if isinstance(value, nn.Module))


def _shape(shape: Sequence[int], name: str) -> tuple[int, ...]:
    sizes = tuple(shape)
    if len(sizes) < 3 or min(sizes) < 1:
        raise ModelError(f"{name} must be (channels, height, width) in whole numbers, got {short(sizes)}")
    return sizes
