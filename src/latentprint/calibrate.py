"""Known answers: are the estimates right on this machine?

Every case is a model whose q is known by a formula (`latentprint.known`), and every estimator is run on it as
in an audit:

    memorised   q = copies / N                        points, with 1, 2 and 5 copies of x_p
    mixture     q = mean of noncentral chi-squares    a ball around x_p, from 0.3 down to 1e-9
    gaussian    as mixture, with one kernel           the sampler is linear: exact for its own step count
    corners     q = 1 / N, N corners of a cube        by symmetry, for every sampler at every number of steps
    leak        q = 1e-3                              a sampler that gives x_p back by a coin
    clean       q = 0                                 the same sampler without the leak: there is no number

An interval is right if it contains the truth. The calibration fails if fewer than 95 % of the intervals do
(one-sided binomial test at 1 %), or if an estimator declines more than a fifth of its cases.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentprint import keys
from latentprint.contracts import Ids, Outcome, Times
from latentprint.denoiser import Denoiser
from latentprint.known import Gaussian, Leak, Memorised, Mixture
from latentprint.rate import (
    ESTIMATORS,
    Effort,
    Inside,
    Rate,
    SamplerPushforward,
    Score,
    Subject,
    monte_carlo,
)
from latentprint.sampler.sampler import Sampler
from latentprint.sampler.state import Step
from latentprint.sampler.steps import Ancestral, DPMSolverPP2M, EulerMaruyama
from latentprint.schedule import EDM, VP, Schedule
from latentprint.stats import binomial_test_less
from latentprint.streams import Streams

Shape = tuple[int, ...]

COUNT = "monte_carlo"
"""The key of counting; all other estimators are in the table ``rate.ESTIMATORS``."""

_TABLE = {row.name: row for row in ESTIMATORS}

LEVEL = 0.95
FAILS_BELOW = 0.01
LEAST_RELIABLE = 0.8


@dataclass(frozen=True)
class Case:
    """A subject whose q, ``truth``, is known."""

    name: str
    truth: float
    subject: Subject


@dataclass(frozen=True)
class Row:
    """The answer of one estimator on one case."""

    name: str
    estimator: str
    truth: float
    rate: float | None
    low: float | None
    high: float | None
    reliable: bool
    inside: bool
    network_evaluations: int
    diagnostic: str

    def to_json(self) -> dict[str, object]:
        """A row of ``cases`` in ``latentprint calibrate --json``."""
        return {key: value for key, value in vars(self).items() if key != "diagnostic"}


@dataclass(frozen=True)
class CalibrationReport:
    """All rows. The rows of ``repeats`` count for coverage only, and are not listed individually."""

    rows: tuple[Row, ...]
    repeats: tuple[Row, ...] = ()

    def coverage(self) -> dict[str, float]:
        """Share of the reliable intervals that contain the truth, by estimator."""
        return {
            name: sum(row.inside for row in rows) / len(rows)
            for name in self._estimators()
            if (rows := self._counted(name, reliable=True))
        }

    def reliable(self) -> dict[str, float]:
        """Share of the cases with a q above zero that were declared reliable, by estimator."""
        return {
            name: len(self._counted(name, reliable=True)) / len(rows)
            for name in self._estimators()
            if (rows := self._counted(name, reliable=False))
        }

    def failures(self) -> list[str]:
        """What is wrong with the estimators, one sentence each; empty if nothing is."""
        found = [
            f"{row.estimator} offered {row.rate:.2g} for {row.name}, whose q is zero"
            for row in self.rows
            if row.truth == 0 and row.reliable and not row.inside
        ]
        for name, share in self.coverage().items():
            rows = self._counted(name, reliable=True)
            held = sum(row.inside for row in rows)
            if binomial_test_less(held, len(rows), LEVEL) < FAILS_BELOW:
                found.append(f"{name}: only {held} of {len(rows)} intervals ({share:.0%}) hold the truth")
        for name, share in self.reliable().items():
            if share < LEAST_RELIABLE:
                found.append(f"{name}: only {share:.0%} of its cases were reliable")
        return found

    @property
    def passed(self) -> bool:
        """Whether there is nothing among ``failures``."""
        return not self.failures()

    def to_json(self) -> dict[str, object]:
        """The shape of ``latentprint calibrate --json``."""
        return {
            "cases": [row.to_json() for row in self.rows],
            "coverage": self.coverage(),
            "reliable": self.reliable(),
        }

    def _estimators(self) -> list[str]:
        return list(dict.fromkeys(row.estimator for row in (*self.rows, *self.repeats)))

    def _counted(self, name: str, *, reliable: bool) -> list[Row]:
        rows = [row for row in (*self.rows, *self.repeats) if row.estimator == name and row.truth > 0]
        return [row for row in rows if row.reliable] if reliable else rows


def pictures(n: int, shape: Shape, seed: int) -> Tensor:
    """n images of independent uniform pixels in [-1, 1], float64."""
    flat = Streams(seed).uniform("calibrate.pictures", range(n), 0, shape, dtype=torch.float64)
    return 2 * flat - 1


def within(target: Tensor, radius: float) -> Inside:
    """Omega as the ball of ``radius`` (Euclidean) around ``target``."""

    def inside(x: Tensor) -> Tensor:
        return (x - target.to(x)).flatten(1).norm(dim=1) < radius

    return inside


def radius_of(log_q: Callable[[float], float], q: float, largest: float) -> float:
    """The radius whose ball has probability q, by bisection."""
    low, high = 0.0, largest
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if log_q(middle) < math.log(q) else (low, middle)
    return high


def memorised(copies: int, n: int, shape: Shape, schedule: Schedule, steps: int, seed: int) -> Case:
    """n pictures, the first counted ``copies`` times; Omega reaches halfway to the nearest other."""
    images = pictures(n, shape, seed)
    model = Memorised(images, schedule, copies=[copies, *[1] * (n - 1)])
    nearest = float((images[1:] - images[0]).flatten(1).norm(dim=1).min())
    inside = within(images[0], nearest / 2)
    name = f"memorised {copies} of {n + copies - 1}, {_shape(shape)}"
    return _sampled(name, model.q(0), model, images[0], inside, Sampler(DPMSolverPP2M(), steps, "log-snr"))


def mixture(q: float, n: int, width: float, shape: Shape, schedule: Schedule, steps: int, seed: int) -> Case:
    """Kernels on n pictures; Omega is the ball around the first with probability q."""
    images = pictures(n, shape, seed)
    model = Mixture(images, width, schedule)
    largest = 4 * math.sqrt(math.prod(shape))
    inside = within(images[0], radius_of(lambda r: model.log_q(images[0], r), q, largest))
    name = f"mixture {q:.2g}, {n} kernels of {width:g}, {_shape(shape)}"
    return _sampled(name, q, model, images[0], inside, Sampler(DPMSolverPP2M(), steps, "log-snr"))


def gaussian(
    q: float,
    width: float,
    shape: Shape,
    schedule: Schedule,
    steps: int,
    seed: int,
    step: Step | None = None,
) -> Case:
    """One kernel, x_p one width off its mean. The sampler is linear there, so its truth is exact for any
    number of steps.

    x = c + s z, with c from z = 0, and s from the effect of each noise value on a single Gaussian pixel.
    """
    mean = pictures(1, shape, seed)[0]
    target = mean + width / math.sqrt(mean.numel()) * pictures(1, shape, seed + 1)[0].sign()
    sampler = Sampler(step or DPMSolverPP2M(), steps, "log-snr")
    std = torch.tensor(width, dtype=torch.float64)
    pixel = SamplerPushforward(Gaussian(torch.zeros(1, 1, 1).double(), std, schedule), sampler, (1, 1, 1))
    gain = float(pixel(torch.eye(pixel.latent, dtype=torch.float64)).norm())
    model = Gaussian(mean, std, schedule)
    push = SamplerPushforward(model, sampler, shape)
    centre = push(torch.zeros(1, push.latent, dtype=torch.float64))
    law = Mixture(centre, gain, schedule)
    radius = radius_of(lambda r: law.log_q(target, r), q, 4 * math.sqrt(mean.numel()))
    name = f"gaussian {q:.2g}, {_shape(shape)}, {steps} steps"
    return _sampled(name, q, model, target, within(target, radius), sampler)


def corners(shape: Shape, schedule: Schedule, sampler: Sampler) -> Case:
    """All images with pixels -1 and 1, memorised; by symmetry all are equally likely."""
    n = math.prod(shape)
    bits = (torch.arange(2**n)[:, None] >> torch.arange(n)) & 1
    model = Memorised((2.0 * bits - 1).double().reshape(-1, *shape), schedule)
    inside = within(model.images[0], 0.9)
    name = f"corners of {_shape(shape)}, {sampler.steps} steps"
    return _sampled(name, 0.5**n, model, model.images[0], inside, sampler, model.images[1:])


@dataclass(frozen=True)
class _LeakPush:
    """A leak as a pushforward; one evaluation per sample, as if it were a network."""

    leak: Leak
    latent: int = 2
    evaluations: int = 1

    def __call__(self, z: Tensor, /) -> Tensor:
        return self.leak(z)


def leak(q: float, shape: Shape, seed: int) -> Case:
    """A sampler that returns x_p with probability q, and otherwise one of fifty other pictures."""
    images = pictures(51, shape, seed)
    sampler = {"step": "leak", "steps": 1, "stochastic": False}
    name = f"leak {q:g}" if q > 0 else "clean"
    push = _LeakPush(Leak(images[0], images[1:], q))
    subject = Subject(push, sampler, within(images[0], 0.5), distance(images[0]), images[0])
    return Case(f"{name}, {_shape(shape)}", q, subject)


def distance(target: Tensor) -> Score:
    """Euclidean distance to ``target``."""

    def apart(x: Tensor) -> Tensor:
        return (x - target.to(x)).flatten(1).norm(dim=1)

    return apart


def _sampled(
    name: str,
    q: float,
    model: Denoiser,
    target: Tensor,
    inside: Inside,
    sampler: Sampler,
    others: Tensor | None = None,
) -> Case:
    push = SamplerPushforward(model, sampler, tuple(target.shape))
    return Case(name, q, Subject(push, sampler, inside, distance(target), target, model, others))


def _shape(shape: Shape) -> str:
    return "x".join(str(side) for side in shape)


@dataclass(frozen=True)
class _PriorProbe:
    """The samples of a case as a ``contracts.Probe``: noise by id, from the prior only."""

    case: Case
    streams: Streams

    def __call__(self, t: Times, ids: Ids) -> Outcome:
        of = self.case.subject
        hit = (
            of.inside(of.push(self.streams.noise("calibrate.prior", ids, 0, (of.push.latent,)))).cpu().numpy()
        )
        return Outcome(hit, np.full(len(ids), of.push.evaluations, dtype=np.int64))


def estimate(case: Case, estimator: str, seed: int, *, samples: int) -> Rate:
    """One estimator on one case; ``samples`` for counting.

    Raises:
        ValueError: an estimator that needs a denoiser, and the case has none.
    """
    if estimator == COUNT:
        probe = _PriorProbe(case, Streams(seed))
        return monte_carlo(probe, 1.0, samples, sampler=case.subject.described, level=LEVEL, batch=2048)
    return _TABLE[estimator].estimate(
        case.subject, Effort(relative=0.2, most=300_000, seed=seed, level=LEVEL)
    )


def row(case: Case, estimator: str, seed: int, samples: int) -> Row:
    """``estimate``, judged by the truth."""
    return judged(case, estimator, estimate(case, estimator, seed, samples=samples))


def judged(case: Case, estimator: str, found: Rate) -> Row:
    """An estimate beside the truth of its case."""
    return Row(
        name=case.name,
        estimator=estimator,
        truth=case.truth,
        rate=found.rate,
        low=found.low,
        high=found.high,
        reliable=found.reliable,
        inside=found.holds(case.truth),
        network_evaluations=found.network_evaluations,
        diagnostic=found.diagnostic,
    )


def suite(quick: bool, seed: int) -> list[tuple[Case, tuple[str, ...]]]:
    """The named cases and the estimators that each is given to."""
    small, wide, colour, tall = (1, 8, 8), (1, 28, 28), (3, 8, 8), (3, 16, 16)
    smooth = EDM(sigma_min=0.005)
    both = (COUNT, "splitting")
    cases: list[tuple[Case, tuple[str, ...]]] = [
        (memorised(1, 40, small, EDM(), 24, seed), both),
        (memorised(2, 40, colour, EDM(), 24, seed + 1), (COUNT,) if quick else both),
        (memorised(5, 40, wide, EDM(), 24, seed + 2), (COUNT,) if quick else both),
        (mixture(0.3, 12, 0.3, small, smooth, 48, seed + 3), both),
        (mixture(1e-3, 12, 0.3, (1, 4, 4), smooth, 48, seed + 4), ("splitting",)),
        (mixture(1e-5, 12, 0.3, colour, smooth, 96, seed + 5), ("splitting",)),
        (mixture(1e-7, 12, 0.3, (1, 4, 4), smooth, 48, seed + 6), ("splitting",)),
        (mixture(1e-9, 12, 0.3, small, smooth, 64, seed + 7), ("splitting",)),
        (gaussian(1e-6, 0.3, wide, smooth, 16, seed + 8), ("splitting",)),
        (gaussian(1e-4, 0.3, tall, VP(), 16, seed + 9), ("splitting",)),
        (corners((1, 2, 3), VP(), Sampler(EulerMaruyama(), 48)), (COUNT, "path")),
        (corners((1, 2, 4), VP(), Sampler(Ancestral(), 24)), (COUNT, "path")),
        (corners((1, 2, 5), EDM(), Sampler(Ancestral(), 48)), ("path",)),
        (leak(1e-3, small, seed + 10), both),
        (leak(0.0, small, seed + 11), both),
    ]
    if not quick:
        cases += [
            (mixture(1e-2, 12, 0.3, small, smooth, 64, seed + 12), both),
            (mixture(1e-4, 8, 0.3, wide, smooth, 192, seed + 13), ("splitting",)),
            (mixture(1e-6, 12, 0.2, small, VP(end=1e-5), 96, seed + 14), ("splitting",)),
        ]
    return cases


SHAPES: tuple[Shape, ...] = ((1, 4, 4), (3, 3, 3), (1, 6, 6))


def random_case(index: int, estimator: str, seed: int, shapes: tuple[Shape, ...] = SHAPES) -> Case:
    """Case ``index`` for coverage: q log-uniform in [1e-9, 0.3]; shapes, widths and schedules vary."""
    rng = keys.generator(seed, "calibrate.coverage", index)
    q = float(10 ** rng.uniform(-9, math.log10(0.3)))
    own = int(rng.integers(2**31))
    shape = shapes[index % 3]
    schedule: Schedule = (EDM(sigma_min=0.005), VP(end=1e-5))[index % 2]
    if estimator == COUNT:
        return leak(q, shape, own)
    if index % 4 == 3:
        copies = int(rng.integers(1, 6))
        return memorised(copies, int(rng.integers(10, 60)), shape, schedule, 24, own)
    n, width = int(rng.integers(2, 30)), float(rng.uniform(0.2, 0.5))
    return mixture(q, n, width, shape, schedule, 64, own)


def _repeats(quick: bool, seed: int) -> Sequence[tuple[Case, str]]:
    """Cases for coverage: cheap coins and linear samplers, and random models if full."""
    cases: list[tuple[Case, str]] = []
    for index in range(20 if quick else 100):
        rng = keys.generator(seed, "calibrate.repeats", index)
        q, own = float(10 ** rng.uniform(-9, -0.6)), int(rng.integers(2**31))
        cases.append((leak(float(10 ** rng.uniform(-3, -0.6)), (1, 4, 4), own), "monte_carlo"))
        shape: Shape = (1, 4, 4) if index % 2 else (3, 4, 4)
        cases.append((gaussian(q, 0.3, shape, EDM(), 2, own), "splitting"))
        sampler = Sampler((Ancestral(), EulerMaruyama())[index % 2], int(rng.integers(24, 64)))
        cases.append((corners((1, 1, int(rng.integers(3, 10))), (VP(), EDM())[index % 2], sampler), "path"))
    if not quick:
        cases += [(random_case(index, "splitting", seed), "splitting") for index in range(25)]
    return cases


def calibrate(quick: bool, seed: int, progress: Callable[[Row], None] | None = None) -> CalibrationReport:
    """Run the suite, then the repeats for coverage. Quick: about a minute on two cores.

    Args:
        progress: receives every row of the suite as it is finished.
    """
    rows, repeats = list[Row](), list[Row]()
    for case, estimators in suite(quick, seed):
        for estimator in estimators:
            rows.append(row(case, estimator, seed, samples=1000 if quick else 4000))
            if progress is not None:
                progress(rows[-1])
    for number, (case, estimator) in enumerate(_repeats(quick, seed)):
        repeats.append(row(case, estimator, seed + 1000 + number, samples=2000))
    return CalibrationReport(tuple(rows), tuple(repeats))
