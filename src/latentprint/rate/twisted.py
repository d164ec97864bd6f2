"""Guided paths that are selected on their way by a committor: twisted sequential Monte Carlo.

What guides a network that half learnt its images is not known beforehand, and guides alone leave heavy-tailed
weights. But every training image is an experiment of the same kind. Of some hundred paths of the sampler
itself many end close to *some* image, and how they came there shows how a path comes to x_p. From them follow

    f_k        factors of the guide x_p (``path``), of least cross-entropy over all images that were hit
    log h_k    log of how much likelier a path at x_k is to come to an image, by logistic regression on

        s = |D - x_i| / rho_i          rho_i: half of the distance from image i to its nearest neighbour
        l = log w_i(x_k)               the ideal denoiser's posterior weight of x_i among the images

Particles start at the noising of x_p and are guided by f_k. Within each replicate they are resampled when
their weights prod dP/dQ h_k, divided by what earlier selections used, are worth less than ``RESAMPLED`` of
their number. The product of mean weights is unbiased for q whatever f and h are: these only decide how far
replicates spread.

Sources: N. Whiteley, A. Lee, Ann. Statist. 42 (2014) (twisted particle filters); N. Whiteley, A. Lee,
K. Heine, Bernoulli 22 (2016) (adaptive resampling is unbiased); J. Carpenter et al. 1999 (systematic
resampling); J. Qin, Biometrika 85 (1998) (density ratio by logistic regression).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentprint.denoiser import checked
from latentprint.rate.estimator import Part
from latentprint.rate.led import Led, Transition, log_normal, times

MOST = 1000
"""Images to learn from at most: x_p and those nearest to it."""

MOST_PLAIN = 4096
"""Most plain paths to learn from; of twice as many, replicates spread no less."""

CONTRASTS = 20
"""Images with which each path is compared as one that did not lead to them."""

RESAMPLED = 0.6
"""Share of effective particles below which a replicate is resampled."""

LEARNABLE = 60
"""Plain paths that must have come to some image for a committor to be learnt from them."""

TAUGHT = 0.12
"""Share of the plain paths from which is learnt at least: those that ended nearest to an image."""

HELD = 2**22
"""Paths times images times steps that are held at once: 64 MiB of features."""

WIDEST = 2.0
"""Largest distance, in units of rho_i, from image i at which a path may count as having come to it."""

FIRM = 4.0
"""How firmly a factor keeps to 1: as if so much |u|^2 had been seen there."""

LOWEST = -30.0
"""Log posterior weights below this are treated as equal."""


@dataclass(frozen=True)
class Bank:
    """Images that a path may end at, x_p first.

    Attributes:
        images: (M, d). radii: (M,) half of the distance to the nearest other one. width: of kernels on them,
            rms.
    """

    images: Tensor
    radii: Tensor
    width: float

    @classmethod
    def around(cls, target: Tensor, others: Tensor) -> Bank:
        """The bank of x_p and the ``others`` (N, *shape), nearest first, without copies of x_p."""
        images = torch.cat([target[None], others[: MOST - 1]]).flatten(1)
        apart = torch.cdist(images, images)
        apart.fill_diagonal_(torch.inf)
        radii = apart.min(1).values / 2
        alone = radii > 1e-3 * radii[0]  # there is no room around copies of one another
        return cls(images[alone], radii[alone], float(radii[0]) / math.sqrt(images.shape[1]))

    def __len__(self) -> int:
        return len(self.images)

    def features(self, x: Tensor, denoised: Tensor, step: Transition) -> tuple[Tensor, Tensor]:
        """(s, l) of rows against all images, (n, M) each."""
        variance = (step.alpha * self.width) ** 2 + step.sigma**2
        half = self.images.square().sum(1) / 2
        near = (step.alpha * (x.flatten(1) @ self.images.T) - step.alpha**2 * half) / variance
        s = torch.cdist(denoised.flatten(1), self.images) / self.radii
        return s, torch.log_softmax(near, 1).clamp(min=LOWEST)


@dataclass(frozen=True)
class Learnt:
    """What was learnt from plain paths, of which ``hits`` ended at an image.

    Attributes:
        factors: (steps,). coefficients: (steps, 6) of 1, s, s^2, l, l^2, s l. low, high: (steps, 2) the range
            of s, l that was seen; beyond it h is constant.
    """

    hits: int
    factors: Tensor
    coefficients: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, kept: Part) -> Learnt:
        """The same from the plain values that ``learn`` returns."""
        each = (
            torch.tensor(kept[k], dtype=torch.float64) for k in ("factors", "coefficients", "low", "high")
        )
        return cls(kept["hits"], *each)

    def log_committor(self, k: int, s: Tensor, posterior: Tensor) -> Tensor:
        """log h_k of rows (n,), up to a constant."""
        both = torch.stack([s, posterior], 1).double().cpu()
        return _terms(both.clamp(self.low[k], self.high[k])) @ self.coefficients[k]


def learnable(steps: int) -> int:
    """The most plain paths of so many steps to learn from: their contrasts take 256 MiB."""
    return min(MOST_PLAIN, 2**28 // (16 * CONTRASTS * steps))


def learn(led: Led, bank: Bank, paths: int, progress: Callable[[int], object]) -> Part:
    """What ``paths`` of the sampler itself teach about the images of ``bank``: plain values for ``Learnt``.

    It needs no Omega. A path came to an image if it ended within rho_i of it. If too few paths did
    (``LEARNABLE``, ``TAUGHT``), the radius grows as far as needed, up to ``WIDEST`` rho_i.
    """
    parts = list[tuple[Tensor, Tensor, Tensor]]()
    together = max(1, min(led.batch, HELD // (len(bank) * len(led.steps))))
    for ids in torch.arange(paths).split(together):
        with torch.no_grad():
            parts.append(_plain(led, bank, ids))
        progress(int(ids[-1]) + 1)
    own, far, seen = (torch.cat(each) for each in zip(*parts, strict=True))
    least = min(paths, max(LEARNABLE, round(TAUGHT * paths)))
    reach = max(1.0, float(far.sort().values[least - 1]))
    ended = own[far <= min(reach, WIDEST)]
    if len(ended) < LEARNABLE:
        return {"hits": len(ended)}
    pulled, square = ended[:, :, 2].sum(0), ended[:, :, 3].sum(0)
    both = torch.cat([ended[:, :, :2], seen])
    fitted = [_ratio(ended[:, k, :2], seen[:, k]) for k in range(both.shape[1])]
    return {
        "hits": len(ended),
        "factors": ((pulled + FIRM) / (square + FIRM)).clamp(0, 1).tolist(),
        "coefficients": [one.tolist() for one in fitted],
        "low": both.amin(0).tolist(),
        "high": both.amax(0).tolist(),
    }


def _plain(led: Led, bank: Bank, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Plain paths, each with the image that it ended nearest to, and with ``CONTRASTS`` others.

    s, l, e . u and |u|^2 of the first (n, steps, 4), its s at the end (n,), s and l of the others
    (n CONTRASTS, steps, 2).
    """
    x = led.denoiser.schedule.prior_std * led.noise("path.plain", ids, 0)
    columns = (ids[:, None] * CONTRASTS + torch.arange(CONTRASTS)) % len(bank)
    along, seen, before = list[Tensor](), list[Tensor](), x  # the first step remembers nothing
    for k, step in enumerate(led.steps):
        denoised = checked(led.denoiser, x, times(float(step.t), x))
        e, c = led.noise("path.plain", ids, k + 1), step.pull / step.std
        s, posterior = bank.features(x, denoised, step)
        by = c * (e.flatten(1) @ bank.images.T - (e * denoised).flatten(1).sum(1, keepdim=True))
        along.append(torch.stack([s, posterior, by, (c * s * bank.radii) ** 2], 2).cpu())
        seen.append(along[-1][:, :, :2].gather(1, columns[:, :, None].expand(-1, -1, 2)))
        x, before = step.to(x, denoised, before, e), denoised
    apart, nearest = (v.cpu() for v in torch.cdist(led.ended(x).flatten(1), bank.images).min(1))
    own = torch.stack([one[torch.arange(len(ids)), nearest] for one in along], 1)
    far = apart / bank.radii.cpu()[nearest]
    return own.double(), far.double(), torch.stack(seen, 2).flatten(0, 1).double()


def _terms(both: Tensor) -> Tensor:
    s, posterior = both.unbind(1)
    return torch.stack([torch.ones_like(s), s, s**2, posterior, posterior**2, s * posterior], 1)


def _ratio(hits: Tensor, others: Tensor) -> Tensor:
    """Coefficients (6,) of the log density ratio of two samples of (s, l), by logistic regression."""
    terms = _terms(torch.cat([hits, others]))
    answer = (torch.arange(len(terms)) < len(hits)).double()
    weight = torch.where(answer > 0, 1.0, len(hits) / len(others)).double()
    centre, scale = terms.mean(0), terms.std(0).clamp(min=1e-9)
    centre[0], scale[0] = 0.0, 1.0
    terms = (terms - centre) / scale
    ridge = torch.ones(6, dtype=torch.float64)
    ridge[0] = 1e-6
    found = torch.zeros(6, dtype=torch.float64)
    for _ in range(30):
        p = torch.sigmoid(terms @ found)
        slope = terms.T @ (weight * (answer - p)) - ridge * found
        bend = (terms * (weight * p * (1 - p))[:, None]).T @ terms + ridge.diag()
        found = found + torch.linalg.solve(bend, slope).clamp(-3, 3)
    found = found / scale
    found[0] -= (centre * found).sum()
    return found


def replicates(led: Led, bank: Bank, learnt: Learnt, ids: Tensor, particles: int) -> Tensor:
    """log of the estimate of q of each of the replicates ``ids``, (n,); -inf if none of its particles hit."""
    with torch.no_grad():
        parts = ids.split(max(1, led.batch // particles))
        return torch.cat([_replicates(led, bank, learnt, own, particles) for own in parts])


def _replicates(led: Led, bank: Bank, learnt: Learnt, own: Tensor, particles: int) -> Tensor:
    schedule, target = led.denoiser.schedule, led.target
    ids = (own[:, None] * particles + torch.arange(particles)).flatten()
    alpha, sigma = float(schedule.alpha(schedule.start)), float(schedule.sigma(schedule.start))
    x = alpha * target + sigma * led.noise("path.twisted", ids, 0)
    weights = log_normal(x, None, schedule.prior_std) - log_normal(x, alpha * target, sigma)
    taken, total = torch.zeros(len(ids), dtype=torch.float64), torch.zeros(len(own), dtype=torch.float64)
    before = x  # the first step remembers nothing
    for k, step in enumerate(led.steps):
        denoised = checked(led.denoiser, x, times(float(step.t), x))
        if k:
            s, posterior = bank.features(x, denoised, step)
            log_h = learnt.log_committor(k, s[:, 0], posterior[:, 0])
            logs = (weights + log_h - taken).reshape(len(own), particles)
            due = 1 / torch.softmax(logs, 1).square().sum(1) < RESAMPLED * particles
            total = total + torch.where(due, torch.logsumexp(logs, 1) - math.log(particles), 0.0)
            uniform = torch.special.ndtr(led.streams.noise("path.resample", own, k, (1,)).double())
            again = due.repeat_interleave(particles)
            chosen = torch.where(again, _systematic(logs, uniform), torch.arange(len(ids)))
            x, denoised, before = x[chosen], denoised[chosen], before[chosen]
            weights, taken = torch.where(again, 0.0, weights), torch.where(again, log_h[chosen], taken)
        factor = float(learnt.factors[k])
        u = step.pull / step.std * (target - denoised)
        e = led.noise("path.twisted", ids, k + 1) + factor * u
        by, square = ((a * u).double().flatten(1).sum(1).cpu() for a in (e, u))
        weights = weights - factor * by + factor**2 / 2 * square
        x, before = step.to(x, denoised, before, e), denoised
    hit = led.hit(x)
    logs = (weights - taken).masked_fill(~hit, -math.inf).reshape(len(own), particles)
    return total + torch.logsumexp(logs, 1) - math.log(particles)


def _systematic(logs: Tensor, uniform: Tensor) -> Tensor:
    """Rows chosen in proportion to exp(logs) (replicates, particles) by one uniform number each, flat."""
    n, particles = logs.shape
    share = torch.softmax(logs, 1).cumsum(1)
    at = (torch.arange(particles) + uniform) / particles * share[:, -1:]
    chosen = torch.searchsorted(share, at).clamp(max=particles - 1)
    return (chosen + torch.arange(n)[:, None] * particles).flatten()
