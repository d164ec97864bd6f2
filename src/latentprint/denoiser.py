"""The denoiser, the only contract that a model must meet: D(x, t) = E[x_0 | x_t = x].

Everything else a network may predict is a change of variables. With x_t = alpha x_0 + sigma e and D for x_0:

    epsilon = (x - alpha D) / sigma              Ho et al. 2020
    score   = (alpha D - x) / sigma^2            Tweedie's formula; the paper's s(x, t)
    v       = (alpha epsilon - sigma D) / n,  n = sqrt(alpha^2 + sigma^2)     Salimans and Ho 2022, for n = 1
    flow    = epsilon - D                                                     Lipman et al. 2023

n is 1 for VP, where v is that of Salimans and Ho. Dividing by n keeps (x / n, v) a rotation of (D, epsilon)
in every schedule. The division by sigma (near t = 0) or by alpha (near t = T) multiplies rounding by 1/sigma
or 1/alpha; the coefficients are float64, and the images keep their own type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from latentprint.schedule import Schedule, expand

Parametrisation = Literal["epsilon", "v", "sample", "edm"]

TIME_SCALE = 1000.0
"""Networks other than "edm" receive TIME_SCALE * t / T as time."""


class Denoiser(Protocol):
    """(x, t) -> E[x_0 | x_t = x]: x of shape (B, ...), t in float64 of shape () or (B,), answer as x."""

    @property
    def schedule(self) -> Schedule: ...

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor: ...


class Codec(Protocol):
    """The space a model works in: images (n, C, H, W) in [-1, 1] -> its own arrays, and back."""

    def encode(self, images: Tensor, /) -> Tensor: ...

    def decode(self, latents: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class IdentityCodec:
    """For a model that works on images themselves."""

    def encode(self, images: Tensor, /) -> Tensor:
        return images

    def decode(self, latents: Tensor, /) -> Tensor:
        return latents


class NotFiniteError(ValueError):
    """A model answered with NaN or infinity, or has no finite likelihood; the message says where."""


def checked(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    """``denoiser(x, t)``, refused unless it has x's shape and type and is finite everywhere.

    Raises:
        ValueError: the answer is not a tensor, or has another shape or type.
        NotFiniteError: it contains NaN or infinity.
    """
    out = denoiser(x, t)
    if not isinstance(out, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"a denoiser must return a tensor, got {type(out).__name__}")
    if out.shape != x.shape:
        raise ValueError(f"the denoiser was given shape {tuple(x.shape)} and returned {tuple(out.shape)}")
    if out.dtype != x.dtype:
        raise ValueError(f"the denoiser was given {x.dtype} and returned {out.dtype}")
    # One sum is cheaper than a mask of every element; only if the sum is not finite does the mask decide.
    if not bool(out.detach().sum().isfinite()) and not bool(out.detach().isfinite().all()):
        low, high = float(t.min()), float(t.max())
        raise NotFiniteError(
            f"the denoiser must be finite; it returned NaN or infinity for t in [{low:g}, {high:g}]"
        )
    return out


def _sigma(schedule: Schedule, t: Tensor) -> Tensor:
    sigma = schedule.sigma(t)
    if not bool((sigma > 0).all()):
        raise ValueError("epsilon, score and v are not defined where sigma is 0: t must lie above 0")
    return sigma


def epsilon_from_denoised(schedule: Schedule, x: Tensor, denoised: Tensor, t: Tensor) -> Tensor:
    """The noise in x if its image is ``denoised``: (x - alpha D) / sigma.

    Raises:
        ValueError: sigma(t) is 0 or t lies outside the schedule.
    """
    alpha, sigma = schedule.alpha(t), _sigma(schedule, t)
    return (x - expand(alpha, x) * denoised) / expand(sigma, x)


def denoised_from_epsilon(schedule: Schedule, x: Tensor, epsilon: Tensor, t: Tensor) -> Tensor:
    """The image in x if its noise is ``epsilon``: (x - sigma epsilon) / alpha."""
    return (x - expand(schedule.sigma(t), x) * epsilon) / expand(schedule.alpha(t), x)


def score_from_denoised(schedule: Schedule, x: Tensor, denoised: Tensor, t: Tensor) -> Tensor:
    """The gradient of log p_t at x: (alpha D - x) / sigma^2 (Tweedie).

    Raises:
        ValueError: sigma(t) is 0 or t lies outside the schedule.
    """
    alpha, sigma = schedule.alpha(t), _sigma(schedule, t)
    return (expand(alpha, x) * denoised - x) / expand(sigma**2, x)


def denoised_from_score(schedule: Schedule, x: Tensor, score: Tensor, t: Tensor) -> Tensor:
    """The inverse of ``score_from_denoised``: (x + sigma^2 score) / alpha."""
    return (x + expand(schedule.sigma(t) ** 2, x) * score) / expand(schedule.alpha(t), x)


def _rotation(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(cos, sin, n) of the rotation (D, epsilon) -> (x / n, v), with n = sqrt(alpha^2 + sigma^2)."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    n = torch.hypot(alpha, sigma)
    return alpha / n, sigma / n, n


def v_from_denoised(schedule: Schedule, x: Tensor, denoised: Tensor, t: Tensor) -> Tensor:
    """The velocity (alpha epsilon - sigma D) / n = (cos x / n - D) / sin.

    Raises:
        ValueError: sigma(t) is 0 or t lies outside the schedule.
    """
    _sigma(schedule, t)
    cos, sin, n = _rotation(schedule, t)
    return (expand(cos / n, x) * x - denoised) / expand(sin, x)


def denoised_from_v(schedule: Schedule, x: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The inverse of ``v_from_denoised``: cos x / n - sin v; well conditioned at both ends."""
    cos, sin, n = _rotation(schedule, t)
    return expand(cos / n, x) * x - expand(sin, x) * v


def denoised_from_flow(schedule: Schedule, x: Tensor, flow: Tensor, t: Tensor) -> Tensor:
    """The image in x if epsilon - D is ``flow``: (x - sigma flow) / (alpha + sigma)."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return (x - expand(sigma, x) * flow) / expand(alpha + sigma, x)


def score(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    """The model's gradient of log p_t at x (paper Eq. 3 and 5), shape of x.

    Raises:
        ValueError: see ``checked`` and ``score_from_denoised``.
    """
    return score_from_denoised(denoiser.schedule, x, checked(denoiser, x, t), t)


@dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    """A network as a denoiser.

    ``network(input, time)`` gives a tensor shaped as input, or an object with one as ``.sample`` (as
    diffusers' UNet2DModel does). Its input and its prediction are the parametrisation:

        parametrisation   input              time            output F
        "epsilon"         x                  1000 t / T      epsilon
        "v"               x                  1000 t / T      v
        "sample"          x                  1000 t / T      D itself
        "edm"             c_in u             log(r) / 4      D = m + c_skip u + c_out F,  u = x / alpha - m

    with r = sigma/alpha and Karras et al. 2022, table 1, column EDM: c_skip = d^2 / (r^2 + d^2), c_out = r d
    / sqrt(r^2 + d^2), c_in = 1 / sqrt(r^2 + d^2). d = ``sigma_data`` and m = ``mean_data`` are the standard
    deviation and mean of the data; Karras et al. take m = 0. Time reaches the
    network as a tensor (B,) of x's type; ``label``, if given one or (B,), as ``class_labels``, int64 (B,).
    Sides that are not multiples of ``multiple`` are padded by repeating the border, and the answer is
    cropped.

    Raises:
        ValueError: unknown parametrisation, sigma_data is not positive, or mean_data not finite.
    """

    network: nn.Module
    schedule: Schedule
    parametrisation: Parametrisation = "epsilon"
    sigma_data: float = 0.5
    label: int | Tensor | None = None
    multiple: int = 1
    mean_data: float = 0.0

    def __post_init__(self) -> None:
        if self.parametrisation not in get_args(Parametrisation):
            names = ", ".join(get_args(Parametrisation))
            raise ValueError(f"a parametrisation is one of {names}; got {self.parametrisation!r}")
        if not (math.isfinite(self.sigma_data) and self.sigma_data > 0):
            raise ValueError(f"sigma_data must be a positive number, got {self.sigma_data}")
        if not math.isfinite(self.mean_data):
            raise ValueError(f"mean_data must be a finite number, got {self.mean_data}")

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        if self.parametrisation == "edm":
            skip, out, scale = self.preconditioning(t)
            u = x / expand(self.schedule.alpha(t), x) - self.mean_data
            centred = expand(skip, x) * u + expand(out, x) * self._predict(expand(scale, x) * u, t)
            return centred + self.mean_data
        prediction = self._predict(x, t)
        if self.parametrisation == "epsilon":
            return denoised_from_epsilon(self.schedule, x, prediction, t)
        if self.parametrisation == "v":
            return denoised_from_v(self.schedule, x, prediction, t)
        return prediction

    def _predict(self, x: Tensor, t: Tensor) -> Tensor:
        time = self.network_time(t).to(device=x.device, dtype=x.dtype).expand(len(x))
        sides = x.shape[2:]
        lacking = [-side % self.multiple for side in sides]
        if any(lacking):
            x = nn.functional.pad(x, [n for more in reversed(lacking) for n in (0, more)], mode="replicate")
        if self.label is None:
            out = self.network(x, time)
        else:
            labels = torch.as_tensor(self.label, device=x.device).expand(len(x))
            out = self.network(x, time, class_labels=labels)
        if not isinstance(out, Tensor):
            out = out.sample
        if out.shape != x.shape:
            raise ValueError(f"the network was given shape {tuple(x.shape)} and returned {tuple(out.shape)}")
        # under autocast the network may answer in half precision
        return (out[..., *map(slice, sides)] if any(lacking) else out).to(x.dtype)

    def network_time(self, t: Tensor) -> Tensor:
        """The number that the network receives as time, float64, shaped as t.

        Raises:
            ValueError: t = 0 for a network that receives log(sigma / alpha).
        """
        if self.parametrisation == "edm":
            ratio = self.schedule.ratio(t)
            if not bool((ratio > 0).all()):
                raise ValueError('the time of an "edm" network, log(r) / 4, needs t above 0')
            return ratio.log() / 4
        return torch.as_tensor(t, dtype=torch.float64) * (TIME_SCALE / self.schedule.start)

    def preconditioning(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in) of the "edm" parametrisation, float64, shaped as t."""
        ratio = self.schedule.ratio(t)
        root = torch.hypot(ratio, torch.full_like(ratio, self.sigma_data))
        return (self.sigma_data / root) ** 2, ratio * (self.sigma_data / root), 1 / root

    def weight(self, t: Tensor) -> Tensor:
        """w(t) such that w |D - x_0|^2 is the plain squared error of the network's own output; float64.

        1/r^2 for epsilon, n^2/sigma^2 for v, 1 for sample and 1/c_out^2 for edm (Karras et al. 2022, Eq. 8).
        """
        if self.parametrisation == "sample":
            return torch.ones_like(torch.as_tensor(t, dtype=torch.float64))
        _sigma(self.schedule, t)
        if self.parametrisation == "epsilon":
            return self.schedule.ratio(t) ** -2
        if self.parametrisation == "v":
            return _rotation(self.schedule, t)[1] ** -2
        return self.preconditioning(t)[1] ** -2

    def config(self) -> Mapping[str, object]:
        """Plain values that, with the weights, make this denoiser again (see ``schedule_from``)."""
        return {
            "parametrisation": self.parametrisation,
            "sigma_data": self.sigma_data,
            "mean_data": self.mean_data,
            "label": self.label,
            "schedule": self.schedule.config(),
        }
