"""How many trajectories of the bridge start from which noise level.

The variance of the balance heuristic's weights w_c = h / sum_k c_k r_k / p_k depends on the shares c. With
trajectories drawn from known shares u, E_c[w_c^2] = E_u[w_c w_u], which is convex in c: a pilot's average of
it is made least. What a pilot of some dozens cannot have seen is provided for by a part that goes to all
levels alike.

Sources: Veach and Guibas, SIGGRAPH 1995 (balance heuristic); T. Hesterberg, Technometrics 37 (1995) (the
defensive part); Kivinen and Warmuth 1997 (exponentiated gradient).
"""

import math

import torch
from torch import Tensor

SPREAD = 0.3
"""Share of the trajectories that start from all times alike, whatever the pilot found best."""


def least_variance_shares(log_ratio: Tensor, anchors: tuple[int, ...]) -> Tensor:
    """Shares c of least second moment, on pilot trajectories drawn from ``anchors`` in equal shares.

    (hits, K) -> (K,). With u the equal mixture of the anchors, E[w_c^2] under c is E[w_c w_u] under u, convex
    in c; minimised by exponentiated gradient. Shares below 2 % are dropped. Then `SPREAD` of all is spread
    evenly over all times (a defensive mixture, Hesterberg 1995): a pilot cannot see what it missed.
    """
    k, own = log_ratio.shape[1], list(anchors)
    uniform = -torch.logsumexp(log_ratio[:, own] - math.log(len(own)), dim=1)
    c = torch.full((k,), 1 / k, dtype=torch.float64)
    for _ in range(300):
        log_w = -torch.logsumexp(log_ratio + c.log(), dim=1)
        # d/dc_k of sum w_u w_c = -sum w_u w_c^2 r_k/p_k: proposals of large responsibility gain
        pull = torch.softmax(uniform + log_w, 0) @ (log_ratio + log_w[:, None]).exp()
        c = (c * pull**0.5).clamp(min=1e-9)
        c = c / c.sum()
    c = torch.where(c < 0.02, 0.0, c)
    return (1 - SPREAD) * c / c.sum() + SPREAD / k


def allot(shares: Tensor, together: int) -> list[int]:
    """Whole numbers near ``together`` times the shares (K,), at least one of each."""
    return [max(1, round(float(c) * together)) for c in shares]
