"""Remedies compared: the same images, marks, seeds and measures, with and without each remedy.

table      the remedies, one row each
training   the models that remedies train, early stopping among them
private    DP-SGD (opacus)
sampling   guidance away from training images
measure    risk and quality of one model, as numbers with intervals
forecast   when memorising begins, from the first steps
rows       what the table says
run        all rows, resumable, here or on many machines
picture    risk against quality
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentprint.remedies.table import REMEDIES, Remedy, RemedyError

if TYPE_CHECKING:
    from latentprint.remedies.run import RemediesConfig as RemediesConfig
    from latentprint.remedies.run import compare_remedies as compare_remedies

__all__ = ["REMEDIES", "RemediesConfig", "Remedy", "RemedyError", "compare_remedies"]


def __getattr__(name: str) -> Any:
    """What imports torch, on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from latentprint.remedies import run

    return getattr(run, name)
