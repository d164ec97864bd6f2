"""Any callable with a schedule as a model to audit.

Example, a network of your own that predicts the noise from (x, a time from 0 to 999):

    >>> import torch
    >>> from latentprint.adapters import from_function
    >>> from latentprint.schedule import VP
    >>> network = lambda x, k: x * 0.5                                      # yours
    >>> denoiser = from_function(network, VP(), predicts="epsilon", time=lambda t: 999 * t)
    >>> denoiser(torch.zeros(2, 1, 8, 8), torch.tensor(0.5)).shape
    torch.Size([2, 1, 8, 8])

Sources of the conversions: ``latentprint.denoiser``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from latentprint.denoiser import denoised_from_epsilon, denoised_from_score, denoised_from_v
from latentprint.schedule import Schedule

Predicts = Literal["denoised", "epsilon", "v", "score"]


@dataclass(frozen=True, eq=False)
class FunctionDenoiser:
    """``function`` as a denoiser; see ``from_function``."""

    function: Callable[[Tensor, Tensor], Tensor]
    schedule: Schedule
    predicts: Predicts
    time: Callable[[Tensor], Tensor] | None

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        rows = torch.as_tensor(t, dtype=torch.float64).expand(len(x))
        given = rows if self.time is None else self.time(rows)
        out = self.function(x, given.to(device=x.device, dtype=x.dtype))
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out)  # pyright: ignore[reportUnnecessaryIsInstance]
        if found != tuple(x.shape):
            raise ValueError(
                f"the function was given shape {tuple(x.shape)} and must return the same, got {found}"
            )
        out = out.to(x.dtype)
        if self.predicts == "epsilon":
            return denoised_from_epsilon(self.schedule, x, out, t)
        if self.predicts == "v":
            return denoised_from_v(self.schedule, x, out, t)
        return denoised_from_score(self.schedule, x, out, t) if self.predicts == "score" else out


def from_function(
    function: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    *,
    predicts: Predicts = "denoised",
    time: Callable[[Tensor], Tensor] | None = None,
) -> FunctionDenoiser:
    """A denoiser from ``function(x, time)``.

    Args:
        function: x (B, ...) and the time of each row (B,), in x's type and on x's device -> its prediction,
            shaped as x.
        schedule: the noise it was trained with: VP, SubVP, VE, EDM of ``latentprint.schedule``, a
            ``DiscreteSchedule``, or any object with these methods.
        predicts: "denoised" (E[x_0 | x_t]), "epsilon", "v" or "score".
        time: from our times t (B,), float64 in (0, T], to what the function calls time; t itself when None.

    Raises:
        ValueError: ``predicts`` is unknown; later, where the function returns another shape.
    """
    if predicts not in get_args(Predicts):
        raise ValueError(f"a function predicts one of {', '.join(get_args(Predicts))}; got {predicts!r}")
    return FunctionDenoiser(function, schedule, predicts, time)
