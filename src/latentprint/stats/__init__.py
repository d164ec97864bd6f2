"""Counts, and what can be concluded from them. No torch.

    counts        exact intervals and tests of n trials
    sequential    intervals and p-values that hold at any stopping time
    many          several rates or p-values at once
    corrected     the true rate behind detectors that err
    choice        which of several estimates of one rate answers
    rates         how often detectors err, and on which images that was counted

All of it holds for every n, including zero hits, the usual case of an audit.
"""

from latentprint.stats.choice import Choice, Claim, choose, stretched
from latentprint.stats.corrected import (
    CorrectedRate,
    corrected_interval,
    corrected_rate,
    corrected_rate_of_both,
    through_detector,
)
from latentprint.stats.counts import Trials, binomial_test_less, missable, samples_to_exclude
from latentprint.stats.many import empirical_p, false_discovery, simultaneous_band
from latentprint.stats.rates import DetectorRates, Unit, false_alarms
from latentprint.stats.sequential import (
    confidence_sequence,
    log_mixture,
    looks,
    narrowed,
    prior_near,
    running_interval,
    running_p_value,
    samples_to_decide,
)

__all__ = [
    "Choice",
    "Claim",
    "CorrectedRate",
    "DetectorRates",
    "Trials",
    "Unit",
    "binomial_test_less",
    "choose",
    "confidence_sequence",
    "corrected_interval",
    "corrected_rate",
    "corrected_rate_of_both",
    "empirical_p",
    "false_alarms",
    "false_discovery",
    "log_mixture",
    "looks",
    "missable",
    "narrowed",
    "prior_near",
    "running_interval",
    "running_p_value",
    "samples_to_decide",
    "samples_to_exclude",
    "simultaneous_band",
    "stretched",
    "through_detector",
]
