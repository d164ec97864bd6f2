"""q(p), the probability that a sampler gives the private image back: counted, and estimated where it is
small."""

from latentprint.rate.estimator import Effort, Estimator, Subject
from latentprint.rate.levels import Inside, Pushforward, Score
from latentprint.rate.monte_carlo import (
    Tally,
    brute_force_samples,
    monte_carlo,
    rate_of,
    tally,
)
from latentprint.rate.path import PathConfig, path
from latentprint.rate.pushforward import SamplerPushforward
from latentprint.rate.result import Rate, unreliable
from latentprint.rate.splitting import SplittingConfig, splitting
from latentprint.rate.table import ESTIMATORS

__all__ = [
    "ESTIMATORS",
    "Effort",
    "Estimator",
    "Inside",
    "PathConfig",
    "Pushforward",
    "Rate",
    "SamplerPushforward",
    "Score",
    "SplittingConfig",
    "Subject",
    "Tally",
    "brute_force_samples",
    "monte_carlo",
    "path",
    "rate_of",
    "splitting",
    "tally",
    "unreliable",
]
