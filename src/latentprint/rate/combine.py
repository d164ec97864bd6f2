"""Estimates of q side by side, and whether they agree.

Every q belongs to a sampler with its step count. Two estimates should agree where they are about the same
sampler, or both about the probability-flow ODE (deterministic samplers, as far as their steps have
converged). Where two that should agree have disjoint intervals, at least one of them is wrong, and no single
number is offered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from latentprint.rate.result import Rate


@dataclass(frozen=True)
class Combined:
    """All estimates and one answer.

    Attributes:
        rates: the estimates, as given.
        answer: the reliable estimate with the narrowest interval (ratio of its ends); None where none is
            reliable, where two disagree, or where they are about different samplers.
        disagreements: pairs of positions in ``rates`` whose intervals should overlap and do not.
        sentence: what the estimates say together.
    """

    rates: tuple[Rate, ...]
    answer: Rate | None
    disagreements: tuple[tuple[int, int], ...]
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for results: the answer, whether the estimates agree, and the sentence."""
        answer = None if self.answer is None else {"method": self.answer.method} | self.answer.to_dict()
        return {"answer": answer, "agree": not self.disagreements, "sentence": self.sentence}


def comparable(one: Rate, other: Rate) -> bool:
    """Whether both are about the same q: the same sampler, or two samplers of the deterministic flow."""
    if dict(one.sampler) == dict(other.sampler):
        return True
    return one.sampler.get("stochastic") is False and other.sampler.get("stochastic") is False


def disjoint(one: Rate, other: Rate) -> bool:
    """Whether the intervals of two reliable estimates share no rate."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.high < other.low or other.high < one.low


def combine(rates: Sequence[Rate]) -> Combined:
    """The estimates side by side and, where they allow it, one answer.

    Raises:
        ValueError: there is no estimate.
    """
    if not rates:
        raise ValueError("there is nothing to combine: at least one estimate is needed")
    usable = [i for i, rate in enumerate(rates) if rate.reliable]
    apart = tuple(
        (i, j)
        for i, j in combinations(usable, 2)
        if comparable(rates[i], rates[j]) and disjoint(rates[i], rates[j])
    )
    if not usable:
        reasons = "; ".join(f"{rate.method}: {rate.diagnostic}" for rate in rates)
        return Combined(tuple(rates), None, (), f"no estimate of q is reliable ({reasons})")
    if apart:
        said = "; ".join(f"{_said(rates[i])} and {_said(rates[j])}" for i, j in apart)
        return Combined(
            tuple(rates), None, apart, f"estimates that should agree do not, so none is offered as q: {said}"
        )
    if any(not comparable(rates[i], rates[j]) for i, j in combinations(usable, 2)):
        said = ", ".join(_said(rates[i]) for i in usable)
        return Combined(
            tuple(rates), None, (), f"the estimates are about different samplers, each with its own q: {said}"
        )
    best = min((rates[i] for i in usable), key=_width)
    count = "one reliable estimate" if len(usable) == 1 else f"{len(usable)} reliable estimates that agree"
    return Combined(tuple(rates), best, (), f"{count}; the narrowest is {_said(best)}")


def _width(rate: Rate) -> float:
    assert rate.low is not None and rate.high is not None
    return rate.high / rate.low if rate.low > 0 else float("inf")


def _said(rate: Rate) -> str:
    return f"{rate.method} {rate.rate:.3g} [{rate.low:.3g}, {rate.high:.3g}]"
