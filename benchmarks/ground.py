"""The proving ground: networks rebuilt by seed, and how often each gives each of its images back, counted.

A network of a recipe is trained from its seed: U-Nets as an audit trains them, and perceptrons, which on
64 pixels learn as well and cost a tenth. A set learnt by heart needs no training: its denoiser is a formula.
Brute force draws samples, each counted for the training image that it lies within half the way to that
image's nearest neighbour of: those balls are Omega, disjoint, one for every image, so that one run counts all
of them. The counts are kept in ``proving/counts.json`` beside the hash of the weights. Rounding differs
between machines: where the weights do not have that hash the counts are not theirs, and ``proving.py`` says
so.

    python benchmarks/ground.py --work FOLDER [--only WORD] [--samples N]

Units of brute force are appended to FOLDER/units.jsonl as they are done, and not done again.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latentprint import keys
from latentprint.audit.stages import for_sampling
from latentprint.data import load
from latentprint.denoiser import Denoiser, NetworkDenoiser
from latentprint.known import Memorised
from latentprint.networks import build_unet, load_model, save_model
from latentprint.networks.speed import Evaluation
from latentprint.networks.unet import UNetConfig
from latentprint.rate import SamplerPushforward
from latentprint.sampler import Ancestral, Heun, Sampler
from latentprint.schedule import SubVP
from latentprint.stats import Trials
from latentprint.streams import Streams
from latentprint.training import TrainConfig, train

COUNTS = Path(__file__).parent / "proving" / "counts.json"
ROOT = Path(__file__).parents[2] / "shared" / "medmnist"
UNIT = 4096
BATCH = 1024

SAMPLERS = {
    "ancestral-24": Sampler(Ancestral(), 24),
    "ancestral-48": Sampler(Ancestral(), 48),
    "ancestral-96": Sampler(Ancestral(), 96),
    "heun-12": Sampler(Heun(), 12),
}


class Perceptron(nn.Module):
    """Residual layers on all pixels at once: x (B, *shape), time (B,) -> like x."""

    def __init__(self, shape: tuple[int, ...], width: int, layers: int, noise: torch.Generator) -> None:
        super().__init__()
        pixels, self.frequencies = math.prod(shape), [2.0**k for k in range(5)]
        self.first = nn.Linear(pixels + 2 * len(self.frequencies), width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(2 * layers)])
        self.last = nn.Linear(width, pixels)
        for layer in (self.first, *self.layers, self.last):
            assert isinstance(layer, nn.Linear)
            bound = 1 / math.sqrt(layer.in_features)
            with torch.no_grad():
                layer.weight.uniform_(-bound, bound, generator=noise)
                layer.bias.zero_()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        angles = time[:, None] * torch.tensor(self.frequencies)
        h = self.first(torch.cat([x.flatten(1), angles.sin(), angles.cos()], 1))
        for one, two in zip(self.layers[::2], self.layers[1::2], strict=True):
            h = h + two(nn.functional.silu(one(nn.functional.silu(h))))
        return self.last(nn.functional.silu(h)).reshape(x.shape)


@dataclass(frozen=True)
class Recipe:
    """A network that anyone can train again: data, size, steps, seed."""

    name: str
    source: str
    images: int
    steps: int
    channels: tuple[int, ...] = (16, 32)
    batch: int = 64
    learning_rate: float = 4e-3
    samplers: tuple[str, ...] = ("ancestral-24", "heun-12", "ancestral-96")
    kind: Literal["unet", "perceptron", "memorised"] = "unet"
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    seed: int = 0

    @property
    def network(self) -> UNetConfig:
        return UNetConfig(channels=self.channels, layers_per_block=1, middle_attention=False, norm_groups=8)

    @property
    def training(self) -> TrainConfig:
        return TrainConfig(
            steps=self.steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            warmup=50,
            decay="linear",
            beta2=0.99,
            ema=0.98,
            parametrisation="edm",
            times="lognormal",
            log_ratio_mean=-1.1,
            log_ratio_std=0.8,
        )


RECIPES = (
    *(
        Recipe(
            f"perceptron-{n}", "digits", n, steps, kind="perceptron", precision="float32", learning_rate=2e-3
        )
        for n, steps in ((100, 3000), (250, 4000), (400, 6000), (800, 8000))
    ),
    Recipe("digits-100", "digits", 100, 1500),
    Recipe("digits-250", "digits", 250, 3000),
    Recipe("digits-400", "digits", 400, 3000, precision="float32"),
    Recipe("digits-800", "digits", 800, 3000),
    *(
        Recipe(f"breastmnist-{n}", "medmnist:breastmnist", n, 1500, (16, 32, 32), 32, 3e-3, ("ancestral-24",))
        for n in (64, 200, 546)
    ),
    Recipe("memorised-1796", "digits", 1796, 0, samplers=("ancestral-48", "heun-12"), kind="memorised"),
)
QUICK = Recipe(
    "perceptron-16",
    "digits",
    16,
    600,
    learning_rate=2e-3,
    samplers=("ancestral-24",),
    kind="perceptron",
    precision="float32",
)


@dataclass(frozen=True)
class Ground:
    """A trained network with the balls around its images."""

    recipe: Recipe
    model: Denoiser
    images: Tensor
    weights: str
    radii: Tensor = field(init=False)

    def __post_init__(self) -> None:
        apart = torch.cdist(self.images.flatten(1), self.images.flatten(1))
        apart.fill_diagonal_(torch.inf)
        object.__setattr__(self, "radii", apart.min(1).values / 2)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    def inside(self, image: int) -> Callable[[Tensor], Tensor]:
        """Omega of an image."""
        centre, radius = self.images[image], self.radii[image]
        return lambda x: (x.clamp(-1, 1) - centre.to(x)).flatten(1).norm(dim=1) < radius.to(x)

    def score(self, image: int) -> Callable[[Tensor], Tensor]:
        """Squared distance, as the audit's."""
        centre = self.images[image]
        return lambda x: (x.clamp(-1, 1) - centre.to(x)).flatten(1).square().mean(dim=1)

    def owners(self, x: Tensor) -> Tensor:
        """Which image's ball each of x lies in, (n,) int64; -1 for none."""
        apart, nearest = torch.cdist(x.clamp(-1, 1).flatten(1), self.images.flatten(1)).min(1)
        return torch.where(apart < self.radii[nearest], nearest, -1)


def pixels(recipe: Recipe) -> Tensor:
    """The training images, (N, C, H, W) in [-1, 1]; equal ones kept once, for a ball needs room."""
    root = None if recipe.source == "digits" else ROOT
    found = load(recipe.source, images=recipe.images, seed=recipe.seed, root=root).train.pixels
    _, first = np.unique(found.reshape(len(found), -1), axis=0, return_index=True)
    return torch.as_tensor(found[np.sort(first)])


def ground(recipe: Recipe, folder: Path) -> Ground:
    """The network of a recipe: trained, or read from ``folder``, where training goes on if it was stopped."""
    images, place, streams = pixels(recipe), folder / recipe.name, Streams(recipe.seed)
    if recipe.kind == "memorised":
        content = sha256(images.numpy().tobytes()).hexdigest()
        return Ground(recipe, Memorised(images, SubVP()), images, content)
    shape, network = tuple(images.shape[1:]), None
    if recipe.kind == "perceptron":
        noise = torch.Generator().manual_seed(keys.key(recipe.seed, "perceptron") >> 1)
        network = Perceptron(shape, 256, 2, noise)
    file = place / ("network.safetensors" if network else "model/diffusion_pytorch_model.safetensors")
    if not file.exists():
        model = trained(
            recipe, images, network or build_unet(recipe.network, shape[0], shape[1:], streams), place
        )
        if network is None:
            save_model(place / "model", model)
        else:
            save_file(model.network.state_dict(), file)
    if network is None:
        model = load_model(place / "model")
    else:
        network.load_state_dict(load_file(file))
        spread = float(images.double().std(correction=0))
        model = NetworkDenoiser(network.eval().requires_grad_(False), SubVP(), "edm", spread)
    model = for_sampling(model, Evaluation(precision=recipe.precision), BATCH)
    return Ground(recipe, model, images, sha256(file.read_bytes()).hexdigest())


def trained(recipe: Recipe, images: Tensor, network: nn.Module, place: Path) -> NetworkDenoiser:
    last = None
    for last in train(
        images.numpy(), network, SubVP(), recipe.training, Streams(recipe.seed), checkpoint=place / "training"
    ):
        if last.step % 500 == 0:
            say(f"{recipe.name}: {last.step} of {last.steps} steps")
    assert last is not None
    return last.denoiser


def count(g: Ground, sampler: str, unit: int, samples: int = UNIT) -> list[int]:
    """Hits of every image among the samples of one unit."""
    push = SamplerPushforward(g.model, SAMPLERS[sampler], g.shape)
    key = keys.key(g.recipe.seed, f"proving.count.{sampler}.{unit}") >> 1
    noise, hits = torch.Generator().manual_seed(key), torch.zeros(len(g.images), dtype=torch.int64)
    for first in range(0, samples, BATCH):
        size = min(BATCH, samples - first)
        owners = g.owners(push(torch.randn(size, push.latent, generator=noise)))
        hits += torch.bincount(owners[owners >= 0], minlength=len(hits))
    return hits.tolist()


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def brute_force(folder: Path, recipe: Recipe, sampler: str, samples: int) -> None:
    """Units until there are ``samples``."""
    file, g = folder / "units.jsonl", None
    done = {row["unit"] for row in lines(file) if (row["recipe"], row["sampler"]) == (recipe.name, sampler)}
    for unit in range(-(-samples // UNIT)):
        if unit in done:
            continue
        g = g or ground(recipe, folder)
        before = time.process_time()
        hits = count(g, sampler, unit)
        spent = round(time.process_time() - before, 1)
        row = {"recipe": recipe.name, "sampler": sampler, "unit": unit, "weights": g.weights, "hits": hits}
        with file.open("a") as out:
            out.write(json.dumps(row | {"cpu_seconds": spent}) + "\n")
        say(f"{recipe.name} {sampler}: unit {unit}, {spent} s")


def summed(folder: Path) -> dict[str, Any]:
    """The units together: samples and hits of every image, by network and sampler."""
    found: dict[str, Any] = {}
    for row in lines(folder / "units.jsonl"):
        name = f"{row['recipe']}/{row['sampler']}"
        one = found.setdefault(
            name, {"weights": row["weights"], "samples": 0, "hits": [0] * len(row["hits"])}
        )
        if one["weights"] == row["weights"]:
            one["samples"] += UNIT
            one["hits"] = [a + b for a, b in zip(one["hits"], row["hits"], strict=True)]
    return found


def truth(counts: dict[str, Any], image: int) -> Trials:
    return Trials(counts["hits"][image], counts["samples"])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="train the networks of the proving ground and count")
    parser.add_argument("--work", type=Path, required=True, help="folder of networks and units, resumed from")
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--only", default="", help="the counts whose NETWORK/SAMPLER holds this")
    a = parser.parse_args()
    torch.set_num_threads(1)
    for recipe in RECIPES:
        for sampler in recipe.samplers:
            if a.only in f"{recipe.name}/{sampler}":
                brute_force(a.work, recipe, sampler, a.samples)
    COUNTS.parent.mkdir(exist_ok=True)
    COUNTS.write_text(json.dumps(summed(a.work)) + "\n")


if __name__ == "__main__":
    main()
