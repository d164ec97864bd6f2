"""What a watched training costs: the same training with and without `latentprint.callbacks.Watch`.

Compares two trainings of one U-Net that take turns, a hundred steps at a time: one calls ``watch.batch`` and
``watch.step`` after every step, the other nothing. ``cost`` is the processor time of the watched one over the
other's, minus 1; ``allowed`` is the share that audits may take (the default, 2 %). Images are digits, so that
a step is short and an audit comparatively long: larger images and networks only make it easier.

    python benchmarks/callbacks.py [--quick] [--json] [--out FILE] [--steps N]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from record import add_output, record, tell
from torch import Tensor, nn

from latentprint.adapters import ddpm_schedule, from_function
from latentprint.callbacks import Canary, Watch
from latentprint.data import load
from latentprint.networks import UNetConfig, build_unet
from latentprint.streams import Streams

ROUND = 100
BATCH = 64


class Loop:
    """A training as people write it: DDPM's loss, Adam."""

    def __init__(self, images: Tensor, network: nn.Module) -> None:
        self.images, self.network, self.step = images, network, 0
        self.optimiser = torch.optim.Adam(network.parameters(), 1e-3)
        self.alphas = ddpm_schedule().alpha(torch.arange(1, 1001, dtype=torch.float64) / 1000).float()
        self.streams = Streams(0)

    def train(self, steps: int, watch: Watch | None) -> float:
        """Processor seconds of so many further steps."""
        began = time.process_time()
        for _ in range(steps):
            ids = range(self.step * BATCH, (self.step + 1) * BATCH)
            u = self.streams.uniform("loop", ids, 0, (2,))
            rows, which = (u[:, 0] * len(self.images)).long(), (u[:, 1] * 1000).long()
            x, noise = (
                self.images[rows],
                self.streams.noise("loop.noise", ids, 0, tuple(self.images.shape[1:])),
            )
            alpha = self.alphas[which].reshape(-1, 1, 1, 1)
            noisy = alpha * x + (1 - alpha**2).sqrt() * noise
            loss = (self.network(noisy, which).sample - noise).square().mean()
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            self.step += 1
            if watch is not None:
                watch.batch(x)
                watch.step(self.step)
        return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="processor time of a watched training over an unwatched one")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="200 steps: that it runs")
    add_output(parser)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    split = load("digits", images=500, seed=0)
    images, held = torch.from_numpy(split.train.pixels), torch.from_numpy(split.heldout.pixels)
    shape = UNetConfig((32, 64), layers_per_block=1, middle_attention=False, norm_groups=8)
    alone, watched = (Loop(images, build_unet(shape, 1, 8, Streams(0))) for _ in range(2))
    model = from_function(lambda x, t: watched.network(x, t).sample, ddpm_schedule(), predicts="epsilon")
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:4, 2:4] = True
    watch = Watch(model, images, held, network=watched.network, canary=Canary(images[0], mask))
    seconds = list[tuple[float, float]]()
    for _ in range((200 if asked.quick else asked.steps) // ROUND):
        seconds.append((alone.train(ROUND, None), watched.train(ROUND, watch)))
    plain, more = (sum(one) for one in zip(*seconds, strict=True))
    found = {
        "allowed": watch.share,
        "cost": more / plain - 1,
        "cost_median_of_rounds": statistics.median(b / a for a, b in seconds) - 1,
        "own_count": watch.time_share,
        "audits": len(watch.curve),
        "steps": watched.step,
        "seconds_unwatched": plain,
    }
    tell(record() | found, asked)


if __name__ == "__main__":
    main()
