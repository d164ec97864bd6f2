"""What a GPU does with the paper's recipe: training, sampling, search, detectors, and a whole Table 2 row.

Compares the settings of ``networks.speed`` (TF32, bfloat16, channels-last, compilation, CUDA graphs) with
plain float32, each alone and together, in rates and as a share of what the same device does in plain
bfloat16 matrix products (the ceiling): how much is left to gain is the difference. The settings are those of
the preset ``paper`` on BreastMNIST: network, sampler, levels, tries, samples, detectors. Its row is

    seconds = steps / (steps/s) + samples / (images/s) + levels tries / (trajectories/s)
              + epochs (seconds of an epoch of c_p and of c_id) + likelihood + Frechet distances

with the best settings of each, and is no measurement of a whole row; ``latentprint reproduce table2 --scale
full --only breastmnist`` is. A share counts the floating-point operations of convolutions and matrix products
of the forward pass, three times in a training step (forward, gradient of inputs, gradient of weights).

Every number is kept in ``--keep`` as soon as it is measured, and the same command continues: ten minutes here
and ten there add up. What fails (a compiler that is missing, memory) is kept as a sentence and is in no best.

    python benchmarks/gpu.py --device cuda [--json] [--out FILE]   the paper's size
    python benchmarks/gpu.py --device cuda --eager                 without compilation, which takes minutes
    python benchmarks/gpu.py --device cuda --eager --only training/ --only sampling/       of some stages
    python benchmarks/gpu.py --device cpu --quick                  a tiny network: nothing is claimed
    python benchmarks/gpu.py --device cpu --rehearse               the tiny network, compiled too

Begun on an H200 (benchmarks/results/gpu.json): 38 seconds were left, which were enough for plain float32.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import add_output, describe, record, tell
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latentprint.audit.stages import for_sampling
from latentprint.config import AuditConfig, resolve
from latentprint.denoiser import Denoiser, IdentityCodec, NetworkDenoiser
from latentprint.detector import DetectorConfig, NetworkDetector, build_backbone, fit_identity, fit_presence
from latentprint.fingerprint import CircleConfig
from latentprint.likelihood import Hutchinson, log_likelihood
from latentprint.metrics.frechet import Moments, frechet
from latentprint.networks import PAPER, UNetConfig, build_unet, parameters
from latentprint.networks.speed import Evaluation, Speed
from latentprint.probe import from_image, from_prior
from latentprint.sampler import trajectories
from latentprint.schedule import SubVP
from latentprint.search import even_grid
from latentprint.streams import Streams
from latentprint.training import train

Measured = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """What is measured: the paper's network, or a tiny one for rehearsal.

    Attributes:
        steps: of training that are timed.
        sampled, searched: images and trajectories that are timed, in batches of ``together``.
        product: side of the matrices whose product is the ceiling.
        train, heldout: images of the set, on which an epoch of a detector depends.
        dense: images whose likelihood is timed.
        features: of the Frechet distance.
    """

    network: UNetConfig
    side: int
    steps: int
    sampled: int
    searched: int
    together: int
    product: int
    backbone: DetectorConfig
    train: int
    heldout: int
    dense: int
    features: int


CONFIG = resolve(preset="paper")
DETECTOR = replace(CONFIG.presence, epochs=3, patience=3)
FULL = Size(PAPER, 28, 200, 1024, 1600, 256, 8192, DETECTOR, 546, 234, 64, 2048)
SMALL = UNetConfig(channels=(8,), layers_per_block=1, middle_attention=False, norm_groups=4)
TINY = replace(DETECTOR, backbone="small", draws=128)
QUICK = Size(SMALL, 8, 10, 32, 32, 16, 256, TINY, 60, 60, 4, 64)

BOTH = Evaluation(precision="bfloat16", tf32=True, channels_last=True, autotune=True)
VARIANTS: dict[str, Evaluation] = {
    "float32": Evaluation(),
    "tf32": Evaluation(tf32=True),
    "channels-last": Evaluation(channels_last=True),
    "autotune": Evaluation(autotune=True),
    "bfloat16": Evaluation(precision="bfloat16"),
    "bfloat16, channels-last, autotune": BOTH,
    "bfloat16, channels-last, captured": replace(BOTH, graphs=True),
    "compiled": Evaluation(compile=True),
    "tf32, channels-last, compiled": Evaluation(tf32=True, channels_last=True, compile=True),
    "bfloat16, compiled": replace(BOTH, channels_last=False, compile=True),
    "bfloat16, channels-last, compiled": replace(BOTH, compile=True),
    "bfloat16, channels-last, compiled, graphs": replace(BOTH, compile=True, graphs=True),
}
FEW = ("float32", "bfloat16, channels-last, autotune", "bfloat16, channels-last, compiled")
"""For detectors: each of them that is compiled takes minutes, and half an hour of a GPU is what there is."""

REHEARSED = (
    "float32",
    "bfloat16, channels-last, autotune",
    "bfloat16, channels-last, captured",
    "compiled",
    "bfloat16, channels-last, compiled, graphs",
)


def settle(device: torch.device) -> None:
    """Wait for what was asked of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], device: torch.device, repeat: int = 5) -> float:
    """Seconds of one call: the median, after one to warm up (and to compile)."""
    work()
    settle(device)
    times = []
    for _ in range(repeat):
        begun = time.perf_counter()
        work()
        settle(device)
        times.append(time.perf_counter() - begun)
    return sorted(times)[len(times) // 2]


def ceiling(kind: torch.dtype, size: Size, device: torch.device) -> Measured:
    """Operations per second of one square matrix product."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (size.product, size.product)
    a, b = (torch.randn(shape, device=device, generator=generator).to(kind) for _ in range(2))
    return {"operations_per_s": 2 * size.product**3 / timed(lambda: a @ b, device)}


def operations(size: Size, device: torch.device) -> Measured:
    """Floating-point operations of one image's forward pass (a multiplication and an addition are two)."""

    def count(work: Callable[[], object]) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    unet, shape = network(size).to(device), (1, size.side, size.side)
    eye = build_backbone(size.backbone.backbone, Streams(0), "c_p").to(device).eval()
    x = torch.zeros((1, *shape), device=device)
    return {
        "parameters": parameters(unet),
        "unet": count(lambda: unet(x, torch.zeros(1, device=device))),
        "detector": count(lambda: eye(x.expand(-1, 3, -1, -1))),
    }


def network(size: Size) -> nn.Module:
    return build_unet(size.network, 1, (size.side, size.side), Streams(0))


def pictures(size: Size, count: int) -> np.ndarray:
    """Images that are all different; no rate depends on what they show."""
    return np.tanh(Streams(0).noise("images", range(count), 0, (1, size.side, size.side)).numpy())


def training(how: Evaluation, size: Size, device: torch.device) -> Measured:
    """Optimiser steps per second, the compilation and the first twenty left out."""
    batch = CONFIG.model.training.batch if size is FULL else 16
    speed = Speed(**{name: getattr(how, name) for name in asdict(Speed())})
    config = replace(
        CONFIG.model.training, steps=size.steps + 20, batch=batch, precision=how.precision, speed=speed
    )
    states = train(pictures(size, size.train), network(size), SubVP(), config, Streams(0), device)
    next(states), next(states)
    settle(device)
    begun = time.perf_counter()
    *_, last = states
    settle(device)
    took = time.perf_counter() - begun
    if last.loss is None or not math.isfinite(last.loss):
        raise RuntimeError(f"the loss became {last.loss}")
    return {"steps_per_s": size.steps / took, "batch": batch, "loss": last.loss}


def denoiser(how: Evaluation, size: Size, device: torch.device) -> Denoiser:
    raw = NetworkDenoiser(network(size).to(device), SubVP(), CONFIG.model.training.parametrisation)
    return for_sampling(raw, how, size.together)


def walked(how: Evaluation, size: Size, device: torch.device, starts: Tensor, search: bool) -> Measured:
    """Trajectories per second of the preset's sampler from ``starts`` (n,), without detectors."""
    model, streams, count = denoiser(how, size, device), Streams(1), len(starts)
    ids, shape = torch.arange(count), (1, size.side, size.side)
    begin = (
        from_image(torch.zeros(shape, device=device), model, streams, "walk", IdentityCodec())
        if search
        else from_prior(shape, model, streams, "walk", device)
    )
    spent: list[int] = []

    def once() -> None:
        walks = trajectories(
            model,
            CONFIG.sampler.sampler(),
            starts,
            ids,
            lambda rows: begin(starts[rows], ids[rows]),
            streams,
            "path",
            size.together,
        )
        spent.append(sum(int(ended.evaluations.sum()) for ended in walks))

    rate = count / timed(once, device, repeat=1)
    return {"trajectories_per_s": rate, "evaluations_per_trajectory": spent[-1] / count}


def sampling(how: Evaluation, size: Size, device: torch.device) -> Measured:
    """Images per second from the prior."""
    return walked(how, size, device, torch.full((size.sampled,), 1.0, dtype=torch.float64), search=False)


def search(how: Evaluation, size: Size, device: torch.device) -> Measured:
    """Tries per second of Algorithm 1: from every level of the preset's grid alike."""
    levels = torch.tensor(even_grid(CONFIG.search.levels, SubVP().start), dtype=torch.float64)
    return walked(how, size, device, levels[torch.arange(size.searched) % len(levels)], search=True)


def fitting(how: Evaluation, size: Size, device: torch.device) -> Measured:
    """Seconds of one epoch of c_p and of c_id as they are fitted, drawing and augmenting included."""
    kind, images = CircleConfig(), pictures(size, size.train + size.heldout)
    own, heldout, streams = images[: size.train], images[size.train :], Streams(0)

    def epoch(states: Iterator[Any]) -> float:
        next(states)  # compiles
        begun = time.perf_counter()
        next(states)
        return time.perf_counter() - begun

    presence = epoch(fit_presence(images, kind, size.backbone, streams, device, how))
    identity = epoch(fit_identity(own[0], own[1:], heldout, kind, size.backbone, streams, device, how))
    return {"presence_epoch_s": presence, "identity_epoch_s": identity}


def seeing(how: Evaluation, size: Size, device: torch.device) -> Measured:
    """Images per second that one fitted detector answers for."""
    body = build_backbone(size.backbone.backbone, Streams(0), "c_p").to(device).eval().requires_grad_(False)
    nothing: Any = None
    eye = NetworkDetector("presence", body, 0.5, nothing, size.backbone, 1, (1, size.side, size.side), how)
    images = torch.from_numpy(pictures(size, size.together)).to(device)
    with torch.no_grad():
        return {"images_per_s": size.together / timed(lambda: eye(images), device)}


def dense(size: Size, device: torch.device) -> Measured:
    """Seconds of the likelihood of one image, in a batch of ``size.dense``; float32 always."""
    raw = NetworkDenoiser(network(size).to(device).eval(), SubVP(), "edm")
    x = torch.from_numpy(pictures(size, size.dense)).to(device)
    divergence = Hutchinson(CONFIG.likelihood.probes or 1, Streams(0))
    begun = time.perf_counter()
    log_likelihood(raw, x, divergence, ids=torch.arange(size.dense))
    settle(device)
    return {"seconds_per_image": (time.perf_counter() - begun) / size.dense}


def distance(size: Size) -> Measured:
    """Seconds of one Frechet distance from features, on the CPU."""
    one = Moments.of(np.random.default_rng(0).normal(size=(2 * size.features, size.features)))
    begun = time.perf_counter()
    frechet(one, one)
    return {"seconds": time.perf_counter() - begun}


STAGES: dict[str, tuple[Callable[[Evaluation, Size, torch.device], Measured], str, bool]] = {
    "training": (training, "steps_per_s", True),
    "sampling": (sampling, "trajectories_per_s", True),
    "search": (search, "trajectories_per_s", True),
    "detectors": (fitting, "presence_epoch_s", False),
    "answers": (seeing, "images_per_s", True),
}
"""What is measured, the number that decides, and whether more of it is better."""


def tasks(
    size: Size, device: torch.device, compile_too: bool, measured: Mapping[str, Measured]
) -> Iterator[tuple[str, Callable[[], Measured]]]:
    """All measurements by name, the most wanted first; the search has the best settings of sampling."""
    yield "operations", partial(operations, size, device)
    for name, kind in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        yield f"ceiling/{name}", partial(ceiling, kind, size, device)
    chosen = [
        (name, how)
        for name, how in VARIANTS.items()
        if (size is FULL or name in REHEARSED) and (compile_too or not how.compile)
    ]
    for stage, (measure, _, _) in STAGES.items():
        first = best(measured, "sampling") if stage == "search" else None
        for name, how in chosen:
            if stage == "search" and name not in ("float32", "" if first is None else first[0]):
                continue
            if stage in ("detectors", "answers") and size is FULL and name not in FEW:
                continue
            yield f"{stage}/{name}", partial(measure, how, size, device)
    yield "likelihood", partial(dense, size, device)
    yield "frechet", partial(distance, size)


@dataclass
class Kept:
    """Measurements on disk: written after each of them, continued by the same command."""

    path: Path
    about: Mapping[str, Any]
    measured: dict[str, Measured]

    @classmethod
    def open(cls, path: Path, about: Mapping[str, Any]) -> Kept:
        """What ``path`` holds; SystemExit where that is of another device, size or version."""
        if not path.exists():
            return cls(path, about, {})
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["about"] != dict(about):
            sys.exit(
                f"gpu.py: {path} was measured with {held['about']}, not {dict(about)}; name another --keep"
            )
        return cls(path, about, held["measured"])

    def keep(self, name: str, found: Measured) -> None:
        """Written aside and renamed: a kill leaves the file before it, or this one."""
        self.measured[name] = found
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".tmp")
        aside.write_text(json.dumps({"about": self.about, "measured": self.measured}, indent=1) + "\n")
        aside.replace(self.path)


def measure(name: str, task: Callable[[], Measured]) -> Measured:
    """One measurement, or the sentence that says why there is none."""
    begun = time.perf_counter()
    try:
        found = task()
    except Exception as error:  # a compiler or a GPU fails in many ways, and the others are still wanted
        found = {
            "failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
        }
    found["took_s"] = round(time.perf_counter() - begun, 2)
    print(f"{name:50} {json.dumps(found)}", file=sys.stderr, flush=True)
    torch.compiler.reset()
    return found


def best(measured: Mapping[str, Measured], stage: str) -> tuple[str, Measured] | None:
    """The settings that measure best, of those that did not fail."""
    _, number, more = STAGES[stage]
    found = [
        (name.split("/", 1)[1], one)
        for name, one in measured.items()
        if name.startswith(f"{stage}/") and "failed" not in one
    ]
    return max(found, key=lambda one: one[1][number] * (1 if more else -1), default=None)


def shares(measured: Mapping[str, Measured]) -> dict[str, float]:
    """Of the bfloat16 ceiling, by measurement."""
    top, each = measured["ceiling/bfloat16"].get("operations_per_s"), measured["operations"]
    if top is None or "unet" not in each:
        return {}
    spent = {
        "training": lambda one: one["steps_per_s"] * one["batch"] * 3 * each["unet"],
        "sampling": lambda one: one["trajectories_per_s"] * one["evaluations_per_trajectory"] * each["unet"],
        "answers": lambda one: one["images_per_s"] * each["detector"],
    }
    spent["search"] = spent["sampling"]
    return {
        name: spent[stage](one) / top
        for name, one in measured.items()
        if (stage := name.split("/")[0]) in spent and "failed" not in one
    }


def row(config: AuditConfig, measured: Mapping[str, Measured]) -> dict[str, float] | None:
    """Seconds of a Table 2 row by part, each with its best settings; None while one of them is missing."""
    found = {stage: best(measured, stage) for stage in STAGES}
    other = [measured.get(name, {}) for name in ("likelihood", "frechet")]
    if any(one is None for one in found.values()) or any(
        "took_s" not in one or "failed" in one for one in other
    ):
        return None
    at = {stage: one[1] for stage, one in found.items() if one is not None}
    tried = config.search.levels * config.search.tries
    parts = {
        "training": config.model.training.steps / at["training"]["steps_per_s"],
        "sampling": config.samples.count / at["sampling"]["trajectories_per_s"],
        "search": tried / at["search"]["trajectories_per_s"],
        "detectors": config.presence.epochs * at["detectors"]["presence_epoch_s"]
        + config.identity.epochs * at["detectors"]["identity_epoch_s"],
        "answers": 2 * (config.samples.count + tried) / at["answers"]["images_per_s"],
        "likelihood": (2 * config.likelihood.images + 1) * other[0]["seconds_per_image"],
        "frechet": 2 * other[1]["seconds"],
    }
    return parts | {"total": sum(parts.values())}


def settings(measured: Mapping[str, Measured]) -> str:
    """What measured best, as settings for a --config file."""
    lines: list[str] = []
    for stage, table in (
        ("training", "model.training"),
        ("sampling", "speed.sampling"),
        ("detectors", "speed.detectors"),
    ):
        if (found := best(measured, stage)) is None:
            continue
        how = asdict(VARIANTS[found[0]])
        precision = how.pop("precision")
        on = [f"{name} = true" for name, value in how.items() if value]
        lines += [f"[{table}]", f'precision = "{precision}"']
        lines += [f"speed = {{ {', '.join(on)} }}"] if on and stage == "training" else on
    return "\n".join(lines)


def table(report: Mapping[str, Any]) -> str:
    """Each measurement, its share of the ceiling, what is best and the row's time."""
    lines = [report["device"]]
    for name, one in report["measured"].items():
        told = ", ".join(
            f"{key} {value:,.4g}" for key, value in one.items() if isinstance(value, int | float)
        )
        share = report["share_of_bfloat16_ceiling"].get(name)
        lines.append(
            f"{name:46} {one.get('failed', told)}"
            + ("" if share is None else f", {share:.1%} of the ceiling")
        )
    lines += ["best settings:", report["best_settings"]]
    if report["table2_row_seconds"] is not None:
        parts = ", ".join(f"{name} {s:,.0f} s" for name, s in report["table2_row_seconds"].items())
        lines.append(f"one Table 2 row at the best rates: {parts}")
    if report["rehearsal"]:
        lines.append("A rehearsal on a tiny network: these numbers say nothing of the paper's.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="The paper's recipe on a GPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny network, without compiling")
    parser.add_argument("--rehearse", action="store_true", help="the tiny network with everything")
    parser.add_argument("--eager", action="store_true", help="compile nothing; that can be measured later")
    parser.add_argument("--only", action="append", metavar="training/", help="what begins so; repeatable")
    parser.add_argument("--keep", type=Path, help="measurements so far; runs/gpu-SIZE-DEVICE.json by default")
    add_output(parser)
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("gpu.py: this machine has no GPU; --device cpu --rehearse rehearses on a tiny network")
    torch.backends.cudnn.allow_tf32 = False  # the plain one is float32; the settings may say otherwise
    device, small = torch.device(arguments.device), arguments.quick or arguments.rehearse
    size, word = (QUICK, "tiny") if small else (FULL, "paper")
    path = arguments.keep or Path("runs") / f"gpu-{word}-{device.type}.json"
    kept = Kept.open(path, {"device": describe(device), "size": word})
    for name, task in tasks(size, device, not (arguments.quick or arguments.eager), kept.measured):
        wanted = not arguments.only or name.startswith((*arguments.only, "operations", "ceiling/bfloat16"))
        if wanted and name not in kept.measured:
            kept.keep(name, measure(name, task))
    report = {
        **record(device),
        "rehearsal": small,
        "measured": kept.measured,
        "share_of_bfloat16_ceiling": shares(kept.measured),
        "best_settings": settings(kept.measured),
        "table2_row_seconds": row(CONFIG, kept.measured),
    }
    tell(report, arguments, table)


if __name__ == "__main__":
    main()
