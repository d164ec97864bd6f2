"""How many paths start from which proposal.

The variance of the balance heuristic's weights w_c = h / sum_k c_k dQ_k/dP depends on the shares c. With
paths drawn from known shares u, E_c[w_c^2] = E_u[w_c w_u], which is convex in c, and a pilot's average of it
is minimised. A pilot of a few dozen paths cannot see everything, so a part of the paths goes to chosen
proposals whatever the pilot found.

Sources: Veach and Guibas, SIGGRAPH 1995 (balance heuristic); T. Hesterberg, Technometrics 37 (1995) (the
defensive part); Kivinen and Warmuth 1997 (exponentiated gradient).
"""

import torch
from torch import Tensor

LEAST = 0.02
"""Shares below this, or below a quarter of the largest if all are small, are dropped."""


def least_variance_shares(log_ratio: Tensor, drawn: Tensor, kept: Tensor) -> Tensor:
    """Shares c of least second moment, on pilot paths that hit, plus the shares ``kept`` for safety.

    Args:
        log_ratio: (hits, K) log dQ_k/dP.
        drawn: (K,) shares that the pilot was drawn from, summing to 1.
        kept: (K,) shares that are kept whatever the pilot says, summing to less than 1.
    """
    k = log_ratio.shape[1]
    pilot = -torch.logsumexp(log_ratio + drawn.log(), dim=1)
    c = torch.full((k,), 1 / k, dtype=torch.float64)
    for _ in range(300):
        log_w = -torch.logsumexp(log_ratio + c.log(), dim=1)
        # d/dc_k of sum w_u w_c = -sum w_u w_c^2 r_k/p_k: proposals of large responsibility gain
        pull = torch.softmax(pilot + log_w, 0) @ (log_ratio + log_w[:, None]).exp()
        c = (c * pull**0.5).clamp(min=1e-9)
        c = c / c.sum()
    c = torch.where(c < min(LEAST, float(c.max()) / 4), 0.0, c)
    return (1 - kept.sum()) * c / c.sum() + kept


def allot(shares: Tensor, together: int) -> list[int]:
    """Whole numbers near ``together`` times the shares (K,): at least one for every positive share."""
    return [max(1, round(float(c) * together)) if c > 0 else 0 for c in shares]
