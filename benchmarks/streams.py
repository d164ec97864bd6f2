"""Counter-based normals beside torch.randn: how much a reproducible number costs.

Compares one call of ``Streams.noise`` with one of ``torch.randn`` for 64 x 3 x 28 x 28 in float32, in
alternation, so that a slow moment of the machine meets both. The aim is a median ratio of at most 3 on a
CPU: the noise of a step is then a small part of any network evaluation, and a result that does not depend
on batch, order or restart costs nearly nothing. Other processes on the same cores raise the ratio, because
they share the caches: ``ratio_best`` is the one of a quiet moment.

    python benchmarks/streams.py [--quick] [--json] [--out FILE] [--device cuda]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from record import add_output, record, tell

from latentprint.streams import Streams

SHAPE = (3, 28, 28)


def seconds(function: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """(wall clock, CPU time of this process)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start, busy = time.perf_counter(), time.process_time()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, time.process_time() - busy


def compare(rows: int, rounds: int, device: torch.device) -> dict[str, object]:
    streams, ids = Streams(0), torch.arange(rows)
    generator = torch.Generator(device).manual_seed(0)
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    for step in range(rounds + 10):
        a = seconds(lambda step=step: streams.noise("benchmark", ids, step, SHAPE, device=device), device)
        b = seconds(lambda: torch.randn(rows, *SHAPE, generator=generator, device=device), device)
        if step >= 10:  # the first calls warm caches and the allocator
            ours.append(a)
            theirs.append(b)
    wall = [(a[0], b[0]) for a, b in zip(ours, theirs, strict=True)]
    return {
        "shape": [rows, *SHAPE],
        "rounds": rounds,
        "streams_ms": statistics.median(a for a, _ in wall) * 1e3,
        "randn_ms": statistics.median(b for _, b in wall) * 1e3,
        "ratio": statistics.median(a / b for a, b in wall),
        # What a busy machine cannot distort: the CPU time of all rounds, and the best round of each.
        "ratio_cpu_time": sum(a[1] for a in ours) / sum(b[1] for b in theirs),
        "ratio_best": min(a for a, _ in wall) / min(b for _, b in wall),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Streams.noise beside torch.randn")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    add_output(parser)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    rounds = 200 if arguments.quick else 2000
    print(f"{rounds} rounds on {arguments.device}", file=sys.stderr)
    result = compare(64, rounds, torch.device(arguments.device)) | record(arguments.device)
    tell(result, arguments)


if __name__ == "__main__":
    main()
