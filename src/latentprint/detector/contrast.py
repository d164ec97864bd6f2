"""Fitting the embedding by contrast: two views of one image belong together, views of others do not.

    loss(i, j) = -log( exp(f_i . f_j / tau) / sum_{k != i} exp(f_i . f_k / tau) )    (NT-Xent)

over a batch of n images in two views each, f the 2n unit vectors, (i, j) the two views of an image. A view
is the image as the paper's c_id sees it (section 5.2, appendix A): under a random mask of the fingerprint's
shape, AugMix, Gaussian noise.

What the embedding is fitted on, stopped on, calibrated on and tested on are the user's images, drawn at
random from all of them. Whether the audited model was trained on an image has then no part in how the
embedding treats it, which the comparison of trained-on and held-out images rests on: hand over both together.

Source: Chen, Kornblith, Norouzi, Hinton 2020, equation 1, arXiv 2002.05709.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latentprint.data import NEAR, near_duplicates
from latentprint.detector.draws import Pixels, Rng, augmix, masked, noisy, returned, split
from latentprint.detector.embedding import (
    Embedder,
    EmbeddingConfig,
    EmbeddingDetector,
    build_embedder,
    pair_threshold,
    pairs_needed,
)
from latentprint.detector.model import DetectorError, DetectorRates
from latentprint.detector.seeing import learning, seen_by
from latentprint.detector.stopping import until_best
from latentprint.fingerprint import FingerprintKind
from latentprint.networks.speed import Evaluation, rounding
from latentprint.stats import Trials
from latentprint.streams import Streams

LEAST = 20
"""Images without which the splits would mean nothing; the threshold usually needs more."""

_MOST = 512
"""Images of the calibration and of the test split that pairs are made of: 261,632 pairs."""

_COPIES = 400
"""Perturbed copies, at least, on which the true positive rate is counted."""


@dataclass(frozen=True)
class EmbeddingState:
    """Where the fit stands after ``epoch`` of at most ``epochs`` epochs.

    Attributes:
        loss, validation_loss: NT-Xent of the epoch, and of the validation split in fixed views.
        best_epoch: the one with the lowest validation loss so far, from 1.
        detector: the fitted detector, in the last state; None before.
    """

    epoch: int
    epochs: int
    loss: float
    validation_loss: float
    best_epoch: int
    detector: EmbeddingDetector | None


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """NT-Xent of unit vectors (n, d) and (n, d), row i of both from image i: a scalar (see the module)."""
    both = torch.cat([first, second])
    logits = (both @ both.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(both), device=both.device).roll(len(first))
    return torch.nn.functional.cross_entropy(logits, partner)


def fit_embedding(
    images: Pixels,
    kind: FingerprintKind,
    config: EmbeddingConfig,
    streams: Streams,
    device: torch.device | str = "cpu",
    how: Evaluation | None = None,
) -> Iterator[EmbeddingState]:
    """Fit the embedding on the user's images, (n, C, H, W) in [-1, 1], trained on and held out together.

    ``kind`` draws the masks. The last state holds the detector. ``how`` its backbone is evaluated, in the fit
    and afterwards.

    Raises:
        DetectorError: too few images for the false-positive rate asked for, or the fit learnt nothing.
    """
    if len(images) < LEAST:
        raise DetectorError(f"the embedding needs {LEAST} images or more, got {len(images)}")
    rng = streams.generator("embedding.data")
    parts = split(len(images), rng)
    shown, held = images[parts.fit], images[parts.validation]
    calibration, test = images[parts.calibration[:_MOST]], images[parts.test[:_MOST]]
    _require_pairs(calibration, config, len(images))
    place = torch.device(device)
    fixed = tuple(_tensor(_view(held, kind, config, rng), place) for _ in range(2))
    how = how or Evaluation()
    network = build_embedder(config, streams).to(place)
    fast = learning(network, how)
    optimiser = torch.optim.AdamW(
        network.parameters(),
        config.learning_rate,
        weight_decay=config.weight_decay,
        fused=place.type == "cuda",
    )

    def learn(epoch: int) -> float:
        drawn = streams.generator("embedding.epoch", epoch)
        return _pass(network, fast, optimiser, shown, kind, config, drawn, place, how)

    for seen in until_best(
        network,
        config.epochs,
        config.patience,
        learn,
        lambda: _loss(network, fixed[0], fixed[1], config.temperature, how),
        what="the embedding",
        learning_rate=config.learning_rate,
    ):
        done = None
        if seen.last:
            done = held_to(network, images, calibration, test, kind, config, seen.best, rng, how)
        yield EmbeddingState(seen.number, config.epochs, seen.loss, seen.validation_loss, seen.best, done)


def held_to(
    network: Embedder,
    images: Pixels,
    calibration: Pixels,
    test: Pixels,
    kind: FingerprintKind,
    config: EmbeddingConfig,
    epoch: int,
    rng: Rng,
    how: Evaluation | None = None,
) -> EmbeddingDetector:
    """Fix the threshold on pairs of calibration images, then count errors on the test images.

    Raises:
        DetectorError: too few pairs, or it never recognises a copy of an image.
    """
    channels, height, width = images.shape[1:]
    nothing = DetectorRates(Trials(0, 0), Trials(0, 0), {})
    shape = (channels, height, width)
    bare = EmbeddingDetector(network, 1.0, Trials(0, 0), nothing, config, epoch, shape, how or Evaluation())
    as_targets = masked(calibration, config.masked, kind, rng)
    scores = _pair_scores(bare, as_targets, _other(calibration, images, kind, config, rng), calibration)
    level = pair_threshold(scores, config.false_positive_rate, len(calibration))

    def count(found: NDArray[np.float64]) -> Trials:
        return Trials(int((found >= level).sum()), len(found))

    targets = masked(test, config.masked, kind, rng)
    copies = np.repeat(np.arange(len(test)), -(-_COPIES // len(test)))
    own = _scores(bare, returned(targets[copies], images, config.noise, rng), targets, copies)
    near = nearest_others(test, images)
    beside = np.flatnonzero(near >= 0)
    kinds = {
        "another image": count(_pair_scores(bare, targets, _other(test, images, kind, config, rng), test)),
        "nearest other image": count(
            _scores(bare, _other(images[near[beside]], images, kind, config, rng), targets, beside)
        ),
    }
    # The rate that was stated is that of any two different images; the nearest ones stand beside it.
    rates = DetectorRates(count(own), kinds["another image"], kinds)
    if rates.tpr.k == 0:
        raise DetectorError(
            f"the embedding learnt nothing: at a false-positive rate of {config.false_positive_rate:g} it "
            f"recognises none of {rates.tpr.n} copies of images; give it more images or epochs"
        )
    return EmbeddingDetector(network, level, count(scores), rates, config, epoch, shape, how or Evaluation())


def nearest_others(queries: Pixels, pool: Pixels, chunk: int = 64) -> NDArray[np.int64]:
    """Position in ``pool`` of the image nearest to each query (m, C, H, W) that is no copy of it: (m,).

    Copies are images within a root-mean-square difference of `latentprint.data.NEAR`. -1 where the pool holds
    nothing else.
    """
    flat = pool.reshape(len(pool), -1).astype(np.float64)
    squares = (flat**2).sum(axis=1)
    out = np.full(len(queries), -1, np.int64)
    for first in range(0, len(queries), chunk):
        part = queries[first : first + chunk].reshape(-1, flat.shape[1]).astype(np.float64)
        apart = ((part**2).sum(axis=1)[:, None] + squares - 2 * part @ flat.T) / flat.shape[1]
        apart[apart <= NEAR**2 + 1e-12] = np.inf
        found = apart.argmin(axis=1)
        some = np.isfinite(apart[np.arange(len(part)), found])
        out[first : first + chunk][some] = found[some]
    return out


def _different(images: Pixels) -> NDArray[np.bool_]:
    """(m, m): True where two of the images are neither one image nor near copies."""
    group = np.arange(len(images))
    for members in near_duplicates(images):
        group[list(members)] = members[0]
    return group[:, None] != group[None]


def _require_pairs(calibration: Pixels, config: EmbeddingConfig, count: int) -> None:
    """Refuse before the fit what would be refused after it."""
    needed, pairs = pairs_needed(config.false_positive_rate), int(_different(calibration).sum())
    if pairs < needed:
        raise DetectorError(
            f"a false-positive rate of {config.false_positive_rate:g} needs {needed:,} pairs of different "
            f"images or more; of {count} images {len(calibration)} are set apart for the threshold and make "
            f"{pairs:,}: give more images, or a false_positive_rate of 1/{pairs + 1} or more"
        )


def _pair_scores(
    bare: EmbeddingDetector, targets: Pixels, queries: Pixels, originals: Pixels
) -> NDArray[np.float64]:
    """s of every ordered pair (query of one image, another image as target)."""
    first, second = (bare.vectors(_tensor(pixels, _place(bare))) for pixels in (queries, targets))
    table = ((1 + first @ second.T) / 2).clamp(0, 1).cpu().numpy()
    return table[_different(originals)]


def _scores(
    bare: EmbeddingDetector, queries: Pixels, targets: Pixels, which: NDArray[np.int64]
) -> NDArray[np.float64]:
    """s of query i with target which[i]."""
    vectors = bare.vectors(_tensor(targets, _place(bare)))
    towards = vectors[torch.as_tensor(which, device=vectors.device)]
    return bare.score(_tensor(queries, _place(bare)), towards).cpu().numpy()


def _other(images: Pixels, pool: Pixels, kind: FingerprintKind, config: EmbeddingConfig, rng: Rng) -> Pixels:
    """Images as a sampler would return them, about ``masked`` of them with a fingerprint of their own."""
    return returned(masked(images, config.masked, kind, rng), pool, config.noise, rng)


def _view(images: Pixels, kind: FingerprintKind, config: EmbeddingConfig, rng: Rng) -> Pixels:
    covered = masked(images, config.masked, kind, rng)
    return noisy(augmix(covered, rng) if config.augmix else covered, config.noise, rng)


def _pass(
    network: Embedder,
    fast: nn.Module,
    optimiser: torch.optim.Optimizer,
    shown: Pixels,
    kind: FingerprintKind,
    config: EmbeddingConfig,
    rng: Rng,
    place: torch.device,
    how: Evaluation,
) -> float:
    """One epoch; its mean loss. No image comes twice in a batch: it would be told apart from itself."""
    wanted = config.draws or len(shown)
    network.train()
    losses: list[Tensor] = []
    while wanted > 0:
        order = rng.permutation(len(shown))[:wanted]
        wanted -= len(order)
        views = [_tensor(_view(shown[order], kind, config, rng), place) for _ in range(2)]
        for first in range(0, len(order), config.batch):
            one, two = (view[first : first + config.batch] for view in views)
            if len(one) < 2:
                continue
            # What is compiled takes whole batches only.
            body = fast if len(one) == config.batch else network.backbone
            together = network.ending(seen_by(body, torch.cat([one, two]), how))
            loss = nt_xent(together[: len(one)], together[len(one) :], config.temperature)
            optimiser.zero_grad(set_to_none=True)
            with rounding(how, place):
                loss.backward()
            optimiser.step()
            losses.append(loss.detach())
    return float(np.mean(torch.stack(losses).cpu().numpy().astype(np.float64)))


def _loss(network: Embedder, first: Tensor, second: Tensor, temperature: float, how: Evaluation) -> float:
    network.eval()
    body = network.backbone
    with torch.no_grad():
        one, two = (
            torch.cat([network.ending(seen_by(body, part, how)) for part in view.split(512)])
            for view in (first, second)
        )
        return float(nt_xent(one.double(), two.double(), temperature))


def _tensor(pixels: Pixels, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(device)


def _place(detector: EmbeddingDetector) -> torch.device:
    return detector.network.head.weight.device
