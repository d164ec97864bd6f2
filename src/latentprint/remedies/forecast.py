"""When will a training begin to memorise? A forecast from its first steps.

    gap(k)    1 - e(train) / e(held out) after k steps, e the loss of Eq. 4 with the same noise at every look,
              minus the gap before anything could be memorised (some images are easier than others)
    onset     the first step at which the gap is AT: held-out images are restored a third worse

While a network learns what images have in common, the gap grows as a power of the steps (in the linear regime
of Bonnaire et al. like k/N). The logarithm of the steps is therefore extrapolated to where the fitted line
reaches AT. The interval is a prediction interval for correlated looks (each counts a third). It is widened by
FLOOR, which trainings that were run to the end showed to be necessary.

The time to memorise grows in proportion to the number of images, while the time until samples look right does
not (Bonnaire et al. 2025; Favero et al. 2025): twice the images double the onset.

Sources: Bonnaire, Urfin, Biroli, Mezard 2025, "Why diffusion models don't memorize"; Favero, Sclocchi, Wyart
2025.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy import stats as scipy_stats  # pyright: ignore[reportMissingTypeStubs]

from latentprint.contracts import InputError

AT = 1 / 3
"""The gap that is called the onset."""

FLOOR = 0.15
"""Standard error of the logarithm of a forecast that the fit itself does not show."""

_STARTED = 0.05  # a gap above which it is a power of the steps
_LEAST = 4  # looks that a fit needs
_CORRELATED = 3
_RIGHT = 0.1  # relative to the lowest held-out loss: below it samples look right
_normal = cast(Any, scipy_stats).norm


class ForecastError(InputError):
    """A forecast that cannot be made, with the reason in one sentence."""


@dataclass(frozen=True)
class Looks:
    """Losses of the averaged weights along a training.

    Attributes:
        steps: rising.
        train, heldout: the loss on training and on held-out images, with the same noise at every look.
    """

    steps: Sequence[int]
    train: Sequence[float]
    heldout: Sequence[float]

    @property
    def gaps(self) -> list[float]:
        """The gap at each look, minus that of the first."""
        plain = [1 - a / b for a, b in zip(self.train, self.heldout, strict=True)]
        return [gap - plain[0] for gap in plain]


@dataclass(frozen=True)
class Forecast:
    """The onset of memorisation.

    Attributes:
        onset, low, high: steps, with the 95 % interval.
        until: the last step with a look.
        looks_right: the first step at which the held-out loss was within a tenth of its lowest so far:
            training can stop safely between there and ``low``; None: it can not.
        more_images: how many more would double the onset.
    """

    onset: float
    low: float
    high: float
    until: int
    looks_right: int | None
    more_images: int

    @property
    def sentences(self) -> tuple[str, ...]:
        """The forecast in words."""
        between = f"({self.low:,.0f} to {self.high:,.0f})"
        began = f"It begins to memorise after about {self.onset:,.0f} steps {between}."
        if self.looks_right is None:
            window = "No step was found that is safe and at which samples look right: use more images."
        else:
            window = (
                f"Its loss on held-out images is near its lowest from step {self.looks_right:,} on: stop"
                f" between that and step {self.low:,.0f}."
            )
        return began, window, f"{self.more_images:,} more images would about double that time."


def measured_onset(looks: Looks) -> float | None:
    """The step at which the gap first was AT, interpolated between two looks; None: it never was."""
    before = (0, 0.0)
    for step, gap in zip(looks.steps, looks.gaps, strict=True):
        if gap >= AT:
            share = (AT - before[1]) / (gap - before[1])
            return before[0] + share * (step - before[0])
        before = (step, gap)
    return None


def forecast(looks: Looks, images: int, level: float = 0.95) -> Forecast:
    """The onset predicted from the looks so far, for a training on so many images.

    Raises:
        ForecastError: the gap has not begun to grow, or there are too few looks.
    """
    steps, gaps = np.asarray(looks.steps, np.float64), np.asarray(looks.gaps)
    # From the last look below _STARTED on; before that the gap is noise.
    small = np.flatnonzero(gaps < _STARTED)
    used = np.arange(len(gaps)) > (small[-1] if len(small) else -1)
    if used.sum() < _LEAST:
        raise ForecastError(
            f"the gap between training and held-out images was above {_STARTED:g} at {int(used.sum())} of"
            f" {len(gaps)} looks, up to step {int(steps[-1]) if len(steps) else 0:,}; {_LEAST} are needed:"
            " look at more steps (--until)"
        )
    x, y = np.log(gaps[used]), np.log(steps[used])
    slope, middle = np.polyfit(x - x.mean(), y, 1)
    at = math.log(AT) - float(x.mean())
    centre = float(middle + slope * at)
    rest = y - (middle + slope * (x - x.mean()))
    variance = float((rest**2).sum()) / max(1.0, len(x) - 2)
    seen = float(((x - x.mean()) ** 2).sum())
    spread = variance * (1 + _CORRELATED * (1 / len(x) + at**2 / max(seen, 1e-12)))
    far = float(_normal.ppf((1 + level) / 2)) * math.sqrt(spread + FLOOR**2)
    onset, low, high = (math.exp(centre + sign * far) for sign in (0, -1, 1))
    reached = measured_onset(looks)
    if reached is not None:  # it is not a forecast any more
        onset, low, high = reached, reached, reached
    lowest = min(looks.heldout)
    right = next(s for s, v in zip(looks.steps, looks.heldout, strict=True) if v <= (1 + _RIGHT) * lowest)
    return Forecast(onset, low, high, int(steps[-1]), right if right < low else None, images)
