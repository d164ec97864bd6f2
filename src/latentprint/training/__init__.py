"""Denoising score matching (paper Eq. 4): a network learns E[x_0 | x_t] from images and their noise.

objective    the loss, and which images, times and noise a step uses
loop         steps, averaged weights, checkpoints: a stream of states
augment      images shifted or mirrored
guided       what a training measures about its own knowledge, and how it then steers (t'-guided training)
team         several processes as one
"""

from latentprint.training.loop import REPORT, TrainState, train
from latentprint.training.objective import draw_indices, draw_times, errors_of, loss_of, weight
from latentprint.training.settings import Guidance, TrainConfig, TrainingError
from latentprint.training.team import Alone, Team

__all__ = [
    "REPORT",
    "Alone",
    "Guidance",
    "Team",
    "TrainConfig",
    "TrainState",
    "TrainingError",
    "draw_indices",
    "draw_times",
    "errors_of",
    "loss_of",
    "train",
    "weight",
]
