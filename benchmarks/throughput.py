"""The reverse loop beside diffusers' pipelines: the same U-Net, weights and number of steps.

Compares images per second of ``trajectories`` (DDIM and ancestral steps, noise keyed by image, results that
do not depend on the batch) with diffusers' ``DDIMPipeline`` and ``DDPMPipeline``: an audit is nothing but
sampling, and what is gained here is gained everywhere. Both sides run in one process, in float32, on equal
batches, in alternation, and medians are compared. Each makes ``steps`` network evaluations per image: ours
spends the last on denoising. ``where`` says where our time goes: the network, the noise, the rest.

Ours is first put into the form that sampling wants (`latentprint.networks.inference`), which changes rounding
only: ``largest_difference`` is that of one evaluation, relative to the largest output; ``network_ratio`` is
what that form gains alone. On a machine that others use too, --cpu-time compares processor seconds on one
thread instead of seconds on the wall; the output says which.

    python benchmarks/throughput.py [--quick] [--json] [--out FILE] [--network small28|digits|paper]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from record import add_output, record, tell
from torch import Tensor

from latentprint.denoiser import NetworkDenoiser
from latentprint.networks import DIGITS, PAPER, SMALL28, build_unet
from latentprint.networks.inference import inference_form
from latentprint.sampler import DDIM, Ancestral, Sampler, trajectories
from latentprint.schedule import VP
from latentprint.streams import Streams

NETWORKS = {"small28": (SMALL28, 1, 28), "digits": (DIGITS, 1, 8), "paper": (PAPER, 3, 28)}


class Timed:
    """Calls a function and adds up what it took."""

    def __init__(self, function: Callable[..., Any], clock: Callable[[], float]) -> None:
        self.function, self.clock, self.spent = function, clock, 0.0

    def __call__(self, *args: Any, **named: Any) -> Any:
        begun = self.clock()
        out = self.function(*args, **named)
        self.spent += self.clock() - begun
        return out


class TimedStreams:
    """Streams whose noise is timed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.noise = Timed(Streams(0).noise, clock)


def ours(
    network: torch.nn.Module, step: Any, steps: int, batch: int, shape: tuple[int, ...], clock: Any
) -> dict:
    """Seconds of one batch through our loop, and where they went."""
    called = Timed(network, clock)
    denoiser, streams = NetworkDenoiser(called, VP()), TimedStreams(clock)  # type: ignore[arg-type]
    sampler = Sampler(step, steps - 1, "uniform", denoise=True)  # with the denoising: ``steps`` evaluations

    def begin(rows: Tensor) -> Tensor:
        return streams.noise("prior", rows, 0, shape)

    begun = clock()
    with torch.inference_mode():
        ended = list(
            trajectories(
                denoiser,
                sampler,
                torch.ones(batch, dtype=torch.float64),
                torch.arange(batch),
                begin,
                streams,
                "walk",
                batch,
            )
        )
    total = clock() - begun
    evaluations = int(ended[0].evaluations[0])
    if evaluations != steps:
        raise RuntimeError(f"ours took {evaluations} evaluations where {steps} were to be compared")
    return {"total": total, "network": called.spent, "noise": streams.noise.spent}


def theirs(pipeline: Any, steps: int, batch: int, clock: Any) -> float:
    """Seconds of one batch through a pipeline of diffusers, images left as arrays."""
    generator = torch.Generator().manual_seed(0)
    begun = clock()
    pipeline(batch_size=batch, generator=generator, num_inference_steps=steps, output_type="numpy")
    return clock() - begun


def seconds(network: torch.nn.Module, arguments: argparse.Namespace, clock: Any) -> float:
    """One evaluation of a batch."""
    _, channels, size = NETWORKS[arguments.network]
    x = Streams(1).noise("x", range(arguments.batch), 0, (channels, size, size))
    when = torch.full((arguments.batch,), 500.0)
    with torch.inference_mode():
        begun = clock()
        network(x, when)
        return clock() - begun


def compare(
    name: str, network: Any, fast: torch.nn.Module, arguments: argparse.Namespace, clock: Any
) -> dict:
    """Alternating rounds of one kind of sampler."""
    _, channels, size = NETWORKS[arguments.network]
    kinds = {
        "ddim": (DDIM(), DDIMPipeline, DDIMScheduler),
        "ancestral": (Ancestral(), DDPMPipeline, DDPMScheduler),
    }
    step, pipe, scheduler = kinds[name]
    pipeline = pipe(network, scheduler(num_train_timesteps=1000))
    pipeline.set_progress_bar_config(disable=True)
    mine, other = [], []
    for round_ in range(arguments.rounds + 1):
        a = ours(fast, step, arguments.steps, arguments.batch, (channels, size, size), clock)
        b = theirs(pipeline, arguments.steps, arguments.batch, clock)
        if round_ > 0:  # the first warms caches and the allocator
            mine.append(a)
            other.append(b)
        print(
            f"{name} round {round_}: ours {a['total']:.2f} s, diffusers {b:.2f} s",
            file=sys.stderr,
            flush=True,
        )
    total = statistics.median(m["total"] for m in mine)
    parts = {part: statistics.median(m[part] / m["total"] for m in mine) for part in ("network", "noise")}
    alone = [statistics.median(seconds(n, arguments, clock) for _ in range(3)) for n in (network, fast)]
    return {
        "network_ratio": alone[0] / alone[1],
        "images_per_s": arguments.batch / total,
        "diffusers_images_per_s": arguments.batch / statistics.median(other),
        "ratio": statistics.median(b / m["total"] for m, b in zip(mine, other, strict=True)),
        "where": parts | {"rest": 1 - sum(parts.values())},
    }


def table(report: Mapping[str, Any]) -> str:
    """Images per second of both sides, and where our time goes."""
    shape = f"{report['network']}, batch {report['batch']}, {report['steps']} evaluations"
    lines = [f"{shape}, {report['clock']} time; {report['device']}"]
    for name, result in report["samplers"].items():
        parts = ", ".join(f"{part} {share:.1%}" for part, share in result["where"].items())
        lines.append(
            f"{name:10} {result['images_per_s']:8.2f} images/s, "
            f"diffusers {result['diffusers_images_per_s']:8.2f}, ratio {result['ratio']:.2f} "
            f"(network alone {result['network_ratio']:.2f}; ours: {parts})"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="The reverse loop beside diffusers' pipelines")
    parser.add_argument("--quick", action="store_true", help="less than a minute: small batch, few steps")
    add_output(parser)
    parser.add_argument("--network", choices=sorted(NETWORKS), default="small28")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="processor seconds on one thread")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.batch, arguments.steps, arguments.rounds = min(arguments.batch, 32), 4, 3
    if arguments.cpu_time:  # threads that wait for one another spin, which counts as work
        torch.set_num_threads(1)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    config, channels, size = NETWORKS[arguments.network]
    network = build_unet(config, channels, size, Streams(0)).eval().requires_grad_(False)
    fast = inference_form(network)
    with torch.inference_mode():
        x, t = Streams(1).noise("x", range(8), 0, (channels, size, size)), torch.linspace(1, 999, 8)
        plain = network(x, t).sample
        difference = float((fast(x, t).sample - plain).abs().max() / plain.abs().max())
    results = {name: compare(name, network, fast, arguments, clock) for name in ("ddim", "ancestral")}
    report = {
        "images_per_s": results["ddim"]["images_per_s"],
        "diffusers_images_per_s": results["ddim"]["diffusers_images_per_s"],
        "ratio": results["ddim"]["ratio"],
        "samplers": results,
        "network": arguments.network,
        "batch": arguments.batch,
        "steps": arguments.steps,
        "rounds": arguments.rounds,
        "clock": "processor" if arguments.cpu_time else "wall",
        "largest_difference": difference,
        **record(),
    }
    tell(report, arguments, table)


if __name__ == "__main__":
    main()
