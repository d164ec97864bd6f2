"""Would splitting gain if moves were refused after half of the sampler's steps, compared with what it does?

A move z -> z' of splitting is accepted if the image of z' scores below the level (``rate/levels.py``). Half
of the way D(x_half) already says something of where a path will end. Delayed acceptance uses that, and leaves
the same law unchanged for any g > 0 of the score h that D has half of the way:

    first      go on with probability  a_1 = min(1, g(h') / g(h))              for half of the evaluations
    second     accept with             a_2 = min(1, g(h) / g(h')), if z' lies below the level

It saves the second half of refused moves, and loses moves that g misjudged. Both are computed on the
particles of every level of a first round, without chains: the mean squared jump per evaluation, of delayed
moves over plain ones, each at its own best step. g is a logistic function of h between 1 and a floor. Its
place, steepness and floor are the best in hindsight, so the gain is the most that can be had of this family.

    python benchmarks/delayed.py [--work FOLDER] [--quick] [--json] [--out FILE]

FOLDER holds the networks of ``ground.py``, or they are trained there. Without it a set learnt by heart is
tried.

Source: J. A. Christen, C. Fox, J. Comput. Graph. Stat. 14 (2005).
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from ground import BATCH, COUNTS, RECIPES, SAMPLERS, ground
from record import add_output, record, tell
from torch import Tensor

from latentprint.data import load
from latentprint.denoiser import Denoiser
from latentprint.known import Memorised
from latentprint.rate import SamplerPushforward
from latentprint.rate.levels import Landscape, Population, climb, first_population
from latentprint.sampler import Heun, Sampler
from latentprint.sampler.loop import denoised, reverse
from latentprint.sampler.state import Noise, State
from latentprint.schedule import SubVP

NETWORKS = (("perceptron-100", "heun-12"), ("perceptron-250", "heun-12"), ("perceptron-100", "ancestral-24"))
STEPS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
"""Factors of the step that splitting chose."""

PLACES = (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Quantiles of h among particles at which g has fallen half of the way."""

STEEP = (1.0, 3.0, 10.0, 100.0)
FLOORS = (0.1, 1e-2, 1e-4)


@dataclass(frozen=True)
class Halved:
    """A sampler that also tells the squared distance of D to x_p half of the way."""

    push: SamplerPushforward
    target: Tensor

    @property
    def share(self) -> float:
        """Share of the evaluations after which that is known."""
        sampler = self.push.sampler
        return (sampler.steps // 2 * sampler.step.evaluations + 1) / self.push.evaluations

    def score(self, images: Tensor) -> Tensor:
        return (images.clamp(-1, 1) - self.target).flatten(1).square().mean(1)

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(images, distances half of the way)."""
        p = self.push
        parts, draws = z.reshape(len(z), -1, *p.shape), p.sampler.step.draws

        def noise_of_step(column: int) -> Noise:
            return lambda draw: parts[:, 1 + (column - 1) * draws + draw]

        with torch.no_grad():
            x = parts[:, 0] * p.denoiser.schedule.prior_std
            grid = p.sampler.grid(p.denoiser.schedule)
            state = half = State.at(x, grid[0])
            for k, now in enumerate(reverse(p.denoiser, x, grid, p.sampler.step, noise_of_step), 1):
                state = now
                half = now if k == p.sampler.steps // 2 else half
            return denoised(p.denoiser, state).x, self.score(denoised(p.denoiser, half).x).double()


def halved(model: Denoiser, sampler: Sampler, target: Tensor) -> Halved:
    return Halved(SamplerPushforward(model, sampler, tuple(target.shape)), target)


def subjects(folder: Path | None, quick: bool) -> Iterator[tuple[str, Halved]]:
    """A set learnt by heart, and of every network the image that came back least often, but ten times."""
    images = torch.as_tensor(load("digits", images=100 if quick else 1700, seed=0).train.pixels)
    known = Memorised(images, SubVP())
    yield f"memorised-{len(images)}/heun-12", halved(known, Sampler(Heun(), 12), images[0])
    for name, way in NETWORKS if folder and not quick else ():
        g = ground(next(one for one in RECIPES if one.name == name), folder)
        hits = json.loads(COUNTS.read_text())[f"{name}/{way}"]["hits"]
        image = min((k, i) for i, k in enumerate(hits) if k >= 10)[1]
        yield f"{name}/{way}/{image}", halved(g.model, SAMPLERS[way], g.images[image])


def gain(half: Halved, level: Population, g: torch.Generator) -> dict[str, Any]:
    """The best mean squared jump per evaluation of plain and of delayed moves at one level."""
    z, bound = level.z.flatten(0, 1), level.bounds.repeat_interleave(level.z.shape[1])
    before, plain, delayed = half(z)[1], 0.0, 0.0
    kept = {"acceptance": 0.0, "first": 0.0}
    for factor in STEPS:
        step = min(0.99, level.step * factor)
        moved = math.sqrt(1 - step**2) * z + step * torch.randn(z.shape, generator=g)
        images, after = half(moved)
        jump = (moved - z).square().sum(1).double() * (half.score(images).double() <= bound)
        plain = max(plain, float(jump.mean()))
        for place, steep, floor in product(PLACES, STEEP, FLOORS):
            centre, wide = before.quantile(place), before.log().std()
            old, new = (torch.sigmoid(steep * (centre / h).log() / wide) for h in (before, after))
            rise = ((floor + new) / (floor + old)).log()
            on = rise.clamp(max=0).exp()
            cost = half.share + (1 - half.share) * float(on.mean())
            found = float((jump * on * (-rise).clamp(max=0).exp()).mean()) / cost
            if found > delayed:
                delayed = found
                kept = {"acceptance": float((jump > 0).double().mean()), "first": float(on.mean())}
    return {"level": level.level, "gain": delayed / plain, **kept}


def tried(half: Halved, most: int, seed: int = 0) -> list[dict[str, Any]]:
    """The gain at every level down to 10^-most."""
    g = torch.Generator().manual_seed(seed)
    land = Landscape(half.push, half.score, never, torch.device("cpu"), BATCH)
    walked = climb(land, first_population(land, 8, 250, g), share=0.1, chain=10, target=0.44, most=most, g=g)
    return [gain(half, level, g) for level in walked if bool(level.bounds.isfinite().all())]


def never(images: Tensor) -> Tensor:
    return torch.zeros(len(images), dtype=torch.bool)


def main() -> None:
    parser = argparse.ArgumentParser(description="what refusing moves after half of the steps gains")
    parser.add_argument("--work", type=Path, help="folder of trained networks; without it, none is tried")
    parser.add_argument("--levels", type=int, default=4, help="levels, of a tenth each")
    parser.add_argument("--quick", action="store_true", help="a small set learnt by heart alone")
    add_output(parser)
    a = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: tried(half, a.levels) for name, half in subjects(a.work, a.quick)}
    gains = {name: [round(row["gain"], 2) for row in rows] for name, rows in found.items()}
    tell({"gain": gains, "levels": found, **record()}, a)


if __name__ == "__main__":
    main()
