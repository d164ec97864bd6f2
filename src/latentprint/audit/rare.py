"""q where counting sees nothing: splitting in the sampler's noise and the bridge, beside the count.

Both are about the same Omega as the count: the images on which c_p and c_id fire together. Splitting is about
the audit's own sampler; the bridge about the probability flow, which is another sampler with its own q.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from latentprint.audit.stages import Detectors
from latentprint.audit.work import Work, one_image
from latentprint.denoiser import Denoiser, IdentityCodec
from latentprint.fingerprint import Injection
from latentprint.metrics.error import mse
from latentprint.rate import (
    BridgeConfig,
    Inside,
    Rate,
    SamplerPushforward,
    SplittingConfig,
    bridge,
    splitting,
)
from latentprint.results.counted import Estimate
from latentprint.results.searched import Sampler


def rare(work: Work, model: Denoiser, detectors: Detectors, injection: Injection) -> None:
    """Each estimator that the settings name, as a stage: finished it is read, interrupted it begins anew."""
    settings = work.config.rare
    target = one_image(injection.target, work.device)
    inside = omega(detectors)
    with torch.no_grad():
        latent = work.codec.encode(target[None])[0]  # x_p in the model's own space
    if settings.splitting:
        push = SamplerPushforward(model, work.sampler, tuple(latent.shape), work.codec)
        config = SplittingConfig(relative=settings.relative, most=settings.most)
        _stage(
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
        _stage(
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


def _stage(work: Work, name: str, estimate: Callable[[], Rate]) -> None:
    if work.run.stage(name).done:
        return
    work.say(f"estimating q by {name}", 0, 1, "estimates")
    with work.stage(name):
        found = estimate()
        cost = {"network_evaluations": found.network_evaluations}
        work.run.finish(name, cost | {"estimate": value(found).plain()})
    work.say(f"estimating q by {name}", 1, 1, "estimates")


def value(rate: Rate) -> Estimate:
    """An estimate as results state it."""
    return Estimate(
        sampler=Sampler(**rate.sampler),
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
