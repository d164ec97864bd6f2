"""A release policy: a TOML file with one table per rule. Its author sets every limit; none is built in."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from latentprint.results.model import State
from latentprint.results.value import Chance
from latentprint.settings import STRICT, Share, Some


@dataclass(frozen=True, config=STRICT)
class RateLimits:
    """[q]: the rate at which generated images are the private image, by the estimators named.

    Counting is ``monte_carlo``. An estimator that was not run, or does not exist, cannot judge.
    """

    at_most: Chance
    level: Share
    estimators: Annotated[tuple[str, ...], Field(min_length=1)]


@dataclass(frozen=True, config=STRICT)
class MissableLimits:
    """[missable]: the largest rate that the count could have missed, the detectors' own misses included."""

    at_most: Chance
    level: Share


@dataclass(frozen=True, config=STRICT)
class SearchLimits:
    """[t_prime]: t' of the private image compared with that of images never trained on."""

    baseline_images_at_least: Some
    excess_at_most: Annotated[float, Field(ge=-1, le=1)] | None = None
    p_value_at_least: Chance | None = None

    def __post_init__(self) -> None:
        if self.excess_at_most is None and self.p_value_at_least is None:
            raise ValueError("excess_at_most or p_value_at_least is needed")


@dataclass(frozen=True, config=STRICT)
class MembershipLimits:
    """[membership]: area under the curve of telling training images from others; 0.5 is chance."""

    auc_at_most: Chance


@dataclass(frozen=True, config=STRICT)
class ControlLimits:
    """[control]: a model must have been trained alike without the image, and hardly fire."""

    rate_at_most: Chance
    level: Share


@dataclass(frozen=True, config=STRICT)
class DetectorLimits:
    """[detectors]: how reliable the recognisers must be before their counts mean anything."""

    sensitivity_at_least: Chance
    false_alarms_at_most: Chance
    level: Share


@dataclass(frozen=True, config=STRICT)
class CopiesLimits:
    """[copies]: the share of generated images that are copies of any training image."""

    at_most: Chance
    level: Share


@dataclass(frozen=True, config=STRICT)
class MemorisedLimits:
    """[memorised]: the share of training images that came back among the generated images."""

    at_most: Chance
    level: Share


@dataclass(frozen=True, config=STRICT)
class PromptLimits:
    """[prompts]: the share of training prompts that give their own image back in a text-to-image model."""

    at_most: Chance
    level: Share


@dataclass(frozen=True, config=STRICT)
class UnseenLimits:
    """[unseen]: how many more training images can come back than were seen."""

    at_most: Annotated[int, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class EpsilonLimits:
    """[epsilon]: its lower bound from marked images; as many images must be able to show more than the
    limit."""

    at_most: Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class TierLimits:
    """[tiers]: the share of marked images that came back, of those with ``copies`` copies in the training."""

    copies: Some
    at_most: Chance
    level: Share


@dataclass(frozen=True, config=STRICT)
class VerdictLimits:
    """[verdict]: the states of the audit's own verdict that may be released."""

    allowed: Annotated[tuple[State, ...], Field(min_length=1)]
