"""How likely an image is: the probability-flow ODE (paper Eq. 5), its divergence, and the resulting
density."""

from latentprint.likelihood.density import Likelihood, bits_per_dim, dequantise, grey_step, log_likelihood
from latentprint.likelihood.divergence import Divergence, Exact, Hutchinson
from latentprint.likelihood.flow import FlowState, integrate

__all__ = [
    "Divergence",
    "Exact",
    "FlowState",
    "Hutchinson",
    "Likelihood",
    "bits_per_dim",
    "dequantise",
    "grey_step",
    "integrate",
    "log_likelihood",
]
