"""The reverse process: one loop, the steps that it can take, and the grids of their times."""

from latentprint.sampler.adaptive import RungeKutta
from latentprint.sampler.grid import Spacing, first_column, own_times, times
from latentprint.sampler.loop import Finished, NoiseOfStep, denoised, reverse, trajectories
from latentprint.sampler.sampler import PAPER, Sampler, sampler_from
from latentprint.sampler.state import Noise, State, Step
from latentprint.sampler.steps import (
    DDIM,
    PLMS,
    Ancestral,
    Consistency,
    DPMSolverPP2M,
    EulerMaruyama,
    Heun,
    LearnedAncestral,
    PredictorCorrector,
    ReverseDiffusion,
    SDEDPMSolverPP2M,
    TrajectoryConsistency,
)

__all__ = [
    "DDIM",
    "PAPER",
    "PLMS",
    "Ancestral",
    "Consistency",
    "DPMSolverPP2M",
    "EulerMaruyama",
    "Finished",
    "Heun",
    "LearnedAncestral",
    "Noise",
    "NoiseOfStep",
    "PredictorCorrector",
    "ReverseDiffusion",
    "RungeKutta",
    "SDEDPMSolverPP2M",
    "Sampler",
    "Spacing",
    "State",
    "Step",
    "TrajectoryConsistency",
    "denoised",
    "first_column",
    "own_times",
    "reverse",
    "sampler_from",
    "times",
    "trajectories",
]
