"""Membership scores beside t': what the field would otherwise run apart, on the same images.

Loss, SecMI, PIA and, where they were computed, likelihoods of training and of held-out images, and of x_p;
what each is worth as AUC and as true positives at 1 % and 0.1 % false ones (``latentprint.stats.roc``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentprint.attacks.membership import MembershipConfig, membership_scores
from latentprint.audit.work import Work, one_image
from latentprint.data import Split
from latentprint.denoiser import Denoiser
from latentprint.fingerprint import Injection
from latentprint.schedule import Schedule
from latentprint.stats.roc import AtFalsePositives, Separation, auc, rank_p_value, separation

LEVEL = 0.95
UNIT = 64
"""Images between two writes to disk."""

_NAMES = ("loss", "secmi", "pia")


def membership(work: Work, model: Denoiser, split: Split, injection: Injection) -> dict[str, Any] | None:
    """``membership`` of results.json; None where the settings leave it out or too few images are held out.

    ``low`` and ``high`` enclose the AUC of the best of the scores: each at a level at which all hold together
    (Bonferroni), and of these the largest ends.
    """
    count = work.config.membership.images
    if count == 0 or len(split.heldout) < 2:
        return None
    members = np.delete(np.arange(len(split.train)), injection.index)[:count]
    config = _within(work.config.membership.scores, model.schedule)
    if isinstance(config, str):
        return {"scores": [], "auc": None, "low": None, "high": None, "level": LEVEL, "note": config}
    heldout = np.arange(min(count, len(split.heldout)))
    parts = {
        "train": (injection.marked.pixels, members),
        "heldout": (split.heldout.pixels, heldout),
        "target": (injection.marked.pixels, np.array([injection.index])),
    }
    kept = {name: _scored(work, model, name, pixels, ids, config) for name, (pixels, ids) in parts.items()}
    inside, outside, own = ({n: kept[p][n] for n in _NAMES} for p in ("train", "heldout", "target"))
    likely = _likelihoods(work)
    if likely is not None:
        inside["likelihood"], outside["likelihood"], own["likelihood"] = likely
    found = separation(inside, outside, level=LEVEL)
    each = 1 - (1 - LEVEL) / len(found)
    apart = [auc(inside[one.name], outside[one.name], each) for one in found]
    return {
        "scores": [_entry(one, float(own[one.name][0]), outside[one.name]) for one in found],
        "auc": max(one.value for one in apart),
        "low": max(one.low for one in apart),
        "high": max(one.high for one in apart),
        "level": LEVEL,
        "members": len(members),
        "heldout": len(heldout),
        "network_evaluations": int(sum(rows["evaluations"].sum() for rows in kept.values())),
    }


def _within(config: MembershipConfig, schedule: Schedule) -> MembershipConfig | str:
    """The settings on a schedule: the loss keeps to the ratios it has; a sentence where these are none."""
    low, high = float(schedule.ratio(schedule.end)), float(schedule.ratio(schedule.start))
    first, last = config.loss_ratios
    narrow = (max(first, low * (1 + 1e-9)), min(last, high * (1 - 1e-9)))
    if not low < 0.3 or not high > 1 or narrow[0] >= narrow[1]:
        return f"the model's noise goes from {low:.3g} to {high:.3g} times the image, not where scores look"
    return replace(config, loss_ratios=narrow)


def _scored(
    work: Work,
    model: Denoiser,
    name: str,
    pixels: NDArray[np.float32],
    ids: NDArray[np.int64],
    config: MembershipConfig,
) -> dict[str, NDArray[Any]]:
    """Scores of images by their places; rows are kept as ``membership.<name>``."""
    purpose = f"membership.{name}"
    missing = work.run.missing(purpose, ids)
    # held-out images share no noise with training images of the same place
    offset = 2**32 if name == "heldout" else 0
    for first in range(0, len(missing), UNIT):
        work.say(f"membership scores, {name}", len(ids) - len(missing) + first, len(ids), "images")
        rows = missing[first : first + UNIT]
        with torch.no_grad():
            images = one_image(pixels[rows], work.device)
            scores = membership_scores(model, images, work.streams, rows + offset, config, codec=work.codec)
        cost = np.full(len(rows), config.evaluations(), np.int64)
        work.run.append(purpose, {"id": rows, "evaluations": cost, **scores})
    work.say(f"membership scores, {name}", len(ids), len(ids), "images")
    return dict(work.run.rows(purpose))


def _likelihoods(work: Work) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None:
    """Log-likelihoods of training images, held-out images and x_p, where the run holds them."""
    kept = [work.run.rows(f"likelihood.{name}") for name in ("train", "heldout", "target")]
    if any(not rows or len(rows["nats"]) < least for rows, least in zip(kept, (2, 2, 1), strict=True)):
        return None
    train, heldout, target = (rows["nats"] for rows in kept)
    return train, heldout, target


def _entry(one: Separation, target: float, heldout: NDArray[Any]) -> dict[str, Any]:
    return {
        "name": one.name,
        "auc": {
            "value": one.auc.value,
            "low": one.auc.low,
            "high": one.auc.high,
            "level": one.auc.level,
            "method": one.auc.method,
        },
        "at": [_at(share) for share in one.at],
        "target": {"score": target, "p_value": rank_p_value(target, heldout)},
    }


def _at(one: AtFalsePositives) -> dict[str, Any]:
    return {
        "wanted": one.wanted,
        "tpr": {"k": one.tpr.k, "n": one.tpr.n},
        "fpr": {"k": one.fpr.k, "n": one.fpr.n},
        "resolved": one.resolved,
    }
