"""The anonymity profile: t' of many training images, ranked, against images that the model never saw.

A target is compared with held-out images treated as it is: x_p with such as carry a fingerprint, every other
training image with the same ones without. Benjamini-Hochberg over all of them (`latentprint.search.baseline`
says why it holds).
"""

from __future__ import annotations

from latentprint.audit.baseline import as_private, subjects, unseen
from latentprint.audit.context import Context
from latentprint.audit.many import search_many
from latentprint.config import AuditConfig
from latentprint.data import Split
from latentprint.denoiser import Denoiser
from latentprint.detector.embedding import EmbeddingDetector
from latentprint.fingerprint import Injection
from latentprint.results.notes import Ranked
from latentprint.search.settings import ProfileSettings, TargetError, Targets
from latentprint.streams import Streams


def profile(
    context: Context,
    model: Denoiser,
    matcher: EmbeddingDetector,
    split: Split,
    injection: Injection,
    settings: ProfileSettings,
) -> None:
    """t' of the targets that the settings name, and of held-out images; rows are kept as ``profile``.

    x_p is compared with held-out images under a fingerprint, the other targets with the same ones without.

    Raises:
        InputError: a target that is not there or comes twice, none at all, or no held-out image was never
            seen.
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
    # Once each: where x_p carries no mark, both laws are of the same images.
    everything = [*dict.fromkeys([*chosen, *unmarked, *(marked or ())])]
    search_many(context, model, matcher, images, plan, "profile", everything, {"ranked": noted.plain()})


def require_targets(config: AuditConfig, count: int) -> None:
    """Nothing, if the ``count`` training images hold the profile's targets: said before anything is trained.

    Raises:
        TargetError: as for ``targets_among``.
    """
    if config.profile.targets != 0:
        targets_among(config.profile.targets, count, Streams(config.seed))


def targets_among(targets: Targets, count: int, streams: Streams) -> list[int]:
    """The training images that ``targets`` names among ``count``, each once, rising.

    Raises:
        TargetError: one that is not there, one twice, more than there are, or none.
    """
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
