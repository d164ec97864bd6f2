"""Signs of memorisation that a prompt shows before any image is looked at. Held-out prompts say what each is
worth.

    d(e)         eps(x, t | prompt) - eps(x, t | nothing)  at t = T, where x is pure noise e
    magnitude    mean |d|, over noises                                  Wen et al. 2024
    alignment    |mean d|^2 / mean |d|^2: 1 where the prompt pulls every noise the same way
    entropy      of the attention to the words at the last step, its sign changed      Ren et al. 2024
    ending       attention to the end token at the last step                           Chen et al. 2025

A higher value means that the pair is more likely memorised. None of these proves that an image comes back;
they are measured on training prompts and on held-out ones to see what they are worth. The last two need
layers that attend to the words alone; a transformer that attends to words and image at once has none.

Sources: Wen et al. 2024, "Detecting, Explaining, and Mitigating Memorization in Diffusion Models", section 3;
``adapters.text.attention``. The alignment is ours: the share of the difference that all noises have in
common.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from latentprint.adapters import Opened
from latentprint.adapters.text.attention import crosses, last_word, watched
from latentprint.adapters.text.model import Text
from latentprint.audit.asking import Prompts, sampled_under
from latentprint.audit.context import Context
from latentprint.denoiser import Denoiser, epsilon_from_denoised
from latentprint.results.notes import SIGNS
from latentprint.results.prompts import EACH
from latentprint.sampler import trajectories

UNIT = 16
"""Prompts between two writes to disk."""

NOISE = "prompts.signs"


def signs(
    context: Context,
    opened: Opened,
    found: Prompts,
    name: str,
    numbers: Sequence[int],
    words: Sequence[str | None],
) -> None:
    """The signs of these prompts, as rows ``signs.<name>`` by the number of their image.

    Held-out images share no noise with training images of the same number.
    """
    purpose, text = SIGNS.part(name), opened.text
    ids = np.array(numbers, np.int64)
    if text is None or not context.config.prompts.signs or not len(ids):
        return
    first = len(found.train) if name == "heldout" else 0
    with context.stage(purpose):
        missing = context.run.missing(purpose, ids)
        for start in range(0, len(missing), UNIT):
            context.say(f"signs, {name}", len(ids) - len(missing) + start, len(ids), "prompts")
            rows = missing[start : start + UNIT]
            each = [
                _of(context, opened, text, words[i] or "", i + first, found.guidance) for i in rows.tolist()
            ]
            columns = {key: np.array([one[key] for one in each]) for key in each[0]}
            context.run.append(purpose, {"id": rows, **columns})
        context.say(f"signs, {name}", len(ids), len(ids), "prompts")
        if not context.run.stage(purpose).done:
            cost = int(context.run.rows(purpose)["evaluations"].sum())
            context.run.finish(purpose, {"network_evaluations": cost})


@torch.no_grad()
def _of(
    context: Context, opened: Opened, text: Text, prompt: str, number: int, guidance: float
) -> dict[str, float]:
    """The signs of one prompt."""
    count = context.config.prompts.signs
    keys = torch.arange(count, dtype=torch.int64, device=context.device) + number * EACH
    noise = context.streams.noise(
        f"{NOISE}.start", keys, 0, opened.shape, device=context.device, dtype=torch.float32
    )
    asked, free = text.under(prompt, 1.0)[0], text.unasked()
    top = torch.full((count,), asked.schedule.start, dtype=torch.float64)
    x = float(asked.schedule.sigma(top)[0]) * noise
    pulls = (_noise(asked, x, top) - _noise(free, x, top)).double().flatten(1)
    length = pulls.square().sum(1)
    out = {
        "magnitude": float(length.sqrt().mean()),
        "alignment": float(pulls.mean(0).square().sum() / length.mean().clamp_min(1e-30)),
        "evaluations": 2 * count,
    }
    if not crosses(text.network):
        return out
    sampled = sampled_under(opened, context.config.sampler.own, guidance, prompt)
    start = torch.full((count,), sampled.schedule.start, dtype=torch.float64)
    begin = sampled.schedule.prior_std * noise
    ends, cost = torch.zeros_like(noise), 0
    for one in trajectories(
        sampled,
        context.sampler,
        start,
        keys,
        lambda rows: begin[rows],
        context.streams,
        f"{NOISE}.path",
        count,
    ):
        ends[one.rows] = one.x
        cost += int(one.evaluations.sum())
    with watched(text.network) as attended:
        asked(ends, torch.full((count,), asked.schedule.end, dtype=torch.float64))
    word = min(last_word(text, prompt), attended.layers[0].shape[1] - 1)
    return out | {
        "entropy": -float(attended.entropy().mean()),
        "ending": float(attended.on(word).mean()),
        "evaluations": 3 * count + cost,
    }


def _noise(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    return epsilon_from_denoised(denoiser.schedule, x, denoiser(x, t), t)
