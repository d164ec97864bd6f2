"""The state of a batch of trajectories, and the interface of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from latentprint.denoiser import Denoiser

Noise = Callable[[int], Tensor]
"""Number of the draw within this step -> N(0, I), shaped like x. It is the only source of noise."""


@dataclass(frozen=True)
class State:
    """A batch of trajectories, one per row; rows may be at different times.

    Attributes:
        x: (B, ...), at the noise level of its row.
        t: (B,), float64 on the CPU: arithmetic on B numbers is not worth a device's latency.
        evaluations: (B,), int64 on the CPU: network evaluations so far.
        memory: what the step keeps between calls, tensors of B rows; zeros mean a row without a past.
    """

    x: Tensor
    t: Tensor
    evaluations: Tensor
    memory: tuple[Tensor, ...] = ()

    @staticmethod
    def at(x: Tensor, t: Tensor | float) -> State:
        """Rows that have not moved yet: x of shape (B, ...), t of shape () or (B,).

        Raises:
            ValueError: x has no rows, is not float32 or float64, or t is neither one time nor one per row.
        """
        if x.ndim < 1 or x.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"x must be float32 or float64 with rows, got {x.dtype} of shape {tuple(x.shape)}"
            )
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        if t.ndim > 1 or (t.ndim == 1 and len(t) != len(x)):
            raise ValueError(f"{len(x)} rows need one time or {len(x)} times, got shape {tuple(t.shape)}")
        return State(x, t.expand(len(x)), torch.zeros(len(x), dtype=torch.int64))

    def take(self, rows: Tensor) -> State:
        """The state of some rows, (m,) int64."""
        on_device = rows.to(self.x.device)
        memory = tuple(m[rows.to(m.device)] for m in self.memory)
        return State(self.x[on_device], self.t[rows], self.evaluations[rows], memory)

    def put(self, rows: Tensor, part: State) -> State:
        """This state with some rows, (m,) int64, replaced by ``part``."""

        def into(whole: Tensor, new: Tensor) -> Tensor:
            return whole.index_copy(0, rows.to(whole.device), new)

        old = self.memory or tuple(m.new_zeros((len(self.x), *m.shape[1:])) for m in part.memory)
        memory = tuple(into(m, new) for m, new in zip(old, part.memory, strict=True))
        return State(
            into(self.x, part.x), into(self.t, part.t), into(self.evaluations, part.evaluations), memory
        )

    def join(self, fresh: State) -> State:
        """These rows followed by rows without a past."""
        memory = tuple(torch.cat([m, m.new_zeros((len(fresh.x), *m.shape[1:]))]) for m in self.memory)
        return State(
            torch.cat([self.x, fresh.x]),
            torch.cat([self.t, fresh.t]),
            torch.cat([self.evaluations, fresh.evaluations]),
            memory,
        )


class Step(Protocol):
    """One step of the reverse process, from ``state.t`` down to ``s``, of shape () or (B,).

    A row's result depends on that row alone. An adaptive step may stop before ``s``; it is then called again.
    """

    @property
    def name(self) -> str:
        """Its name in results, read by ``sampler_from``."""
        ...

    @property
    def evaluations(self) -> int | None:
        """Network evaluations of one call per row; None if it depends on the row."""
        ...

    @property
    def draws(self) -> int:
        """How often one call draws noise; 0 for a deterministic step."""
        ...

    def __call__(self, denoiser: Denoiser, state: State, s: Tensor, noise: Noise, /) -> State: ...

    def config(self) -> dict[str, object]:
        """The step's own settings, without its name."""
        ...


def target(state: State, s: Tensor | float) -> Tensor:
    """``s`` as a time per row."""
    s = torch.as_tensor(s, dtype=torch.float64, device="cpu").expand_as(state.t)
    if not bool((s < state.t).all()):
        row = int((~(s < state.t)).nonzero()[0])
        raise ValueError(f"times must fall: row {row} stands at {state.t[row]:g} and should go to {s[row]:g}")
    return s
