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

from latentprint.remedies.run import RemediesConfig, compare_remedies
from latentprint.remedies.table import REMEDIES, Remedy, RemedyError

__all__ = ["REMEDIES", "RemediesConfig", "Remedy", "RemedyError", "compare_remedies"]
