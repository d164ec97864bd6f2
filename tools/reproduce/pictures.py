"""Image figures of the paper, drawn again from the ids of a finished run: Fig. 3, 4, 5, 8, 10.

No run stores what it sampled: noise is a pure function of (seed, purpose, id, step), so a figure asks the
model for the very images that were counted. The sets are public (MedMNIST, digits) or drawn (phantoms); with
other data these pictures would be confidential, and ``audit`` writes none outside ``evidence/``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from latentprint.audit import evidence, stages
from latentprint.audit.context import Context, Where
from latentprint.config import AuditConfig
from latentprint.data import Split
from latentprint.denoiser import Denoiser
from latentprint.fingerprint import Injection
from latentprint.settings import read
from latentprint.store import Run
from tools.reproduce.summary import settings_of

SIDE = 84
"""Pixels that an image is enlarged to, at least."""

_GAP = 4

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Reopened:
    """A finished run with its parts in memory; nothing of it is written."""

    context: Context
    injection: Injection
    detectors: stages.Detectors

    def model(self, folder: str) -> Denoiser:
        """The weights in that folder of the run, as they sample."""
        from latentprint.networks import load_model

        context = self.context
        loaded = load_model(context.run.path / folder, context.device)
        return stages.for_sampling(loaded, context.config.speed.sampling, context.batch)

    def audited(self, model: Denoiser) -> stages.Audited:
        """A model of the run with its detectors and x_p."""
        return stages.Audited(model, self.detectors, self.injection.target)

    def drawn(self, model: Denoiser, ids: NDArray[np.int64]) -> Pixels:
        """Samples (n, C, H, W) by their ids."""
        prior = stages.prior_probe(self.context, self.audited(model))
        return evidence.pictures(prior, stages.at(model.schedule.start, len(ids)), ids)


def images_of(run: Run, root: Path | str | None) -> tuple[AuditConfig, Split, Injection]:
    """The settings of a run that trained its model, and its images.

    Raises:
        InputError: its images cannot be had.
    """
    config = read(AuditConfig, settings_of(run))
    target = cast(int | None, run.settings.get("target"))
    return config, *stages.images(config, root, False, target)


def reopen(
    folder: Path, *, device: str = "cpu", batch: int = 256, root: Path | str | None = None
) -> Reopened:
    """Read a finished run.

    Raises:
        InputError: there is none, or its images cannot be had.
    """
    run = Run.read(folder)
    config, split, injection = images_of(run, root)
    context = Context(config, run, Where(device, batch, root))
    stages.remember(context, split, injection)
    return Reopened(context, injection, stages.detectors(context, split, injection))


def samples(run: Reopened, folder: str, count: int) -> Pixels:
    """The first samples of a model, (count, C, H, W) (Fig. 3, Fig. 5)."""
    return run.drawn(run.model(folder), np.arange(count, dtype=np.int64))


def back_and_forth(run: Reopened, levels: int) -> tuple[Pixels, Pixels, list[tuple[float, bool]]]:
    """Fig. 4: queries x_t, what they became, and (t, came back) of each; at most ``levels`` of them."""
    model = run.model("model")
    rows = run.context.run.rows("search.model")
    grid = np.unique(rows["t"])
    grid = grid[np.unique(np.linspace(0, len(grid) - 1, levels).round().astype(int))]
    first = np.array([int(np.flatnonzero(rows["t"] == t)[0]) for t in grid], np.int64)
    t, ids = rows["t"][first], rows["id"][first]
    probe = stages.noised_probe(run.context, run.audited(model))
    with torch.no_grad():
        begun = probe.begin(torch.as_tensor(t), torch.as_tensor(ids)).clamp(-1, 1).float().cpu().numpy()
    told = [(float(a), bool(b)) for a, b in zip(t, rows["hit"][first], strict=True)]
    return begun, evidence.pictures(probe, t, ids), told


def false_positives(run: Reopened, most: int) -> tuple[Pixels, Pixels]:
    """Fig. 8: samples in which c_p alone fired, and those in which c_id alone did."""
    rows, model = run.context.run.rows("samples.model"), run.model("model")
    out: list[Pixels] = []
    for here, other in (("presence_hit", "identity_hit"), ("identity_hit", "presence_hit")):
        ids = rows["id"][rows[here] & ~rows[other]][:most]
        shape = (0, *run.injection.target.shape)
        out.append(run.drawn(model, ids) if len(ids) else np.empty(shape, np.float32))
    return out[0], out[1]


def came_back(run: Reopened, folder: str, purpose: str, most: int) -> tuple[Pixels, NDArray[np.float64]]:
    """Fig. 10: detected samples and their MSE to x_p (pixels in [0, 1])."""
    rows = run.context.run.rows(purpose)
    here = np.flatnonzero(rows["hit"])[:most]
    if not len(here):
        return np.empty((0, *run.injection.target.shape), np.float32), np.empty(0)
    return run.drawn(run.model(folder), rows["id"][here]), rows["mse"][here].astype(np.float64)


def difference(one: Pixels, other: Pixels) -> Pixels:
    """The absolute error of pixels in [0, 1], white where none, black at the largest of the pair."""
    error = np.abs(one - other)
    return (1 - 2 * error / max(float(error.max()), 1e-12)).astype(np.float32)


def grid(rows: Sequence[Sequence[Pixels]]) -> bytes:
    """Images (C, H, W) in [-1, 1] row by row, enlarged without smoothing, as PNG.

    Raises:
        ValueError: there is no image.
    """
    shown = [row for row in rows if len(row)]
    if not shown:
        raise ValueError("a grid needs at least one image")
    side = shown[0][0].shape[-1]
    scale = max(1, round(SIDE / side))
    cell, columns = side * scale + _GAP, max(map(len, shown))
    canvas = np.full((len(shown) * cell + _GAP, columns * cell + _GAP, 3), 251, np.uint8)
    for i, row in enumerate(shown):
        for j, image in enumerate(row):
            canvas[_GAP + i * cell : (i + 1) * cell, _GAP + j * cell : (j + 1) * cell] = _large(image, scale)
    out = BytesIO()
    Image.fromarray(canvas).save(out, format="PNG", optimize=True)
    return out.getvalue()


def _large(image: Pixels, scale: int) -> NDArray[np.uint8]:
    stored = np.rint((image.clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
    grey = np.repeat(stored, 3, axis=2) if stored.shape[2] == 1 else stored
    return grey.repeat(scale, axis=0).repeat(scale, axis=1)
