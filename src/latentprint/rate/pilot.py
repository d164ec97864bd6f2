"""The proposals that paths are drawn from if nothing was learnt elsewhere, and three pilots that choose among
them.

See ``path`` for the formulas. The first pilot is drawn from a few proposals. Each later one is drawn from
those that were best so far, and from one more whose factors are fitted to them by cross-entropy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentprint.rate.estimator import Part
from latentprint.rate.led import Led, Proposals, Walks
from latentprint.rate.shares import allot, least_variance_shares

ITSELF = 0.05
"""Share of paths from the sampler's own law: no weight is above its inverse."""

SPREAD = 0.15
"""Share of paths that is spread evenly over the pilot's proposals, whatever the pilot found best."""

HANDOVERS = 24
"""Most numbers of guided steps that are tried."""

HALF = 0.5
"""A weaker guide, tried besides the full one: a network that turns to x_p late and by itself is not pulled so
much."""

FADE = 1 / 6
"""Share of all steps over which a guide hands over gradually."""

FIRM = 4.0
"""How firmly a fitted factor keeps to its first guess: as if so much |u|^2 had been seen there."""


def handed_over(guides: int, steps: int) -> Proposals:
    """The sampler's own law, and every guide until each of some handovers, abrupt or gradual."""
    handovers = sorted({-(-steps * i // HANDOVERS) for i in range(1, HANDOVERS + 1)})
    k, found = torch.arange(steps, dtype=torch.float64), Proposals.own(steps)
    for guide in range(guides):
        for j in handovers:
            found = found.with_(guide, (k < j).double(), f"guide {guide} for {j} steps")
            found = found.with_(guide, HALF * (k < j), f"guide {guide} at half for {j} steps")
            if j < steps:
                faded = ((j - k - 0.5) / max(2.0, FADE * steps) + 0.5).clamp(0, 1)
                found = found.with_(guide, faded, f"guide {guide} for about {j} steps")
    return found


def named(led: Led, guide: int) -> str:
    """The name of a guide whose factors were fitted."""
    return f"{led.guides[guide].name}, fitted"


def _anchors(proposals: Proposals, guides: int) -> list[int]:
    """The proposals of the first pilot: each guide for some numbers of steps."""
    factors, n = proposals.factors, proposals.factors.shape[1]
    led = (factors > 0).sum(1)
    found = list[int]()
    for guide, strength, part in (
        *((0, 1.0, part) for part in (0.4, 0.6, 0.8, 1.0)),
        *((guide, 1.0, part) for guide in range(1, guides) for part in (0.6, 1.0)),
        *((guide, HALF, 0.7) for guide in range(guides)),
    ):
        other = (proposals.guide != guide) | ~((factors == 0) | (factors == strength)).all(1)
        found.append(int((led - part * n).abs().double().masked_fill(other, math.inf).argmin()))
    return list(dict.fromkeys(found))


def piloted(led: Led, each: int, second: int) -> Part:
    """Shares of least variance, fitted factors, and what a path drawn from them is worth, from three pilots.

    The first pilot is drawn from a few proposals. Each later one is drawn from those that were best so far,
    and from one more that is fitted to them.
    """
    proposals = handed_over(len(led.guides), len(led.steps))
    anchors = _anchors(proposals, len(led.guides))
    defence = (ITSELF, SPREAD / len(anchors))
    counts = torch.zeros(len(proposals), dtype=torch.int64)
    counts[anchors] = each
    walks, fitted = [_walk(led, proposals, counts, 0)], list[tuple[int, list[float]]]()
    shares = torch.zeros(0, dtype=torch.float64)
    while True:
        together = Walks.joined(walks)
        if not len(together.start):
            return {"paths": int(counts.sum()), "worth": 0.0, "shares": [], "fitted": []}
        drawn = counts.double() / counts.sum()
        if len(walks) < 3:
            guide, factors = _fit(together, proposals, drawn)
            fitted.append((guide, factors.tolist()))
            proposals = proposals.with_(guide, factors, named(led, guide))
            counts, drawn = (torch.cat([v, v.new_zeros(1)]) for v in (counts, drawn))
        kept = torch.zeros(len(proposals), dtype=torch.float64)
        kept[0], kept[anchors] = defence[0], defence[1]
        ratios = together.log_ratio(proposals)
        shares = least_variance_shares(ratios, drawn, kept)
        if len(walks) == 3:
            break
        again = torch.tensor(allot(shares, second))
        walks.append(_walk(led, proposals, again, int(counts.sum())))
        counts = counts + again
    by_pilot, by_shares = (-torch.logsumexp(ratios + c.log(), dim=1) for c in (drawn, shares))
    paths = int(counts.sum())
    # effective samples per path: E[w]^2 / E[w^2], under the shares, from the pilot's paths
    worth = 2 * torch.logsumexp(by_pilot, 0) - torch.logsumexp(by_pilot + by_shares, 0) - math.log(paths)
    return {"paths": paths, "worth": float(worth.exp()), "shares": shares.tolist(), "fitted": fitted}


def _fit(walks: Walks, proposals: Proposals, drawn: Tensor) -> tuple[int, Tensor]:
    """(guide, factors (steps,)) of least cross-entropy, drawn towards those of the best proposal so far.

    Few paths carry the averages, so a step's factor leaves the first guess only as far as the data allow.
    """
    none = torch.zeros(len(proposals), dtype=torch.float64)
    ratios = walks.log_ratio(proposals)
    shares = least_variance_shares(ratios, drawn, none)
    best = 1 + int(shares[1:].argmax())
    guide = int(proposals.guide[best])
    weights = torch.softmax(-torch.logsumexp(ratios + drawn.log(), dim=1), 0)
    effective = 1 / float((weights**2).sum())
    seen = effective * (weights @ walks.squares[:, :, guide])
    pulled = effective * (weights @ walks.along[:, :, guide])
    return guide, ((pulled + FIRM * proposals.factors[best]) / (seen + FIRM)).clamp(0, 1.5)


def _walk(led: Led, proposals: Proposals, counts: Tensor, first: int) -> Walks:
    which = torch.arange(len(proposals)).repeat_interleave(counts)
    return led.walk(proposals, which, torch.arange(first, first + len(which)), "path.pilot")
