"""q where counting sees nothing: splitting in the sampler's noise and the bridge, beside the count.

Both are about the same Omega as the count: the images on which c_p and c_id fire together. Splitting is about
the audit's own sampler; the bridge about the probability flow, which is another sampler with its own q.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from latentprint.audit.counting import Question, corrected, seen
from latentprint.audit.stages import Detectors
from latentprint.audit.work import Work, one_image
from latentprint.contracts import Outcome
from latentprint.denoiser import Denoiser, IdentityCodec
from latentprint.fingerprint import Injection
from latentprint.metrics.error import mse
from latentprint.rate import (
    BridgeConfig,
    Inside,
    Rate,
    SamplerPushforward,
    SplittingConfig,
    Tally,
    bridge,
    combine,
    rate_of,
    splitting,
)
from latentprint.stats import Trials


def rare(
    work: Work,
    model: Denoiser,
    detectors: Detectors,
    injection: Injection,
    counted: Outcome,
    question: Question | None,
    control: Trials | None,
) -> dict[str, Any]:
    """The entries ``splitting``, ``bridge`` and ``combined`` of ``q``; None for what the settings leave out.

    Each estimator is one stage: finished it is read, interrupted it begins anew. Beside the interval of the
    rate at which the detectors fire stands, as ``corrected``, the one that their own errors leave of it; the
    ``control`` counts false alarms of its own sampler, which is the count's and splitting's.
    """
    settings = work.config.rare
    target = one_image(injection.target, work.device)
    inside = omega(detectors)
    with torch.no_grad():
        latent = work.codec.encode(target[None])[0]  # x_p in the model's own space
    found: dict[str, Rate] = {}
    if settings.splitting:
        push = SamplerPushforward(model, work.sampler, tuple(latent.shape), work.codec)
        config = SplittingConfig(relative=settings.relative, most=settings.most)
        found["splitting"] = _stage(
            work,
            "splitting",
            lambda: splitting(
                push,
                lambda images: mse(images.clamp(-1, 1), target),
                inside,
                sampler=work.sampler.describe(),
                seed=work.config.seed,
                config=config,
                device=work.device,
            ),
        )
    if settings.bridge:
        found["bridge"] = _stage(
            work,
            "bridge",
            lambda: bridge(
                model,
                latent,
                inside,
                seed=work.config.seed,
                config=BridgeConfig(relative=settings.relative),
                codec=work.codec,
                data_range=(-1.0, 1.0) if isinstance(work.codec, IdentityCodec) else None,
            ),
        )
    count = _count(counted, question, work.sampler.describe())
    together = combine([count, *found.values()]).to_dict() if found else None
    entries: dict[str, Any] = dict.fromkeys(("splitting", "bridge"))
    alarms = {"splitting": control}
    for name, rate in found.items():
        entries[name] = rate.to_dict() | {"corrected": None}
        stretches = rate.trials is not None or rate.freedom is not None  # unknown in runs of older versions
        if rate.reliable and rate.rate is not None and stretches:
            entries[name]["corrected"] = corrected(rate.rate, rate.at, detectors, alarms.get(name))
    return entries | {"combined": together}


def _count(outcome: Outcome, question: Question | None, sampler: dict[str, Any]) -> Rate:
    """The count beside the other estimates, with the interval that its way of stopping allows."""
    trials = seen(outcome)
    count = rate_of(Tally(trials, {}, int(outcome.evaluations.sum())), sampler=sampler)
    if question is None:
        return count
    low, high = question.interval(question.counts(outcome))
    return replace(count, rate=min(max(trials.rate, low), high), low=low, high=high)


def omega(detectors: Detectors) -> Inside:
    """Omega_p (Eq. 6) as a function of images (n, C, H, W): every detector positive.

    c_id, the costlier of the two, judges only the images on which c_p has fired.
    """

    def inside(images: Tensor) -> Tensor:
        seen = images.clamp(-1, 1)
        found = torch.ones(len(seen), dtype=torch.bool, device=seen.device)
        with torch.no_grad():
            for detector in (detectors.presence, detectors.identity):
                if detector is not None and bool(found.any()):
                    found[found.clone()] = detector(seen[found]) >= detector.threshold
        return found

    return inside


def _plain(rate: Rate) -> dict[str, Any]:
    """All of a rate that ``_stage`` needs to make it again."""
    return rate.to_dict() | ({} if rate.trials is None else {"trials": asdict(rate.trials)})


def _stage(work: Work, name: str, estimate: Callable[[], Rate]) -> Rate:
    state = work.run.stage(name)
    if not state.done:
        work.say(f"estimating q by {name}", 0, 1, "estimates")
        with work.stage(name):
            work.run.finish(name, _plain(estimate()) | {"method": name})
        work.say(f"estimating q by {name}", 1, 1, "estimates")
    kept = dict(work.run.stage(name).payload)
    fields = ("method", "rate", "low", "high", "level", "reliable", "diagnostic", "network_evaluations")
    known = {field: kept.pop(field) for field in fields}
    sampler, freedom = kept.pop("sampler"), kept.pop("freedom", None)
    trials = Trials(**kept.pop("trials")) if "trials" in kept else None
    return Rate(**known, sampler=sampler, trials=trials, details=kept, freedom=freedom)
