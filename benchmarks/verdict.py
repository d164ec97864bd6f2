"""How often the rule of the verdict is right: audits of known truth, compared with what it promises.

A world is a random split of one real set: N images trained on, one of them x_p, m held out, the rest others.
In each, models whose truth is known are audited. Samples are drawn from them directly; split, rows and rule
are an audit's own (`data.Split`, `attacks.pool`, `stats.returned`, `judge.decide`). The recogniser, on whose
hits the control and "not found" rest, is a ball around x_p, half as wide as the way to the nearest of half of
the held-out images; its errors are counted on the other half, and on copies as c_id's are.

    plain      repeats the N images equally often                 must be "reproduces" in >= 90 %
    uneven     repeats them, image i with weight 1 / rank         its rate is reported
    partial    half of its samples repeat a third of the images, the others are smooth; reported
    kernels    Gaussian kernels on other images      }
    few        repeats five other images             }
    others     repeats other images                  }  clean: "reproduces" in <= 5 %
    smooth     a Gaussian fitted to other images     }
    fitted     a Gaussian fitted to the N images: it knows them, and repeats none

The controls are the same models without x_p. Each model is judged with and without one.

    python benchmarks/verdict.py --root DIR --json --out FILE    # 26 worlds, 208 models, 416 verdicts
    python benchmarks/verdict.py --root DIR --corners --json     # N and m each 50 or 40, and 2,000
    python benchmarks/verdict.py --quick                         # 3 worlds of digits

DIR holds the MedMNIST files; without it all worlds are of digits.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from record import add_output, record, tell
from sklearn.datasets import load_digits

from latentprint.attacks.pool import Pool
from latentprint.data import ImageSet, Split
from latentprint.detector.draws import Shown
from latentprint.detector.draws import returned as returned_as_sampled
from latentprint.judge import Decision, Design, Evidence, decide
from latentprint.known import Memorised, Mixture
from latentprint.schedule import SubVP
from latentprint.stats import Trials
from latentprint.stats.returned import TRAIN, returned
from latentprint.streams import Streams

Pixels = NDArray[np.float32]
Draw = Callable[[Streams, int], Pixels]

SOURCES = ("digits", "pneumoniamnist", "retinamnist", "breastmnist")
CLEAN = ("kernels", "few", "others", "smooth", "fitted")
CORNERS = tuple((n, m) for n in (50, 500, 2000) for m in (40, 400, 2000))
LEFT = 0.05
"""The time t at which x_t of a model that repeats its images is taken: a little noise, as samplers leave."""


@dataclass(frozen=True)
class Ball:
    """Recognises what lies within ``radius`` of the target, by root-mean-square difference."""

    target: Pixels
    radius: float
    tpr: Trials
    fpr: Trials

    @staticmethod
    def of(target: Pixels, others: Pixels, heldout: Pixels, rng: np.random.Generator) -> Ball:
        """Its radius from half of the held-out images, its errors on the others and on perturbed copies."""
        radius = float(apart(heldout[::2], target).min()) / 2
        shown = Shown.of(target[None], np.zeros(200, np.int64))
        copies = next(returned_as_sampled(shown, others, 0.1, rng).together(200))
        found, alarms = apart(copies, target) <= radius, apart(heldout[1::2], target) <= radius
        return Ball(target, radius, Trials(int(found.sum()), 200), Trials(int(alarms.sum()), len(alarms)))

    def __call__(self, images: Pixels) -> NDArray[np.bool_]:
        return apart(images, self.target) <= self.radius


def apart(images: Pixels, target: Pixels) -> NDArray[np.float64]:
    return np.sqrt(np.mean((images.astype(np.float64) - target) ** 2, axis=(1, 2, 3)))


@dataclass(frozen=True)
class World:
    """One split, with all that does not depend on the model."""

    name: str
    train: Pixels
    others: Pixels
    target: int
    pool: Pool
    recogniser: Ball
    samples: int

    def draws(self, without: bool) -> dict[str, Draw]:
        """The models by name; ``without`` x_p, as the control is trained."""
        own = np.delete(self.train, self.target, 0) if without else self.train
        third = (
            own[: max(1, len(own) // 3)] if without else np.roll(self.train, -self.target, 0)[: len(own) // 3]
        )
        weights = 1 / np.arange(1.0, len(own) + 1)
        return {
            "plain": repeats(own),
            "uneven": repeats(own, np.random.default_rng(len(own)).permutation(weights)),
            "partial": half(repeats(third), smooth(own)),
            "kernels": kernels(self.others[:200]),
            "few": repeats(self.others[:5]),
            "others": repeats(self.others),
            "smooth": smooth(self.others[: len(own)]),
            "fitted": smooth(own),
        }


def repeats(images: Pixels, weights: NDArray[np.float64] | None = None) -> Draw:
    copies = None if weights is None else torch.from_numpy(weights)
    model = Memorised(torch.from_numpy(images), SubVP(), copies)
    return lambda streams, n: model.draw(streams, "known", np.arange(n), LEFT).clamp(-1, 1).numpy()


def kernels(images: Pixels, width: float = 0.1) -> Draw:
    model = Mixture(torch.from_numpy(images), width, SubVP())
    return lambda streams, n: model.draw(streams, "known", np.arange(n), LEFT).clamp(-1, 1).numpy()


def smooth(images: Pixels) -> Draw:
    """The Gaussian with the mean and covariance of the images: mean + weights (images - mean) / sqrt(n)."""
    flat = images.reshape(len(images), -1)
    mean = flat.mean(axis=0)

    def draw(streams: Streams, n: int) -> Pixels:
        weights = streams.generator("smooth").standard_normal((n, len(flat))) / math.sqrt(len(flat))
        found = np.clip(mean + weights @ (flat - mean), -1, 1)
        return found.astype(np.float32).reshape(n, *images.shape[1:])

    return draw


def half(one: Draw, other: Draw) -> Draw:
    return lambda streams, n: np.concatenate([one(streams, n // 2), other(streams, n - n // 2)])


def images_of(source: str, root: Path | None) -> Pixels:
    """All images of a set, (n, C, H, W) in [-1, 1]."""
    if source == "digits" or root is None:
        return (load_digits().images.astype(np.float32) / 8 - 1)[:, None]
    with np.load(root / f"{source}.npz") as stored:
        whole = np.concatenate([stored[f"{part}_images"] for part in ("train", "val", "test")])
    pixels = whole.astype(np.float32) / 127.5 - 1
    return pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)


def worlds(
    count: int,
    sources: list[str],
    root: Path | None,
    samples: int,
    sizes: tuple[tuple[int, int], ...] = (),
) -> Iterator[World]:
    """So many worlds, the sources in turn; N from 50 and m from 40, both to 2,000, as far as a set goes.

    ``sizes`` are (N, m) of the first of them; the others are drawn.
    """
    sets = {one: images_of(one, root) for one in sources}
    for number in range(count):
        source, rng = sources[number % len(sources)], np.random.default_rng(number)
        whole = sets[source][rng.permutation(len(sets[source]))]
        most = len(whole) - 60
        n = int(np.exp(rng.uniform(math.log(50), math.log(min(2000, most - 40)))))
        m = int(np.exp(rng.uniform(math.log(40), math.log(min(2000, most - n)))))
        if number < len(sizes):
            n, m = sizes[number]
        names = tuple(f"{i:064x}" for i in range(n + m))
        train, held = ImageSet(whole[:n], names[:n], source), ImageSet(whole[n : n + m], names[n:], source)
        split, target = Split.of(train, held, source), int(rng.integers(n))
        mixed = [j for _, j, _ in split.overlap.pairs] if split.overlap else []
        pixels, others = split.heldout.pixels, np.delete(whole[:n], target, 0)
        pool = Pool.of(whole[:n], pixels, target, mixed)
        ball = Ball.of(whole[target], others, pixels, rng)
        yield World(source, whole[:n], whole[n + m :], target, pool, ball, samples)


def audits(world: World, seed: int) -> Iterator[tuple[str, bool, Decision]]:
    """(model, whether there was a control, the verdict) of every model in this world."""
    ball = world.recogniser
    models, controls = world.draws(without=False), world.draws(without=True)
    trained = np.flatnonzero(world.pool.whose == TRAIN)
    for name, draw in models.items():
        images = draw(Streams(seed), world.samples)
        rows, hit = world.pool.held_against(images), ball(images)
        nearest = rows["nearest"][hit] == world.pool.target
        none = int(ball(controls[name](Streams(seed + 1), world.samples)).sum())
        found = Evidence(
            hits=Trials(int(hit.sum()), len(hit)),
            own=int(nearest.sum()),
            control=Trials(none, world.samples),
            tpr=(ball.tpr,),
            fpr=(ball.fpr,),
            expected=1 / len(trained),
            returned=returned(rows, world.pool.rows, world.pool.whose, world.pool.target),
        )
        yield name, True, decide(found)
        yield name, False, decide(replace(found, control=None))


def measure(
    count: int,
    sources: list[str],
    root: Path | None,
    samples: int,
    sizes: tuple[tuple[int, int], ...] = (),
) -> Iterator[dict[str, Any]]:
    """Counts of the three words by model and control, after each world."""
    tally: dict[str, dict[str, int]] = {}
    made: list[dict[str, Any]] = []
    for number, world in enumerate(worlds(count, sources, root, samples, sizes)):
        whose = world.pool.whose
        train, held = int((whose == TRAIN).sum()), int((whose == 1).sum())
        design = Design(train, held, 1, samples)
        called: list[str] = []
        for name, control, found in audits(world, 1000 * number):
            key = f"{name}, {'with' if control else 'without'} control"
            states = tally.setdefault(key, {"reproduces": 0, "not found": 0, "inconclusive": 0})
            states[found.state] += 1
            if found.state == "reproduces":
                tests = "/".join(one.name for one in found.tests if one.rejects)
                called.append(f"{name}{'+' if control else ''}: {tests}")
        made.append({"source": world.name, "train": train, "heldout": held, "design": list(design.can_call)})
        print(f"{number + 1}/{count} {world.name}, {train} and {held}: {called}", file=sys.stderr, flush=True)
        yield {"worlds": made, "models": summary(tally)}


def summary(tally: dict[str, dict[str, int]]) -> dict[str, Any]:
    """The states of each kind of model, and the two promised rates, of all of it together."""
    out: dict[str, Any] = {}
    for key, states in tally.items():
        rate = Trials(states["reproduces"], sum(states.values()))
        out[key] = states | {"rate": rate.rate, "rate_95": list(rate.interval(0.95))}
    for control in ("with", "without"):
        for title, names in (("clean", CLEAN), ("plain", ("plain",))):
            rows = [tally[f"{name}, {control} control"] for name in names]
            whole = Trials(sum(r["reproduces"] for r in rows), sum(sum(r.values()) for r in rows))
            out[f"all {title}, {control} control"] = {
                "reproduces": whole.k,
                "of": whole.n,
                "rate": whole.rate,
                "rate_95": list(whole.interval(0.95)),
            }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="How often the rule of the verdict is right")
    parser.add_argument("--worlds", type=int, default=26)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--root", type=Path, help="folder of the MedMNIST files")
    parser.add_argument("--corners", action="store_true", help="the ends of both sizes, PneumoniaMNIST")
    parser.add_argument("--quick", action="store_true", help="3 worlds of digits")
    add_output(parser)
    arguments = parser.parse_args()
    sources = list(SOURCES if arguments.root is not None else SOURCES[:1])
    if arguments.quick:
        sources, arguments.worlds = ["digits"], 3
    if arguments.corners:
        sources, arguments.worlds = ["pneumoniamnist"], len(CORNERS)
    about, found = {**record(), "samples": arguments.samples}, dict[str, Any]()
    for found in measure(
        arguments.worlds,
        sources,
        arguments.root,
        arguments.samples,
        CORNERS if arguments.corners else (),
    ):
        if arguments.out is not None:  # minutes each: what is done is kept
            arguments.out.write_text(json.dumps(about | found) + "\n", encoding="utf-8")
    tell(about | found, arguments)


if __name__ == "__main__":
    main()
