"""Several processes that train one model: the weights that one process reaches alone, to rounding."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentprint import together
from latentprint.networks import UNetConfig, build_unet, committed
from latentprint.schedule import SubVP
from latentprint.streams import Streams
from latentprint.together import TogetherError, launch, require_accelerate, write_job
from latentprint.training import TrainConfig, TrainingError, TrainState, train

NETWORK = UNetConfig(channels=(8, 16), layers_per_block=1, middle_attention=False, norm_groups=4)
CONFIG = TrainConfig(steps=12, batch=8, learning_rate=1e-3, warmup=0, parametrisation="edm")
CPU = torch.device("cpu")
needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="the extra accelerate is not installed"
)


def images() -> Any:
    return np.tanh(Streams(5).noise("images", range(10), 0, (1, 8, 8)).numpy())


def alone(config: TrainConfig = CONFIG) -> TrainState:
    network = build_unet(NETWORK, 1, (8, 8), Streams(3))
    *_, last = train(images(), network, SubVP(), config, Streams(3))
    return last


class Other:
    """Team of two whose other member is played: what it would have sent is known beforehand."""

    def __init__(self, rank: int, sent: list[Tensor], received: list[Tensor]) -> None:
        self.rank, self.size = rank, 2
        self.sent, self.received = sent, received

    def mean(self, values: Tensor) -> Tensor:
        self.sent.append(values.clone())
        return (values + self.received.pop(0)) / 2 if self.received else values


def test_the_mean_of_the_shares_is_the_gradient_of_the_whole_batch() -> None:
    one = replace(CONFIG, steps=1, clip=1e9)
    halves: list[list[Tensor]] = [[], []]
    for rank in (0, 1):
        network = build_unet(NETWORK, 1, (8, 8), Streams(3))
        list(train(images(), network, SubVP(), one, Streams(3), team=Other(rank, halves[rank], [])))
    network = build_unet(NETWORK, 1, (8, 8), Streams(3))
    *_, last = train(images(), network, SubVP(), one, Streams(3))
    whole = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    mean = (halves[0][0] + halves[1][0]) / 2
    assert not torch.allclose(halves[0][0], halves[1][0], rtol=0.1)  # they saw other images
    torch.testing.assert_close(mean[:-1], whole, rtol=1e-4, atol=1e-6)
    assert last.loss == pytest.approx(float(mean[-1]), rel=1e-5)


def test_unequal_shares_are_refused() -> None:
    network = build_unet(NETWORK, 1, (8, 8), Streams(3))
    with pytest.raises(TrainingError, match="a batch of 7 images has no equal shares for 2 processes"):
        list(train(images(), network, SubVP(), replace(CONFIG, batch=7), Streams(3), team=Other(0, [], [])))


def test_accelerate_that_is_not_installed_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "find_spec", lambda name: None)
    with pytest.raises(TogetherError, match=r"pip install 'latentprint\[accelerate\]'"):
        require_accelerate()


@needs_accelerate
def test_two_processes_reach_the_weights_of_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint = tmp_path / "checkpoint"
    write_job(tmp_path / "job", images(), NETWORK, SubVP(), CONFIG, 3, checkpoint, 2)
    launch(tmp_path / "job", 2, CPU)
    said = capfd.readouterr()
    assert "training on 2 processes" in said.out + said.err  # accelerate's launcher starts one on a CPU
    found = committed(checkpoint)
    assert found is not None and found[1]["step"] == CONFIG.steps
    # The audit goes on from there as from a training of its own: nothing is left to train.
    network = build_unet(NETWORK, 1, (8, 8), Streams(3))
    states = list(train(images(), network, SubVP(), CONFIG, Streams(3), checkpoint=checkpoint))
    assert [state.step for state in states] == [CONFIG.steps] and states[0].loss is None
    start = build_unet(NETWORK, 1, (8, 8), Streams(3)).state_dict()
    here, there = (one.denoiser.network.state_dict() for one in (alone(), states[0]))
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, rtol=1e-3, atol=2e-5)
    moved = max(float((here[name] - value).abs().max()) for name, value in start.items())
    assert moved > 2e-3  # a hundred tolerances: untrained weights would be found out


def test_a_job_that_fails_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def failing(command: list[str], **how: Any) -> Any:
        assert how["env"]["PYTHONSAFEPATH"] == "1"  # no module of the folder that one stands in
        asked.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(together, "require_accelerate", lambda: None)
    monkeypatch.setattr(together.subprocess, "run", failing)
    with pytest.raises(TogetherError, match="training with 4 processes ended with exit code 3"):
        launch(tmp_path, 4, CPU)
    assert "--nproc-per-node=4" in asked[0]


def started(job: Path, *launcher: str) -> subprocess.CompletedProcess[str]:
    """The job, as somebody starts it on a cluster."""
    return subprocess.run(
        [sys.executable, "-m", *launcher, "latentprint.together", str(job)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_accelerate
def test_a_process_that_stands_alone_is_no_team(tmp_path: Path) -> None:
    """Whatever starts the processes may start fewer; then nothing is trained as if they were all there."""
    write_job(tmp_path / "job", images(), NETWORK, SubVP(), CONFIG, 3, tmp_path / "checkpoint", 2)
    ended = started(tmp_path / "job")
    assert ended.returncode == 1 and "this job is for 2 processes, and this one is of 1" in ended.stderr
    assert not (tmp_path / "checkpoint").exists()


@needs_accelerate
def test_the_command_for_a_cluster_trains_in_all_its_processes(tmp_path: Path) -> None:
    write_job(tmp_path / "job", images(), NETWORK, SubVP(), CONFIG, 3, tmp_path / "checkpoint", 2)
    said = together.start_with(tmp_path / "job", 2)
    assert f"torchrun --nproc-per-node 2 -m latentprint.together {tmp_path / 'job'}" in said
    # torchrun is this module's name in a shell.
    ended = started(tmp_path / "job", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    assert ended.returncode == 0, ended.stderr
    found = committed(tmp_path / "checkpoint")
    assert found is not None and found[1]["step"] == CONFIG.steps
    assert "training on 2 processes" in ended.stderr + ended.stdout
