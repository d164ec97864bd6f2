"""The cost of the anonymity profile: t' of every training image and of held-out ones, by one embedding.

Compares it with the ten minutes on one GPU that were asked for: a profile that takes days is run by nobody.

    python benchmarks/anonymity.py --model FOLDER --data medmnist:breastmnist [--quick] [--json] [--out FILE]

Every target costs the same (levels x tries trajectories, each with as many steps as its noise level leaves),
so some are measured (--targets) and the rest follows: the output says how many. What decides the time is the
score network; the embedding here has the shape of the one that an audit fits, and random weights, since a
match costs what a mismatch does.

    seconds_all    for all training images of the data and --null held-out ones
    minutes_all    the same; 10 are asked for on an H200 for the 546 of BreastMNIST
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from record import add_output, record, tell

from latentprint.audit.many import CHUNK, ManyProbe
from latentprint.data import load
from latentprint.detector.embedding import EmbeddingConfig, EmbeddingDetector
from latentprint.networks import load_model
from latentprint.networks.inference import inference_form
from latentprint.sampler import Ancestral, Sampler
from latentprint.search import scan
from latentprint.search.settings import ProfileSettings
from latentprint.stats import DetectorRates, Trials
from latentprint.streams import Streams


@dataclass(frozen=True)
class Pictures:
    """Images (N, C, H, W) by number."""

    pixels: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, numbers: NDArray[np.int64], /) -> NDArray[np.float32]:
        return self.pixels[numbers]


def matcher(shape: tuple[int, int, int], device: torch.device) -> EmbeddingDetector:
    """An embedding with random weights."""
    config = EmbeddingConfig(backbone="small")
    network = config.network("embedding", Streams(0)).to(device).eval().requires_grad_(False)
    none = DetectorRates(Trials(0, 0), Trials(0, 0), {}, "pixels", "pair")
    return EmbeddingDetector("embedding", network, 0.9, none, config, 1, shape)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(arguments.device)
    split = load(arguments.data, seed=0, root=arguments.root)
    denoiser = load_model(arguments.model, device)
    model = replace(denoiser, network=inference_form(denoiser.network))
    settings = ProfileSettings(targets="all", null=arguments.null)
    plan = settings.plan(model.schedule.start)
    sampler = Sampler(Ancestral(), arguments.steps, "karras")
    images = Pictures(split.train.pixels)
    probe = ManyProbe(
        model, sampler, images, matcher(split.train.shape, device), Streams(0), device, batch=arguments.batch
    )
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    list(scan(probe, plan, range(1)))  # warms caches and the allocator
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began, cost = clock(), 0
    for target, found in scan(probe, plan, range(arguments.targets), chunk=CHUNK):
        cost += found.network_evaluations
        print(f"target {target}: t' {found.value}", file=sys.stderr)
    seconds = clock() - began
    every = len(split.train) + min(arguments.null, len(split.heldout))
    return {
        "seconds_all": seconds / arguments.targets * every,
        "minutes_all": seconds / arguments.targets * every / 60,
        "targets": len(split.train),
        "null": every - len(split.train),
        "measured": arguments.targets,
        "seconds_measured": seconds,
        "evaluations_measured": cost,
        "evaluations_all": cost // arguments.targets * every,
        "levels": settings.levels,
        "tries": settings.tries,
        "sampler": sampler.describe(),
        "parameters": sum(one.numel() for one in denoiser.network.parameters()),
        "shape": list(split.train.shape),
        "clock": "processor" if arguments.cpu_time else "wall",
        **record(device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="what the anonymity profile costs")
    parser.add_argument("--quick", action="store_true", help="one target is measured")
    add_output(parser)
    parser.add_argument("--model", type=Path, required=True, help="folder of a trained model")
    parser.add_argument("--data", required=True, help="images, as the audit command takes them")
    parser.add_argument("--root", type=Path, help="folder of the MedMNIST files")
    parser.add_argument("--targets", type=int, default=CHUNK, help="how many are measured")
    parser.add_argument("--null", type=int, default=100, help="held-out images that they are compared with")
    parser.add_argument("--steps", type=int, default=24, help="of the sampler")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--cpu-time", action="store_true", help="processor seconds (CPU only)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.targets = 1
    torch.set_num_threads(arguments.threads)
    tell(measure(arguments), arguments)


if __name__ == "__main__":
    main()
