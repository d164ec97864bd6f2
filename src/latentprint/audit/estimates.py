"""q where counting sees nothing: every estimator that the settings name, in addition to the count.

All estimators share the count's Omega: the images on which c_p and c_id fire together. Each estimate names
the sampler whose q it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from latentprint.audit.context import Context, one_image
from latentprint.audit.stages import Audited, Detectors
from latentprint.data.images import Pixels
from latentprint.metrics.error import mse
from latentprint.rate import Inside, Rate, SamplerPushforward
from latentprint.rate.estimator import Effort, Estimator, Part, Progress, Subject
from latentprint.results.counted import Estimate, estimate_of
from latentprint.results.searched import Sampler


def estimates(context: Context, audited: Audited, others: Pixels) -> None:
    """Run each estimator that the settings name, as a stage: a finished one is read, an interrupted one
    continued.

    ``others`` are the training images (n, C, H, W) without x_p.
    """
    asked = context.config.rare.asked
    if not asked:
        return
    target, model = one_image(audited.target, context.device), audited.model
    parts = (others[i : i + context.batch] for i in range(0, len(others), context.batch))
    with torch.no_grad():
        latent = context.codec.encode(target[None])[0]  # x_p in the model's own space
        subject = Subject(
            push=SamplerPushforward(model, context.sampler, tuple(latent.shape), context.codec),
            sampler=context.sampler,
            inside=omega(audited.detectors),
            score=lambda images: mse(images.clamp(-1, 1), target),
            target=latent,
            model=model,
            others=torch.cat([context.codec.encode(one_image(part, context.device)) for part in parts]),
            codec=context.codec,
            device=context.device,
        )
    for one in asked:
        _stage(context, one, subject)


def omega(detectors: Detectors) -> Inside:
    """Omega_p (Eq. 6) as a function of images (n, C, H, W): every detector is positive.

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


def _stage(context: Context, one: Estimator, subject: Subject) -> None:
    if context.run.stage(one.name).done:
        return

    progress = AtWork(context.progress(f"estimating q by {one.name}", "samples"))

    def kept(part: str, make: Callable[[], dict[str, object]]) -> Part:
        stage = f"{one.name}.{part}"
        if not context.run.stage(stage).done:
            progress.begin()
            context.run.finish(stage, {"part": make()})
        return cast(Part, context.run.stage(stage).payload["part"])

    effort = Effort(
        relative=context.config.rare.relative,
        most=context.config.rare.most,
        seed=context.config.seed,
        progress=progress,
        kept=kept,
    )
    with context.stage(one.name):
        found = one.estimate(subject, effort)
        context.finish(estimate_of(one.name), value(found), network_evaluations=found.network_evaluations)


class AtWork:
    """A Progress that is silent while the parts of an interrupted estimate are read, so that the rate and the
    remaining time which people see are those of samples drawn now.
    """

    def __init__(self, report: Progress) -> None:
        self._report = report
        self._begun = False
        self._reached: tuple[int, int] | None = None

    def __call__(self, done: int, total: int, /) -> None:
        self._reached = done, total
        if self._begun:
            self._report(done, total)

    def begin(self) -> None:
        """A part is made that was not there: from here on samples are drawn."""
        if not self._begun and self._reached is not None:
            self._report(*self._reached)
        self._begun = True


def value(rate: Rate) -> Estimate:
    """An estimate as results state it."""
    return Estimate(
        sampler=Sampler.model_validate(rate.sampler),
        rate=rate.rate,
        low=rate.low,
        high=rate.high,
        level=rate.level,
        reliable=rate.reliable,
        diagnostic=rate.diagnostic,
        network_evaluations=rate.network_evaluations,
        freedom=rate.freedom,
        trials=rate.trials,
        details=dict(rate.details),
    )
