"""Is x_p's t' unusual? The same search for other images, with one embedding for all of them. Three stages:

    baseline     is x_p's t' above that of held-out images?
    profile      which of many training images have a high t'?
    agreement    does the embedding agree with c_id about x_p's trajectories?

The same search is run for x_p and for every held-out image. Held-out images carry a fingerprint of their own,
drawn as x_p's was, or none where x_p has none. The null law of t' and the rank p-value follow
(`latentprint.search.null_law`); a profile corrects for all targets by Benjamini and Hochberg's step-up. c_id
exists for x_p alone, so the target's t' is measured a second time with the embedding: all values that are
compared come from one detector. A held-out image with a near copy among the training images was trained on,
in effect, and is left out.

The agreement stage shows how far the embedding can replace c_id. The trajectories of x_p's search are drawn
again from their ids, which gives the same images. From little noise nearly all show x_p, from much noise
nearly none, so that both answers occur.

Image numbers are fixed, so that stored rows keep their meaning whatever is asked later. Training image i is
target i; held-out image j of H is N + j as it is, and N + H + j under its fingerprint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from latentprint.audit.context import Context
from latentprint.audit.many import search_many
from latentprint.audit.recognisers import recogniser
from latentprint.audit.stages import UNIT, Audited, detector_value, noised_probe
from latentprint.config import AuditConfig
from latentprint.contracts import InputError
from latentprint.data import Split, copies_of
from latentprint.data.images import Pixels, Selection
from latentprint.denoiser import Denoiser
from latentprint.detector.contrast import fit_embedding
from latentprint.detector.embedding import (
    EmbeddingConfig,
    EmbeddingDetector,
    load_embedding,
)
from latentprint.execute import Stored
from latentprint.fingerprint import FingerprintKind, Injection
from latentprint.marks import was_injected
from latentprint.results.model import EMBEDDING, Detector
from latentprint.results.notes import AGREEMENT, BASELINE, PROFILE, SEARCH, Compared, Ranked
from latentprint.search.settings import BaselineSettings, ProfileSettings, TargetError, Targets
from latentprint.streams import Streams


@dataclass(frozen=True, eq=False)
class Subjects:
    """Training images, held-out images, and held-out images under a fingerprint each, numbered as in the
    module."""

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

    def take(self, numbers: NDArray[np.int64], /) -> NDArray[np.float32]:
        """Images (n, C, H, W) by number. A fingerprint follows from the seed and the held-out image's j."""
        return np.stack([self._one(int(number)) for number in numbers])

    def _one(self, number: int) -> NDArray[np.float32]:
        if number < len(self.train):
            return self.train[number]
        turn, j = divmod(number - len(self.train), len(self.heldout))
        image = self.heldout[j]
        if turn == 0:
            return image
        rng = self.streams.generator("baseline.fingerprint", j)
        return self.kind.draw(image.shape[1:], rng).apply(image)


def embedding(context: Context, split: Split, config: EmbeddingConfig) -> EmbeddingDetector:
    """Fit the embedding on all of the user's images, unmarked, or read it from the run."""
    pixels, how = Selection.of(split.train.pixels, split.heldout.pixels), context.config.speed.detectors
    kind = context.config.fingerprint.drawn(split.heldout.pixels)
    return recogniser(
        context,
        EMBEDDING,
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
    """The number of held-out image j, treated as x_p was: under a fingerprint, or as it is."""
    return images.marked(j) if was_injected(injection) else images.plain(j)


def unseen(context: Context, images: Subjects, count: int) -> tuple[int, ...]:
    """``count`` held-out images j, or all if there are fewer, drawn by the seed; none is near a training
    image.

    A larger ``count`` later keeps the images that are already drawn.
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
    """The search for held-out images and for x_p with the same embedding; rows are kept as ``baseline``."""
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
        BASELINE,
        noted,
        [*null, injection.index],
    )


def profile(
    context: Context,
    model: Denoiser,
    matcher: EmbeddingDetector,
    split: Split,
    injection: Injection,
    settings: ProfileSettings,
) -> None:
    """t' of the targets in the settings, and of held-out images; rows are kept as ``profile``.

    x_p is compared with held-out images that carry a fingerprint, the other targets with those that carry
    none.
    """
    if settings.targets == 0:
        return
    images = subjects(context, split, injection)
    chosen = targets_among(settings.targets, len(images.train), context.streams)
    heldout = unseen(context, images, settings.null)
    unmarked = tuple(images.plain(j) for j in heldout)
    marked = None
    if injection.index in chosen:
        marked = tuple(as_private(images, injection, j) for j in heldout)
    noted = Ranked(
        sampler=context.sampler_value,
        horizon=model.schedule.start,
        targets=tuple(chosen),
        sha256=tuple(injection.marked.sha256[n] for n in chosen),
        private=injection.index,
        unmarked=unmarked,
        marked=None if marked == unmarked else marked,
    )
    plan = settings.plan(noted.horizon, matcher.rates.fpr)
    # Once each: if x_p carries no mark, both null laws are of the same images.
    everything = [*dict.fromkeys([*chosen, *unmarked, *(marked or ())])]
    search_many(context, model, matcher, images, plan, PROFILE, noted, everything)


def require_targets(config: AuditConfig, count: int) -> None:
    """Check, before any training, that the ``count`` training images include the profile's targets."""
    if config.profile.targets != 0:
        targets_among(config.profile.targets, count, Streams(config.seed))


def targets_among(targets: Targets, count: int, streams: Streams) -> list[int]:
    """The training images among ``count`` that ``targets`` names, each once, in rising order."""
    if targets == "all":
        return list(range(count))
    if isinstance(targets, int):
        if not 1 <= targets <= count:
            raise TargetError(f"a profile needs between 1 and {count} training images, got {targets}")
        return sorted(streams.generator("profile.targets").permutation(count)[:targets].tolist())
    assert not isinstance(targets, str)
    if not targets:
        raise TargetError("a profile needs at least one target, got none")
    outside = [number for number in targets if not 0 <= number < count]
    if outside:
        raise TargetError(f"there is no training image {outside[0]} among {count}, counted from 0")
    if len(set(targets)) < len(targets):
        twice = next(number for number in targets if targets.count(number) > 1)
        raise TargetError(f"each target may be named once, got {twice} twice")
    return sorted(targets)


def agreement(context: Context, audited: Audited, matcher: EmbeddingDetector) -> None:
    """The embedding's answers on the trajectories of x_p's search; rows are kept as ``agreement``."""
    searched = context.run.rows(SEARCH.name)
    probe = noised_probe(context, audited)
    judged = replace(probe, identity=matcher.for_target(probe.target), presence=None)
    with context.stage(AGREEMENT.name):
        progress = context.progress("comparing the recognisers", "trajectories")
        stored = Stored(judged, AGREEMENT.name, context.run, UNIT, progress, context.map)
        outcome = stored(searched["t"], searched["id"])
        cost = int(outcome.evaluations.sum())
        if not context.run.stage(AGREEMENT.name).done:
            context.run.finish(AGREEMENT.name, {"network_evaluations": cost})
