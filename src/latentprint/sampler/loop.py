"""The reverse process: one loop, and its staggered form for many rows that start at different times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from latentprint.denoiser import Denoiser, checked
from latentprint.sampler.grid import first_column
from latentprint.sampler.sampler import Sampler
from latentprint.sampler.state import Noise, State, Step
from latentprint.streams import Streams

NoiseOfStep = Callable[[int], Noise]
"""Column of the grid that a step goes to (1, 2, ...) -> the noise of that step."""


def no_noise(draw: int) -> Tensor:
    """The noise of a deterministic step."""
    raise ValueError(
        f"draw {draw} was asked for where no noise was given; a stochastic step needs noise_of_step"
    )


def reverse(
    denoiser: Denoiser, x: Tensor, times: Tensor, step: Step, noise_of_step: NoiseOfStep | None = None
) -> Iterator[State]:
    """Go from ``times[0]``, the time of x, down to ``times[-1]``; yields the state at each later time.

    x: (B, ...) float32 or float64; times: (n,), falling, in (0, T].

    Raises:
        ValueError: times do not fall strictly or lie outside the schedule, a stochastic step has no noise, or
            the denoiser answers with another shape, another type or NaN.
    """
    times = torch.as_tensor(times, dtype=torch.float64, device="cpu")
    if times.ndim != 1 or not bool((times[:-1] > times[1:]).all()):
        raise ValueError(f"times must be a row of numbers that falls strictly, got {_short(times)}")
    if len(times) == 0 or not float(times[-1]) > 0 or not float(times[0]) <= denoiser.schedule.start:
        raise ValueError(f"times must lie in (0, {denoiser.schedule.start:g}], got {_short(times)}")
    if step.draws > 0 and noise_of_step is None:
        raise ValueError(f"step {step.name!r} draws noise: give noise_of_step")
    return _walk(denoiser, State.at(x, times[0]), times, step, noise_of_step)


def _short(times: Tensor) -> str:
    return f"{times.tolist()}" if times.numel() <= 6 else f"{times.flatten()[:6].tolist()}..."


def _walk(
    denoiser: Denoiser, state: State, times: Tensor, step: Step, noise_of_step: NoiseOfStep | None
) -> Iterator[State]:
    for column in range(1, len(times)):
        noise = no_noise if noise_of_step is None else noise_of_step(column)
        while bool((state.t > times[column]).any()):  # more than once only for an adaptive step
            state = step(denoiser, state, times[column], noise)
        yield state


def denoised(denoiser: Denoiser, state: State) -> State:
    """The last denoising: x becomes E[x_0 | x_t], at t = 0; one evaluation. Rows at t = 0 stay."""
    noisy = (state.t > 0).nonzero()[:, 0]
    if len(noisy) == 0:
        return state
    part = state.take(noisy)
    clean = State(checked(denoiser, part.x, part.t), torch.zeros_like(part.t), part.evaluations + 1)
    return replace(state, memory=()).put(noisy, clean)


class Finished(NamedTuple):
    """Trajectories that ended: rows (m,) int64 into the starts, x (m, ...), evaluations (m,) int64."""

    rows: Tensor
    x: Tensor
    evaluations: Tensor


@dataclass(frozen=True)
class _Slots:
    """The current batch: the row that each slot holds, the column it goes to next, and its state."""

    rows: Tensor
    column: Tensor
    state: State

    def take(self, slots: Tensor) -> _Slots:
        return _Slots(self.rows[slots], self.column[slots], self.state.take(slots))

    def join(self, other: _Slots) -> _Slots:
        rows, column = torch.cat([self.rows, other.rows]), torch.cat([self.column, other.column])
        return _Slots(rows, column, self.state.join(other.state))


def trajectories(
    denoiser: Denoiser,
    sampler: Sampler,
    start_t: Tensor,
    ids: Tensor,
    begin: Callable[[Tensor], Tensor],
    streams: Streams,
    purpose: str,
    batch: int = 256,
) -> Iterator[Finished]:
    """Many trajectories in full batches: the slot of a finished row is given to the next row at once.

    start_t: (n,), each row's own start in [0, T], e.g. the t of Alg. 1; it steps to its first column of the
    grid (``first_column``) and continues with the common columns. ids: (n,), the key of its noise, together
    with the column (from 1) and the draw, under ``purpose``. ``begin`` returns x_t, (m, ...), for rows, (m,)
    int64; it must not draw from the same purpose and steps. A row's result depends on (t, id) alone, up to
    the rounding of the network's own arithmetic, and not on batch, order or the other rows.

    Yields rows in the order of finishing, ``batch`` at a time: the last denoising is done in full batches
    too.

    Raises:
        ValueError: a start outside [0, T], unequal numbers of ids and starts, batch < 1; or as ``reverse``.
    """
    start = torch.as_tensor(start_t, dtype=torch.float64, device="cpu")
    keys = torch.as_tensor(ids, dtype=torch.int64, device="cpu")
    if start.ndim != 1 or keys.shape != start.shape:
        raise ValueError(
            f"starts and ids are rows of equal length, got {tuple(start.shape)} and {tuple(keys.shape)}"
        )
    if batch < 1:
        raise ValueError(f"a batch holds at least 1 row, got {batch}")
    grid = sampler.grid(denoiser.schedule)
    first = first_column(grid, start) if len(start) else torch.zeros(0, dtype=torch.int64)

    def admit(low: int, high: int) -> _Slots:
        rows = torch.arange(low, high)
        return _Slots(rows, first[low:high], State.at(begin(rows), start[low:high]))

    return _stagger(denoiser, sampler, grid, keys, admit, streams, purpose, batch)


@torch.no_grad()
def _stagger(
    denoiser: Denoiser,
    sampler: Sampler,
    grid: Tensor,
    keys: Tensor,
    admit: Callable[[int, int], _Slots],
    streams: Streams,
    purpose: str,
    batch: int,
) -> Iterator[Finished]:
    n, step, next_row = len(keys), sampler.step, 0
    slots: _Slots | None = None
    ended: list[_Slots] = []
    while next_row < n or slots is not None:
        free = min(batch - (0 if slots is None else len(slots.rows)), n - next_row)
        if free > 0:
            new = admit(next_row, next_row + free)
            slots, next_row = new if slots is None else slots.join(new), next_row + free
        assert slots is not None
        done = slots.column >= len(grid)
        if bool(done.any()):
            ended.append(slots.take(done.nonzero()[:, 0]))
            left = (~done).nonzero()[:, 0]
            slots = slots.take(left) if len(left) else None
            while sum(len(e.rows) for e in ended) >= batch:
                ready, rest = _split(ended, batch)
                yield _finish(denoiser, sampler, ready)
                ended = rest
            continue
        state = step(denoiser, slots.state, grid[slots.column], _keyed(streams, purpose, keys, slots, step))
        arrived = state.t <= grid[slots.column]
        slots = _Slots(slots.rows, slots.column + arrived, state)
    if ended:
        yield _finish(denoiser, sampler, _split(ended, n)[0])


def _keyed(streams: Streams, purpose: str, keys: Tensor, slots: _Slots, step: Step) -> Noise:
    if step.draws == 0:
        return no_noise
    x = slots.state.x
    ids, shape = keys[slots.rows], tuple(x.shape[1:])

    def noise(draw: int) -> Tensor:
        return streams.noise(purpose, ids, slots.column, shape, device=x.device, dtype=x.dtype, draw=draw)

    return noise


def _split(ended: list[_Slots], count: int) -> tuple[_Slots, list[_Slots]]:
    """The first ``count`` rows of what ended, without memory, and the rest."""
    bare = [_Slots(e.rows, e.column, replace(e.state, memory=())) for e in ended]
    whole = bare[0]
    for part in bare[1:]:
        whole = whole.join(part)
    if len(whole.rows) <= count:
        return whole, []
    every = torch.arange(len(whole.rows))
    return whole.take(every[:count]), [whole.take(every[count:])]


def _finish(denoiser: Denoiser, sampler: Sampler, slots: _Slots) -> Finished:
    state = denoised(denoiser, slots.state) if sampler.denoise else slots.state
    return Finished(slots.rows, state.x, state.evaluations)
