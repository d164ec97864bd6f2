"""How often the rule of the verdict is right: audits of known truth, compared with what it promises.

A world is a random split of one real set: N images trained on, one of them x_p, m held out, the rest others.
In each, models whose truth is known are audited; samples are drawn from them directly; rows, recogniser and
rule are an audit's own (`attacks.pool`, `detector.fit_identity`, `stats.returned`, `judge.decide`).

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
    python benchmarks/verdict.py --quick                         # 3 worlds of digits

DIR holds the MedMNIST files; without it the worlds are of digits and phantoms.
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

from latentprint.attacks.pool import Pool
from latentprint.data import Split, load, stack
from latentprint.detector import DetectorConfig, DetectorError, NetworkDetector, fit_identity
from latentprint.fingerprint import CircleConfig
from latentprint.judge import Decision, Design, Evidence, decide
from latentprint.known import Memorised, Mixture
from latentprint.schedule import SubVP
from latentprint.stats import Trials
from latentprint.stats.returned import TRAIN, returned
from latentprint.streams import Streams

Pixels = NDArray[np.float32]
Draw = Callable[[Streams, int], Pixels]

SOURCES = (
    "digits",
    "phantom:800",
    "medmnist:pneumoniamnist",
    "medmnist:retinamnist",
    "medmnist:breastmnist",
)
CLEAN = ("kernels", "few", "others", "smooth", "fitted")
FITTED = 300
"""Images of either kind, at most, that c_id is fitted on here: the rule does not rest on it."""

LEFT = 0.05
"""The time t at which x_t of a model that repeats its images is taken: a little noise, as samplers leave."""

QUICK = DetectorConfig(
    backbone="small", epochs=4, patience=4, draws=256, learning_rate=4e-3, noise=0.1, augmix=False
)


@dataclass(frozen=True)
class World:
    """One split, with all that does not depend on the model."""

    name: str
    train: Pixels
    others: Pixels
    target: int
    pool: Pool
    recogniser: NetworkDetector
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


def worlds(count: int, sources: list[str], root: Path | None, samples: int) -> Iterator[World]:
    """So many worlds, the sources in turn; N from 50 and m from 40, both to 2,000, as far as a set goes."""
    sets = {one: load(one, seed=0, root=root) for one in sources}
    for number in range(count):
        source, rng = sources[number % len(sources)], np.random.default_rng(number)
        whole = np.concatenate([sets[source].train.pixels, sets[source].heldout.pixels])
        whole = whole[rng.permutation(len(whole))]
        most = len(whole) - 60
        n = int(np.exp(rng.uniform(math.log(50), math.log(min(2000, most - 40)))))
        m = int(np.exp(rng.uniform(math.log(40), math.log(min(2000, most - n)))))
        parts = [stack_of(part, source) for part in (whole[:n], whole[n : n + m])]
        split = Split.of(parts[0], parts[1], source)
        target, streams = int(rng.integers(n)), Streams(number)
        mixed = [j for _, j, _ in split.overlap.pairs] if split.overlap else []
        pool = Pool.of(split.train.pixels, split.heldout.pixels, target, mixed)
        try:
            *_, last = fit_identity(
                split.train.pixels[target],
                np.delete(split.train.pixels, target, 0)[:FITTED],
                split.heldout.pixels[:FITTED],
                CircleConfig(),
                QUICK,
                streams,
            )
        except DetectorError as error:
            print(f"world {number}: {error}", file=sys.stderr)
            continue
        assert last.detector is not None
        yield World(source, split.train.pixels, whole[n + m :], target, pool, last.detector, samples)


def stack_of(pixels: Pixels, source: str) -> Any:
    return stack(pixels.transpose(0, 2, 3, 1) if pixels.shape[1] == 3 else pixels[:, 0], source)


def recognised(world: World, images: Pixels) -> NDArray[np.bool_]:
    found = world.recogniser(torch.from_numpy(images)) >= world.recogniser.threshold
    return found.cpu().numpy()


def audits(world: World, seed: int) -> Iterator[tuple[str, bool, Decision]]:
    """(model, whether there was a control, the verdict) of every model in this world."""
    rates = world.recogniser.rates
    models, controls = world.draws(without=False), world.draws(without=True)
    trained = np.flatnonzero(world.pool.whose == TRAIN)
    for name, draw in models.items():
        images = draw(Streams(seed), world.samples)
        rows, hit = world.pool.held_against(images), recognised(world, images)
        nearest = rows["nearest"][hit] == world.pool.target
        none = int(recognised(world, controls[name](Streams(seed + 1), world.samples)).sum())
        found = Evidence(
            hits=Trials(int(hit.sum()), len(hit)),
            own=int(nearest.sum()),
            control=Trials(none, world.samples),
            tpr=(rates.tpr,),
            fpr=(rates.fpr,),
            expected=1 / len(trained),
            returned=returned(rows, world.pool.rows, world.pool.whose, world.pool.target),
        )
        yield name, True, decide(found)
        yield name, False, decide(replace(found, control=None))


def measure(count: int, sources: list[str], root: Path | None, samples: int) -> Iterator[dict[str, Any]]:
    """Counts of the three words by model and control, after each world."""
    tally: dict[str, dict[str, int]] = {}
    made: list[dict[str, Any]] = []
    for number, world in enumerate(worlds(count, sources, root, samples)):
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
    parser.add_argument("--quick", action="store_true", help="3 worlds of digits")
    add_output(parser)
    arguments = parser.parse_args()
    sources = [one for one in SOURCES if arguments.root is not None or not one.startswith("medmnist")]
    if arguments.quick:
        sources, arguments.worlds = ["digits"], 3
    about, found = {**record(), "samples": arguments.samples}, dict[str, Any]()
    for found in measure(arguments.worlds, sources, arguments.root, arguments.samples):
        if arguments.out is not None:  # minutes each: what is done is kept
            arguments.out.write_text(json.dumps(about | found) + "\n", encoding="utf-8")
    tell(about | found, arguments)


if __name__ == "__main__":
    main()
