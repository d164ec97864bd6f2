"""Fitting the embedding by contrast: two views of one image belong together, views of different images do
not.

    loss(i, j) = -log( exp(f_i . f_j / tau) / sum_{k != i} exp(f_i . f_k / tau) )    (NT-Xent)

over a batch of n images in two views each, f the 2n unit vectors, (i, j) the two views of an image. A view
is the image as the paper's c_id sees it (section 5.2, appendix A): under a random mask of the fingerprint's
shape, AugMix, Gaussian noise.

The embedding is fitted, stopped, calibrated and tested on the user's images, drawn at random from all of
them. Whether the audited model was trained on an image then has no influence on how the embedding treats it.
The comparison of training and held-out images relies on this, so both must be passed together.

Source: Chen, Kornblith, Norouzi, Hinton 2020, equation 1, arXiv 2002.05709.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentprint import keys
from latentprint.data import NEAR, near_duplicates
from latentprint.data.images import Pixels, Selection, fits
from latentprint.detector.backbone import Embedder
from latentprint.detector.draws import Perturbed, Rng, Seen, Shown, returned, split
from latentprint.detector.embedding import (
    EmbeddingConfig,
    EmbeddingDetector,
    pair_threshold,
    pairs_needed,
    similarity,
)
from latentprint.detector.fit import augmented
from latentprint.detector.fitting import FitState, Step, fitted, on
from latentprint.detector.model import DetectorError, at_once
from latentprint.fingerprint import FingerprintKind
from latentprint.networks.speed import Evaluation
from latentprint.stats import DetectorRates, Trials
from latentprint.streams import Streams

LEAST = 20
"""Fewest images with which the splits mean something; the threshold usually needs more."""

_MOST = 512
"""Images of the calibration and of the test split from which pairs are made: 261,632 pairs."""

_VALUES = 2**22
"""Most values of images that are compared at once."""

_COPIES = 400
"""Fewest perturbed copies on which the true positive rate is counted."""


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
) -> Iterator[FitState[EmbeddingDetector]]:
    """Fit the embedding on the user's images, (n, C, H, W) in [-1, 1], training and held-out images together.

    ``kind`` draws the masks. The last state holds the detector. ``how`` is the arithmetic of its backbone, in
    the fit and afterwards.

    Raises:
        DetectorError: too few images for the false-positive rate asked for, or the fit learnt nothing.
    """
    require_images(config, len(images))
    rng, place, how = streams.generator("embedding.data"), torch.device(device), how or Evaluation()
    parts = split(np.arange(len(images)), rng)
    chosen = Selection.of(images)
    calibration, test = (chosen.take(part[:_MOST]) for part in (parts.calibration, parts.test))
    _require_pairs(calibration, config, len(images))
    fixed = [_view(Shown.of(images, parts.validation), kind, config, rng) for _ in range(2)]

    def epoch(number: int) -> Iterator[Step]:
        """No image occurs twice in a batch: it would be told apart from itself."""
        drawn, wanted = streams.generator("embedding.epoch", number), config.draws or len(parts.fit)
        while wanted > 0:
            order = parts.fit[drawn.permutation(len(parts.fit))[:wanted]]
            wanted -= len(order)
            views = [_view(Shown.of(images, order), kind, config, drawn) for _ in range(2)]
            for pair in zip(*(view.together(config.batch) for view in views), strict=True):
                if len(pair[0]) > 1:
                    yield on(place, np.concatenate(pair)), partial(_of_views, config.temperature)

    yield from fitted(
        "embedding",
        config.network("embedding", streams, images.ndim - 2).to(place),
        config,
        how,
        epoch,
        2 * config.batch,
        lambda answers: nt_xent(answers(fixed[0]), answers(fixed[1]), config.temperature),
        lambda network, best: held_to(network, images, calibration, test, kind, config, best, rng, how),
    )


def _of_views(temperature: float, vectors: Tensor) -> Tensor:
    half = len(vectors) // 2
    return nt_xent(vectors[:half], vectors[half:], temperature)


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
    """Fix the threshold on pairs of calibration images, then count errors on the test images."""
    shape, name = images.shape[1:], f"embedding ({config.backbone})"
    nothing = DetectorRates(Trials(0, 0), Trials(0, 0), {}, name, "pair")
    bare = EmbeddingDetector("embedding", network, 1.0, nothing, config, epoch, shape, how or Evaluation())
    as_targets = Shown.of(calibration).masked(config.masked, kind, rng)
    scores = _pair_scores(bare, as_targets, _other(calibration, images, kind, config, rng), calibration)
    level = pair_threshold(scores, config.false_positive_rate, len(calibration))

    def count(found: NDArray[np.float64]) -> Trials:
        return Trials(int((found >= level).sum()), len(found))

    targets = Shown.of(test).masked(config.masked, kind, rng)
    copies = np.repeat(np.arange(len(test)), -(-_COPIES // len(test)))
    own = _scores(bare, returned(targets.at(copies), images, config.noise, rng), targets, copies)
    near = nearest_others(test, images)
    beside = np.flatnonzero(near >= 0)
    neighbours = Selection.of(images).take(near[beside])
    kinds = {
        "another image": count(_pair_scores(bare, targets, _other(test, images, kind, config, rng), test)),
        "nearest other image": count(
            _scores(bare, _other(neighbours, images, kind, config, rng), targets, beside)
        ),
    }
    # The stated rate is that of any two different images; the other counts are informative.
    fpr = kinds["another image"]
    rates = DetectorRates(count(own), fpr, kinds | {"pairs of the calibration": count(scores)}, name, "pair")
    if rates.tpr.k == 0:
        raise DetectorError(
            f"the embedding learnt nothing: at a false-positive rate of {config.false_positive_rate:g} it "
            f"recognises none of {rates.tpr.n} copies of images; give it more images or epochs"
        )
    return replace(bare, threshold=level, rates=rates)


def nearest_others(queries: Pixels, pool: Pixels, chunk: int = 64) -> NDArray[np.int64]:
    """Position in ``pool`` of the image nearest to each query (m, C, H, W), without its copies: (m,).

    Copies are images within a root-mean-square difference of `latentprint.data.NEAR`. -1 if the pool has
    nothing else.
    """
    chunk = fits(queries.shape[1:], _VALUES, most=chunk)
    nearest, found = np.full(len(queries), np.inf), np.full(len(queries), -1, np.int64)

    def flat(images: Pixels, first: int) -> NDArray[np.float64]:
        some = images[first : first + chunk]
        return some.reshape(len(some), -1).astype(np.float64)

    for j in range(0, len(pool), chunk):
        b = flat(pool, j)
        squares = (b**2).sum(axis=1)
        for i in range(0, len(queries), chunk):
            a = flat(queries, i)
            apart = ((a**2).sum(axis=1)[:, None] + squares - 2 * a @ b.T) / a.shape[1]
            apart[apart <= NEAR**2 + 1e-12] = np.inf
            best = apart.argmin(axis=1)
            least, rows = apart[np.arange(len(a)), best], slice(i, i + chunk)
            nearer = least < nearest[rows]
            found[rows] = np.where(nearer, j + best, found[rows])
            nearest[rows] = np.where(nearer, least, nearest[rows])
    return found


def _different(images: Pixels) -> NDArray[np.bool_]:
    """(m, m): True if two images are neither the same nor near copies."""
    group = np.arange(len(images))
    for members in near_duplicates(images):
        group[list(members)] = members[0]
    return group[:, None] != group[None]


def _require_pairs(calibration: Pixels, config: EmbeddingConfig, count: int) -> None:
    """Refuse before the fit what would be refused after it."""
    _refuse(config, count, len(calibration), int(_different(calibration).sum()))


def require_images(config: EmbeddingConfig, count: int) -> None:
    """Check that so many images can be enough, if they are no copies of one another."""
    if count < LEAST:
        raise DetectorError(f"the embedding needs {LEAST} images or more, got {count}")
    apart = min(_MOST, len(split(np.arange(count), keys.generator(0, "count")).calibration))
    _refuse(config, count, apart, apart * (apart - 1))


def _refuse(config: EmbeddingConfig, count: int, apart: int, pairs: int) -> None:
    needed = pairs_needed(config.false_positive_rate)
    if pairs < needed:
        raise DetectorError(
            f"a false-positive rate of {config.false_positive_rate:g} needs {needed:,} pairs of different "
            f"images or more; of {count} images {apart} are set apart for the threshold and make "
            f"{pairs:,}: give more images, or a false_positive_rate of 1/{pairs + 1} or more"
        )


def _pair_scores(
    bare: EmbeddingDetector, targets: Seen, queries: Seen, originals: Pixels
) -> NDArray[np.float64]:
    """s of every ordered pair (query of one image, another image as target)."""
    first, second = (_vectors(bare, seen) for seen in (queries, targets))
    table = ((1 + first @ second.T) / 2).clamp(0, 1).cpu().numpy()
    return table[_different(originals)]


def _scores(
    bare: EmbeddingDetector, queries: Seen, targets: Seen, which: NDArray[np.int64]
) -> NDArray[np.float64]:
    """s of query i with target which[i]."""
    vectors = _vectors(bare, targets)
    towards = vectors[torch.as_tensor(which, device=vectors.device)]
    return similarity(_vectors(bare, queries), towards).cpu().numpy()


def _vectors(bare: EmbeddingDetector, seen: Seen) -> Tensor:
    parts = seen.together(at_once(seen.shape))
    return torch.cat([bare.vectors(on(bare.place, part)) for part in parts])


def _other(
    images: Pixels, pool: Pixels, kind: FingerprintKind, config: EmbeddingConfig, rng: Rng
) -> Perturbed:
    """Images as a sampler would return them, about ``masked`` of them with a fingerprint each."""
    return returned(Shown.of(images).masked(config.masked, kind, rng), pool, config.noise, rng)


def _view(shown: Shown, kind: FingerprintKind, config: EmbeddingConfig, rng: Rng) -> Perturbed:
    return augmented(shown.masked(config.masked, kind, rng), config, rng).fixed()
