"""The estimators of q, one row each: settings, audits, results, gate and reports iterate over this table.

A new estimator is a module with its formula and a row here. The row's name is its switch in the settings.
"""

from __future__ import annotations

from latentprint.rate.estimator import Effort, Estimator, Subject
from latentprint.rate.path import PathConfig, path
from latentprint.rate.result import Rate
from latentprint.rate.splitting import SplittingConfig, splitting


def _path(s: Subject, e: Effort) -> Rate:
    return path(
        s.denoiser("path"),
        s.walked("path"),
        s.target,
        s.inside,
        seed=e.seed,
        others=s.others,
        level=e.level,
        config=PathConfig(relative=e.relative, most=e.most),
        codec=s.codec,
        progress=e.progress,
        kept=e.kept,
    )


def _splitting(s: Subject, e: Effort) -> Rate:
    return splitting(
        s.push,
        s.score,
        s.inside,
        sampler=s.described,
        seed=e.seed,
        level=e.level,
        config=SplittingConfig(relative=e.relative, most=e.most),
        device=s.device,
        progress=e.progress,
        kept=e.kept,
    )


LEAST_TO_SPLIT = 4000
"""Samples that splitting needs to begin: twice its first replicates times their particles."""

ESTIMATORS = (
    Estimator("path", _path),
    Estimator("splitting", _splitting, LEAST_TO_SPLIT, fixed_steps=True),
)
