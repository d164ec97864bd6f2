"""Processes that train one model together: each computes a share of every batch, and gradients are
averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class Team(Protocol):
    """Processes that train one model together (``latentprint.together``)."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """The number of processes."""
        ...

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes of a tensor that each of them holds."""
        ...


@dataclass(frozen=True)
class Alone:
    """A Team of one."""

    rank: int = 0
    size: int = 1

    def mean(self, values: Tensor) -> Tensor:
        """See Team."""
        return values


def averaged(team: Team, parameters: list[nn.Parameter], loss: Tensor) -> Tensor:
    """Replace the gradients by their mean over the team, in one exchange; the mean loss, shape ()."""
    if team.size == 1:
        return loss
    gradients = [one.grad for one in parameters if one.grad is not None]
    whole = team.mean(torch.cat([*(one.flatten() for one in gradients), loss.reshape(1)]))
    at = 0
    for one in gradients:
        one.copy_(whole[at : at + one.numel()].view_as(one))
        at += one.numel()
    return whole[-1]
