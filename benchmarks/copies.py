"""Which training images a model of a finished audit gives back, and how evenly: x_p beside all the others.

An audit counts one image, x_p; that q(p) is 1/N supposes a model that has memorised every image and returns
each equally often. Compared are new samples against all N training images, by root-mean-square distance:

    a clear copy   lies less than half as far from its nearest training image as from the second nearest
    dispersion     variance over mean of the clear copies per image: 1 for equal shares (Poisson), more where
                   a model has favourites

    python benchmarks/copies.py runs/paper/table2/cpu/retinamnist [RUN ...] [--count 256] [--root DIR]
                                [--sampler ancestral:24 --sampler ancestral:96]   # in place of the audit's
    python benchmarks/copies.py runs/demo --quick         # 32 samples

Each RUN is the folder of a finished audit of a model that was trained here. 256 samples of `small` take a
minute on one thread of a 2-core AMD EPYC virtual machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import add_output, record, tell
from torch import Tensor

from latentprint.audit import stages
from latentprint.denoiser import Denoiser
from latentprint.networks import load_model
from latentprint.probe import from_prior
from latentprint.sampler import Sampler, trajectories
from latentprint.stats import Trials
from latentprint.store import Run
from latentprint.streams import Streams

sys.path.append(str(Path(__file__).parents[1]))  # tools/ stands beside benchmarks/

from tools.reproduce.pictures import images_of


def samples(model: Denoiser, sampler: Sampler, shape: tuple[int, ...], count: int) -> Tensor:
    """New samples (count, C, H, W) in [-1, 1], of noise that no audit uses."""
    streams, out = Streams(0), torch.zeros((count, *shape))
    begin = from_prior(shape, model, streams, "copies", torch.device("cpu"))
    start = torch.full((count,), model.schedule.start, dtype=torch.float64)
    ids = torch.arange(count)
    for ended in trajectories(
        model, sampler, start, ids, lambda rows: begin(start[rows], ids[rows]), streams, "copies.path", 64
    ):
        out[ended.rows] = ended.x.clamp(-1, 1)
    return out


def copies(found: Tensor, train: Tensor, target: int) -> dict[str, Any]:
    """How samples lie to the training images: shares, and clear copies per image."""
    distance = torch.cdist(found.flatten(1).double(), train.flatten(1).double()) / train[0].numel() ** 0.5
    near, which = distance.sort(dim=1)
    clear = near[:, 0] < near[:, 1] / 2
    each = torch.bincount(which[clear, 0], minlength=len(train)).numpy()
    share = Trials(int(clear.sum()), len(found))
    return {
        "samples": share.n,
        "clear_copies": share.k,
        "share": share.rate,
        "share_95": list(share.interval(0.95)),
        "per_image": sorted(each.tolist()),
        "of_x_p": int(each[target]),
        "dispersion": float(each.var(ddof=1) / each.mean()) if share.k else None,
        "median_distance": float(near[:, 0].median()),
        "images_with_as_few": int(np.sum(each <= each[target])),
    }


def measure(folder: Path, count: int, root: Path | None, named: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The copies among ``count`` samples of a run's model, by its own sampler or by each of those named."""
    config, split, injection = images_of(Run.read(folder), root)
    model = stages.for_sampling(load_model(folder / "model"))
    train = torch.from_numpy(injection.marked.pixels)
    for settings in [config.sampler.named(one) for one in named] or [config.sampler]:
        begun = time.perf_counter()
        found = samples(model, settings.sampler(), tuple(injection.target.shape), count)
        yield {
            "sampler": settings.label,
            "images": len(split.train),
            "source": split.name,
            "seconds": round(time.perf_counter() - begun),
        } | copies(found, train, injection.index)


def main() -> None:
    parser = argparse.ArgumentParser(description="Which training images a model gives back")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--root", type=Path, help="folder of the MedMNIST files")
    parser.add_argument("--quick", action="store_true", help="32 samples of each")
    parser.add_argument(
        "--sampler", action="append", default=[], help="NAME[:STEPS[:SPACING]]; may be repeated"
    )
    add_output(parser)
    arguments = parser.parse_args()
    result: dict[str, Any] = {**record()}
    for folder in arguments.runs:
        count = 32 if arguments.quick else arguments.count
        for found in measure(folder, count, arguments.root, arguments.sampler):
            print(f"{folder.name}: {found}", file=sys.stderr, flush=True)
            result.setdefault(folder.name, []).append(found)
    tell(result, arguments)


if __name__ == "__main__":
    main()
