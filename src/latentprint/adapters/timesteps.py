"""Networks that receive a timestep or a noise level, as denoisers: the networks of diffusers and MONAI.

epsilon, v, sample, flow     the conversions of ``latentprint.denoiser``
reverse flow                 x_0 - epsilon, MONAI's sign
guidance w                   out = free + w (conditional - free)              Ho and Salimans 2022
boundary                     f = c_skip x + c_out D                           Luo et al. 2023 (LCM)
consistency                  f = c_skip x + c_out F(c_in x, 250 log sigma)    Song et al. 2023, appendix C
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from latentprint.adapters.cosine import Cosine
from latentprint.adapters.discrete import DiscreteSchedule
from latentprint.adapters.fields import whole_number
from latentprint.denoiser import denoised_from_epsilon, denoised_from_flow, denoised_from_v
from latentprint.networks import ModelError
from latentprint.schedule import Flow, Schedule, expand

Predicts = Literal["epsilon", "v", "sample", "flow", "reverse flow"]

_LCM_DATA = 0.5  # sigma_data of the boundary condition, fixed in LCM


@dataclass(frozen=True, eq=False)
class DiscreteDenoiser:
    """A network trained on discrete timesteps as a denoiser.

    Attributes:
        network: ``network(x, timestep)`` -> the prediction, or an object that holds it as ``.sample``; (B,
            C, H, W) to the same, or to twice the channels, of which the second half is a learned
            variance (``ranged``).
        schedule: through the timesteps it was trained on, the straight path of flow matching, or the cosine.
        predicts: what the network predicts.
        label: the class asked for, where the network is conditional on one.
        clip: the image is kept in [-clip, clip], as its scheduler does; None leaves it as it is.
        whole_timesteps: whether the network knows whole timesteps only; others are rounded.
        guidance: scale of classifier-free guidance; 1 means none.
        null: the class that means none, if the network knows one.
        boundary: timestep scaling of a latent consistency model; None: no boundary condition.
        scale: the time that a network of a continuous schedule receives at t = 1.
    """

    network: nn.Module
    schedule: DiscreteSchedule | Flow | Cosine
    predicts: Predicts
    label: int | None = None
    clip: float | None = None
    whole_timesteps: bool = False
    guidance: float = 1.0
    null: int | None = None
    boundary: float | None = None
    scale: float = 1000.0

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        return self._image(x, self._predict(x, self.timestep(t))[:, : x.shape[1]], t)

    def ranged(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(E[x_0 | x_t], the position of a step's log-variance between its bounds, 0 to 1), from one pass."""
        out, between = self._predict(x, self.timestep(t)).chunk(2, dim=1)
        return self._image(x, out, t), (between + 1) / 2

    def _image(self, x: Tensor, out: Tensor, t: Tensor) -> Tensor:
        if self.predicts == "epsilon":
            out = denoised_from_epsilon(self.schedule, x, out, t)
        elif self.predicts == "v":
            out = denoised_from_v(self.schedule, x, out, t)
        elif self.predicts != "sample":
            out = denoised_from_flow(self.schedule, x, out if self.predicts == "flow" else -out, t)
        if self.clip is not None:
            out = out.clamp(-self.clip, self.clip)
        if self.boundary is None:
            return out
        scaled = self.boundary * self.timestep(t)
        root = torch.hypot(scaled, torch.full_like(scaled, _LCM_DATA))
        return expand((_LCM_DATA / root) ** 2, x) * x + expand(scaled / root, x) * out

    def timestep(self, t: Tensor) -> Tensor:
        """What the network is given as time, float64, shaped as t."""
        if not isinstance(self.schedule, DiscreteSchedule):
            return torch.as_tensor(t, dtype=torch.float64) * self.scale
        return self.schedule.timestep(t)

    def _predict(self, x: Tensor, timestep: Tensor) -> Tensor:
        rows = timestep.to(x.device).expand(len(x))
        rows = rows.round().long() if self.whole_timesteps else rows.to(x.dtype)
        if self.guidance == 1.0 or self.null is None:
            return self._ask(x, rows, self._labels(len(x), self.label, x))
        labels = [self._labels(len(x), one, x) for one in (self.label, self.null)]
        both = self._ask(torch.cat([x, x]), torch.cat([rows, rows]), torch.cat(cast(Any, labels)))
        asked, free = both.chunk(2)
        image = x.shape[1]  # a variance in the output is not guided
        return torch.cat([torch.lerp(free, asked, self.guidance)[:, :image], asked[:, image:]], dim=1)

    def _labels(self, count: int, label: int | None, x: Tensor) -> Tensor | None:
        return None if label is None else torch.full((count,), label, dtype=torch.int64, device=x.device)

    def _ask(self, x: Tensor, timestep: Tensor, labels: Tensor | None) -> Tensor:
        given = {} if labels is None else {"class_labels": labels}
        out = self.network(x, timestep, **given)
        out = out if isinstance(out, Tensor) else cast(Tensor, out.sample)
        return out.to(x.dtype)


@dataclass(frozen=True, eq=False)
class ConsistencyDenoiser:
    """A consistency model: from any noise level straight to an image.

    c_skip = d^2 / ((s - s_min)^2 + d^2),  c_out = (s - s_min) d / sqrt(s^2 + d^2),
    c_in = 1 / sqrt(s^2 + d^2),  with s = sigma and d = ``sigma_data``.

    Attributes:
        network: of diffusers; it receives 250 log sigma.
        schedule: one with alpha = 1.
        sigma_data: standard deviation of the data.
        sigma_min: the smallest noise it was trained with, at which it returns its input.
        label: the class asked for, if the network is class-conditional.
        clip: the image is clipped to [-clip, clip].
    """

    network: nn.Module
    schedule: Schedule
    sigma_data: float
    sigma_min: float
    label: int | None = None
    clip: float | None = 1.0

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        sigma = self.schedule.sigma(t)
        root = torch.hypot(sigma, torch.full_like(sigma, self.sigma_data))
        above = sigma - self.sigma_min
        skip = self.sigma_data**2 / (above**2 + self.sigma_data**2)
        time = (250.0 * sigma.log()).to(device=x.device, dtype=x.dtype).expand(len(x))
        given = dict[str, Tensor]()
        if self.label is not None:
            given["class_labels"] = torch.full((len(x),), self.label, dtype=torch.int64, device=x.device)
        out = cast(Tensor, self.network(expand(1 / root, x) * x, time, **given).sample).to(x.dtype)
        image = expand(skip, x) * x + expand(above * (self.sigma_data / root), x) * out
        return image if self.clip is None else image.clamp(-self.clip, self.clip)


def require_label(classes: object, label: int | None) -> int | None:
    """The label, if it fits a network of so many classes (None: unconditional)."""
    if classes is None:
        if label is not None:
            raise ModelError(f"a label ({label}) was given, but the model is not conditional on a class")
        return None
    count = whole_number(classes, "num_class_embeds", 1, 10**6)
    if label is None:
        raise ModelError(f"the model is conditional on a class: give a label from 0 to {count - 1} (--label)")
    return whole_number(label, "the label", 0, count - 1)
