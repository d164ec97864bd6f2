"""Denoising score matching (paper Eq. 4): a network learns E[x_0 | x_t] from images and their noise.

objective    the loss, which images, times and noise a step sees
loop         steps, averaged weights, checkpoints: a stream of states
team         several processes as one
"""

from latentprint.training.loop import REPORT, TrainState, train
from latentprint.training.objective import draw_indices, draw_times, loss_of, weight
from latentprint.training.settings import TrainConfig, TrainingError
from latentprint.training.team import Alone, Team

__all__ = [
    "REPORT",
    "Alone",
    "Team",
    "TrainConfig",
    "TrainState",
    "TrainingError",
    "draw_indices",
    "draw_times",
    "loss_of",
    "train",
    "weight",
]
