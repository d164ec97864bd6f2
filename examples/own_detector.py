"""A detector of one's own: everything within a distance of the private image, and q by it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from latentprint.denoiser import Denoiser, IdentityCodec
from latentprint.probe import ModelProbe, from_prior
from latentprint.rate import Rate, monte_carlo
from latentprint.sampler import Sampler
from latentprint.stats import DetectorRates, Trials
from latentprint.streams import Streams


def distance(images: Tensor, target: Tensor) -> Tensor:
    """Root mean squared difference (B,) to the target, pixels in [0, 1]."""
    return ((images - target) / 2).double().square().flatten(1).mean(1).sqrt()


# --8<-- [start:detector]
@dataclass(frozen=True, eq=False)
class Near:
    """Fires within ``radius`` of ``target``: probability 2^-(d / radius)^2, which is 1/2 at the radius."""

    target: Tensor
    radius: float
    rates: DetectorRates

    name = "near"
    threshold = 0.5

    def __call__(self, images: Tensor, /) -> Tensor:
        return torch.exp2(-((distance(images, self.target) / self.radius) ** 2))


def near(target: Tensor, others: Tensor, streams: Streams, noise: float = 0.05) -> Near:
    """The detector for ``target`` (C, H, W), its radius half the way to the nearest of half of ``others``.

    Its error rates are counted on images that did not set the radius: noisy copies of the target, and the
    other half. A detector without its errors would make every count look exact.
    """
    fitted, tested = others[::2], others[1::2]
    radius = float(distance(fitted, target).min()) / 2
    copies = target + 2 * noise * streams.noise("near.copies", range(100), 0, tuple(target.shape))
    found, alarms = (int((distance(images, target) <= radius).sum()) for images in (copies, tested))
    rates = DetectorRates(Trials(found, 100), Trials(alarms, len(tested)), {}, "near")
    return Near(target, radius, rates)


# --8<-- [end:detector]
# --8<-- [start:count]
def rate_of_near(denoiser: Denoiser, detector: Near, sampler: Sampler, samples: int, seed: int) -> Rate:
    """q of the region that the detector marks out: one detector, so presence is None."""
    streams, target = Streams(seed), detector.target
    begin = from_prior(tuple(target.shape), denoiser, streams, "near", target.device)
    probe = ModelProbe(
        denoiser, sampler, begin, streams, "near", target, detector, presence=None, codec=IdentityCodec()
    )
    return monte_carlo(probe, denoiser.schedule.start, samples, sampler=sampler.describe())


# --8<-- [end:count]
