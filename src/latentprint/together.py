"""Training on several devices: each process computes its share of every batch, and gradients are averaged.

    process r of R trains on the images number  first + r B/R ... first + (r + 1) B/R - 1  of a batch of B
    grad = (1/R) sum_r grad_r      which is the gradient over the whole batch, for equal shares

Noise, times and order are pure functions of (seed, image number), so together the R processes see the same
batch as a single process. Results differ only by the order of summation. All processes begin with the same
weights and make the same optimiser steps, so weights need no exchange. Process 0 writes the checkpoint.

The checkpoint is the interface. The audit writes a job, whose images stay in memory, and starts R processes
on it with ``torch.distributed.run``. It then continues their checkpoint, which is at the last step. On a
cluster a person starts them, on a job that includes its images (`ELSEWHERE`, docs/scale.md):

    torchrun --nproc-per-node R -m latentprint.together JOB

Source: Li et al. 2020, "PyTorch Distributed", VLDB (averaged gradients); accelerate, huggingface.co.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentprint.contracts import InputError
from latentprint.data.images import Pixels
from latentprint.files import read_json, write
from latentprint.networks import UNetConfig, build_unet
from latentprint.networks.files import pack, unpack
from latentprint.progress import Bars
from latentprint.schedule import Schedule, schedule_from
from latentprint.settings import plain, read
from latentprint.streams import Streams
from latentprint.training import TrainConfig, TrainingError, train

SETTINGS, IMAGES = "job.json", "images.safetensors"

ELSEWHERE = "LATENTPRINT_WRITE_JOB"
"""The environment variable that makes an audit write the job, with its images, for other machines."""

_ENDS_WITH_PARENT = "LATENTPRINT_ENDS_WITH_PARENT"
"""The environment variable of processes that an audit started: they end when it does."""


class TogetherError(InputError):
    """Several processes cannot train together, with the reason in one sentence."""


@dataclass(frozen=True)
class Processes:
    """The processes of ``accelerate``, as a ``training.Team``; ``accelerator`` is accelerate's own."""

    accelerator: Any

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def size(self) -> int:
        """The number of processes."""
        return int(self.accelerator.num_processes)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes of a tensor that each of them holds."""
        return self.accelerator.reduce(values, reduction="mean")


def packed(images: Pixels) -> bytes:
    """Images in the format that the processes read."""
    return pack({"images": torch.from_numpy(np.ascontiguousarray(images[:]))})


@contextmanager
def in_memory(content: bytes) -> Generator[Path]:
    """A path at which other processes can read ``content`` while this process lives; it is never written to
    disk.

    Systems without such files get a temporary file, readable only by its owner.
    """
    if sys.platform == "linux":
        handle = os.memfd_create("latentprint")
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            yield Path(f"/proc/{os.getpid()}/fd/{handle}")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / IMAGES
        write(path, content)
        yield path


def write_job(
    folder: Path,
    images: Pixels | Path,
    network: UNetConfig,
    schedule: Schedule,
    config: TrainConfig,
    seed: int,
    checkpoint: Path,
    processes: int,
) -> None:
    """Everything that the processes need, as JSON and safetensors, and how many they are.

    ``images`` (n, C, H, W) become a file of the folder; a path names a file that holds them already.
    """
    if not isinstance(images, Path):
        write(folder / IMAGES, packed(images))
        images = Path(IMAGES)
    values = {
        "images": str(images),
        "network": plain(network),
        "schedule": dict(schedule.config()),
        "training": plain(config),
        "seed": seed,
        "checkpoint": str(checkpoint.resolve()),
        "processes": processes,
    }
    write(folder / SETTINGS, (json.dumps(values, indent=2) + "\n").encode())


def start_with(folder: Path, processes: int) -> str:
    """Instructions for a person who starts the processes on a cluster."""
    return (
        f"start `torchrun --nproc-per-node {processes} -m latentprint.together {folder}` there, then"
        f" repeat the command without {ELSEWHERE}: it continues the checkpoint and removes the job"
    )


def launch(folder: Path, processes: int, device: torch.device) -> None:
    """Start the processes on this machine and wait until they have trained.

    Raises:
        TogetherError: accelerate is not installed, there are fewer GPUs than processes, or one ended badly.
    """
    require_accelerate()
    if device.type == "cuda" and torch.cuda.device_count() < processes:
        raise TogetherError(f"{processes} processes need as many GPUs; there are {torch.cuda.device_count()}")
    # Not ``accelerate launch``: on CPUs it starts one process, however many it is asked for.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    own = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PYTHONSAFEPATH": "1",  # modules of the current folder are not ours
        "ACCELERATE_USE_CPU": str(device.type != "cuda").lower(),
        _ENDS_WITH_PARENT: "1",
    }
    theirs, ours = os.pipe()
    try:
        ended = subprocess.run(
            [*command, "-m", "latentprint.together", str(folder)],
            stdin=theirs,
            stdout=sys.stderr.fileno() if _real(sys.stderr) else subprocess.DEVNULL,
            env=os.environ | own,
            check=False,
        )
    finally:
        os.close(theirs)
        os.close(ours)
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
    """Check that accelerate can be imported.

    Raises:
        TogetherError: accelerate is not installed.
    """
    if find_spec("accelerate") is None:
        raise TogetherError(
            "training with several processes needs accelerate: pip install 'latentprint[accelerate]'"
        )


def _end_with_parent() -> None:
    """From here on this process ends when the one that launched it does, however that ended.

    Otherwise it would continue to write checkpoints next to those of the run that continues.
    """

    def watch() -> None:
        os.read(0, 1)  # nothing is ever written there: the read returns when the other end is gone
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def work(folder: Path) -> None:
    """One process of the job: joins the others and trains.

    Raises:
        InputError: the job cannot be read, or training cannot go on.
    """
    if _ENDS_WITH_PARENT in os.environ:
        _end_with_parent()
    require_accelerate()
    from accelerate import Accelerator

    values = read_json(folder / SETTINGS)
    # Without a GPU accelerate takes several processes for one, unless it is told that they are on the CPU.
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    team, device = Processes(accelerator), accelerator.device
    if team.size != (wanted := int(values["processes"])):
        raise TogetherError(
            f"this job is for {wanted} processes, and this one is of {team.size}: start {wanted} of them with"
            " torchrun (`accelerate launch` starts one where there is no GPU), or write the job again"
        )
    config, streams = read(TrainConfig, values["training"]), Streams(int(values["seed"]))
    pixels = unpack(folder / values["images"])["images"].numpy()
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
    """``python -m latentprint.together JOB``, started by ``torchrun``."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: torchrun --nproc-per-node R -m latentprint.together JOB")
    try:
        work(Path(sys.argv[1]))
    except (TrainingError, InputError) as error:
        raise SystemExit(f"latentprint: {error}") from error


if __name__ == "__main__":
    main()
