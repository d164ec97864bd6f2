"""t'-guided training (paper section 8): a network is trained so that it does not know single images
(docs/remedies.md).

At noise level t an image is known if the model restores it better than images that it was not trained on.
Levels are bins of equal weight in the loss. In each,

    e(x, t) = w(t) |D(x_t, t) - x|^2 / d        Eq. 4 of one image, the first step of Alg. 1 from t
    m       = mean of e over held-out images    the null law, which training keeps itself
    known   if e of the training images is, on average, below (1 - gap) m

and known levels are not trained any further ("levels", the default). The other variants run the search
itself, Alg. 1 with few steps on training and held-out images in turn, for t' of each image. They steer if t
is above what held-out images reach and not above the image's own t':

    "images"         the image is left out of the loss at these levels
    "repulsion"      D is pushed away from the image there until e is back at (1 - gap) m
    "augmentation"   the image is seen shifted by a pixel or mirrored, half of the time

With ``stop``, training ends when the share of images known to the search exceeds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from latentprint.denoiser import Denoiser, NetworkDenoiser
from latentprint.sampler import Ancestral, Sampler, trajectories
from latentprint.schedule import Schedule, expand
from latentprint.streams import Streams
from latentprint.training.augment import moved
from latentprint.training.objective import draw_times, errors_of
from latentprint.training.settings import TrainConfig

_KEPT = 0.8  # of a running mean, per step; of the held-out law, per look
_LAW = 4  # searches whose held-out images form the law of t'
_FIRM = 0.95  # of held-out images, whose t' an image must exceed to be known


@dataclass
class Guide:
    """What a training knows about its images; `begin` makes it. It changes during training.

    Attributes:
        pixels, heldout: (N, *shape) and (m, *shape), training images and held-out images.
        edges: (L - 1,) rising, sigma / alpha between two levels.
        grid: (L,) float64 rising, a time within each level.
        strangers, own: (L,) running means of e; 0 if no image came yet.
        reach: (N,) float64, t' of each image in its last search; 0: never, or not searched yet.
        law: (_LAW, S) float64, t' of held-out images in the last searches; NaN: not searched yet.
        looked: whether the current step looks. Both means move at the same steps, so that they lag equally.
        share: (,) the share of the last searched images that is known.
    """

    config: TrainConfig
    schedule: Schedule
    streams: Streams
    pixels: Tensor
    heldout: Tensor
    edges: Tensor
    grid: Tensor
    strangers: Tensor
    own: Tensor
    reach: Tensor
    law: Tensor
    looked: bool = False
    share: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    @staticmethod
    def begin(
        config: TrainConfig, schedule: Schedule, streams: Streams, pixels: Tensor, heldout: Tensor
    ) -> Guide:
        """The guide before the first step."""
        levels, device = config.guidance.levels, pixels.device
        times = draw_times(config, schedule, streams, 0, 256 * levels).sort().values
        middle = times.reshape(levels, -1)[:, 128]
        edges = schedule.ratio(times.reshape(levels, -1)[1:, 0])
        means = torch.zeros(levels, device=device)
        some = min(config.guidance.images, len(pixels), len(heldout))
        return Guide(
            config,
            schedule,
            streams,
            pixels,
            heldout,
            edges,
            middle,
            means,
            means.clone(),
            torch.zeros(len(pixels), dtype=torch.float64),
            torch.full((_LAW, some), torch.nan, dtype=torch.float64),
        )

    @property
    def stopped(self) -> bool:
        """Whether so many images are known that training ends."""
        stop = self.config.guidance.stop
        return stop is not None and float(self.share) > stop

    @property
    def known_share(self) -> float | None:
        """Of the images last searched, the share that is known; None before the first search."""
        return None if self.law.isnan().all() else float(self.share)

    @property
    def known_levels(self) -> Tensor:
        """(L,) bool: where training images are restored better than strangers by more than the gap."""
        return (self.strangers > 0) & (self.own < (1 - self.config.guidance.gap) * self.strangers)

    def look(self, step: int, training: NetworkDenoiser, averaged: NetworkDenoiser) -> None:
        """Before step ``step``: evaluate held-out images at the times of its batch, and search if a search is
        due."""
        how, batch = self.config.guidance, self.config.batch
        self.looked = step % how.every == 0
        if self.looked:
            rows = self.streams.generator("guide.rows", step).integers(0, len(self.heldout), batch)
            t = draw_times(self.config, self.schedule, self.streams, step * batch, batch)
            images = self.heldout[torch.from_numpy(rows).to(self.heldout.device)]
            ids = range(step * batch, (step + 1) * batch)
            noise = self.streams.noise("guide.noise", ids, 0, tuple(images.shape[1:]), device=images.device)
            with torch.no_grad():
                errors = errors_of(self.config, training, images, t, noise)
            _follow(self.strangers, self.level(t), errors)
        if (how.variant != "levels" or how.stop is not None) and step % how.search_every == 0 and step:
            self._search(step // how.search_every - 1, averaged)

    def level(self, t: Tensor) -> Tensor:
        """The level of each time (B,), on the images' device."""
        return torch.bucketize(self.schedule.ratio(t), self.edges).to(self.pixels.device)

    def known(self, rows: Tensor, t: Tensor) -> Tensor:
        """(B,) bool: whether the search knows the image of each row at the given time (B,)."""
        usual, firm = self._held_out_law()
        reach = self.reach[rows.cpu()]
        return ((reach > firm) & (t > usual) & (t <= reach)).to(rows.device)

    def seen(self, rows: Tensor, images: Tensor, first: int) -> Tensor:
        """The images of a batch (B, *shape) as they are trained on; ``first``: images seen before."""
        if self.config.guidance.variant != "augmentation":
            return images
        chosen = (self.reach[rows.cpu()] > self._held_out_law()[1]).to(images.device)
        chosen = chosen.reshape(-1, *[1] * (images.dim() - 1))
        return torch.where(chosen, moved(images, 0.5, self.streams, first)[0], images)

    def loss(
        self, denoiser: NetworkDenoiser, rows: Tensor, images: Tensor, t: Tensor, noise: Tensor
    ) -> Tensor:
        """Eq. 4 on a batch, guided; shape ()."""
        errors = errors_of(self.config, denoiser, images, t, noise)
        level, how = self.level(t), self.config.guidance
        if self.looked:
            _follow(self.own, level, errors.detach())
        if how.variant == "levels":
            errors = errors * ~self.known_levels[level]
        elif how.variant == "images":
            errors = errors * ~self.known(rows, t)
        elif how.variant == "repulsion":
            low = errors.detach() < (1 - how.gap) * self.strangers[level]
            errors = torch.where(self.known(rows, t) & low, -errors, errors)
        return errors.mean()

    def tensors(self) -> Mapping[str, Tensor]:
        """What a checkpoint keeps."""
        return {name: getattr(self, name) for name in ("strangers", "own", "reach", "law", "share")}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint's ``tensors``."""
        for name, held in self.tensors().items():
            held.copy_(tensors[name])

    def _held_out_law(self) -> tuple[float, float]:
        """(median, 95th percentile) of t' of held-out images; infinite before the first search."""
        law = self.law[~self.law.isnan()]
        if not len(law):
            return torch.inf, torch.inf
        usual, firm = torch.quantile(law, torch.tensor([0.5, _FIRM], dtype=law.dtype)).tolist()
        return usual, firm

    def _search(self, turn: int, denoiser: NetworkDenoiser) -> None:
        """Search t' of the images whose turn it is, and of as many held-out images."""
        some, count = self.law.shape[1], len(self.pixels)
        places = torch.arange(turn * some, (turn + 1) * some) % count
        strangers = self.streams.generator("guide.strangers", turn).permutation(len(self.heldout))[:some]
        chosen = torch.from_numpy(strangers)
        held = self.heldout[chosen.to(self.heldout.device)]
        own = self.returns(denoiser, self.pixels[places.to(self.pixels.device)], places, turn)
        others = self.returns(denoiser, held, torch.full_like(places, -1), turn)
        # Alg. 1: t' is the largest t of any hit.
        self.reach[places] = torch.where(own, self.grid, 0.0).max(1).values
        self.law[turn % _LAW] = torch.where(others, self.grid, 0.0).max(1).values
        self.share.copy_((self.reach[places] > self._held_out_law()[1]).double().mean())

    def returns(self, denoiser: Denoiser, images: Tensor, places: Tensor, turn: int) -> Tensor:
        """Which images (S, *shape) come back from which of the grid's times, one try each: (S, L) bool.

        An image came back if no other training image is nearer; ``places`` are their own places (-1: held
        out).
        """
        levels, shape, device = len(self.grid), tuple(images.shape[1:]), images.device
        rows = torch.arange(len(images)).repeat_interleave(levels)
        t = self.grid.repeat(len(images))
        # Held-out images are numbered after the training images, so that no two trajectories share noise.
        names = torch.where(places < 0, len(self.pixels) + torch.arange(len(places)), places)
        ids = (turn * (len(self.pixels) + len(places)) + names).repeat_interleave(levels) * levels
        ids += torch.arange(levels).repeat(len(images))

        def start(of: Tensor) -> Tensor:
            noise = self.streams.noise("guide.start", ids[of], 0, shape, device=device)
            alpha, sigma = self.schedule.alpha(t[of]), self.schedule.sigma(t[of])
            return expand(alpha, noise) * images[rows[of].to(device)] + expand(sigma, noise) * noise

        sampler = Sampler(Ancestral(), self.config.guidance.steps)
        back = torch.zeros(len(t), dtype=torch.bool)
        for ended in trajectories(denoiser, sampler, t, ids, start, self.streams, "guide.path"):
            found, of = ended.x.flatten(1), rows[ended.rows]
            apart = torch.cdist(found, self.pixels.flatten(1))
            own = places[of].to(device)
            inside = (own >= 0).nonzero()[:, 0]
            apart[inside, own[inside]] = torch.inf
            to_own = (found - images[of.to(device)].flatten(1)).norm(dim=1)
            back[ended.rows.cpu()] = (to_own < apart.min(1).values).cpu()
        return back.reshape(-1, levels)


def _follow(means: Tensor, level: Tensor, errors: Tensor) -> None:
    """Move the running mean of each level towards the errors (B,) that fell into it."""
    total, count = torch.zeros_like(means), torch.zeros_like(means)
    total.index_add_(0, level, errors.to(means))
    count.index_add_(0, level, torch.ones_like(errors, dtype=means.dtype))
    new = total / count.clamp(min=1)
    moved = torch.where(means > 0, _KEPT * means + (1 - _KEPT) * new, new)
    means.copy_(torch.where(count > 0, moved, means))
