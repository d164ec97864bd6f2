"""Training on several devices: each process takes its share of every batch, gradients are averaged.

    process r of R trains on the images number  first + r B/R ... first + (r + 1) B/R - 1  of a batch of B
    grad = (1/R) sum_r grad_r      which is the gradient over the whole batch, for equal shares

Noise, times and order are pure functions of (seed, image number), so the R processes see together the very
batch that one process sees alone: results differ by the order of summation only. All begin with the same
weights and make the same optimiser steps, so weights need no exchange. Process 0 writes the checkpoint.

The handover is the checkpoint: the audit writes a job (settings, images), starts R processes on it with
``accelerate launch``, and then continues their checkpoint, which stands at the last step. On a cluster a
person starts them (docs/scale.md):

    accelerate launch --num_processes R -m latentprint.together JOB

Source: Li et al. 2020, "PyTorch Distributed", VLDB (averaged gradients); accelerate, huggingface.co.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latentprint.contracts import InputError
from latentprint.files import read_json, write
from latentprint.networks import UNetConfig, build_unet
from latentprint.networks.files import pack, unpack
from latentprint.progress import Bars
from latentprint.schedule import Schedule, schedule_from
from latentprint.settings import plain, read
from latentprint.streams import Streams
from latentprint.training import TrainConfig, TrainingError, train

SETTINGS, IMAGES = "job.json", "images.safetensors"


class TogetherError(InputError):
    """Several processes cannot train together, for the reason given in one sentence."""


@dataclass(frozen=True)
class Processes:
    """The processes of ``accelerate``, as a ``training.Team``; ``accelerator`` is accelerate's own."""

    accelerator: Any

    @property
    def rank(self) -> int:
        """Which process this is, from 0."""
        return int(self.accelerator.process_index)

    @property
    def size(self) -> int:
        """How many there are."""
        return int(self.accelerator.num_processes)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes of a tensor that each of them holds."""
        return self.accelerator.reduce(values, reduction="mean")


def write_job(
    folder: Path,
    images: NDArray[np.float32],
    network: UNetConfig,
    schedule: Schedule,
    config: TrainConfig,
    seed: int,
    checkpoint: Path,
) -> None:
    """Everything that the processes need, as JSON and safetensors."""
    values = {
        "network": plain(network),
        "schedule": dict(schedule.config()),
        "training": plain(config),
        "seed": seed,
        "checkpoint": str(checkpoint.resolve()),
    }
    write(folder / IMAGES, pack({"images": torch.from_numpy(np.ascontiguousarray(images))}))
    write(folder / SETTINGS, (json.dumps(values, indent=2) + "\n").encode())


def launch(folder: Path, processes: int, device: torch.device) -> None:
    """Start the processes on this machine and wait until they have trained.

    Raises:
        TogetherError: accelerate is not installed, there are fewer GPUs than processes, or one ended badly.
    """
    require_accelerate()
    if device.type == "cuda" and torch.cuda.device_count() < processes:
        raise TogetherError(f"{processes} processes need as many GPUs; there are {torch.cuda.device_count()}")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    command += [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    command += ["--multi_gpu"] if device.type == "cuda" else ["--cpu"]
    ended = subprocess.run(
        [*command, "-m", "latentprint.together", str(folder)],
        stdout=sys.stderr.fileno() if _real(sys.stderr) else subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
        check=False,
    )
    if ended.returncode != 0:
        raise TogetherError(
            f"training with {processes} processes ended with exit code {ended.returncode}; what they said "
            "stands above, the last checkpoint is kept, and the same command continues from it"
        )


def _real(stream: Any) -> bool:
    try:
        stream.fileno()
    except (OSError, ValueError, AttributeError):
        return False
    return True


def require_accelerate() -> None:
    """See that accelerate can be imported.

    Raises:
        TogetherError: accelerate is not installed.
    """
    if find_spec("accelerate") is None:
        raise TogetherError(
            "training with several processes needs accelerate: pip install 'latentprint[accelerate]'"
        )


def work(folder: Path) -> None:
    """One process of the job: joins the others and trains.

    Raises:
        InputError: the job cannot be read, or training cannot go on.
    """
    require_accelerate()
    from accelerate import Accelerator

    values = read_json(folder / SETTINGS)
    accelerator = Accelerator()
    team, device = Processes(accelerator), accelerator.device
    config, streams = read(TrainConfig, values["training"]), Streams(int(values["seed"]))
    pixels = unpack(folder / IMAGES)["images"].numpy()
    shape = tuple(pixels.shape[2:])
    network = build_unet(read(UNetConfig, values["network"]), pixels.shape[1], shape, streams)
    nn.Module.to(network, device)
    schedule, checkpoint = schedule_from(values["schedule"]), Path(values["checkpoint"])
    with Bars() as bars:
        for state in train(pixels, network, schedule, config, streams, device, checkpoint, team=team):
            if team.rank == 0:
                bars(f"training on {team.size} processes", state.step, state.steps, "steps")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def main() -> None:
    """``python -m latentprint.together JOB``, started by ``accelerate launch``."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: accelerate launch --num_processes R -m latentprint.together JOB")
    try:
        work(Path(sys.argv[1]))
    except (TrainingError, InputError) as error:
        raise SystemExit(f"latentprint: {error}") from error


if __name__ == "__main__":
    main()
