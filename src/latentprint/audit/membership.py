"""Membership scores in addition to t', on the same images, so that no other tool must be run for them.

Loss, SecMI, PIA and, if they were computed, likelihoods, of training images, held-out images and x_p. Each
score's worth is its AUC, and its true positives at 1 % and 0.1 % false ones (``latentprint.stats.roc``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentprint.attacks.membership import MembershipConfig, membership_scores
from latentprint.audit.context import Context, one_image
from latentprint.config import AuditConfig
from latentprint.contracts import InputError
from latentprint.data import Split
from latentprint.data.images import Pixels
from latentprint.denoiser import Denoiser
from latentprint.fingerprint import Injection
from latentprint.results.notes import MEMBERSHIP, Scored
from latentprint.schedule import Schedule

UNIT = 64
"""Images between two writes to disk."""


def membership(context: Context, model: Denoiser, split: Split, injection: Injection) -> None:
    """Scores of members, held-out images and x_p, as rows; nothing where left out or too few are held out."""
    count = context.config.membership.images
    if count == 0 or len(split.heldout) < 2 or context.run.stage(MEMBERSHIP.name).done:
        return
    members = np.delete(np.arange(len(split.train)), injection.index)[:count]
    config = within(context.config.membership.scores, model.schedule)
    if isinstance(config, str):
        context.finish(MEMBERSHIP, Scored(note=config))
        return
    heldout = np.arange(min(count, len(split.heldout)))
    parts = {
        "train": (injection.marked.pixels, members, 0),
        "heldout": (split.heldout.pixels, heldout, len(split.train)),
        "target": (injection.marked.pixels, np.array([injection.index]), 0),
    }
    cost = 0
    with context.stage(MEMBERSHIP.name):
        for name, (pixels, ids, first) in parts.items():
            cost += _scored(context, model, name, pixels, ids, first, config)
        context.finish(MEMBERSHIP, Scored(note=None), network_evaluations=cost)


def within(config: MembershipConfig, schedule: Schedule) -> MembershipConfig | str:
    """The settings restricted to the noise ratios of the schedule; a sentence where it has none of them."""
    if (sentence := config.misses(schedule)) is not None:
        return sentence
    low, high = float(schedule.ratio(schedule.end)), float(schedule.ratio(schedule.start))
    first, last = config.loss_ratios
    return replace(config, loss_ratios=(max(first, low * (1 + 1e-9)), min(last, high * (1 - 1e-9))))


def require_scores(config: AuditConfig) -> None:
    """Check that the scores asked for can be computed for the model that is trained."""
    sentence = config.membership.scores.misses(config.model.schedule())
    if config.membership.images and sentence is not None:
        raise InputError(f"membership.scores: {sentence}; other ratios, or membership.images = 0, would do")


def _scored(
    context: Context,
    model: Denoiser,
    name: str,
    pixels: Pixels,
    ids: NDArray[np.int64],
    first_number: int,
    config: MembershipConfig,
) -> int:
    """Keep the scores of images by their places as rows ``membership.<name>``; returns the network
    evaluations.

    ``first_number`` is that of the first image in `audit.comparison`.
    """
    purpose = MEMBERSHIP.part(name)
    missing = context.run.missing(purpose, ids)
    # held-out images share no noise with training images of the same place
    offset = 2**32 if name == "heldout" else 0
    for first in range(0, len(missing), UNIT):
        context.say(f"membership scores, {name}", len(ids) - len(missing) + first, len(ids), "images")
        rows = missing[first : first + UNIT]
        with torch.no_grad():
            images = one_image(pixels[rows], context.device)
            scores = _scores(context, model, images, rows + first_number, rows + offset, config)
        cost = np.full(len(rows), config.evaluations(), np.int64)
        context.run.append(purpose, {"id": rows, "evaluations": cost, **scores})
    context.say(f"membership scores, {name}", len(ids), len(ids), "images")
    return int(context.run.rows(purpose)["evaluations"].sum())


def _scores(
    context: Context,
    model: Denoiser,
    images: Tensor,
    numbers: NDArray[np.int64],
    noise: NDArray[np.int64],
    config: MembershipConfig,
) -> Mapping[str, NDArray[Any]]:
    """The scores of images (n, C, H, W), each under its own prompt where images have prompts."""
    if context.under is None:
        return membership_scores(model, images, context.streams, noise, config, codec=context.codec)
    each = [
        membership_scores(
            context.under(int(number), False),
            images[i : i + 1],
            context.streams,
            noise[i : i + 1],
            config,
            codec=context.codec,
        )
        for i, number in enumerate(numbers)
    ]
    return {name: np.concatenate([one[name] for one in each]) for name in each[0]}
