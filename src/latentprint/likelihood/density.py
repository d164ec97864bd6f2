"""The likelihood of an image under the probability-flow ODE, in nats and in bits per dimension.

    log p_end(x) = log N(x_T; 0, prior_std^2 I) - [log p_T(x_T) - log p_end(x)]     (Song et al. 2021, Eq. 39)

where the ODE (paper Eq. 5) carries x to x_T, and `latentprint.likelihood.flow` accumulates the bracket on the
way. It is exact up to the integration's tolerance, for the density from which a sampler with this network
draws if it solves the ODE from a normal x_T down to ``schedule.end``. That is the density of the data blurred
by sigma(end) and shrunk by alpha(end). The data themselves have no density if they are finitely many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from latentprint.denoiser import Denoiser
from latentprint.likelihood.divergence import Divergence
from latentprint.likelihood.flow import integrate
from latentprint.streams import Ids, Streams


@dataclass(frozen=True)
class Likelihood:
    """log p_t(x) of each image.

    Attributes:
        nats: (B,) float64, the log density in natural units; larger is likelier.
        standard_error: (B,) float64, of nats, from the probes of `Hutchinson`; 0 for `Exact`.
        evaluations: (B,) int64, passes through the network for this image, forward and backward.
    """

    nats: Tensor
    standard_error: Tensor
    evaluations: Tensor


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    divergence: Divergence,
    *,
    t: Tensor | float | None = None,
    tolerance: float = 1e-5,
    ids: Ids | None = None,
) -> Likelihood:
    """log p_t(x) of each image under the probability-flow ODE, which draws x_T from N(0, prior_std^2 I).

    Args:
        denoiser: E[x_0 | x_t], differentiable in x.
        x: (B, ...); images (B, C, H, W) in [-1, 1], dequantised (see `dequantise`) if they are digital.
        divergence: `Exact` or `Hutchinson`.
        t: the time of the density, one or (B,); by default ``schedule.end``, the time of images.
        tolerance: of a step, see `integrate`. In all cases with a closed form the result was within 30
            tolerances, in nats per dimension.
        ids: (B,), the names of the rows, for the probes of `Hutchinson`.

    Raises:
        ValueError: as for `integrate`; a likelihood that is not finite.
    """
    schedule = denoiser.schedule
    end = schedule.end if t is None else t
    there = integrate(denoiser, x, end, schedule.start, divergence, tolerance=tolerance, ids=ids)
    z = there.x.flatten(1).double() / schedule.prior_std
    dims = z.shape[1]
    prior = -0.5 * (z**2).sum(1) - dims * (0.5 * math.log(2 * math.pi) + math.log(schedule.prior_std))
    nats = prior - there.log_density_change
    if not bool(nats.isfinite().all()):
        bad = (~nats.isfinite()).nonzero()[:, 0].tolist()
        raise ValueError(f"a log likelihood must be finite; rows {bad} gave {nats[bad].tolist()}")
    return Likelihood(nats, there.standard_error, there.evaluations)


def grey_step(bit_depth: float) -> float:
    """The distance of neighbouring grey levels where 2**bit_depth levels span [-1, 1], both ends included.

    Raises:
        ValueError: a bit depth that is not positive.
    """
    if not bit_depth > 0:
        raise ValueError(f"a bit depth must be positive, got {bit_depth}")
    return 2 / (2**bit_depth - 1)


def dequantise(images: Tensor, bit_depth: float, streams: Streams, ids: Ids) -> Tensor:
    """Digital images plus uniform noise one grey level wide, which gives them a density (Theis et al. 2016).

    Args:
        images: (B, ...), levels ``grey_step(bit_depth)`` apart.
        bit_depth: log2 of the number of levels.
        streams: where the noise is drawn from.
        ids: (B,).
    """
    noise = streams.uniform(
        "dequantise", ids, 0, tuple(images.shape[1:]), device=images.device, dtype=images.dtype
    )
    return images + (noise - 0.5) * grey_step(bit_depth)


def bits_per_dim(nats: Tensor, dims: int, bit_depth: float, step: float | None = None) -> Tensor:
    """Bits that the model needs per pixel and channel for a digital image: at most this many, on average.

    A digital image v is the cell of side ``step`` around it, P(v) = integral of p over the cell. With u
    uniform in the cell, Jensen's inequality gives log P(v) >= E[log p(u)] + d log(step), hence

        bits per dimension = -nats / (d ln 2) - log2(step)

    for ``nats`` the log density at a dequantised image (`dequantise`). The last term is the scaling offset:
    6.994 for 8 bits on [-1, 1] with both ends included (step = 2 / 255), as the images of this library are; 7
    if the 256 levels are the middles of 256 equal cells of [-1, 1] (step = 2 / 256), as in Song et al. 2021.

    Args:
        nats: log density, any shape.
        dims: d, numbers in an image (channels x height x width).
        bit_depth: log2 of the number of grey levels, e.g. 8, 16, or 4 for 16 levels.
        step: distance of neighbouring levels in the model's units, ``grey_step(bit_depth)`` by default.

    Raises:
        ValueError: dims, bit depth or step that is not positive.
    """
    step = grey_step(bit_depth) if step is None else step
    if dims < 1 or not step > 0:
        raise ValueError(f"bits per dimension need positive dims and step, got {dims} and {step}")
    return -nats / (dims * math.log(2)) - math.log2(step)
