"""Risk and quality of one model, measured alike for every remedy.

    marked       samples that are copies of a marked image that was trained on; q is that count divided by the
                 samples and the marked images: the chance that one sample shows a given one of them
    strangers    the same for marked images that a coin left out: what happens by chance
    copies       samples that are copies of any image of the row "none", by the calibrated criterion
    t'           of both kinds of marked images (Alg. 1 with few tries); their difference bounds epsilon
    quality      Fréchet distance, precision and recall against images that nothing was trained or chosen on,
                 and their likelihood

Sources: Kynkaanniemi et al. 2019 (precision and recall, k = 5); the others where they are implemented.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentprint.attacks.nearest import nearest
from latentprint.attacks.whole_set import Reference
from latentprint.config import ModelSettings
from latentprint.denoiser import Denoiser, NetworkDenoiser
from latentprint.keys import generator
from latentprint.likelihood import Hutchinson, bits_per_dim, dequantise, log_likelihood
from latentprint.metrics import Moments, PixelFeatures, frechet
from latentprint.networks.speed import Evaluation, for_evaluation
from latentprint.results.criteria import SHARE, Criterion, background, calibrated, present
from latentprint.sampler import Sampler, trajectories
from latentprint.stats import Trials
from latentprint.stats.epsilon import LEAST_CANARIES, epsilon_bound
from latentprint.stats.roc import auc
from latentprint.streams import Streams
from latentprint.training import Guidance
from latentprint.training.guided import Guide

Pixels = NDArray[np.float32]

TRIES = 3
"""Tries at each of LEVELS noise levels, for t' of each marked image."""

LEVELS = 12
_STEPS = 16
_K = 5
_RESAMPLES = 40


@dataclass(frozen=True, eq=False)
class Ground:
    """What every row is measured against.

    Attributes:
        pool: (p, C, H, W), the training images and, after them, the marked images left out.
        marked: (m,) places in the pool of the marked images.
        member: (m,) which of them were trained on.
        test: (n, C, H, W), images on which nothing was trained or chosen.
        depth: bits of a stored value; None: no likelihood in bits.
        model: whose times set the noise levels of t'.
        sampler: the sampler.
        samples: how many are drawn.
        likelihood: test images whose likelihood is computed.
        seed: of all noise.
    """

    pool: Pixels
    marked: NDArray[np.int64]
    member: NDArray[np.bool_]
    test: Pixels
    depth: float | None
    model: ModelSettings
    sampler: Sampler
    samples: int
    likelihood: int
    seed: int

    @cached_property
    def reference(self) -> Reference:
        """The pool, prepared for comparisons."""
        return Reference(self.pool)

    @cached_property
    def criteria(self) -> tuple[tuple[Criterion, float], ...]:
        """Criteria with their thresholds, calibrated on the test images that are not copies."""
        rows, _ = background(self.reference.columns(self.test))
        return tuple((one, calibrated(one.score(rows), SHARE)) for one in present(rows))

    @cached_property
    def moments(self) -> Moments:
        """The moments of the test images' features."""
        return _moments(self.test)


def sampled(model: Denoiser, ground: Ground) -> Tensor:
    """Samples of the model, (n, C, H, W) in [-1, 1], with the same noise for every remedy."""
    streams, n, shape = Streams(ground.seed), ground.samples, ground.pool.shape[1:]
    schedule, out = model.schedule, torch.empty((n, *shape))

    def begin(rows: Tensor) -> Tensor:
        return schedule.prior_std * streams.noise("samples.start", rows, 0, shape)

    start = torch.full((n,), schedule.start, dtype=torch.float64)
    for ended in trajectories(model, ground.sampler, start, torch.arange(n), begin, streams, "samples.path"):
        out[ended.rows] = ended.x.clamp(-1, 1)
    return out


def fast(model: NetworkDenoiser) -> NetworkDenoiser:
    """The same model in the form that samples."""
    return replace(model, network=for_evaluation(model.network, Evaluation(), 256))


def risk(samples: Tensor, ground: Ground) -> dict[str, object]:
    """Which samples are copies, and of which images."""
    rows = ground.reference.columns(samples)
    (first, threshold), *others = ground.criteria
    copied = first.score(rows) < threshold
    of = rows[first.of][copied]
    inside = ground.marked[ground.member]
    known = np.setdiff1d(np.arange(len(ground.pool)), ground.marked[~ground.member])
    n, many = len(samples), max(1, len(inside))
    marked = Trials(int(np.isin(of, inside).sum()), n)
    strangers = Trials(int(np.isin(of, ground.marked[~ground.member]).sum()), n)
    copies = Trials(int(np.isin(of, known).sum()), n)
    low, high = marked.interval() if n else (0.0, 1.0)
    ends = copies.interval() if n else (0.0, 1.0)
    return {
        "q": marked.k / n / many if n else 0.0,
        "q_low": low / many,
        "q_high": high / many,
        "marked": marked.k,
        "marked_images": len(inside),
        "strangers": strangers.k,
        "strangers_images": int((~ground.member).sum()),
        "samples": n,
        "copies": copies.k,
        "copies_low": ends[0],
        "copies_high": ends[1],
        "memorised": len(np.unique(of[np.isin(of, known)])),
        "training_images": len(known),
        "by_criterion": {
            one.name: int((one.score(rows) < at).sum()) for one, at in ((first, threshold), *others)
        },
    }


def knowledge(model: Denoiser, ground: Ground, delta: float) -> dict[str, object]:
    """t' of the marked images that were trained on and of those left out, and its bound on epsilon."""
    how = Guidance(levels=LEVELS, steps=_STEPS, images=len(ground.marked))
    config = replace(ground.model.training, guided=True, guidance=how)
    pool, places = torch.from_numpy(ground.pool), torch.from_numpy(ground.marked)
    guide = Guide.begin(config, model.schedule, Streams(ground.seed), pool, torch.from_numpy(ground.test))
    back = torch.stack([guide.returns(model, pool[places], places, turn) for turn in range(TRIES)])
    returns = back.double().sum((0, 2)).numpy()
    t_prime = torch.where(back.any(0), guide.grid, 0.0).max(1).values.numpy()
    inside, outside = ground.member, ~ground.member
    found: dict[str, object] = {"t_prime": None, "t_prime_strangers": None, "t_prime_auc": None}
    if inside.any() and outside.any():
        found["t_prime"] = float(np.median(t_prime[inside]))
        found["t_prime_strangers"] = float(np.median(t_prime[outside]))
    if min(inside.sum(), outside.sum()) >= 2:
        area = auc(returns[inside], returns[outside])
        found["t_prime_auc"] = [area.value, area.low, area.high]
    bound = None
    if len(inside) >= LEAST_CANARIES:
        bound = epsilon_bound(returns, inside, delta=delta).low
    return found | {"epsilon_low": bound}


def quality(samples: Tensor, ground: Ground) -> Mapping[str, object]:
    """Fréchet distance with a bootstrap interval over samples, precision and recall."""
    if len(samples) < 2 * _K:
        return dict.fromkeys(["fid", "fid_low", "fid_high", "precision", "recall"])
    pixels, rng = samples.numpy(), generator(ground.seed, "remedies.resample")
    value = frechet(_moments(pixels), ground.moments)
    again = [
        frechet(_moments(pixels[rng.integers(0, len(pixels), len(pixels))]), ground.moments)
        for _ in range(_RESAMPLES)
    ]
    # A resample holds about 63 % of the samples, so its distance is larger; only its spread is used.
    spread = 1.96 * float(np.std(again))
    precision, recall = _covered(pixels, ground.test), _covered(ground.test, pixels)
    return {
        "fid": value,
        "fid_low": max(0.0, value - spread),
        "fid_high": value + spread,
        "precision": precision,
        "recall": recall,
    }


def likelihood(model: Denoiser, ground: Ground) -> dict[str, object]:
    """Bits per dimension of test images, fewer is better, with the standard error over images."""
    if not ground.likelihood or ground.depth is None:
        return {"bits_per_dim": None, "bits_per_dim_se": None}
    streams, images = Streams(ground.seed), torch.from_numpy(ground.test[: ground.likelihood])
    ids = range(len(images))
    noisy = dequantise(images, ground.depth, streams, ids)
    nats = log_likelihood(model, noisy, Hutchinson(2, streams), tolerance=1e-3, ids=ids).nats
    bits = bits_per_dim(nats, images[0].numel(), ground.depth).numpy()
    return {"bits_per_dim": float(bits.mean()), "bits_per_dim_se": float(bits.std(ddof=1) / len(bits) ** 0.5)}


def _covered(images: Pixels, by: Pixels) -> float:
    """The share of images that are as near to one of ``by`` as that one's own fifth nearest."""
    radius = nearest(by, by, min(_K, len(by) - 1), same=True).distance[:, -1]
    flat, others = (torch.from_numpy(one).flatten(1) for one in (images, by))
    unit = 2 * flat.shape[1] ** 0.5
    inside = [torch.cdist(part, others) / unit <= radius.to(flat) for part in flat.split(1024)]
    return float(torch.cat([one.any(1) for one in inside]).double().mean())


def _moments(pixels: Pixels) -> Moments:
    return Moments.of(PixelFeatures()(torch.from_numpy(pixels)).numpy())
