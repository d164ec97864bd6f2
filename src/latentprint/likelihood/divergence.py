"""The trace of a denoiser's Jacobian, exact or by Hutchinson's estimator, on images of any shape.

    tr J = sum_i e_i^T J e_i  (`Exact`)  =  E[v^T J v]  for E[v v^T] = I  (`Hutchinson`),   J = dD/dx

One backward pass costs about one forward pass (the gradient is taken with respect to x alone), and both are
counted as one evaluation of the network.

Sources: Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix"; for probes fixed
along a trajectory, Grathwohl et al. 2019 (FFJORD), section 3.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentprint.denoiser import Denoiser, checked
from latentprint.streams import Ids, Streams


@dataclass(frozen=True)
class Exact:
    """Every diagonal entry of the Jacobian, ``together`` of them at a time.

    An image is repeated ``together`` times in one batch, and each row is differentiated along one dimension.
    The network only needs a backward pass. Costs d + together evaluations (d rounded up to a multiple of
    ``together``); more at a time is faster as long as memory suffices.
    """

    together: int = 16

    def __post_init__(self) -> None:
        if self.together < 1:
            raise ValueError(f"Exact needs together of 1 or more, got {self.together}")


@dataclass(frozen=True)
class Hutchinson:
    """The mean of v^T J v over random probes v, fixed for an image along its whole trajectory.

    Probes have independent entries of +1 and -1 (Rademacher's). The noise of the trace is in the exponent of
    a density, so few probes can mislead by many nats; the standard error says by how many. With one probe it
    is infinite, because nothing is known about it.

    Attributes:
        probes: how many, k; costs 1 + k evaluations.
        streams: where probes are drawn from, by the id of the image.
        purpose: the name under which they are drawn.
    """

    probes: int
    streams: Streams
    purpose: str = "divergence"

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(f"Hutchinson needs 1 probe or more, got {self.probes}")


Divergence = Exact | Hutchinson


class Trace:
    """The trace of dD/dx for a fixed batch of images and the probes that belong to it.

    ``x``: (B, ...); ``ids``: (B,), needed by `Hutchinson`.

    Raises:
        ValueError: probes without ids, or a number of ids other than B.
    """

    def __init__(self, denoiser: Denoiser, divergence: Divergence, x: Tensor, ids: Ids | None) -> None:
        self.denoiser = denoiser
        self.dims = math.prod(x.shape[1:])
        if isinstance(divergence, Exact):
            self.probes = None
            self.together = min(divergence.together, self.dims)
            self.forms = 1
            self.evaluations = self.together * (1 + -(-self.dims // self.together))
        else:
            self.probes = draw_probes(divergence, x, ids)
            self.together = 1
            self.forms = divergence.probes
            self.evaluations = 1 + self.forms

    def __call__(self, x: Tensor, t: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(D(x, t), its traces): the shape of x, and (n, forms) in float64.

        ``x``: (n, ...) the images numbered ``rows`` (n,) of the batch; ``t``: (n,).
        """
        copies = self.together
        with torch.enable_grad():
            many = x.detach().repeat(copies, *(1,) * (x.ndim - 1)).requires_grad_(True)
            out = checked(self.denoiser, many, t.repeat(copies))
        if not out.requires_grad:
            raise ValueError("the denoiser's answer must be differentiable in x, and it carries no gradient")
        if self.probes is None:
            forms = self._diagonal(many, out).sum(1, keepdim=True)
        else:
            forms = torch.stack([_form(many, out, v[rows]) for v in self.probes], dim=1)
        return out[: len(x)].detach(), forms

    def _diagonal(self, many: Tensor, out: Tensor) -> Tensor:
        """(n, blocks): sums of ``together`` diagonal entries each, in float64."""
        n, copies = len(many) // self.together, self.together
        which = torch.arange(copies, device=many.device)
        sums: list[Tensor] = []
        for first in range(0, self.dims, copies):
            count = min(copies, self.dims - first)
            v = torch.zeros(copies, n, self.dims, dtype=many.dtype, device=many.device)
            v[which[:count], :, first + which[:count]] = 1
            sums.append(_form(many, out, v.view(many.shape)).view(copies, n).sum(0))
        return torch.stack(sums, dim=1)

    def standard_error(self, totals: Tensor) -> Tensor:
        """The standard error of the mean of integrals (B, forms) of v^T J v, each with its probe: (B,)."""
        if self.probes is None:
            return torch.zeros(len(totals), dtype=torch.float64, device=totals.device)
        k = totals.shape[1]
        if k == 1:
            return torch.full((len(totals),), math.inf, dtype=torch.float64, device=totals.device)
        return (totals.var(dim=1) / k).sqrt()


def _form(x: Tensor, out: Tensor, v: Tensor) -> Tensor:
    """v^T (d out / d x) v of each row, float64."""
    (gradient,) = torch.autograd.grad(out, x, v, retain_graph=True)
    return (gradient * v).flatten(1).sum(1, dtype=torch.float64)


def draw_probes(divergence: Hutchinson, x: Tensor, ids: Ids | None) -> Tensor:
    """Probes of shape (k, *x.shape), a function of the ids alone.

    Raises:
        ValueError: no ids, or a number of ids other than len(x).
    """
    k, dims = divergence.probes, math.prod(x.shape[1:])
    if ids is None or len(ids) != len(x):
        got = "none" if ids is None else len(ids)
        raise ValueError(f"Hutchinson draws its probes by id: it needs {len(x)} ids, got {got}")
    words = divergence.streams.integers(divergence.purpose, ids, 0, k * dims, x.device)
    vectors = ((words >> 31) * 2 - 1).view(len(x), k, dims).transpose(0, 1)
    return vectors.to(x.dtype).reshape(k, *x.shape)
