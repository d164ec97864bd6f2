"""What t' means: the same search for held-out images, by one embedding for all.

x_p and every held-out image, under a fingerprint of its own drawn as x_p's was (as it is, where x_p carries
none), are searched alike; the null
law of t' and the rank p-value follow (`latentprint.search.baseline`). c_id exists for x_p alone, so the
target's t' is measured again: all values that are compared come from one detector. A held-out image with a
near copy among the training images was seen, and is left out.

Numbers of the images, so that rows stay theirs whatever is asked later: training image i is target i,
held-out image j of H is N + j as it is, and N + H + j under its fingerprint.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentprint.audit.context import Context
from latentprint.audit.many import search_many
from latentprint.audit.recognisers import recogniser
from latentprint.audit.stages import detector_value
from latentprint.contracts import InputError
from latentprint.data import Split, copies_of
from latentprint.denoiser import Denoiser
from latentprint.detector.contrast import fit_embedding
from latentprint.detector.embedding import (
    EmbeddingConfig,
    EmbeddingDetector,
    load_embedding,
)
from latentprint.fingerprint import FingerprintKind, Injection
from latentprint.marks import was_injected
from latentprint.results.model import Detector
from latentprint.results.notes import Compared
from latentprint.search.settings import BaselineSettings
from latentprint.streams import Streams

Pixels = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Subjects:
    """Training images, held-out ones, and those under a fingerprint each: `Images`, numbered as above."""

    train: Pixels
    heldout: Pixels
    kind: FingerprintKind
    streams: Streams

    def __len__(self) -> int:
        return len(self.train) + 2 * len(self.heldout)

    def plain(self, j: int) -> int:
        """The number of held-out image j as it is."""
        return len(self.train) + j

    def marked(self, j: int) -> int:
        """The number of held-out image j under its fingerprint."""
        return len(self.train) + len(self.heldout) + j

    def take(self, numbers: NDArray[np.int64], /) -> Pixels:
        """Images (n, C, H, W) by number; a fingerprint follows from the seed and the held-out image's j."""
        return np.stack([self._one(int(number)) for number in numbers])

    def _one(self, number: int) -> Pixels:
        if number < len(self.train):
            return self.train[number]
        turn, j = divmod(number - len(self.train), len(self.heldout))
        image = self.heldout[j]
        if turn == 0:
            return image
        rng = self.streams.generator("baseline.fingerprint", j)
        return self.kind.draw(image.shape[1:], rng).apply(image)


def embedding(context: Context, split: Split, config: EmbeddingConfig) -> EmbeddingDetector:
    """Fit the embedding on all of the user's images, none marked, or read it where that is done.

    Raises:
        DetectorError: it learnt nothing, or there are too few images for its false-positive rate.
    """
    pixels, how = np.concatenate([split.train.pixels, split.heldout.pixels]), context.config.speed.detectors
    kind = context.config.fingerprint.drawn(split.heldout.pixels)
    return recogniser(
        context,
        "embedding",
        "the embedding",
        lambda: fit_embedding(pixels, kind, config, context.streams, context.device, how),
        load_embedding,
        embedding_value,
    )


def embedding_value(matcher: EmbeddingDetector) -> Detector:
    """The embedding's threshold and error counts, as results state them."""
    own = {
        "false_positive_rate": matcher.config.false_positive_rate,
        "pairs": matcher.rates.kinds["pairs of the calibration"],
    }
    return detector_value(matcher).model_copy(update=own)


def subjects(context: Context, split: Split, injection: Injection) -> Subjects:
    """The images of both searches."""
    kind = context.config.fingerprint.drawn(split.heldout.pixels)
    return Subjects(injection.marked.pixels, split.heldout.pixels, kind, context.streams)


def as_private(images: Subjects, injection: Injection, j: int) -> int:
    """The number of held-out image j treated as x_p was: under a fingerprint, or as it is."""
    return images.marked(j) if was_injected(injection) else images.plain(j)


def unseen(context: Context, images: Subjects, count: int) -> tuple[int, ...]:
    """``count`` held-out images j, or as many as there are, drawn by the seed: none near a training image.

    More of them later keep the ones already drawn.

    Raises:
        InputError: there is none.
    """
    order = context.streams.generator("baseline.images").permutation(len(images.heldout))
    found: list[int] = []
    for j in order.tolist():
        if len(found) == count:
            break
        if not len(copies_of(images.heldout[j], images.train)):
            found.append(j)
    if not found:
        raise InputError(
            f"t' is compared with images that the model never saw; {context.config.data.source} holds out "
            f"{len(images.heldout)}, none of them without a near copy among the "
            "training images: hold out more"
        )
    return tuple(found)


def baseline(
    context: Context,
    model: Denoiser,
    matcher: EmbeddingDetector,
    split: Split,
    injection: Injection,
    settings: BaselineSettings,
) -> None:
    """The search for held-out images and for x_p by the same embedding; rows are kept as ``baseline``.

    Raises:
        InputError: no held-out image was never seen.
    """
    if settings.images == 0:
        return
    images = subjects(context, split, injection)
    null = [as_private(images, injection, j) for j in unseen(context, images, settings.images)]
    noted = Compared(
        sampler=context.sampler_value,
        horizon=model.schedule.start,
        target=injection.index,
        heldout=tuple(null),
    )
    plan = settings.plan(noted.horizon, matcher.rates.fpr)
    search_many(
        context,
        model,
        matcher,
        images,
        plan,
        "baseline",
        [*null, injection.index],
        {"compared": noted.plain()},
    )
