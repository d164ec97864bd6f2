"""The times of the reverse process: grids that fall from T (``schedule.start``) to ``schedule.end``.

"uniform"   equal steps in t                                 Song et al. 2021
"log-snr"   equal steps in log(alpha / sigma)                Lu et al. 2022
"karras"    equal steps in (sigma / alpha)^(1/7)             Karras et al. 2022, Eq. 5, rho = 7
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from latentprint.schedule import Schedule

Spacing = Literal["uniform", "log-snr", "karras"]

RHO = 7.0

MERGE = 0.25
"""A row that starts less than this share of an interval above a grid point skips that point."""


def times(schedule: Schedule, steps: int, spacing: Spacing) -> Tensor:
    """The grid: float64, (steps + 1,), falling strictly from ``schedule.start`` to ``schedule.end``.

    Raises:
        ValueError: steps is not positive, or the spacing is unknown.
    """
    if steps < 1:
        raise ValueError(f"a grid needs at least 1 step, got {steps}")
    if spacing not in get_args(Spacing):
        raise ValueError(f"a spacing is one of {', '.join(get_args(Spacing))}; got {spacing!r}")
    if spacing == "uniform":
        return torch.linspace(schedule.start, schedule.end, steps + 1, dtype=torch.float64)
    high, low = schedule.ratio(schedule.start), schedule.ratio(schedule.end)
    if spacing == "log-snr":
        ratios = torch.linspace(float(high.log()), float(low.log()), steps + 1, dtype=torch.float64).exp()
    else:
        high, low = float(high ** (1 / RHO)), float(low ** (1 / RHO))
        ratios = torch.linspace(high, low, steps + 1, dtype=torch.float64) ** RHO
    grid = schedule.time(ratios)
    grid[0], grid[-1] = schedule.start, schedule.end  # exactly the ends, without rounding
    return grid


def first_column(grid: Tensor, t: Tensor) -> Tensor:
    """The first column of ``grid`` for a row that starts at t, (n,); len(grid) if there is none.

    It is the next grid point below t, or the one after it if the next is closer than MERGE of its interval,
    because multistep methods divide by their last step.

    Raises:
        ValueError: t lies above the grid or is negative.
    """
    if not bool(((t >= 0) & (t <= grid[0])).all()):
        raise ValueError(f"rows must start in [0, {grid[0]:g}], got {t.min():g} to {t.max():g}")
    last = len(grid) - 1
    below = torch.searchsorted(-grid, -t, right=True)  # the first column with grid < t
    above = (below - 1).clamp(min=0)
    inner = below.clamp(max=last)
    share = (t - grid[inner]) / (grid[above] - grid[inner]).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where((below < last) & (share < MERGE), below + 1, below)


def own_times(grid: Tensor, t: float) -> Tensor:
    """The falling times of one row that starts at t: t itself, then its columns of the grid."""
    start = torch.tensor([t], dtype=torch.float64)
    return torch.cat([start, grid[int(first_column(grid, start)) :]])
