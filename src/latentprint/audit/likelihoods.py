"""Likelihoods under the probability-flow ODE (Eq. 5), of training images, held-out images and x_p."""

from __future__ import annotations

import numpy as np
import torch

from latentprint.audit.context import Context, one_image
from latentprint.data import Split
from latentprint.data.images import Pixels
from latentprint.denoiser import Denoiser
from latentprint.fingerprint import Injection
from latentprint.likelihood import Exact, Hutchinson, bits_per_dim, dequantise, log_likelihood
from latentprint.results.notes import LIKELIHOOD, Probes

TOLERANCE = 1e-3
"""Tolerance of the adaptive integration in nats per dimension: a hundredth of the difference between
images."""

UNIT = 8
"""Images between two writes to disk."""


def likelihood(context: Context, model: Denoiser, split: Split, injection: Injection) -> None:
    """Bits per dimension of training images, held-out images and x_p, as rows; nothing where left out.

    Images without a bit depth (floats) have no bits per dimension, and no value is invented for them.
    """
    count, depth = context.config.likelihood.images, split.train.bit_depth
    if count == 0 or depth is None:
        return
    others = injection.marked.pixels[np.delete(np.arange(len(split.train)), injection.index)[:count]]
    parts = {"train": others, "heldout": split.heldout.pixels[:count], "target": injection.target[None]}
    total, done, cost = sum(map(len, parts.values())), 0, 0
    with context.stage(LIKELIHOOD.name):
        for name, pixels in parts.items():
            cost += _bits(context, model, name, pixels, depth, done, total)
            done += len(pixels)
        if not context.run.stage(LIKELIHOOD.name).done:
            probes = Probes(probes=context.config.likelihood.probes)
            context.finish(LIKELIHOOD, probes, network_evaluations=cost)


def _bits(
    context: Context,
    model: Denoiser,
    name: str,
    pixels: Pixels,
    depth: float,
    done: int,
    total: int,
) -> int:
    """Keep the bits per dimension of images as rows ``likelihood.<name>``; returns the network
    evaluations."""
    purpose, probes = LIKELIHOOD.part(name), context.config.likelihood.probes
    streams = context.streams
    divergence = Exact() if probes is None else Hutchinson(probes, streams, purpose=f"{purpose}.probes")
    missing = context.run.missing(purpose, range(len(pixels)))
    for first in range(0, len(missing), UNIT):
        context.say("likelihoods", done + len(pixels) - len(missing) + first, total, "images")
        ids = missing[first : first + UNIT]
        keys = torch.as_tensor(ids) + _offset(name)
        noisy = dequantise(one_image(pixels[ids], context.device), depth, streams, keys)
        seen = log_likelihood(model, noisy, divergence, tolerance=TOLERANCE, ids=keys)
        bits = bits_per_dim(seen.nats, int(np.prod(pixels.shape[1:])), depth)
        columns = {"bits": bits, "nats": seen.nats, "standard_error": seen.standard_error}
        rows = {key: value.detach().cpu().numpy() for key, value in columns.items()}
        context.run.append(purpose, {"id": ids, "evaluations": seen.evaluations.cpu().numpy(), **rows})
    context.say("likelihoods", done + len(pixels), total, "images")
    return int(context.run.rows(purpose)["evaluations"].sum()) if len(pixels) else 0


def _offset(name: str) -> int:
    """An offset for the ids, so that images of different kinds share no dequantisation noise and no
    probes."""
    return {"train": 0, "heldout": 2**32, "target": 2**33}[name]
