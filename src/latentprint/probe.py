"""A model, a sampler and two detectors become a Probe: ``(t, ids) -> hits``.

    from the image (Alg. 1):  x_t = alpha_t x_p + sigma_t e, the reverse process from t, c_p and c_id
    from the prior (§5.3):    x_T ~ N(0, prior_std^2 I), the reverse process from T, c_p and c_id

Both are the same function with a different start. The noise of a trajectory is a pure function of (seed,
purpose, id, step), so its outcome depends on (t, id) alone: not on the batch, the order or a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentprint.contracts import Ids, Outcome, Times
from latentprint.denoiser import Codec, Denoiser, IdentityCodec
from latentprint.detector import Detector
from latentprint.metrics.error import mae, mse
from latentprint.sampler import Sampler, trajectories
from latentprint.schedule import expand
from latentprint.streams import Streams

Begin = Callable[[Tensor, Tensor], Tensor]
"""(t (n,), ids (n,)) -> x_t (n, *shape): where trajectories start."""

Watch = Callable[[Ids, Tensor], None]
"""Sees the ids (n,) and the finished images (n, C, H, W) of each call before its outcome is returned."""

Compare = Callable[[Tensor], Mapping[str, NDArray[Any]]]
"""Finished images (n, C, H, W) -> further columns (n,), each a function of its own image alone."""


@dataclass(frozen=True)
class ModelProbe:
    """A Probe from a model (see the module); ``target`` is x_p, (C, H, W) in [-1, 1], for the errors of hits.

    ``presence`` is None if nothing was injected: then Omega_p is the identity detector's alone.
    """

    denoiser: Denoiser
    sampler: Sampler
    begin: Begin
    streams: Streams
    purpose: str
    target: Tensor
    identity: Detector
    presence: Detector | None
    codec: Codec = IdentityCodec()  # noqa: RUF009 (frozen and stateless)
    batch: int = 256
    watch: Watch | None = None
    compare: Compare | None = None

    def images(self, t: Times, ids: Ids) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Trajectories as they end: (rows into ``ids``, images (n, C, H, W) in [-1, 1], evaluations (n,)).

        Images are clipped to [-1, 1], as they would be before being saved or published.
        """
        device = self.target.device
        start = torch.as_tensor(t, dtype=torch.float64, device=device)
        key = torch.as_tensor(ids, dtype=torch.int64, device=device)
        for ended in trajectories(
            self.denoiser,
            self.sampler,
            start,
            key,
            lambda rows: self.begin(start[rows], key[rows]),
            self.streams,
            f"{self.purpose}.path",
            self.batch,
        ):
            yield ended.rows, self.codec.decode(ended.x).clamp(-1, 1), ended.evaluations

    def __call__(self, t: Times, ids: Ids) -> Outcome:
        n = len(ids)
        columns = {name: np.zeros(n, np.float32) for name in ("presence", "identity", "mse", "mae")}
        flags = {name: np.zeros(n, np.bool_) for name in ("presence_hit", "identity_hit")}
        more: dict[str, NDArray[Any]] = {}
        evaluations = np.zeros(n, np.int64)
        for rows, images, cost in self.images(t, ids):
            at = rows.cpu().numpy()
            evaluations[at] = cost.cpu().numpy()
            columns["mse"][at] = mse(images, self.target).cpu().numpy()
            columns["mae"][at] = mae(images, self.target).cpu().numpy()
            for name, detector in (("presence", self.presence), ("identity", self.identity)):
                if detector is None:
                    columns[name][at], flags[f"{name}_hit"][at] = np.nan, True
                    continue
                probability = detector(images)
                columns[name][at] = probability.cpu().numpy()
                flags[f"{name}_hit"][at] = (probability >= detector.threshold).cpu().numpy()
            if self.watch is not None:
                self.watch(ids[at], images)
            if self.compare is not None:
                for name, values in self.compare(images).items():
                    more.setdefault(name, np.zeros(n, values.dtype))[at] = values
        hit = flags["presence_hit"] & flags["identity_hit"]
        return Outcome(hit=hit, evaluations=evaluations, columns=columns | flags | more)


def from_image(image: Tensor, denoiser: Denoiser, streams: Streams, purpose: str, codec: Codec) -> Begin:
    """Alg. 1, line 3: x_t ~ N(alpha_t z, sigma_t^2 I) with z = encode(image), image (C, H, W) in [-1, 1]."""
    clean = codec.encode(image[None])

    def begin(t: Tensor, ids: Tensor) -> Tensor:
        noise = streams.noise(
            f"{purpose}.start", ids, 0, tuple(clean.shape[1:]), device=clean.device, dtype=clean.dtype
        )
        schedule = denoiser.schedule
        return expand(schedule.alpha(t), noise) * clean + expand(schedule.sigma(t), noise) * noise

    return begin


def from_prior(
    shape: tuple[int, ...], denoiser: Denoiser, streams: Streams, purpose: str, device: torch.device
) -> Begin:
    """x_T ~ N(0, prior_std^2 I) in the model's own space, ``shape`` (C, H, W) of that space."""

    def begin(t: Tensor, ids: Tensor) -> Tensor:
        noise = streams.noise(f"{purpose}.start", ids, 0, shape, device=device, dtype=torch.float32)
        return denoiser.schedule.prior_std * noise

    return begin
