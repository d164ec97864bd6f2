"""Training length (paper Fig. 3, Fig. 10): one training, looked at after several numbers of steps.

Weights are kept at the asked steps while the one training goes on, so that the lengths differ by nothing but
their number of steps. With a learning rate that falls, earlier lengths stand higher on the fall than a
training that ends there would; the paper does not say whether its rate falls.

    at each length k:   t' (Alg. 1),  n samples: c_p, c_id, both,  errors of those that came back to x_p,
                        all samples against all training images by one rule, the same at every length
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentprint.attacks.nearest import nearest
from latentprint.audit import evidence, stages
from latentprint.audit.context import Context, Where
from latentprint.audit.growing import grown
from latentprint.audit.lifecycle import begin
from latentprint.audit.whole_set import whole_set
from latentprint.contracts import Outcome
from latentprint.data.images import Pixels
from latentprint.fingerprint import Injection
from latentprint.networks import build_unet, load_model, save_model
from latentprint.networks.saved import ABOUT
from latentprint.probe import Compare
from latentprint.results import rates, tprime
from latentprint.results.assemble import whole_set_of
from latentprint.results.notes import CHECKPOINT_SEARCH
from latentprint.results.searched import SAMPLES
from latentprint.results.stored import Stored
from latentprint.store import Run
from latentprint.training import train
from tools.reproduce.shared import Unit, borrow
from tools.reproduce.summary import Entry, circumstances, count_entry, search_entry, whole_entry


def run_lengths(
    unit: Unit,
    where: Where = Where(),  # noqa: B008 (frozen)
) -> Entry:
    """Train once and audit the weights after each of the unit's lengths; the same call continues it.

    Returns: ``lengths``, one entry each, with the circumstances of the run.

    Raises:
        InputError: as ``run_audit``.
    """
    if unit.lender is not None:
        borrow(unit, where)
    about = unit.subject(where)
    split, injection = about.split, about.injection
    with Run.open(unit.folder, about.settings, grows=grown) as run:
        context = Context(about.config, run, where)
        begin(context, split, injection, None)
        detectors = stages.detectors(context, split, injection)
        every = whole_set(context, split, injection)
        snapshots(context, injection.marked.pixels, unit.lengths)
        expected = injection.copies / len(split.train)
        lengths = [_look(context, detectors, injection, step, expected, every) for step in unit.lengths]
        entry = {
            "data": {"source": split.name, "images": len(split.train), "shape": list(split.train.shape)},
            "copies": injection.copies,
            "lengths": lengths,
        }
        run.complete()
        run.write_json("results.json", entry)
        return entry | circumstances(run)


def folder(out: Path, step: int) -> Path:
    """Where the weights after ``step`` steps are."""
    return out / f"at-{step}"


def snapshots(context: Context, pixels: Pixels, steps: Sequence[int]) -> None:
    """Train on images (N, C, H, W) and keep the averaged weights after each of ``steps``."""
    settings, last = context.config.model, steps[-1]
    with context.stage("model"):
        if context.run.stage("model").done:
            return
        network = build_unet(settings.network, pixels.shape[1], pixels.shape[2:], context.streams)
        torch.nn.Module.to(network, context.device)
        states = train(
            pixels,
            network,
            settings.schedule(),
            settings.training,
            context.streams,
            context.device,
            context.run.path / "checkpoints" / "model",
            show_resumed=True,  # a kill between a checkpoint and the weights kept at that very step
        )
        for state in states:
            context.say("training", state.step, last, "steps")
            into = folder(context.run.path, state.step)
            if state.step in steps and not (into / ABOUT).exists():
                save_model(into, state.denoiser)
            if state.step >= last:
                break
        context.run.finish("model", {"steps": last})


def _look(
    context: Context,
    detectors: stages.Detectors,
    injection: Injection,
    step: int,
    expected: float,
    every: Compare | None,
) -> dict[str, Any]:
    search, sampled = CHECKPOINT_SEARCH.at(f"at-{step}"), replace(SAMPLES, name=f"samples.at-{step}")
    loaded = load_model(folder(context.run.path, step), context.device)
    model = stages.for_sampling(loaded, context.config.speed.sampling, context.batch)
    audited = stages.Audited(model, detectors, injection.target)
    stages.search(context, search, audited)
    samples = stages.sample(context, sampled, audited, context.config.samples.count, None, compare=every)
    stored, values = Stored.of(context.run), detectors.values
    found = tprime.search(stored, search, values)
    counted = rates.counted(stored, sampled, values, expected)
    whole = whole_set_of(stored, sampled)
    assert found is not None and counted is not None  # both stages are finished
    hits = np.flatnonzero(samples.hit)
    # The nearest training image needs the images that came back, drawn again from their ids.
    prior = replace(stages.prior_probe(context, audited), watch=None)
    detected = evidence.pictures(prior, stages.at(model.schedule.start, len(hits)), hits)
    return {
        "step": step,
        "monte_carlo": count_entry(counted),
        "t_prime": search_entry(found),
        "memorised": _memorised(samples, detected, injection),
        "whole_set": None if whole is None else whole_entry(whole),
    }


def _memorised(samples: Outcome, detected: NDArray[np.float32], injection: Injection) -> Entry:
    """Errors of the detected samples (n, C, H, W) to x_p, and how many have it as nearest training image."""
    if not len(detected):
        return {"count": 0, "mse": None, "mae": None, "nearest": None}
    near = nearest(torch.from_numpy(detected), torch.from_numpy(injection.marked.pixels))
    errors = {name: samples.columns[name][samples.hit] for name in ("mse", "mae")}
    return {
        "count": len(detected),
        **{
            name: {"min": float(e.min()), "median": float(np.median(e)), "max": float(e.max())}
            for name, e in errors.items()
        },
        "nearest": {"target": int((near.index[:, 0] == injection.index).sum()), "n": len(detected)},
    }
