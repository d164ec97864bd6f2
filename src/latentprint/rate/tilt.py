"""Importance sampling from a Gaussian fitted to the noise that lands in Omega.

    q = E_{z ~ g}[ 1(z in Omega) phi(z) / g(z) ],    g = mean over c of N(m, (c s)^2 I),    phi = N(0, I)

Splitting finds particles in Omega. Its product of factors has the errors of every level, but the particles
show where Omega lies, and under a Gaussian there the rare event is a common one. The mean m is the hard part:
the average of a thousand correlated particles in 784 dimensions is mostly noise. Near Omega the score of a
smooth sampler is close to quadratic in z, so its ridge regression on (z, |z|^2), over **all** evaluations
already paid for, gives the direction of m far better. Whether m is the average or a regression's is decided
on replicates that were not used to fit it.

The estimate is unbiased for every g that was fixed before its samples were drawn, as long as g reaches all of
Omega; ``uncovered`` measures on the particles whether it does. Sources: Kahn and Harris 1951 (importance
sampling); P.-T. de Boer et al., Ann. Oper. Res. 134 (2005) (fitting g to the particles of a rare event).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from latentprint.rate.levels import Landscape
from latentprint.rate.weights import BELIEVED, Floats, Weighted, offered, weighted

_LARGEST_SYSTEM = 4000
_RIDGE = 1e-3

LARGEST_K = 0.5
"""Pareto k above which a tilt is not believed. Trained networks have particles that no Gaussian reaches: with
k of 0.53 to 0.63 four of four tilts fell 1.4 to 1.8 standard errors short of the count.
"""

UNCOVERED = 0.1
"""Share of the particles out of a tilt's reach above which it is not believed."""

TOGETHER = 1000
"""Weights between two judgements of whether a tilt promises an answer."""


@dataclass(frozen=True)
class Tilt:
    """The proposal g: an equal mixture of N(mean, std^2 I) over ``stds``; mean (latent,) float64."""

    mean: Tensor
    stds: tuple[float, ...]
    fitted_by: str

    def draw(self, n: int, g: torch.Generator) -> Tensor:
        """(n, latent) float32."""
        which = torch.randint(len(self.stds), (n,), generator=g)  # noqa: TID251
        std = torch.tensor(self.stds)[which, None]
        return self.mean.float() + std * torch.randn(n, len(self.mean), generator=g)  # noqa: TID251

    def log_ratio(self, z: Tensor) -> Tensor:
        """log phi(z) / g(z): (n, latent) -> (n,) float64."""
        z = z.double()
        square = ((z - self.mean) ** 2).sum(1)
        each = [-square / (2 * s * s) - z.shape[1] * math.log(s) for s in self.stds]
        density = torch.logsumexp(torch.stack(each), 0) - math.log(len(self.stds))
        return -(z**2).sum(1) / 2 - density


def fit_tilt(groups: Sequence[Tensor], remembered: Sequence[tuple[Tensor, Tensor]]) -> Tilt:
    """The Gaussian for particles in Omega, one group (n_r, latent) per replicate that reached it.

    Args:
        remembered: (z, score) of samples evaluated on the way.

    Raises:
        ValueError: fewer than two groups hold a particle, so that no choice could be checked on the others.
    """
    groups = [group.double() for group in groups if len(group)]
    if len(groups) < 2:
        raise ValueError(f"a tilt needs particles from at least 2 replicates, got {len(groups)}")
    together = torch.cat(groups)
    average = together.mean(0)
    candidates = {"average": (average, _spread_of_average(groups))}
    for name, direction in _slopes(remembered, len(average)).items():
        mean = direction * (direction @ average)
        candidates[name] = (mean, float(((together - mean) ** 2).mean()))
    name = min(candidates, key=lambda key: candidates[key][1])
    mean, variance = candidates[name]
    # The mass of a ball in d dimensions is in a shell of relative width 1/sqrt(2 d). One component that much
    # wider keeps the weights of its outer half from having a heavy tail.
    wider = 1 + 1 / math.sqrt(2 * len(mean))
    return Tilt(mean, (math.sqrt(variance), wider * math.sqrt(variance)), name)


def _spread_of_average(groups: Sequence[Tensor]) -> float:
    """Mean squared distance per dimension of each group's particles to the average of the other groups."""
    sums, counts = [group.sum(0) for group in groups], [len(group) for group in groups]
    total, n, square = sum(sums[1:], sums[0]), sum(counts), 0.0
    for group, own, count in zip(groups, sums, counts, strict=True):
        square += float(((group - (total - own) / (n - count)) ** 2).sum())
    return square / (n * len(total))


def _slopes(remembered: Sequence[tuple[Tensor, Tensor]], latent: int) -> dict[str, Tensor]:
    """Unit directions in which the score falls near Omega, by ridge regressions of different reach."""
    if not remembered:
        return {}
    scores = torch.cat([score for _, score in remembered])
    found: dict[str, Tensor] = {}
    for per_dimension in (4, 16):
        size = min(len(scores), max(1000, per_dimension * latent))
        if latent > _LARGEST_SYSTEM:
            size = min(size, _LARGEST_SYSTEM)
        nearest = scores.topk(size, largest=False).indices.sort().values
        z = _rows(remembered, nearest)
        y = scores[nearest]
        for power in (1, 2) if bool((y >= 0).all()) else (1,):
            slope = _ridge(z, y**power)
            length = float(slope.norm())
            if length > 0:
                found[f"slope of score^{power} over {per_dimension} per dimension"] = slope / length
    return found


def _rows(remembered: Sequence[tuple[Tensor, Tensor]], rows: Tensor) -> Tensor:
    """Rows of the concatenation, without building it."""
    parts, begin = list[Tensor](), 0
    for z, _ in remembered:
        mine = rows[(rows >= begin) & (rows < begin + len(z))] - begin
        parts.append(z[mine])
        begin += len(z)
    return torch.cat(parts).double()


def _ridge(z: Tensor, y: Tensor) -> Tensor:
    """Coefficients of z in the ridge regression of y on (z, |z|^2, 1); in the dual if there are fewer rows
    than columns."""
    square = (z**2).mean(1, keepdim=True)
    features = torch.cat([z, square / square.std().clamp(min=1e-12)], 1)
    features, target = features - features.mean(0), y - y.mean()
    n, p = features.shape
    if n >= p:
        gram = features.T @ features
        gram.diagonal().add_(_RIDGE * n)
        return torch.linalg.solve(gram, features.T @ target)[:-1]
    gram = features @ features.T
    gram.diagonal().add_(_RIDGE * n)
    return (features.T @ torch.linalg.solve(gram, target))[:-1]


def log_weights(land: Landscape, tilt: Tilt, n: int, g: torch.Generator) -> Floats:
    """n fresh samples of the tilt: log weights (n,), -inf where they miss Omega."""
    z = tilt.draw(n, g)
    missed = land(z) > -math.inf
    return tilt.log_ratio(z).masked_fill(missed, -math.inf).numpy().astype(np.float64)


def uncovered(tilt: Tilt, groups: Sequence[Tensor], drawn: Floats) -> float:
    """Share of the particles (mean over replicates) whose weight is above any weight that was drawn.

    It is near 0 if the tilt reaches all of Omega, and the missing share of q if a part of Omega is out of
    reach.
    """
    top = float(drawn.max())
    shares = [float((tilt.log_ratio(group) > top).double().mean()) for group in groups if len(group)]
    return sum(shares) / len(shares)


def tilted(
    land: Landscape,
    groups: Sequence[Tensor],
    levels: Weighted,
    relative: float,
    left: int,
    level: float,
    g: torch.Generator,
    say: Callable[[], None],
) -> dict[str, object]:
    """A tilt fitted to the particles of replicates, and its estimate of q or why it failed: plain values.

    It is drawn until as precise as asked, or until it is clear that this is out of reach.

    Args:
        groups: particles in Omega of each replicate. levels: what the replicates' own products say of q.
        left: samples that ``land`` may have spent in the end.
    """
    tilt = fit_tilt(groups, land.remembered)
    drawn = log_weights(land, tilt, TOGETHER, g)
    while True:
        summary = weighted(drawn)
        needed = summary.n * (summary.error / relative) ** 2 if summary.effective > 0 else math.inf
        settled = summary.error <= relative and summary.effective >= BELIEVED
        # A tail that is too heavy among the first thousand weights does not grow lighter.
        hopeless = summary.effective < summary.n / 200 or needed > 20 * TOGETHER
        if settled or hopeless or left - land.samples < TOGETHER:
            break
        say()
        drawn = np.concatenate([drawn, log_weights(land, tilt, TOGETHER, g)])
    outside = uncovered(tilt, groups, drawn) if summary.log_mean > -math.inf else 1.0
    notes: dict[str, object] = {
        "tilt": tilt.fitted_by,
        "effective": summary.effective,
        "uncovered": outside,
        "tilt_samples": summary.n,
    }
    if summary.pareto_k is not None and math.isfinite(summary.pareto_k):
        notes["pareto_k"] = summary.pareto_k
    why = _fails(summary, outside, levels)
    numbers = offered(summary.log_mean, summary.error, summary.freedom, level) if why is None else why
    if isinstance(numbers, str):
        return {"notes": notes, "failed": numbers}
    return {
        "notes": notes,
        "failed": None,
        # A part that may be out of reach is missing from the mean.
        "numbers": asdict(replace(numbers, high=min(1.0, numbers.high / (1 - outside)))),
        "freedom": max(summary.freedom, 1.0),
        "said": f"importance sampling around the particles: effective sample size {summary.effective:.0f} of "
        f"{summary.n}, Pareto k {summary.pareto_k:.2f}, {outside:.1%} of the particles out of its reach",
    }


def _fails(summary: Weighted, outside: float, levels: Weighted) -> str | None:
    if (why := summary.distrusted()) is not None:
        return f"of the tilt {why}"
    if summary.pareto_k is not None and summary.pareto_k > LARGEST_K:
        return f"the tilt's weights have Pareto k {summary.pareto_k:.2f}, above {LARGEST_K}"
    if outside > UNCOVERED:
        return f"{outside:.0%} of the particles in the region lie out of the tilt's reach"
    gap = abs(summary.log_mean - levels.log_mean)
    # The error of eight replicates is itself uncertain (Student's t), and their adaptive levels are biased.
    if gap > 3 * math.hypot(1.5 * levels.error, summary.error):
        return f"the tilt and the levels disagree by a factor of {math.exp(gap):.1f}"
    return None
