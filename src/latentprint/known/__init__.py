"""Models whose answers are known, against which the whole audit is tested, not only its parts.

Gaussian     p_0 = N(m, C)                        everything in closed form
Mixture      p_0 = sum_i w_i N(x_i, h^2 I)        q of a ball: noncentral chi-square, to 1e-100 and below
Memorised    p_0 = sum_i w_i delta(x_i), h = 0    q = copies / N, P(return | t) = E[w_p(x_t)]
Coin         a probe that hits with known probability, without a model
Leak         a sampler that returns x_p with probability q, without a model
"""

from latentprint.known.ball import log_ball
from latentprint.known.coins import Coin, Leak
from latentprint.known.finite import Estimate, Memorised, Mixture
from latentprint.known.gaussian import Gaussian

__all__ = ["Coin", "Estimate", "Gaussian", "Leak", "Memorised", "Mixture", "log_ball"]
