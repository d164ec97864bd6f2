"""Known answers without a model: a probe and a sampler that only toss coins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from latentprint.contracts import Hits, Ids, Outcome, Times
from latentprint.streams import Streams


@dataclass(frozen=True)
class Coin:
    """A ``contracts.Probe`` without a model: an id hits at t where its uniform lies below probability(t).

    ``probability`` maps times (n,) to probabilities (n,). Tosses at different t or ids are independent.
    """

    probability: Callable[[Times], NDArray[np.float64]]
    seed: int = 0
    evaluations: int = 1

    def __call__(self, t: Times, ids: Ids) -> Outcome:
        """See ``contracts.Probe``.

        Raises:
            ValueError: a probability outside [0, 1], or not one per time.
        """
        t = np.asarray(t, dtype=np.float64)
        p = np.asarray(self.probability(t), dtype=np.float64)
        if p.shape != t.shape or not bool(np.all((p >= 0) & (p <= 1))):
            raise ValueError(f"a coin needs a probability in [0, 1] for each of {len(t)} times, got {p}")
        hit: Hits = np.zeros(len(ids), dtype=np.bool_)
        for value in np.unique(t):
            at = np.flatnonzero(t == value)
            u = Streams(self.seed).uniform(f"coin.{float(value)!r}", ids[at], 0, (), dtype=torch.float64)
            hit[at] = u.numpy() < p[at]
        return Outcome(hit=hit, evaluations=np.full(len(ids), self.evaluations, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Leak:
    """A sampler without a model, as a map of its Gaussian noise: x_p with probability q, else another.

    noise (n, k) or (n, ...) with at least 2 numbers a row -> images (n, *shape): the first number decides
    whether it is x_p, the second which other image. ``image`` (*shape), ``others`` (m, *shape). As a denoiser
    the same leak is ``Memorised(cat([image, others]), schedule, copies=[q, (1 - q) / m, ...])``.

    Raises:
        ValueError: q outside [0, 1], or no others.
    """

    image: Tensor
    others: Tensor
    q: float

    def __post_init__(self) -> None:
        if not 0 <= self.q <= 1 or len(self.others) == 0:
            raise ValueError(f"a leak needs q in [0, 1] and others, got {self.q} and {len(self.others)}")

    def __call__(self, noise: Tensor, /) -> Tensor:
        first, second = special.ndtr(noise.flatten(1)[:, :2].to("cpu", torch.float64).numpy()).T
        which = np.minimum((second * len(self.others)).astype(np.int64), len(self.others) - 1)
        images = self.others[torch.as_tensor(which, device=self.others.device)].clone()
        images[torch.as_tensor(first < self.q, device=images.device)] = self.image.to(images)
        return images
