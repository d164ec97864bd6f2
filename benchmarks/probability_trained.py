"""The estimators of q against brute force on a network that was trained: do they agree, and at what cost.

On models with a formula for q (benchmarks/probability.py) the denoiser is smooth and exact. A network that
learnt some of its images by heart is neither, and Omega is where two detectors fire together, not a ball. So
the only truth is counting, here of as many samples as the machine allows, of two samplers: the one of the
audit, which splitting is about, and the probability flow, which the bridge is about. The flow is counted with
a solver of fixed steps, 24 evaluations a sample (DPM-Solver++ 2M), that is first held to the bridge's own
adaptive solver from the same x_T: all its hits, its nearest misses and others are sampled again.

    python benchmarks/probability_trained.py --run FOLDER --rows FILE [--only WORD] [--samples N] [--json]

FOLDER is what ``latentprint demo`` or ``audit`` left. Rows are appended to FILE as they are done, and rows
found there are not done again: a stopped run goes on.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bridge import BridgeConfig, bridge
from record import add_output, record, tell
from torch import Tensor

from latentprint.audit import stages
from latentprint.audit.estimates import omega
from latentprint.config import AuditConfig
from latentprint.denoiser import Denoiser, NetworkDenoiser
from latentprint.detector import load_detector
from latentprint.likelihood import Divergence, Hutchinson
from latentprint.metrics.error import mse
from latentprint.networks import load_model
from latentprint.probe import from_prior
from latentprint.rate import SamplerPushforward, SplittingConfig, splitting
from latentprint.sampler import DPMSolverPP2M, RungeKutta, Sampler, trajectories
from latentprint.stats import Trials
from latentprint.store import Run
from latentprint.streams import Streams

sys.path.append(str(Path(__file__).parents[1]))  # tools/ stands beside benchmarks/

from tools.reproduce.pictures import images_of

SEED = 7  # not the audits' own: their samples are not counted again
UNIT = 1024
NEAR = 20  # nearest misses of a unit that are sampled again with the adaptive solver, and as many others
FLOW = Sampler(DPMSolverPP2M(), 23)
ADAPTIVE = Sampler(RungeKutta(1e-5, 1e-5), 1)  # the bridge's: one interval, steps of its own


@dataclass(frozen=True)
class Subject:
    """A trained model with its Omega, as the audit has them; ``fast`` is the form that samples."""

    model: NetworkDenoiser
    fast: Denoiser
    target: Tensor
    inside: Callable[[Tensor], Tensor]
    sampler: Sampler
    config: AuditConfig
    copies: float
    batch: int


def subject(folder: Path, root: Path) -> Subject:
    """What an audit left in ``folder``.

    Raises:
        SystemExit: a part is missing.
    """
    config, split, injection = images_of(Run.read(folder), root)
    presence, identity = (load_detector(folder / "detectors" / name) for name in ("presence", "identity"))
    if presence is None or identity is None:
        raise SystemExit(f"{folder} holds no detectors; run latentprint demo or audit first")
    model = load_model(folder / "model")
    target = torch.as_tensor(injection.target, dtype=torch.float32)
    return Subject(
        model,
        stages.for_sampling(model),
        target,
        omega(stages.Detectors(presence, identity)),
        config.sampler.sampler(),
        config,
        injection.copies / len(split.train),
        256 if target.numel() < 256 else 64,  # what runs fastest in the caches of one core
    )


def sampled(s: Subject, sampler: Sampler, ids: Tensor) -> tuple[Tensor, Tensor, int]:
    """(in Omega (n,), squared distance to x_p (n,), evaluations) of the samples named ``ids``."""
    streams, space = Streams(SEED), tuple(s.target.shape)
    begin = from_prior(space, s.fast, streams, "brute", torch.device("cpu"))
    start = torch.full((len(ids),), s.fast.schedule.start, dtype=torch.float64)
    hit, near, cost = torch.zeros(len(ids), dtype=torch.bool), torch.zeros(len(ids)), 0
    with torch.no_grad():
        for ended in trajectories(
            s.fast,
            sampler,
            start,
            ids,
            lambda rows: begin(start[rows], ids[rows]),
            streams,
            "brute.path",
            s.batch,
        ):
            hit[ended.rows] = s.inside(ended.x)
            near[ended.rows] = mse(ended.x.clamp(-1, 1), s.target).float()
            cost += int(ended.evaluations.sum())
    return hit, near, cost


def count(s: Subject, sampler: Sampler, first: int, n: int) -> dict[str, Any]:
    ids = torch.arange(first, first + n)
    hit, near, cost = sampled(s, sampler, ids)
    misses = ids[~hit][near[~hit].argsort()].tolist()
    return {
        "samples": n,
        "hits": int(hit.sum()),
        "hit_ids": ids[hit].tolist(),
        "nearest_misses": misses[:NEAR],
        "other_misses": sorted(misses[NEAR:])[:NEAR],
        "network_evaluations": cost,
    }


def again(s: Subject, counted: dict[str, Any]) -> dict[str, Any]:
    """The same x_T through the adaptive solver: who changes sides."""
    groups = [counted[name] for name in ("hit_ids", "nearest_misses", "other_misses")]
    hit, _, cost = sampled(s, ADAPTIVE, torch.tensor([i for group in groups for i in group]))
    parts = hit.split([len(group) for group in groups])
    stayed, near, other = (int(part.sum()) for part in parts)
    return {
        "hits": len(groups[0]),
        "hits_stay": stayed,
        "nearest_misses": len(groups[1]),
        "nearest_become_hits": near,
        "other_misses": len(groups[2]),
        "others_become_hits": other,
        "network_evaluations": cost,
    }


def split(s: Subject, sampler: Sampler, seed: int, config: SplittingConfig) -> dict[str, Any]:
    found = splitting(
        SamplerPushforward(s.fast, sampler, tuple(s.target.shape)),
        lambda images: mse(images.clamp(-1, 1), s.target),
        s.inside,
        sampler=sampler.describe(),
        seed=seed,
        config=config,
        progress=say,
    )
    return found.to_dict()


def bridged(s: Subject, seed: int, divergence: Divergence | None, most: int = 6000) -> dict[str, Any]:
    config = BridgeConfig(relative=s.config.rare.relative, most=most)
    return bridge(
        s.model, s.target, s.inside, seed=seed, config=config, divergence=divergence, progress=say
    ).to_dict()


def say(text: str) -> None:
    print(f"    {text}", file=sys.stderr, flush=True)


def asked(s: Subject) -> SplittingConfig:
    """What an audit asks of splitting."""
    return SplittingConfig(relative=s.config.rare.relative, most=s.config.rare.most)


def forced(s: Subject) -> SplittingConfig:
    """A pilot too small to end in counting, so that levels and tilt are what is tested."""
    return SplittingConfig(relative=s.config.rare.relative, most=s.config.rare.most, particles=50)


Task = tuple[str, Callable[[], dict[str, Any]]]


def tasks(s: Subject, samples: int, rows: dict[str, dict[str, Any]], seeds: int) -> Iterator[Task]:
    """Names and work; what a name stands for never changes, so that rows can be found again."""
    for name, sampler in (("audit", s.sampler), ("flow", FLOW)):
        for first in range(0, samples, UNIT):
            n = min(UNIT, samples - first)
            yield f"brute {name}/{first}+{n}", lambda p=sampler, f=first, n=n: count(s, p, f, n)
    for first in range(0, samples, UNIT):
        key = f"brute flow/{first}+{min(UNIT, samples - first)}"
        if key in rows:
            yield f"adaptive flow/{first}", lambda k=key: again(s, rows[k])
    for seed in range(seeds):
        for name, sampler in (("audit", s.sampler), ("flow", FLOW)):
            yield (
                f"splitting {name}/asked {seed}",
                lambda p=sampler, i=seed: split(s, p, i, asked(s)),
            )
            yield (
                f"splitting {name}/levels {seed}",
                lambda p=sampler, i=seed: split(s, p, i, forced(s)),
            )
        if s.target.numel() <= 64:
            yield f"bridge flow/exact, at most 240 {seed}", lambda i=seed: bridged(s, i, None, 240)
        probes = Hutchinson(8, Streams(seed), "bridge.divergence")
        yield f"bridge flow/8 probes {seed}", lambda i=seed, d=probes: bridged(s, i, d)


def held(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of an earlier run, by name."""
    if not path.exists():
        return {}
    return {one["key"]: one for one in (json.loads(line) for line in path.read_text().splitlines())}


def work(s: Subject, path: Path, samples: int, only: str | None, seeds: int) -> None:
    for key, do in tasks(s, samples, held(path), seeds):
        if (only is not None and only not in key) or key in held(path):
            continue
        start, busy = time.perf_counter(), time.process_time()
        row = {"key": key, **do()}
        row["seconds"] = round(time.perf_counter() - start, 2)
        row["cpu_seconds"] = round(time.process_time() - busy, 2)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{key:28} {row['cpu_seconds']:8.1f} s", file=sys.stderr, flush=True)


def brute_force(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of all units together, with Clopper and Pearson's interval."""
    trials = Trials(sum(r["hits"] for r in rows), sum(r["samples"] for r in rows))
    low, high = trials.interval(0.95)
    return {
        "samples": trials.n,
        "hits": trials.k,
        "rate": trials.rate,
        "low": low,
        "high": high,
        **spent(rows),
    }


def spent(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "network_evaluations": sum(r["network_evaluations"] for r in rows),
        "cpu_seconds": round(sum(r["cpu_seconds"] for r in rows), 1),
    }


def compared(row: dict[str, Any], truth: dict[str, Any]) -> dict[str, Any]:
    """One estimate beside brute force: whether the intervals meet, and how far apart, in standard errors."""
    names = ("rate", "low", "high", "reliable", "diagnostic", "stage", "network_evaluations", "cpu_seconds")
    entry = {"estimate": row["key"], **{name: row.get(name) for name in names}}
    if not row["reliable"]:
        return entry
    errors = [math.log(one["high"] / max(one["low"], 1e-300)) / (2 * 1.96) for one in (row, truth)]
    return entry | {
        "agrees": row["low"] <= truth["high"] and truth["low"] <= row["high"],
        "apart": round(math.log(row["rate"] / truth["rate"]) / math.hypot(*errors), 2),
        "brute_force_cost_ratio": round(cost_ratio(row, truth, errors[0]), 2),
    }


def cost_ratio(row: dict[str, Any], truth: dict[str, Any], error: float) -> float:
    """Evaluations that counting needs for this estimate's own error, over what the estimate took."""
    per_sample = truth["network_evaluations"] / truth["samples"]
    needed = (1 - truth["rate"]) / (truth["rate"] * error**2) * per_sample
    return needed / row["network_evaluations"]


def summary(rows: list[dict[str, Any]], s: Subject) -> dict[str, Any]:
    result: dict[str, Any] = {
        "model": s.config.data.source,
        "images": s.config.data.images,
        "pixels": s.target.numel(),
        "copies_of_n": s.copies,
    }
    for name, sampler in (("audit", s.sampler), ("flow", FLOW)):
        counted = [r for r in rows if r["key"].startswith(f"brute {name}/")]
        if not counted:
            continue
        truth = brute_force(counted)
        others = [
            compared(r, truth)
            for r in rows
            if r["key"].split("/")[0] in (f"splitting {name}", f"bridge {name}")
        ]
        result[name] = {"sampler": sampler.describe(), "brute_force": truth, "estimates": others}
    solver = [r for r in rows if r["key"].startswith("adaptive flow/")]
    if solver:
        totals = {k: sum(r[k] for r in solver) for k in solver[0] if k.startswith(("hits", "near", "other"))}
        result["flow"]["the_same_noise_in_the_adaptive_solver"] = totals | spent(solver)
    found = [e for name in ("audit", "flow") for e in result.get(name, {}).get("estimates", [])]
    sure = [e for e in found if e["reliable"]]
    return result | {
        "agree": f"{sum(e['agrees'] for e in sure)} of {len(sure)} reliable, {len(found)} in all",
        **record(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="estimators of q against brute force on a trained network")
    parser.add_argument("--run", type=Path, required=True, help="folder of a demo or an audit")
    parser.add_argument("--rows", type=Path, required=True, help="file of rows, appended to, resumed from")
    parser.add_argument("--samples", type=int, default=100_000, help="of brute force, for each sampler")
    parser.add_argument("--seeds", type=int, default=3, help="repeats of each estimator")
    parser.add_argument("--only", help="the parts whose name holds this, e.g. 'brute audit' or 'bridge'")
    parser.add_argument("--quick", action="store_true", help="2,000 samples and no estimator but splitting")
    parser.add_argument("--summarise", action="store_true", help="only the rows that are there already")
    parser.add_argument("--root", type=Path, default=Path("../shared/medmnist"), help="MedMNIST files")
    add_output(parser)
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    s = subject(a.run, a.root)
    if not a.summarise and a.quick:
        work(s, a.rows, 2 * UNIT, "brute", 1)
        work(s, a.rows, 2 * UNIT, "splitting audit/asked", 1)
    elif not a.summarise:
        work(s, a.rows, a.samples, a.only, a.seeds)
    tell(summary(list(held(a.rows).values()), s), a)


if __name__ == "__main__":
    main()
