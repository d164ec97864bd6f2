"""Evidence: the images behind the numbers, drawn again from their ids. Confidential.

No image that came back is stored while the audit runs. Noise is a pure function of (seed, purpose, id, step),
so the few images that are shown can be drawn again from their ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentprint.contracts import Ids, Times
from latentprint.data.images import Pixels
from latentprint.fingerprint import Injection
from latentprint.marks import was_injected
from latentprint.probe import ModelProbe
from latentprint.report.evidence import Evidence, NearestPair, Noised, Sample
from latentprint.results.criteria import CRITERIA
from latentprint.results.notes import SEARCH
from latentprint.results.searched import SAMPLES
from latentprint.results.whole_set import PREFIX, WholeSet
from latentprint.store import Run

SHOWN_LEVELS = 12
SHOWN_SAMPLES = 48
SHOWN_PAIRS = 20

Rows = dict[str, NDArray[Any]]


def pictures(probe: ModelProbe, t: Times, ids: Ids) -> NDArray[np.float32]:
    """The images (n, C, H, W) in which these trajectories end, in the order asked."""
    out = np.zeros((len(ids), *probe.target.shape), np.float32)
    for rows, images, _ in probe.images(t, ids):
        out[rows.cpu().numpy()] = images.float().cpu().numpy()
    return out


def collect(
    run: Run, injection: Injection, noised: ModelProbe, prior: ModelProbe, found: WholeSet | None
) -> Evidence:
    """x_p, what came back over t (Fig. 4), detected samples (Fig. 10), false alarms (Fig. 8), and copies."""
    return Evidence(
        target=injection.target,
        original=injection.original if was_injected(injection) and _known(injection) else None,
        noised=_over_levels(run.rows(SEARCH.name), noised),
        samples=_samples(run.rows(SAMPLES.name), prior, both=True),
        false_positives=_samples(run.rows(SAMPLES.name), prior, both=False),
        pairs=nearest_pairs(run, found, injection.marked.pixels, lambda t, ids: pictures(prior, t, ids)),
        at=middle(injection),
    )


def middle(injection: Injection) -> tuple[int, ...] | None:
    """The middle of the mark; None where there is no mark."""
    inside = np.argwhere(injection.fingerprint.mask(*injection.target.shape[1:]))
    return tuple(inside.mean(0).round().astype(int).tolist()) if len(inside) else None


def nearest_pairs(
    run: Run,
    found: WholeSet | None,
    train: Pixels,
    draw: Callable[[Times, Ids], NDArray[np.float32]],
) -> list[NearestPair]:
    """The samples most alike to training images ``train`` (N, C, H, W), drawn again; empty if ``found`` is
    None."""
    if found is None:
        return []
    every = run.rows(SAMPLES.name)
    rows = {name.removeprefix(PREFIX): column for name, column in every.items() if name.startswith(PREFIX)}
    (decides,) = (one for one in CRITERIA if one.name == found.criterion)
    score, threshold = decides.score(rows), found.criteria[0].threshold
    chosen = np.argsort(score, kind="stable")[:SHOWN_PAIRS]
    images = draw(every["t"][chosen], every["id"][chosen])
    return [
        NearestPair(
            sample=int(every["id"][row]),
            image=images[i],
            training=int(rows[decides.of][row]),
            nearest=train[rows[decides.of][row]],
            distance=float(rows["distance"][row]),
            copy=threshold is not None and bool(score[row] < threshold),
        )
        for i, row in enumerate(chosen)
    ]


def _known(injection: Injection) -> bool:
    """Whether x_p is known as it was before it was marked."""
    return not np.array_equal(injection.original, injection.target)


def _over_levels(rows: Rows, probe: ModelProbe) -> list[Noised]:
    """One try a level, the first hit if there is one; at most SHOWN_LEVELS levels, evenly spaced."""
    levels = np.unique(rows["t"])
    levels = levels[np.unique(np.linspace(0, len(levels) - 1, SHOWN_LEVELS).round().astype(int))]
    chosen = np.array([_first(rows, t) for t in levels], dtype=np.int64)
    t, ids = rows["t"][chosen], rows["id"][chosen]
    with torch.no_grad():
        start = probe.begin(torch.as_tensor(t), torch.as_tensor(ids))
        begun = probe.codec.decode(start).clamp(-1, 1).float().cpu().numpy()
    ended = pictures(probe, t, ids)
    return [
        Noised(
            t=float(t[i]),
            image=begun[i],
            result=ended[i],
            presence=_presence(rows, row),
            identity=float(rows["identity"][row]),
            hit=bool(rows["hit"][row]),
        )
        for i, row in enumerate(chosen)
    ]


def _first(rows: Rows, t: float) -> int:
    here = np.flatnonzero(rows["t"] == t)
    hits = here[rows["hit"][here]]
    return int(hits[0] if len(hits) else here[0])


def _presence(rows: Rows, row: int) -> float | None:
    """c_p's probability; None where there is no c_p."""
    value = float(rows["presence"][row])
    return None if np.isnan(value) else value


def _samples(rows: Rows, probe: ModelProbe, *, both: bool) -> list[Sample]:
    # If there is no c_p, no detector can be right alone.
    judged = ~np.isnan(rows["presence"])
    wanted = rows["hit"] if both else judged & (rows["presence_hit"] ^ rows["identity_hit"])
    chosen = np.flatnonzero(wanted)[:SHOWN_SAMPLES]
    if not len(chosen):
        return []
    images = pictures(probe, rows["t"][chosen], rows["id"][chosen])
    return [
        Sample(
            id=int(rows["id"][row]),
            image=images[i],
            mse=float(rows["mse"][row]),
            presence=_presence(rows, row),
            identity=float(rows["identity"][row]),
        )
        for i, row in enumerate(chosen)
    ]
