"""Alg. 1 for many targets at once: one probe that reads its target from the id, and one stage that runs it.

A hit is what an embedding takes for the target (`latentprint.detector.embedding`), the only detector that is
fitted once for all targets. Memory holds the images of one request, whatever the number of targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentprint.audit.context import Context, one_image
from latentprint.contracts import Ids, Outcome, Probe, Times
from latentprint.denoiser import Codec, Denoiser, IdentityCodec
from latentprint.detector import Against
from latentprint.execute import Stored
from latentprint.results.value import Kind, Note
from latentprint.sampler import Sampler, trajectories
from latentprint.schedule import expand
from latentprint.search import Plan, scan, target_of
from latentprint.search.settings import TargetError
from latentprint.streams import Streams

UNIT = 512
"""Trajectories between two writes to disk."""

CHUNK = 16
"""Targets whose trajectories share one request."""

NOISE = "targets"
"""The purpose of the noise: at the same t and try an image meets the same noise in every stage."""

Pixels = NDArray[np.float32]


class Matcher(Protocol):
    """What the probe needs from a recogniser of many images: `EmbeddingDetector`, `Identities`."""

    @property
    def threshold(self) -> float: ...

    def against(self, targets: Tensor, numbers: NDArray[np.int64], /) -> Against:
        """A function that scores images against targets (m, C, H, W) of these numbers (m,)."""
        ...


class Images(Protocol):
    """Many images by number."""

    def __len__(self) -> int: ...

    def take(self, numbers: NDArray[np.int64], /) -> Pixels:
        """Images (n, C, H, W) in [-1, 1]. The same number always gives the same image."""
        ...


@dataclass(frozen=True)
class ManyProbe:
    """Alg. 1 for many targets at once: ``target_of(id)`` says which image an id starts from and must match.

    Columns: ``score`` and ``mse``, both to the id's own target. Memory holds the images of one call, never
    all of them.
    """

    denoiser: Denoiser
    sampler: Sampler
    images: Images
    matcher: Matcher
    streams: Streams
    device: torch.device
    purpose: str = NOISE
    codec: Codec = IdentityCodec()  # noqa: RUF009 (frozen and stateless)
    batch: int = 256

    def __call__(self, t: Times, ids: Ids) -> Outcome:
        """Outcomes for ids (n,) at noise levels t (n,)."""
        numbers, own = np.unique(target_of(ids), return_inverse=True)
        if len(numbers) and numbers[-1] >= len(self.images):
            raise TargetError(
                f"there is no image {numbers[-1]} among {len(self.images)}, counted from 0, to search for"
            )
        score, error = np.zeros(len(ids)), np.zeros(len(ids), np.float32)
        hit, evaluations = np.zeros(len(ids), np.bool_), np.zeros(len(ids), np.int64)
        if len(ids):
            targets = one_image(self.images.take(numbers), self.device)
            scored = self.matcher.against(targets, numbers)
            which = torch.as_tensor(own, device=self.device)
            for rows, found, cost in self._ended(t, ids, targets, which):
                at, mine = rows.cpu().numpy(), which[rows.to(self.device)]
                seen = scored(found, mine)
                score[at], hit[at] = seen.cpu().numpy(), (seen >= self.matcher.threshold).cpu().numpy()
                apart = (found.double() - targets[mine].double()).div(2).flatten(1)
                error[at] = apart.square().mean(dim=1).cpu().numpy()
                evaluations[at] = cost.cpu().numpy()
        return Outcome(hit=hit, evaluations=evaluations, columns={"score": score, "mse": error})

    def _ended(
        self, t: Times, ids: Ids, targets: Tensor, which: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(rows, images in [-1, 1], evaluations) of trajectories as they end."""
        start = torch.as_tensor(t, dtype=torch.float64, device=self.device)
        key = torch.as_tensor(ids, dtype=torch.int64, device=self.device)
        with torch.no_grad():
            clean, schedule = self.codec.encode(targets), self.denoiser.schedule

        def begin(rows: Tensor) -> Tensor:
            """Alg. 1, line 3: x_t ~ N(alpha_t x_p, sigma_t^2 I), x_p the row's own."""
            shape = tuple(clean.shape[1:])
            noise = self.streams.noise(
                f"{self.purpose}.start", key[rows], 0, shape, device=clean.device, dtype=clean.dtype
            )
            at = start[rows]
            return (
                expand(schedule.alpha(at), noise) * clean[which[rows]]
                + expand(schedule.sigma(at), noise) * noise
            )

        for ended in trajectories(
            self.denoiser, self.sampler, start, key, begin, self.streams, f"{self.purpose}.path", self.batch
        ):
            yield ended.rows, self.codec.decode(ended.x).clamp(-1, 1), ended.evaluations


@dataclass(frozen=True)
class Grouped:
    """A separate probe for each group of ids, such as the model under each image's own prompt."""

    group: Callable[[Ids], NDArray[np.int64]]
    probe: Callable[[int], Probe]

    def __call__(self, t: Times, ids: Ids) -> Outcome:
        """Outcomes for ids (n,) at noise levels t (n,), in the order asked."""
        groups = self.group(ids)
        rows = [np.flatnonzero(groups == one) for one in np.unique(groups)]
        found = [self.probe(int(groups[one[0]]))(t[one], ids[one]) for one in rows]
        back = np.argsort(np.concatenate(rows))
        columns = {
            name: np.concatenate([one.columns[name] for one in found])[back] for name in found[0].columns
        }
        return Outcome(
            hit=np.concatenate([one.hit for one in found])[back],
            evaluations=np.concatenate([one.evaluations for one in found])[back],
            columns=columns,
        )


def search_many(
    context: Context,
    model: Denoiser,
    matcher: Matcher,
    images: Images,
    plan: Plan,
    note: Note[Kind],
    noted: Kind,
    targets: Sequence[int],
) -> None:
    """The exhaustive search for each target, chunk by chunk; rows are resumed by id.

    ``noted`` says in run.json what the numbers of the targets are.
    """
    purpose = note.name
    probe = ManyProbe(
        model,
        context.sampler,
        images,
        matcher,
        context.streams,
        context.device,
        codec=context.codec,
        batch=context.batch,
    )
    under, asked = context.under, cast(Probe, probe)
    if under is not None:
        asked = Grouped(target_of, lambda number: replace(probe, denoiser=under(number, True)))
    each = len(plan.grid) * plan.tries
    cost = 0
    with context.stage(purpose):
        for first in range(0, len(targets), CHUNK):

            def say(done: int, total: int, /, before: int = first * each) -> None:
                del total  # within this chunk
                context.say(f"search {purpose}", before + done, len(targets) * each, "trajectories")

            stored = Stored(asked, purpose, context.run, UNIT, say, context.map)
            chunk = scan(stored, plan, targets[first : first + CHUNK], chunk=CHUNK)
            cost += sum(one.network_evaluations for _, one in chunk)
        if not context.run.stage(purpose).done:
            context.finish(note, noted, network_evaluations=cost)
