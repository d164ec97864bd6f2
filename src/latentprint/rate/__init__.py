"""q(p), the probability that a sampler gives the private image back, by three independent estimators."""

from latentprint.rate.monte_carlo import (
    Tally,
    brute_force_samples,
    decided,
    monte_carlo,
    monte_carlo_until,
    precise,
    rate_of,
    tally,
)
from latentprint.rate.result import Rate, unreliable

__all__ = [
    "Rate",
    "Tally",
    "brute_force_samples",
    "decided",
    "monte_carlo",
    "monte_carlo_until",
    "precise",
    "rate_of",
    "tally",
    "unreliable",
]
