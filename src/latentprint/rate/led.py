"""Paths of a stochastic sampler that are guided to x_p, and the density of every proposal along them.

See ``path`` for the formulas. Along a path two numbers per step and guide are kept, e . u and |u|^2. They
give the density of every proposal that uses these guides, whatever its factors, even of one that is made
later.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from latentprint.denoiser import Codec, Denoiser, checked
from latentprint.rate.guides import Guide
from latentprint.rate.levels import Inside
from latentprint.sampler.sampler import Sampler
from latentprint.sampler.state import State
from latentprint.sampler.steps import LearnedAncestral
from latentprint.schedule import Schedule
from latentprint.streams import Streams


@dataclass(frozen=True)
class Transition:
    """One step as a Gaussian: N(keep x + pull D + back D', std^2 I), from a time with ``alpha``, ``sigma``.

    D' is the denoiser's answer at the step before; ``back`` is 0 where the step remembers none.
    """

    t: Tensor
    keep: float
    pull: float
    back: float
    std: float
    alpha: float
    sigma: float

    def to(self, x: Tensor, denoised: Tensor, before: Tensor, e: Tensor) -> Tensor:
        """x after the step, for D, D' and noise, all (n, ...)."""
        moved = self.keep * x + self.pull * denoised + self.std * e
        return moved + self.back * before if self.back else moved


@dataclass(frozen=True)
class _Answer:
    """A denoiser that answers with a given value."""

    schedule: Schedule
    value: Tensor

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        return self.value


def transitions(sampler: Sampler, schedule: Schedule) -> list[Transition] | str:
    """The steps of a sampler as Gaussians; the end of "not reliable because ..." if they are not Gaussian.

    The coefficients are the step's own answers to x, D, D' and noise of 1 each. They hold if they also
    predict its answer to a further combination. Its D is far above what images have, for a step that clips is
    linear below its bound. Two steps before it had another answer, which no step may remember.
    """
    step, instead = sampler.step, "; splitting can answer"
    if step.draws == 0:
        return f"the sampler ({step.name}) draws no noise on its way, so its path cannot be led{instead}"
    if isinstance(step, LearnedAncestral):
        return f"the variance of a step of {step.name} is the network's own{instead}"
    if step.draws != 1 or step.evaluations != 1:
        return f"a step of {step.name} is not a single Gaussian around one evaluation{instead}"
    if getattr(step, "clip", None) is not None:
        return f"a step of {step.name} that clips the denoised image is not linear in it{instead}"
    # rows: 1 for x, D, D' and the noise, and a combination of them with an answer two steps before
    x, d, before, z, earlier = torch.tensor(
        [[1, 0, 0, 0, 0.3], [0, 1, 0, 0, -700], [0, 0, 1, 0, 500], [0, 0, 0, 1, 0.2], [0, 0, 0, 0, 300]],
        dtype=torch.float64,
    )[:, :, None]
    found, grid = list[Transition](), sampler.grid(schedule)
    for k, (t, s) in enumerate(pairwise(grid)):
        state = State.at(x, grid[max(0, k - 2)])
        for column in range(max(1, k - 1), k + 1):  # the one or two steps above, for what they leave behind
            answer = before if column == k else earlier
            state = step(_Answer(schedule, answer), state, grid[column], lambda _: z)
        after = step(_Answer(schedule, d), replace(state, x=x), s, lambda _: z)
        keep, pull, back, std, other = after.x[:, 0].tolist()
        off = abs(0.3 * keep - 700 * pull + 500 * back + 0.2 * std - other)
        if std <= 0 or off > 1e-9 * (1 + abs(other)):
            return f"a step of {step.name} is not linear in image, denoiser and noise{instead}"
        at = float(schedule.alpha(t)), float(schedule.sigma(t))
        found.append(Transition(t, keep, pull, back, std, *at))
    return found


@dataclass(frozen=True)
class Proposals:
    """K proposals: the sampler's own law, number 0, and guided ones.

    Attributes:
        guide: (K,) int64, which guide; -1 for the sampler's own law.
        factors: (K, steps) how much of it at each step: 0 is the sampler's own D, 1 the guide.
        names: a name for each.
    """

    guide: Tensor
    factors: Tensor
    names: tuple[str, ...]

    @classmethod
    def own(cls, steps: int) -> Proposals:
        """Only the sampler's own law."""
        none = torch.zeros(1, steps, dtype=torch.float64)
        return cls(torch.tensor([-1]), none, ("the sampler itself",))

    def __len__(self) -> int:
        return len(self.guide)

    def with_(self, guide: int, factors: Tensor, name: str) -> Proposals:
        """These and one more."""
        return Proposals(
            torch.cat([self.guide, torch.tensor([guide])]),
            torch.cat([self.factors, factors[None]]),
            (*self.names, name),
        )


@dataclass(frozen=True)
class Walks:
    """n paths.

    Attributes:
        hit: (n,) bool, whether the path ended in Omega. All else is about those that did, float64 on the CPU.
        start: (hits,) log r_T/p_T at x_T.
        along, squares: (hits, steps, guides) e . u and |u|^2.
    """

    hit: Tensor
    start: Tensor
    along: Tensor
    squares: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Walks]) -> Walks:
        """All of them."""
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def log_ratio(self, proposals: Proposals) -> Tensor:
        """log dQ_k/dP: (hits, K)."""
        found = torch.zeros(len(self.start), len(proposals), dtype=torch.float64)
        for guide in range(self.along.shape[2]):
            own = (proposals.guide == guide).nonzero()[:, 0]
            factors = proposals.factors[own].T
            terms = self.along[:, :, guide] @ factors - self.squares[:, :, guide] @ (factors**2 / 2)
            found[:, own] = self.start[:, None] + terms
        return found


@dataclass(frozen=True)
class Led:
    """The sampler over the model, with x_p, Omega and the guides: everything that paths are drawn from."""

    denoiser: Denoiser
    sampler: Sampler
    target: Tensor
    inside: Inside
    codec: Codec
    steps: Sequence[Transition]
    guides: Sequence[Guide]
    streams: Streams
    batch: int

    @cached_property
    def last(self) -> float:
        """Where the steps end: for a scheduler's own times this may be far above the schedule's end."""
        return float(self.sampler.grid(self.denoiser.schedule)[-1])

    def noise(self, purpose: str, ids: Tensor, step: int) -> Tensor:
        """The noise of a step of the paths ``ids`` (n,), like the target."""
        space, device, dtype = tuple(self.target.shape), self.target.device, self.target.dtype
        return self.streams.noise(purpose, ids, step, space, device=device, dtype=dtype)

    def ended(self, x: Tensor) -> Tensor:
        """What the sampler returns for x after its last step, in the model's own space."""
        if not self.sampler.denoise:
            return x
        return checked(self.denoiser, x, times(self.last, x))

    def hit(self, x: Tensor) -> Tensor:
        """Whether paths that are at x after the last step end in Omega, (n,) bool on the CPU."""
        return self.inside(self.codec.decode(self.ended(x))).cpu()

    def walk(self, proposals: Proposals, which: Tensor, ids: Tensor, purpose: str) -> Walks:
        """A path from each of the proposals ``which`` (n,), under its id (n,)."""
        with torch.no_grad():
            pairs = zip(which.split(self.batch), ids.split(self.batch), strict=True)
            return Walks.joined(
                [self._walk(proposals.guide[k], proposals.factors[k], own, purpose) for k, own in pairs]
            )

    def _walk(self, guide: Tensor, factors: Tensor, ids: Tensor, purpose: str) -> Walks:
        schedule = self.denoiser.schedule
        alpha, sigma = float(schedule.alpha(schedule.start)), float(schedule.sigma(schedule.start))
        z = self.noise(purpose, ids, 0)
        x = torch.where(_rows(guide >= 0, z), alpha * self.target + sigma * z, schedule.prior_std * z)
        start = log_normal(x, alpha * self.target, sigma) - log_normal(x, None, schedule.prior_std)
        along, squares, before = list[Tensor](), list[Tensor](), x  # the first step remembers nothing
        for k, step in enumerate(self.steps):
            e = self.noise(purpose, ids, k + 1)
            x, before, by, square = self._step(x, before, step, guide, factors[:, k], e)
            along.append(by)
            squares.append(square)
        hit = self.hit(x)
        return Walks(hit, start[hit], torch.stack(along, 1)[hit], torch.stack(squares, 1)[hit])

    def _step(
        self, x: Tensor, before: Tensor, step: Transition, guide: Tensor, factor: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(x after one step, its D, e . u and |u|^2 of every guide (n, guides)); ``before`` is D'."""
        denoised = checked(self.denoiser, x, times(float(step.t), x))
        moves = [
            step.pull / step.std * (g(x, denoised, step.alpha, step.sigma) - denoised) for g in self.guides
        ]
        e = noise
        for i, u in enumerate(moves):
            e = e + _rows(torch.where(guide == i, factor, 0.0), x).to(u) * u
        wide = [u.double().flatten(1) for u in moves]
        along = torch.stack([(e.double().flatten(1) * u).sum(1) for u in wide], 1)
        squares = torch.stack([u.square().sum(1) for u in wide], 1)
        return step.to(x, denoised, before, e), denoised, along.cpu(), squares.cpu()


def times(t: float, x: Tensor) -> Tensor:
    """The same time for every row of x."""
    return torch.full((len(x),), t, dtype=torch.float64)


def _rows(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.device).reshape(-1, *(1,) * (x.ndim - 1))


def log_normal(x: Tensor, mean: Tensor | None, std: float) -> Tensor:
    """log N(x; mean, std^2 I) without its constant: (n,) float64 on the CPU."""
    offset = x.double() if mean is None else x.double() - mean.double()
    dims = math.prod(x.shape[1:])
    return (-0.5 * (offset / std).flatten(1).square().sum(1) - dims * math.log(std)).cpu()
