"""A network of one's own: audited whole, known again by its weights, refused where it is none of (x, t)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import diffusers
import pytest
import torch
from test_given_model import TINY
from torch import Tensor, nn
from typer.testing import CliRunner

from latentprint import resolve, run_audit
from latentprint.adapters import (
    ModelError,
    as_opened,
    ddpm_schedule,
    from_function,
    from_module,
    require_sound,
)
from latentprint.adapters.opened import sha256_of
from latentprint.audit.given import in_unit_time
from latentprint.cli import app
from latentprint.contracts import InputError
from latentprint.files import parse_toml
from latentprint.known import Memorised
from latentprint.schedule import EDM, VP
from latentprint.store import RunError

CPU = torch.device("cpu")
DIGIT = (1, 8, 8)


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Network(nn.Module):
    """One convolution of the input, shifted by the time."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.2 * seeded(seed, 1, 1, 3, 3))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight, padding=1) + 1e-4 * time[:, None, None, None]


def settings() -> Any:
    return resolve(parse_toml(TINY, "tiny"), preset="demo")


def test_a_network_is_audited_whole_and_goes_on_with_the_same_weights_only(tmp_path: Path) -> None:
    model = from_module(Network(), ddpm_schedule(), shape=DIGIT)
    first: Any = run_audit(settings(), tmp_path / "run", model=model, target=5)
    assert first.model.kind == "python" and first.model.weights_sha256 == model.weights_sha256
    assert any("code" in note for note in first.model.notes)
    again = from_module(Network(), ddpm_schedule(), shape=DIGIT)
    second: Any = run_audit(settings(), tmp_path / "run", model=again, target=5)
    assert second.q.monte_carlo == first.q.monte_carlo
    others = {
        "other weights": from_module(Network(1), ddpm_schedule(), shape=DIGIT),
        "other noise": from_module(Network(), ddpm_schedule("scaled_linear"), shape=DIGIT),
        "other prediction": from_module(Network(), ddpm_schedule(), "v", shape=DIGIT),
        "other time": from_module(Network(), ddpm_schedule(), shape=DIGIT, time=lambda t: 999 * t),
    }
    for other in others.values():
        with pytest.raises(RunError):
            run_audit(settings(), tmp_path / "run", model=other, target=5)


def test_a_denoiser_is_a_model_and_takes_the_shape_of_the_images(tmp_path: Path) -> None:
    """The exact denoiser of 24 images gives each back in 1 of 24 samples."""
    from latentprint.data import load

    images = load("digits", seed=0, images=24).train.pixels
    known = Memorised(torch.as_tensor(images), VP())
    found: Any = run_audit(settings(), tmp_path / "run", model=known, target=5)
    assert found.model.kind == "python" and found.model.weights_sha256 == sha256_of(known)


def test_our_denoiser_of_a_network_is_the_librarys_step() -> None:
    """diffusers' own scheduler and the same network: x_0 and the next x of a DDPM step."""
    network, schedule = Network(), ddpm_schedule("squaredcos_cap_v2")
    scheduler: Any = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)
    opened = from_module(network, schedule, shape=DIGIT)
    x = seeded(3, 4, *DIGIT)
    for k in (3, 400, 900):
        with torch.no_grad():
            output = network(x, torch.full((4,), float(k)))
            theirs = scheduler.step(output, k, x, generator=torch.Generator().manual_seed(0))
            ours = opened.denoiser(x, schedule.time_of(k))
        assert torch.allclose(ours, theirs.pred_original_sample, rtol=1e-4, atol=1e-5)


def test_the_networks_answer_may_be_an_object_with_a_sample() -> None:
    answer = type("Answer", (), {})()
    answer.sample = torch.ones(2, *DIGIT)
    denoiser = from_function(lambda x, t: answer, VP())
    assert torch.equal(denoiser(torch.zeros(2, *DIGIT), torch.tensor(0.5)), torch.ones(2, *DIGIT))


def test_sigma_as_time_is_renamed_and_the_network_still_told_sigma() -> None:
    seen = list[Tensor]()

    class Told(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            seen.append(sigma)
            return x

    opened = in_unit_time(from_module(Told(), EDM(0.01, 50.0), "denoised", shape=DIGIT))
    opened.denoiser(torch.zeros(1, *DIGIT), torch.tensor(0.5))
    assert opened.denoiser.schedule.start == 1.0
    assert float(seen[0]) == pytest.approx((0.01 * 50.0) ** 0.5)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


class Mixing(nn.Module):
    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return x - x.mean(dim=0, keepdim=True)


class Broken(nn.Module):
    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return x / 0


class Cropping(nn.Module):
    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return x[..., 1:]


class Refusing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Counting(), "two answers"),
        (Mixing(), "influence one another"),
        (Broken(), "NaN"),
        (Cropping(), "must return the same"),
        (Refusing(), "positional argument"),
    ],
)
def test_what_is_no_function_of_x_and_t_is_refused_before_anything_runs(
    tmp_path: Path, network: nn.Module, said: str
) -> None:
    model = from_module(network, VP(), "denoised", shape=DIGIT)
    with pytest.raises(ModelError, match=said):
        require_sound(model, DIGIT, CPU)
    with pytest.raises(ModelError, match=said):
        run_audit(settings(), tmp_path / "run", model=model)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: from_module(lambda x, t: x, VP(), shape=DIGIT), "networks=\\[network\\]"),
        (lambda: from_module(Network(), cast(Any, [0.1, 0.2]), shape=DIGIT), "ddpm_schedule"),
        (lambda: from_module(Network(), VP(), cast(Any, "wave"), shape=DIGIT), "predicts one of"),
        (lambda: from_module(Network(), VP(), shape=(8, 8)), "channels, height, width"),
        (lambda: from_function(lambda x, t: x, cast(Any, VP)), "ddpm_schedule|schedule"),
        (lambda: as_opened(cast(Any, Network()), lambda: DIGIT), "from_module"),
        (lambda: as_opened(cast(Any, 3), lambda: DIGIT), "got int"),
    ],
)
def test_what_cannot_be_told_is_refused(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        make()


def test_a_function_with_its_networks_named_is_known_by_them() -> None:
    network = Network()
    opened = from_module(lambda x, t: network(x, t), VP(), shape=DIGIT, networks=[network])
    assert opened.weights_sha256 == from_module(Network(), VP(), shape=DIGIT).weights_sha256
    assert opened.weights_sha256 != from_module(Network(1), VP(), shape=DIGIT).weights_sha256


def test_a_label_is_none_of_a_model_from_python(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="label"):
        run_audit(settings(), tmp_path / "run", model=from_module(Network(), VP(), shape=DIGIT), label=1)


FACTORY = """
import torch
from latentprint.adapters import ddpm_schedule, from_module
class Network(torch.nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(gain))
    def forward(self, x, k):
        return self.gain * x
def make(gain=0.5, kind="linear"):
    return from_module(Network(gain), ddpm_schedule(kind), shape=(1, 8, 8))
def wrong():
    return 3
"""


def test_a_factory_of_the_users_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_factory.py").write_text(FACTORY)
    (tmp_path / "tiny.toml").write_text(TINY)
    monkeypatch.chdir(tmp_path)

    def called(*more: str) -> Any:
        base = ["audit", "digits", "--preset", "demo", "--config", "tiny.toml", "--out", "run", "--json"]
        return CliRunner().invoke(app, [*base, *more])

    refused = called("--model", "own_factory:make")
    assert refused.exit_code == 2 and "--i-trust-this-code" in refused.stderr
    trusted = ["--i-trust-this-code", "--model-argument", "gain=0.25", "--model-argument", "kind=sigmoid"]
    answer = called("--model", "own_factory:make", *trusted)
    assert answer.exit_code == 0, answer.output
    assert "Running the code of own_factory:make" in answer.stderr
    given = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["given"]
    assert given["factory"] == "own_factory:make" and len(given["source_sha256"]) == 64
    assert given["arguments"] == {"gain": 0.25, "kind": "sigmoid"}
    for name, said in (("wrong", "from_module"), ("none", "no attribute"), ("make", "another|other")):
        failed = called("--model", f"own_factory:{name}", "--i-trust-this-code")
        assert failed.exit_code == 2, failed.output
        assert any(part in failed.stderr for part in said.split("|")), failed.stderr
    failed = called("--model", str(tmp_path), "--i-trust-this-code")
    assert failed.exit_code == 2 and "module:factory" in failed.stderr


def test_the_identity_of_a_model_is_in_the_run_settings() -> None:
    opened = from_module(Network(), ddpm_schedule(), shape=DIGIT)
    assert opened.identity["predicts"] == "epsilon"
    assert opened.identity["time"][-1] == 999.0
    assert replace(opened, notes=()).identity == opened.identity
