"""The search for t' (paper Alg. 1): it asks a Probe, and answers with a TPrime. No torch.

``plan`` holds what is asked and under which ids, ``methods`` the searches that ask it, ``boundary`` what
follows from the counts, and ``null_law`` what t' means compared with images that the model never saw.
"""

from latentprint.search.boundary import Falling, Interval, TPrime, conclude, falling_test
from latentprint.search.methods import bisection, exhaustive, reduced_range, sequential, subsample
from latentprint.search.null_law import Against, NullLaw, null_law, scan
from latentprint.search.plan import Plan, even_grid, ids_of, index_of, target_of, trials_from_rows
from latentprint.search.settings import (
    BaselineSettings,
    ProfileSettings,
    SearchError,
    SearchSettings,
    TargetError,
    Targets,
    parse_targets,
)

__all__ = [
    "Against",
    "BaselineSettings",
    "Falling",
    "Interval",
    "NullLaw",
    "Plan",
    "ProfileSettings",
    "SearchError",
    "SearchSettings",
    "TPrime",
    "TargetError",
    "Targets",
    "bisection",
    "conclude",
    "even_grid",
    "exhaustive",
    "falling_test",
    "ids_of",
    "index_of",
    "null_law",
    "parse_targets",
    "reduced_range",
    "scan",
    "sequential",
    "subsample",
    "target_of",
    "trials_from_rows",
]
