"""The forecast of the onset of memorisation: on curves with a known answer, and from a real training."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from latentprint.cli import app
from latentprint.remedies.forecast import AT, ForecastError, Looks, forecast, measured_onset


def grown(onset: float, power: float, until: int, noise: float = 0.0, seed: int = 0) -> Looks:
    """A gap that grows as k^power and is AT at ``onset``."""
    steps = np.arange(10, until + 1, 10)
    rng = np.random.default_rng(seed)
    gap = AT * (steps / onset) ** power * np.exp(noise * rng.normal(size=len(steps)))
    heldout = 0.4 + 1.5 * np.exp(-steps / 25)
    return Looks(steps.tolist(), (heldout * (1 - gap)).tolist(), heldout.tolist())


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_a_power_of_the_steps_is_carried_on_to_its_end(power: float) -> None:
    """From half of the way. The first look's gap is taken off, which bends the start a little."""
    found = forecast(grown(400, power, 260), 100)
    truth = measured_onset(grown(400, power, 900))
    assert truth is not None
    assert found.onset == pytest.approx(truth, rel=0.1)
    assert found.low < truth < found.high
    assert found.until == 260
    assert found.more_images == 100
    assert found.looks_right is not None and found.looks_right < found.low


def test_the_interval_holds_the_truth_of_noisy_curves() -> None:
    inside = 0
    for seed in range(60):
        whole = grown(400, 1.3, 800, noise=0.1, seed=seed)
        short = Looks(whole.steps[:24], whole.train[:24], whole.heldout[:24])
        found, truth = forecast(short, 100), measured_onset(grown(400, 1.3, 800))
        inside += found.low <= truth <= found.high
    assert inside >= 50


def test_an_onset_that_is_past_is_no_forecast() -> None:
    found = forecast(grown(200, 1.2, 400), 50)
    assert found.low == found.onset == found.high == pytest.approx(measured_onset(grown(200, 1.2, 400)))
    with pytest.raises(ForecastError, match="look at more steps"):
        forecast(grown(5000, 1.0, 200), 50)
    assert measured_onset(grown(5000, 1.0, 200)) is None


def test_the_command_trains_and_says_when(tmp_path) -> None:
    file = tmp_path / "small.toml"
    file.write_text(
        "[model.network]\nchannels = [16, 32]\n[model.training]\nsteps = 300\nlearning_rate = 6e-3\n"
    )
    common = ["forecast", "digits", "--preset", "demo", "--images", "20", "--config", str(file)]
    answer = CliRunner().invoke(app, [*common, "--until", "90", "--json"])
    assert answer.exit_code == 0, answer.output
    said = json.loads(answer.stdout)
    assert said["low"] <= said["onset"] <= said["high"] <= 300
    assert said["looks"]["steps"] == list(range(10, 91, 10))
    assert len(said["sentences"]) == 3
    answer = CliRunner().invoke(app, [*common, "--until", "400"])
    assert answer.exit_code == 2 and "which the training has" in answer.stderr
    answer = CliRunner().invoke(app, [*common, "--until", "20"])
    assert answer.exit_code == 2 and "look at more steps" in answer.stderr
