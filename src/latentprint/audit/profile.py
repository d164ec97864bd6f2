"""The anonymity profile: t' of many training images, ranked, against images that the model never saw.

A target is compared with held-out images treated as it is: x_p with such as carry a fingerprint, every other
training image with the same ones without. Benjamini-Hochberg over all of them (`latentprint.search.baseline`
says why it holds).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentprint.audit.baseline import as_private, law_of, subjects, unseen
from latentprint.audit.many import search_many
from latentprint.audit.work import Work
from latentprint.config import AuditConfig
from latentprint.data import Split
from latentprint.denoiser import Denoiser
from latentprint.detector.embedding import EmbeddingDetector
from latentprint.fingerprint import Injection
from latentprint.search import NullLaw, TPrime
from latentprint.search.settings import ProfileSettings, TargetError, Targets
from latentprint.stats import false_discovery
from latentprint.streams import Streams


@dataclass(frozen=True)
class Anonymity:
    """The anonymity profile.

    Attributes:
        entries: ``profile`` of results.json, highest t' first.
        summary: what they were compared with, and the finding in a sentence.
    """

    entries: list[dict[str, Any]]
    summary: dict[str, Any]


def profile(
    work: Work,
    model: Denoiser,
    matcher: EmbeddingDetector,
    split: Split,
    injection: Injection,
    settings: ProfileSettings,
) -> Anonymity | None:
    """t' of the targets that the settings name, ranked, with the discoveries; None where they name none.

    Rows are kept as ``profile``.

    x_p is compared with held-out images under a fingerprint, the other targets with the same ones without.

    Raises:
        InputError: a target that is not there or comes twice, none at all, or no held-out image was never
            seen.
    """
    if settings.targets == 0:
        return None
    images = subjects(work, split, injection)
    chosen = targets_among(settings.targets, len(images.train), work.streams)
    heldout = unseen(work, images, settings.null)
    nulls = {False: [images.plain(j) for j in heldout]}
    if injection.index in chosen:
        nulls[True] = [as_private(images, injection, j) for j in heldout]
    plan = settings.plan(model.schedule.start, matcher.rates.fpr)
    # Once each: where x_p carries no mark, both laws are of the same images.
    everything = [*dict.fromkeys([*chosen, *(number for null in nulls.values() for number in null)])]
    found = search_many(work, model, matcher, images, plan, "profile", everything)
    laws = {marked: law_of(found[n] for n in numbers) for marked, numbers in nulls.items()}
    mine = {n: laws[n == injection.index] for n in chosen}
    entries = ranked({n: found[n] for n in chosen}, mine, settings.false_discovery_rate)
    for entry in entries:
        entry["sha256"] = injection.marked.sha256[entry["target"]]
    named = sum(entry["discovered"] for entry in entries)
    above = sum(entry["exceeds_null"] for entry in entries)
    summary = {
        "targets": len(chosen),
        "null": {"images": len(heldout), "asked": settings.null, "values": list(laws[False].values)},
        "tries": plan.tries,
        "grid": list(plan.grid),
        "false_discovery_rate": settings.false_discovery_rate,
        "exceeding": above,
        "discovered": named,
        "network_evaluations": sum(one.network_evaluations for one in found.values()),
        "sentence": _sentence(len(chosen), above, named, laws[False], settings.false_discovery_rate),
    }
    return Anonymity(entries, summary)


def ranked(found: Mapping[int, TPrime], laws: Mapping[int, NullLaw], rate: float) -> list[dict[str, Any]]:
    """One entry a target, highest t' first, equal ones by hits, then by number; each against its own law."""
    p_values = [laws[number].p_value(one.certain) for number, one in found.items()]
    stands = false_discovery(p_values, 1 - rate)
    entries: list[dict[str, Any]] = [
        {
            "target": number,
            "value": one.certain,
            "hits": sum(seen.k for seen in one.trials),
            "p_value": p,
            "exceeds_null": laws[number].exceeds(one.certain),
            "discovered": bool(stand),
        }
        for (number, one), p, stand in zip(found.items(), p_values, stands, strict=True)
    ]
    return sorted(entries, key=lambda e: (e["value"] is None, -(e["value"] or 0.0), -e["hits"], e["target"]))


def _sentence(count: int, above: int, named: int, law: NullLaw, rate: float) -> str:
    null = len(law.values)
    text = (
        f"{above} of {count} images have a t' above that of all {null} images never trained on; {named} "
        f"stand at a false-discovery rate of {rate:.2g}."
    )
    # Benjamini-Hochberg names k images at best where k of them have the smallest p there is.
    needed = int(np.ceil(count * law.smallest_p / rate - 1e-9))
    if not named and needed > 1:
        text += (
            f" With {null} held-out images at least {needed} targets must exceed them all before any can be "
            "named; more held-out images lower that number."
        )
    return text


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
