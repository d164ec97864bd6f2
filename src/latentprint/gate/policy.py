"""A release policy: TOML tables read into one frozen dataclass each. Every limit is the policy's author's."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from latentprint import settings
from latentprint.files import parse_toml

ESTIMATORS = ("monte_carlo", "bridge", "splitting")
STATES = ("reproduces", "not found", "inconclusive")


def _share(name: str, value: float, *, least: float = 0.0, most: float = 1.0) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} lies in [{least:g}, {most:g}], got {value:g}")


def _level(value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"level lies strictly between 0 and 1, got {value:g}")


@dataclass(frozen=True)
class RateRule:
    """[q]: the rate at which generated images are the private image, by the estimators named."""

    at_most: float
    level: float
    estimators: tuple[str, ...]

    def __post_init__(self) -> None:
        _share("at_most", self.at_most)
        _level(self.level)
        wrong = [name for name in self.estimators if name not in ESTIMATORS]
        if wrong or not self.estimators:
            raise ValueError(
                f"estimators are some of {', '.join(ESTIMATORS)}, got {', '.join(wrong) or 'none'}"
            )


@dataclass(frozen=True)
class MissableRule:
    """[missable]: the largest rate that the count could have missed, the detectors' own misses included."""

    at_most: float
    level: float

    def __post_init__(self) -> None:
        _share("at_most", self.at_most)
        _level(self.level)


@dataclass(frozen=True)
class SearchRule:
    """[t_prime]: t' of the private image over that of images never trained on."""

    baseline_images_at_least: int
    excess_at_most: float | None = None
    p_value_at_least: float | None = None

    def __post_init__(self) -> None:
        if self.excess_at_most is None and self.p_value_at_least is None:
            raise ValueError("excess_at_most or p_value_at_least is needed")
        if self.baseline_images_at_least < 1:
            raise ValueError(f"baseline_images_at_least is 1 or more, got {self.baseline_images_at_least}")
        _share("excess_at_most", self.excess_at_most or 0.0, least=-1.0)
        _share("p_value_at_least", self.p_value_at_least or 0.0)


@dataclass(frozen=True)
class MembershipRule:
    """[membership]: area under the curve of telling training images from others; 0.5 is chance."""

    auc_at_most: float

    def __post_init__(self) -> None:
        _share("auc_at_most", self.auc_at_most)


@dataclass(frozen=True)
class ControlRule:
    """[control]: a model trained alike without the image must have been made, and hardly fire."""

    rate_at_most: float
    level: float

    def __post_init__(self) -> None:
        _share("rate_at_most", self.rate_at_most)
        _level(self.level)


@dataclass(frozen=True)
class DetectorRule:
    """[detectors]: what the recognisers must be known to do before a count of theirs means anything."""

    sensitivity_at_least: float
    false_alarms_at_most: float
    level: float

    def __post_init__(self) -> None:
        _share("sensitivity_at_least", self.sensitivity_at_least)
        _share("false_alarms_at_most", self.false_alarms_at_most)
        _level(self.level)


@dataclass(frozen=True)
class VerdictRule:
    """[verdict]: the states of the audit's own verdict that may be released."""

    allowed: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.allowed or any(state not in STATES for state in self.allowed):
            raise ValueError(
                f"allowed holds some of {', '.join(STATES)}, got {', '.join(self.allowed) or 'none'}"
            )


@dataclass(frozen=True)
class Policy:
    """A release policy: a table left out is a rule not asked for."""

    name: str = ""
    q: RateRule | None = None
    missable: MissableRule | None = None
    t_prime: SearchRule | None = None
    membership: MembershipRule | None = None
    control: ControlRule | None = None
    detectors: DetectorRule | None = None
    verdict: VerdictRule | None = None


def read_policy(text: str, *, name: str = "the policy") -> Policy:
    """A policy from its TOML text.

    Raises:
        SettingsError: no TOML, an unknown key, a wrong type or a number outside its range.
    """
    return settings.read(Policy, parse_toml(text, name))


def starter() -> str:
    """A commented policy to begin with: every rule there is, each with an example of a limit."""
    return resources.files("latentprint.gate").joinpath("starter.toml").read_text(encoding="utf-8")
