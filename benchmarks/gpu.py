"""What a GPU does with the paper's network: training, sampling, and the whole of one Table 2 row.

Compares the settings of ``training.Speed`` and bf16 with plain float32, each alone and all together, in steps
per second and as a share of what the same device does in plain matrix products (the ceiling): how much is
left to gain is the difference. Sampling is measured in images per second of the audit's own sampler with both
detectors behind it, as an audit samples. The row's time is put together from what was measured,

    seconds = 30,000 / (steps/s) + (50,000 + passes of the search for t') / (images/s) + fits of c_p, c_id

and is no measurement of a whole row; ``latentprint reproduce table2 --scale full`` is.

The share counts the floating-point operations of convolutions and matrix products of one forward pass, three
times for a training step (forward, gradient of inputs, gradient of weights), over seconds times ceiling.

    python benchmarks/gpu.py --device cuda [--json] [--out FILE]
    python benchmarks/gpu.py --device cpu --quick         # a rehearsal on a tiny network: nothing is claimed

Not run on a GPU yet: the machine that this was written on has none.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from record import add_output, record, tell
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latentprint.denoiser import NetworkDenoiser
from latentprint.detector import build_backbone
from latentprint.networks import DIGITS, PAPER, UNetConfig, build_unet, parameters
from latentprint.networks.inference import inference_form
from latentprint.sampler import Ancestral, Sampler, own_times, trajectories
from latentprint.schedule import SubVP
from latentprint.search import even_grid
from latentprint.streams import Streams
from latentprint.training import Speed, TrainConfig, train

STEPS, SAMPLES, LEVELS, TRIES, EPOCHS, IMAGES = 30_000, 50_000, 100, 16, 60, 546
SAMPLER = Sampler(Ancestral(), 24, "karras", denoise=True)


@dataclass(frozen=True)
class Size:
    """What is measured: the paper's network, or a tiny one for rehearsal."""

    network: UNetConfig
    channels: int
    side: int
    batch: int
    steps: int
    images: int
    product: int
    backbone: str


FULL = Size(PAPER, 1, 28, 128, 200, 2048, 8192, "resnet50")
QUICK = Size(DIGITS, 1, 8, 16, 10, 32, 256, "small")

PLAIN = Speed()
VARIANTS: dict[str, tuple[str, Speed]] = {
    "float32": ("float32", PLAIN),
    "tf32": ("float32", replace(PLAIN, tf32=True)),
    "channels-last": ("float32", replace(PLAIN, channels_last=True)),
    "autotune": ("float32", replace(PLAIN, autotune=True)),
    "bfloat16": ("bfloat16", PLAIN),
    "bfloat16, channels-last, autotune": ("bfloat16", Speed(True, True, False, True)),
    "compile": ("float32", replace(PLAIN, compile=True)),
    "bfloat16 and all": ("bfloat16", Speed(True, True, True, True)),
}


def settle(device: torch.device) -> None:
    """Wait for what was asked of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], device: torch.device, repeat: int = 5) -> float:
    """Seconds of one call: the median, after one to warm up."""
    work()
    settle(device)
    times = []
    for _ in range(repeat):
        begun = time.perf_counter()
        work()
        settle(device)
        times.append(time.perf_counter() - begun)
    return sorted(times)[len(times) // 2]


def ceiling(kind: torch.dtype, size: int, device: torch.device) -> float:
    """Operations per second of one square matrix product."""
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn((size, size), device=device, generator=generator).to(kind) for _ in range(2))
    return 2 * size**3 / timed(lambda: a @ b, device)


def forward_operations(size: Size, device: torch.device) -> int:
    """Floating-point operations of one image's forward pass (a multiplication and an addition are two)."""
    network = build_unet(size.network, size.channels, (size.side, size.side), Streams(0)).to(device)
    x = torch.zeros((1, size.channels, size.side, size.side), device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x, torch.zeros(1, device=device))
    return counter.get_total_flops()


def training(size: Size, precision: str, speed: Speed, device: torch.device) -> float:
    """Optimiser steps per second, the compilation and the first ten left out."""
    config = TrainConfig(
        steps=size.steps + 20, batch=size.batch, precision=precision, speed=speed, learning_rate=1e-4
    )
    images = np.tanh(Streams(0).noise("images", range(256), 0, (size.channels, size.side, size.side)).numpy())
    network = build_unet(size.network, size.channels, (size.side, size.side), Streams(0))
    states = train(images, network, SubVP(), config, Streams(0), device)
    next(states), next(states)
    settle(device)
    begun = time.perf_counter()
    for state in states:
        last = state
    settle(device)
    if last.loss is None or not math.isfinite(last.loss):
        raise RuntimeError(f"training with {precision}, {speed} came to a loss of {last.loss}")
    return size.steps / (time.perf_counter() - begun)


def sampling(size: Size, precision: str, device: torch.device) -> float:
    """Images per second through the reverse process and two detectors."""
    shape = (size.channels, size.side, size.side)
    network = build_unet(size.network, size.channels, (size.side, size.side), Streams(0)).to(device).eval()
    denoiser = NetworkDenoiser(inference_form(network.requires_grad_(False)), SubVP(), "edm")
    eyes = [build_backbone(size.backbone, Streams(0), name).to(device).eval() for name in ("c_p", "c_id")]
    streams, count = Streams(1), size.images

    def begin(rows: Tensor) -> Tensor:
        return SubVP().prior_std * streams.noise("start", rows, 0, shape, device=device)

    def once() -> None:
        half = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
        start = torch.full((count,), SubVP().start, dtype=torch.float64, device=device)
        with torch.inference_mode(), half:
            walks = trajectories(
                denoiser, SAMPLER, start, torch.arange(count, device=device), begin, streams, "walk", 1024
            )
            for ended in walks:
                image = ended.x.float().clamp(-1, 1)
                for eye in eyes:
                    eye(image.expand(-1, 3, -1, -1))

    return count / timed(once, device, repeat=1)


def fitting(size: Size, device: torch.device) -> float:
    """Images per second of fitting one detector: forward and backward of its backbone."""
    network: nn.Module = build_backbone(size.backbone, Streams(0), "c_p").to(device).train()
    x = torch.zeros((size.batch, 3, size.side, size.side), device=device)
    x.normal_(generator=torch.Generator(device).manual_seed(0))
    return size.batch / timed(lambda: network(x).sum().backward(), device)


def row(steps: float, images: float, fits: float) -> dict[str, float]:
    """Seconds of a Table 2 row (BreastMNIST) by stage, from the three rates."""
    grid = SAMPLER.grid(SubVP())
    share = np.mean([len(own_times(grid, t)) / len(grid) for t in even_grid(LEVELS, SubVP().start)])
    parts = {
        "training": STEPS / steps,
        "sampling": SAMPLES / images,
        "search": LEVELS * TRIES * float(share) / images,
        "detectors": 2 * EPOCHS * IMAGES * 2 / fits,
    }
    return parts | {"total": sum(parts.values())}


def table(report: Mapping[str, Any]) -> str:
    """Steps per second of each setting, then images per second and the row's time."""
    lines = [f"{report['device']}"]
    for name, rate in report["training"].items():
        share = rate["share_of_bfloat16_ceiling"]
        lines.append(f"{name:36} {rate['steps_per_s']:8.2f} steps/s, {share:6.1%} of the ceiling")
    told = ", ".join(f"{name} {rate:,.1f}" for name, rate in report["sampling_images_per_s"].items())
    parts = ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in report["table2_row_seconds"].items())
    lines.append(f"sampling {told} images/s; one Table 2 row at these rates: {parts}")
    if report["rehearsal"]:
        lines.append("A rehearsal on a tiny network: these numbers say nothing of the paper's.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="The paper's network on a GPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny network, without compiling: a rehearsal")
    add_output(parser)
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("gpu.py: this machine has no GPU; --device cpu --quick rehearses on a tiny network")
    device, size = torch.device(arguments.device), QUICK if arguments.quick else FULL
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    peaks = {name: ceiling(kind, size.product, device) for name, kind in kinds.items()}
    each = forward_operations(size, device)
    rates: dict[str, Any] = {}
    for name, (precision, speed) in VARIANTS.items():
        if arguments.quick and speed.compile:
            continue
        steps = training(size, precision, speed, device)
        share = steps * size.batch * 3 * each / peaks["bfloat16"]
        rates[name] = {"steps_per_s": steps, "share_of_bfloat16_ceiling": share, **asdict(speed)}
        print(f"{name:36} {steps:8.2f} steps/s", file=sys.stderr, flush=True)
    images = {name: sampling(size, name, device) for name in kinds}
    fits = fitting(size, device)
    best = max(one["steps_per_s"] for one in rates.values())
    report = {
        **record(device),
        "rehearsal": arguments.quick,
        "parameters": parameters(build_unet(size.network, size.channels, (size.side, size.side), Streams(0))),
        "batch": size.batch,
        "operations_per_image": each,
        "ceiling_operations_per_s": peaks,
        "training": rates,
        "sampling_images_per_s": images,
        "fitting_images_per_s": fits,
        "table2_row_seconds": row(best, max(images.values()), fits),
    }
    tell(report, arguments, table)


if __name__ == "__main__":
    main()
