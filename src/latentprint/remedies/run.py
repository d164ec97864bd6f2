"""All remedies on one set of images: one table, resumable by rows.

Half of the held-out images serve the remedies (to compare with, to calibrate a filter, as further images);
the other half is for measuring. Marked images are drawn once, each in or out by a coin, and every row has the
same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentprint.audit.costs import require_memory
from latentprint.audit.images import read_images
from latentprint.config import AuditConfig
from latentprint.contracts import Map
from latentprint.keys import generator
from latentprint.marks import draw_canaries
from latentprint.progress import Report, silent
from latentprint.remedies import measure
from latentprint.remedies.measure import Ground
from latentprint.remedies.picture import picture
from latentprint.remedies.private import PrivateError
from latentprint.remedies.rows import NotTried, Row, Table, noted
from latentprint.remedies.table import REMEDIES, Recipe, Remedy, RemedyError, require_known
from latentprint.remedies.training import Trained, trained
from latentprint.results.stored import Stored
from latentprint.settings import plain
from latentprint.store import Run

_HERE = map

LEAST_TEST = 50
"""Fewest held-out images for the measures; with fewer a calibrated threshold means nothing."""


@dataclass(frozen=True)
class RemediesConfig:
    """What is compared, and how much of it.

    Attributes:
        audit: images, marks, model, sampler, how many samples and likelihoods, seed.
        fingerprints: about how many marked images the coin puts in; about as many are left out.
        names: remedies to try; None: all.

    Raises:
        RemedyError: an unknown remedy.
    """

    audit: AuditConfig
    fingerprints: int = 10
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.names is not None:
            require_known(self.names)

    @property
    def remedies(self) -> tuple[Remedy, ...]:
        """The remedies asked for, "none" first, with which the others are compared."""
        wanted = self.names or tuple(one.name for one in REMEDIES)
        return tuple(one for one in REMEDIES if one.name in wanted or one.name == "none")


def compare_remedies(
    config: RemediesConfig,
    out: Path | str,
    *,
    root: Path | str | None = None,
    download: bool = False,
    fresh: bool = False,
    progress: Report = silent,
    map: Map = map,  # noqa: A002 (it is one)
) -> Table:
    """The table: ``rows``, each with ``name``, ``q``, ``copies``, ``fid``, ``seconds`` and more.

    It is also written into the folder ``out`` as remedies.json, with remedies.svg. The same call continues
    it.

    Raises:
        InputError: too few images for the marks or the measures, or a remedy asked for by name that is
            impossible.
    """
    audit = config.audit
    if not audit.fingerprint.injected:
        raise RemedyError("remedies are compared by drawn marks, and a natural one cannot be put elsewhere")
    split = read_images(audit, root, download)
    require_memory(audit, split.train.shape, torch.device("cpu"), trains=True)
    recipe, ground = _prepared(config, split)
    units, skipped = _units(config, recipe, progress)
    settings = {"remedies": plain(audit), "fingerprints": config.fingerprints}
    data = {"train": split.train.manifest, "heldout": split.heldout.manifest}
    with Run.open(out, settings | {"data": data}, fresh=fresh) as run:
        waiting = [unit for unit in units if not all(run.stage(one.slug).done for one in unit.remedies)]
        # A report belongs to this process; other processes only report finished trainings.
        say, folder = progress if map is _HERE else silent, run.path / "checkpoints"
        work = partial(_worked, ground=ground, seed=audit.seed, folder=folder, say=say)
        done = len(units) - len(waiting)
        progress("remedies", done, len(units), "trainings")
        for rows in map(work, waiting):
            for slug, row in rows.items():
                run.finish(slug, noted(slug).of(row))
            done += 1
            progress("remedies", done, len(units), "trainings")
        rows = [_row(run, one, skipped) for one in config.remedies]
        table = Table(
            data=split.name,
            images=len(recipe.train),
            shape=recipe.train.shape[1:],
            seed=audit.seed,
            rows=tuple(rows),
        )
        run.write_json("remedies.json", table.plain())
        run.write("remedies.svg", picture(table.tried).encode())
    return table


@dataclass(frozen=True, eq=False)
class _Unit:
    """One training, and the remedies that use its model."""

    recipe: Recipe
    remedies: tuple[Remedy, ...]


def _prepared(config: RemediesConfig, split: Any) -> tuple[Recipe, Ground]:
    audit, held = config.audit, split.heldout.pixels
    if len(held) < 2 * LEAST_TEST:
        raise RemedyError(
            f"half of the held-out images serve the remedies and half measure them, which takes"
            f" {2 * LEAST_TEST}, got {len(held)}: hold out more, or train on fewer (--images)"
        )
    order = generator(audit.seed, "remedies.halves").permutation(len(held))
    aside, test = (held[np.sort(part)] for part in (order[: len(held) // 2], order[len(held) // 2 :]))
    rng = generator(audit.seed, "remedies.marks")
    drawn = draw_canaries(split.train, audit.fingerprint.drawn(aside), config.fingerprints, rng)
    places = drawn.places(len(split.train))
    train = np.asarray(drawn.put_into(split.train).pixels)
    # Marked images that are in replace their originals; those left out come after the training images.
    inside = np.searchsorted(places, drawn.origin)
    marked = np.where(drawn.member, inside, len(train) + np.cumsum(~drawn.member) - 1)
    more = aside if split.drawn else aside[:0]
    recipe = Recipe(
        train,
        aside,
        more,
        audit.model,
        embedding=audit.embedding,
        kind=audit.fingerprint.drawn(aside),
        seed=audit.seed,
    )
    ground = Ground(
        np.concatenate([train, drawn.images[~drawn.member]]),
        marked.astype(np.int64),
        drawn.member,
        test,
        split.train.bit_depth,
        audit.model,
        audit.sampler.sampler(),
        audit.samples.count,
        audit.likelihood.images,
        audit.seed,
    )
    return recipe, ground


def _units(config: RemediesConfig, recipe: Recipe, progress: Report) -> tuple[list[_Unit], dict[str, str]]:
    """The trainings, and for remedies that cannot be tried here the reason."""
    shared = tuple(one for one in config.remedies if one.recipe is None)
    units, skipped = [_Unit(recipe, shared)], dict[str, str]()
    for done, one in enumerate(config.remedies, 1):
        progress("preparing remedies", done, len(config.remedies), "remedies")
        if one.recipe is None:
            continue
        try:
            units.append(_Unit(one.recipe(recipe), (one,)))
        except (RemedyError, PrivateError) as error:
            if config.names is not None:
                raise
            skipped[one.name] = str(error)
    return units, skipped


def _worked(unit: _Unit, *, ground: Ground, seed: int, folder: Path, say: Report) -> Mapping[str, Row]:
    """The rows of a unit by slug: one training, and each of its remedies applied to the model."""
    first = unit.remedies[0].name
    steps = unit.recipe.model.training.steps

    def told(step: int) -> None:
        if step % 10 == 0 or step == steps:
            say(f"training: {first}", step, steps, "steps")

    made = trained(unit.recipe, seed, folder / unit.remedies[0].slug, told)
    return {one.slug: _measured(one, made, unit.recipe, ground) for one in unit.remedies}


def _measured(remedy: Remedy, made: Trained, recipe: Recipe, ground: Ground) -> Row:
    model = measure.fast(made.denoiser)
    used = model if remedy.denoiser is None else remedy.denoiser(model, recipe)
    samples = measure.sampled(used, ground)
    row: dict[str, object] = {
        "name": remedy.name,
        "says": remedy.says,
        "steps": made.steps,
        "seconds": round(made.seconds, 2),
        "cpu_seconds": round(made.cpu_seconds, 2),
        "epsilon": made.epsilon,
        "kept_back": None,
        "filter_misses": None,
    }
    if remedy.sieve is not None:
        sieve = remedy.sieve(recipe)
        back = sieve.copies(samples)
        samples = samples[torch.from_numpy(~back)]
        missed = sieve.all_missed
        row |= {"kept_back": int(back.sum()), "filter_misses": [missed.rate, *missed.interval()]}
    row |= measure.risk(samples, ground)
    row |= measure.quality(samples, ground)
    row |= measure.knowledge(used, ground, recipe.delta)
    # A filter or another sampler does not change the model's own likelihood.
    if remedy.denoiser is not None or remedy.sieve is not None:
        ground = replace(ground, likelihood=0)
    return Row.model_validate(row | measure.likelihood(made.denoiser, ground))


def _row(run: Run, remedy: Remedy, skipped: Mapping[str, str]) -> Row | NotTried:
    if remedy.name in skipped:
        return NotTried(name=remedy.name, says=remedy.says, skipped=skipped[remedy.name])
    return Stored.of(run).needed(noted(remedy.slug))
