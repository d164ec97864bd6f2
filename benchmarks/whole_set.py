"""All generated images against all training images: what is found, how long it takes, how much memory.

Planted: of 10,000 images 20 are copies of training images (plain, flipped, shifted by a fourteenth of a side,
5 % noise). The others are held-out images laid over each other in pairs. Found are those that the audit's own
threshold lets be copies; false alarms are counted on held-out images that did not set it.

Speed: what an audit does is compared with what people write first (``torch.cdist`` by blocks, the smallest of
each row) and with faiss-cpu's exact flat index. These answer the same question, the ten nearest; "aligned"
finds copies that were flipped, shifted or repainted too.

    python benchmarks/whole_set.py planted                 # BreastMNIST, PneumoniaMNIST, RetinaMNIST, digits
    python benchmarks/whole_set.py apart                   # sets without persons on both sides
    python benchmarks/whole_set.py speed                   # 150,000 x 10,000 images of 28 x 28
    python benchmarks/whole_set.py speed --generated 15000 # a tenth of it, where the machine is busy
    python benchmarks/whole_set.py --quick                 # all three, in little

Seconds are of the wall clock; ``cpu`` is the processor's time of all threads, which other jobs on the machine
do not change. Memory is the most that the process held, images included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from record import add_output, record, tell

from latentprint.attacks.aligned import Aligned
from latentprint.attacks.nearest import TEN, columns, nearest
from latentprint.attacks.planted import planted
from latentprint.attacks.whole_set import Copies, Reference
from latentprint.data import load
from latentprint.results.criteria import CRITERIA, apart, background

Pixels = NDArray[np.float32]
BLOCK = 4096


def images(count: int, seed: int) -> Pixels:
    """Smooth random images (n, 1, 28, 28): 7 x 7 values, each a block of four pixels a side."""
    coarse = np.random.default_rng(seed).normal(0, 0.3, (count, 1, 7, 7)).astype(np.float32)
    return np.clip(coarse.repeat(4, 2).repeat(4, 3), -1, 1)


def ours(queries: Pixels, train: Pixels) -> NDArray[np.int64]:
    parts = [columns(queries[i : i + BLOCK], train)["nearest"] for i in range(0, len(queries), BLOCK)]
    return np.concatenate(parts)


def aligned(queries: Pixels, train: Pixels) -> NDArray[np.int64]:
    prepared = Aligned(train)
    parts = [prepared.columns(queries[i : i + BLOCK])["aligned_of"] for i in range(0, len(queries), BLOCK)]
    return np.concatenate(parts)


def plain(queries: Pixels, train: Pixels) -> NDArray[np.int64]:
    """The loop that people write first."""
    reference = torch.from_numpy(train).flatten(1)
    parts = [
        torch.cdist(torch.from_numpy(queries[i : i + 1024]).flatten(1), reference)
        .topk(TEN, dim=1, largest=False)
        .indices[:, 0]
        for i in range(0, len(queries), 1024)
    ]
    return torch.cat(parts).numpy()


def flat(queries: Pixels, train: Pixels) -> NDArray[np.int64]:
    """FAISS, exact."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(train[0].size)
    index.add(train.reshape(len(train), -1))
    return index.search(queries.reshape(len(queries), -1), TEN)[1][:, 0]


WAYS: dict[str, Callable[[Pixels, Pixels], NDArray[np.int64]]] = {
    "nearest": ours,
    "aligned": aligned,
    "cdist": plain,
    "faiss": flat,
}


def measure(name: str, generated: int, trained: int) -> dict[str, Any]:
    """Time and memory of one way, in this process."""
    queries, train = images(generated, 0), images(trained, 1)
    clock, cpu = time.perf_counter(), time.process_time()
    found = WAYS[name](queries, train)
    spent = {"seconds": time.perf_counter() - clock, "cpu": time.process_time() - cpu}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    told = {"generated": generated, "trained": trained, **spent, "gib": memory}
    if name == "aligned":  # another question, with other answers
        return told
    exact = nearest(queries[:200], train).index[:, 0].numpy()
    return told | {"same_as_exact": float((found[:200] == exact).mean())}


FOUR = ("plain", "flipped", "shifted", "noisy")
SETS = ("digits", "medmnist:breastmnist", "medmnist:retinamnist", "medmnist:pneumoniamnist")


def others(heldout: Pixels, count: int, rng: np.random.Generator) -> Pixels:
    """Pairs of held-out images (m, C, H, W) laid over each other, each other way round at random."""
    one, other = (heldout[rng.integers(0, len(heldout), count)] for _ in range(2))
    turned = np.where(rng.random((count, 1, 1, 1)) < 0.5, other[..., ::-1], other)
    return ((one + turned) / 2).astype(np.float32)


def find_planted(source: str, count: int, root: Path | None, seed: int = 0) -> dict[str, Any]:
    """Of 20 planted copies among ``count`` images how many are found, by how they were changed."""
    split, rng = load(source, seed=seed, root=root), np.random.default_rng(seed)
    train, heldout = split.train.pixels, split.heldout.pixels
    cpu = time.process_time()
    chosen = rng.choice(len(train), 20, replace=False)
    copies = {kind: planted(train[chosen[5 * i : 5 * i + 5]], rng)[kind] for i, kind in enumerate(FOUR)}
    metric = Copies(train, heldout, seed=seed)
    rest, found = others(heldout, count - 20, rng), dict[str, int]()
    for first in range(0, len(rest), BLOCK):
        metric.update(rest[first : first + BLOCK])
    before = metric.compute()
    for kind, images in copies.items():
        metric.update(images)
        after = metric.compute()
        found[kind], before = after.copies.k - before.copies.k, after
    alarms = before.false_alarms
    return {
        "trained": len(train),
        "heldout": len(heldout),
        "images": count,
        "found": found,
        "found_of_20": sum(found.values()),
        "false_alarms": None if alarms is None else [alarms.k, alarms.n],
        "other_images_called_copies": before.copies.k - sum(found.values()),
        "left_out": before.left_out,
        "apart": before.apart,
        "cpu": time.process_time() - cpu,
    }


CLEAN = (("digits", (30, 100, 300)), ("phantom:200", (40, 150)), (SETS[2], (100,)), (SETS[3], (100,)))


def groups_apart(root: Path | None, seeds: int) -> dict[str, Any]:
    """In how many sets without persons on both sides are held-out images told apart as changed copies?"""
    found = list[int]()
    for source, sizes in CLEAN:
        for size, seed in itertools.product(sizes, range(seeds)):
            split = load(source, seed=seed, images=size, root=root)
            order = np.random.default_rng(seed).permutation(len(split.heldout))[:500]
            rows, _ = background(Reference(split.train.pixels).columns(split.heldout.pixels[order]))
            found.append(apart(CRITERIA[0].score(rows)))
    return {"sets": len(found), "with_a_group_apart": sum(k > 0 for k in found)}


def main() -> None:
    parser = argparse.ArgumentParser(description="All generated images against all training images")
    parser.add_argument("what", nargs="?", choices=["planted", "speed", "apart"], help="all, where not named")
    parser.add_argument("--quick", action="store_true", help="digits; 6,000 x 2,000")
    parser.add_argument("--only", choices=list(WAYS), help="one way alone: memory is of the whole process")
    parser.add_argument("--generated", type=int, default=150_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--root", type=Path, help="folder of the MedMNIST files")
    add_output(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {**record()}
    if arguments.what in (None, "apart"):
        result["clean"] = groups_apart(arguments.root, 1 if arguments.quick else 4)
        print(f"clean: {result['clean']}", file=sys.stderr, flush=True)
    if arguments.what in (None, "planted"):
        for source in SETS[:1] if arguments.quick else SETS:
            images = 1_000 if arguments.quick else 10_000
            result[source] = find_planted(source, images, arguments.root)
            print(f"{source}: {result[source]}", file=sys.stderr, flush=True)
            if arguments.out is not None:
                arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.what in (None, "speed"):
        sizes = (6_000, 2_000) if arguments.quick else (arguments.generated, 10_000)
        for name in [arguments.only] if arguments.only else WAYS:
            try:
                result[name] = measure(name, *sizes)
            except ImportError as error:
                result[name] = {"not measured": str(error)}
            print(f"{name}: {result[name]}", file=sys.stderr, flush=True)
    tell(result, arguments)


if __name__ == "__main__":
    main()
