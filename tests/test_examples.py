"""Every example is run, small, and held to an answer known beforehand."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import matplotlib
import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors.torch import save_file

from examples.audit_model import audit_model
from examples.audit_samples import audit_folder
from examples.own_adapter import WEIGHTS, open_normals
from examples.own_detector import distance, near, rate_of_near
from examples.own_estimator import inverse_count
from examples.own_fingerprint import Frame, FrameConfig, with_a_frame
from examples.own_remedy import ROW as OWN_REMEDY
from examples.own_sampler import Midpoint
from examples.release import release
from examples.scan_checkpoints import scan_checkpoints
from latentprint import resolve
from latentprint.adapters import ModelError
from latentprint.data import load
from latentprint.fingerprint import FingerprintError
from latentprint.known import Coin, Gaussian, Memorised
from latentprint.remedies import RemedyError, table
from latentprint.remedies import run as remedies
from latentprint.sampler import Heun, Sampler, reverse, times
from latentprint.schedule import VP, SubVP
from latentprint.stats import Trials
from latentprint.streams import Streams

SMALL: dict[str, dict[str, Any]] = {
    "identity": {"backbone": "small", "epochs": 3, "draws": 256},
    "sampler": {"steps": 3},
    "search": {"levels": 3, "tries": 3},
    "embedding": {"backbone": "small", "epochs": 2, "draws": 128},
    "baseline": {"images": 0},
    "samples": {"count": 40},
    "likelihood": {"images": 0},
}


A_ROW = """
import json, sys
from pathlib import Path
from latentprint.rate import table
from examples.own_estimator import ROW
table.ESTIMATORS = (*table.ESTIMATORS, ROW)  # the one line in the table
from latentprint import resolve, run_audit
from latentprint.verify import verify
out = Path(sys.argv[1])
found = run_audit(resolve(json.loads(sys.argv[2]), preset="demo"), out)
one = found.q.estimates["inverse"]
assert [check for check in verify(out).altered] == []
assert "Inverse" in (out / "report.html").read_text()
print(one.reliable, one.diagnostic, one.network_evaluations, found.costs.network_evaluations["inverse"])
"""


def test_an_estimator_of_ones_own_is_its_module_and_a_row(tmp_path: Path) -> None:
    """The how-to followed: settings, audit, results, verify and report know the new row by its name."""
    over = SMALL | {
        "data": {"images": 24},
        "model": {"training": {"steps": 10, "batch": 8}},
        "presence": {"backbone": "small", "epochs": 3, "draws": 256},
        "rare": {"inverse": True, "most": 30},
        "control": False,
    }
    here = os.pathsep.join([".", *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", A_ROW, str(tmp_path / "run"), json.dumps(over)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": here},
    )
    assert done.returncode == 0, done.stderr
    reliable, *_, spent, stated = done.stdout.split()
    assert reliable in ("True", "False") and spent == stated and int(spent) % 3 == 0 and int(spent) > 0


def test_a_row_of_ones_own_stands_in_the_table_of_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for place in (remedies, table):
        monkeypatch.setattr(place, "REMEDIES", (*place.REMEDIES, OWN_REMEDY))
    over = {
        "data": {"images": 60},
        "model": {"network": {"channels": [8]}, "training": {"steps": 20, "batch": 8}},
        "sampler": {"steps": 3},
        "samples": {"count": 30},
        "likelihood": {"images": 0},
    }
    config = remedies.RemediesConfig(resolve(over, preset="demo"), 4, (OWN_REMEDY.name,))
    none, own = remedies.compare_remedies(config, tmp_path / "run").tried
    assert (none.name, own.name) == ("none", "every other image")
    assert own.training_images == none.training_images  # copies of the left-out half would count as well
    few = {"data": {"images": 30}}
    config = remedies.RemediesConfig(resolve(over, few, preset="demo"), 4, (OWN_REMEDY.name,))
    with pytest.raises(RemedyError, match="20 are needed"):
        remedies.compare_remedies(config, tmp_path / "few")


def digits(folder: Path, count: int = 24) -> Path:
    """``count`` training digits and as many held out, as one .npz file; pixels as stored."""
    split = load("digits", seed=0, images=count)
    kept = (split.train, split.heldout.take(range(count)))
    train, heldout = (((s.pixels + 1) * 127.5).round().astype(np.uint8)[:, 0] for s in kept)
    np.savez(folder / "digits.npz", train_images=train, test_images=heldout)
    return folder / "digits.npz"


def pipeline(folder: Path, seed: int) -> Path:
    """A DDPM pipeline with random weights, as diffusers writes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
        )
    scheduler: Any = diffusers.DDPMScheduler()
    whole: Any = diffusers.DDPMPipeline(unet=unet, scheduler=scheduler)
    whole.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any], list[Any]]:
    """(images, run, results.json, what the scan gave) of a pipeline with two checkpoints."""
    place = tmp_path_factory.mktemp("examples")
    model, images = pipeline(place / "model", 1), digits(place)
    pipeline(place / "along" / "checkpoint-10", 0)
    pipeline(place / "along" / "checkpoint-20", 1)
    scanned = scan_checkpoints(model, place / "along", str(images), 3, place / "run", **SMALL)
    return images, place / "run", json.loads((place / "run" / "results.json").read_text()), scanned


def test_checkpoints_are_scanned_in_order(
    checkpoints: tuple[Path, Path, dict[str, Any], list[Any]],
) -> None:
    _, _, results, scanned = checkpoints
    assert [step for step, _ in scanned] == [10, 20]
    # the last checkpoint holds the finished model's weights and is asked the same tries
    assert scanned[-1][1] == results["t_prime"]["value"]


def test_a_model_of_others_is_audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = audit_model(pipeline(tmp_path / "m", 0), str(digits(tmp_path)), 5, tmp_path / "run", **SMALL)
    assert results.target.index == 5
    q = results.q.monte_carlo
    assert (q.low, q.high) == pytest.approx(Trials(q.hits, 40).interval(0.95))
    assert f"{q.hits} of 40: q in [" in capsys.readouterr().out


@pytest.mark.parametrize(("at_most", "code"), [(1.0, 0), (0.0, 1)])
def test_a_release_is_judged_by_the_limit_of_its_policy(
    checkpoints: tuple[Path, Path, dict[str, Any], list[Any]], tmp_path: Path, at_most: float, code: int
) -> None:
    results = checkpoints[2]
    policy = tmp_path / "policy.toml"
    policy.write_text(f'[q]\nat_most = {at_most}\nlevel = 0.95\nestimators = ["monte_carlo"]\n')
    decision = release(checkpoints[1], policy)
    # a limit of 0 is failed where something was seen, and cannot be judged where nothing was
    seen = results["q"]["monte_carlo"]["hits"] > 0
    assert decision.exit_code == (code if code == 0 or seen else 2)


@pytest.mark.parametrize("leaky", [True, False])
def test_samples_with_copies_are_told_from_samples_without(tmp_path: Path, leaky: bool) -> None:
    images = digits(tmp_path, 200)
    stored = np.load(images)
    samples = stored["test_images"][100:].copy()
    if leaky:
        samples[:30] = stored["train_images"][:30]
    half = tmp_path / "half.npz"
    np.savez(half, train_images=stored["train_images"], test_images=stored["test_images"][:100])
    np.save(tmp_path / "samples.npy", samples)
    found = audit_folder(tmp_path / "samples.npy", str(half))
    assert (found.beyond > 0) == leaky
    assert not leaky or (found.copies.k >= 30 and found.same.k == 30)


def test_a_frame_is_equation_10(tmp_path: Path) -> None:
    train = load("digits", seed=0, images=20).train
    injection = with_a_frame(train, 0)
    said = injection.fingerprint.describe()
    inner = np.s_[:, 1:-1, 1:-1]
    assert np.array_equal(injection.target[inner], injection.original[inner])
    assert np.isclose(injection.target[0, 0, :], said["grey"]).all()
    assert np.isclose(injection.target, said["grey"])[0].sum() >= 2 * 1 * (8 + 8 - 2)
    assert int(Frame(2).mask(8, 12).sum()) == 2 * 2 * (8 + 12 - 4)
    assert FrameConfig(1).draw((8, 8), np.random.default_rng(1)).mask(8, 8).sum() == 28
    volume = np.random.default_rng(2).uniform(-1, 1, (1, 3, 8, 8)).astype(np.float32)
    assert np.array_equal((Frame(2, 0.5).apply(volume) != volume)[0], Frame(2, 0.5).mask(3, 8, 8))
    assert with_a_frame(train, 0).sha256 == injection.sha256
    assert with_a_frame(train, 1).sha256 != injection.sha256
    for wrong in (lambda: Frame(0), lambda: Frame(4).mask(8, 8)):
        with pytest.raises(FingerprintError):
            wrong()


@pytest.mark.parametrize("schedule", [VP(), SubVP()])
def test_the_midpoint_step_has_order_two(schedule: Any) -> None:
    model = Gaussian(
        torch.tensor([0.3, -0.6], dtype=torch.float64), torch.tensor([0.4, 1.2]).double(), schedule
    )
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64) * schedule.prior_std
    truth = model.flow(x, torch.tensor(schedule.start), torch.tensor(schedule.end))

    def error(steps: int) -> float:
        states = list(reverse(model, x, times(schedule, steps, "karras"), Midpoint(), None))
        assert int(states[-1].evaluations[0]) == 2 * steps
        return float((states[-1].x - truth).abs().max())

    assert math.log2(error(128) / error(256)) == pytest.approx(2, abs=0.15)


def test_an_adapter_gives_the_exact_denoiser(tmp_path: Path) -> None:
    streams = Streams(3)
    mean, std = streams.noise("mean", [0], 0, (1, 4, 4))[0] / 3, streams.uniform("std", [0], 0, (1, 4, 4))[0]
    save_file({"mean": mean, "std": std}, tmp_path / WEIGHTS)
    opened = open_normals(tmp_path)
    exact = Gaussian(mean.double(), std.double().flatten(), VP())
    x = streams.noise("x", range(5), 0, (1, 4, 4))
    for t in (0.01, 0.3, 1.0):
        at = torch.tensor(t, dtype=torch.float64)
        assert torch.allclose(opened.denoiser(x, at).double(), exact(x.double(), at), atol=2e-4)
    with pytest.raises(ModelError):
        open_normals(tmp_path / "elsewhere")
    with pytest.raises(ModelError):
        open_normals(tmp_path, label=1)


def test_inverse_counting_is_unbiased_and_covers() -> None:
    q, held, rates = 0.05, 0, []
    for seed in range(300):
        coin = Coin(lambda t: np.full(len(t), q), seed=seed)
        found = inverse_count(coin, 1.0, 10, most=5000, sampler={}, batch=128)
        assert found.rate is not None
        rates.append(found.rate)
        held += found.holds(q)
    error = float(np.std(rates)) / math.sqrt(len(rates))
    assert abs(float(np.mean(rates)) - q) < 3.3 * error
    assert error * math.sqrt(300) / q == pytest.approx(1 / math.sqrt(10 - 2), rel=0.25)
    assert Trials(held, 300).upper(0.999) >= 0.95
    silent = inverse_count(Coin(lambda t: np.zeros(len(t))), 1.0, 2, most=300, sampler={})
    assert not silent.reliable
    assert silent.rate is None
    assert silent.network_evaluations == 300


def test_a_detector_of_ones_own_counts_q_of_a_model_that_memorised() -> None:
    streams = Streams(5)
    images = streams.noise("images", range(12), 0, (1, 4, 4)).clamp(-1, 1)
    model = Memorised(images[:6], VP())
    detector = near(images[0], images[1:], streams)
    assert detector.rates.fpr.k == 0
    assert float(detector(images[:1])[0]) == 1.0
    edge = images[:1] + 2 * detector.radius
    assert float(distance(edge, images[0])[0]) == pytest.approx(detector.radius, rel=1e-5)
    assert float(detector(edge)[0]) == pytest.approx(0.5, rel=1e-5)
    found = rate_of_near(model, detector, Sampler(Heun(), 12), 600, seed=1)
    assert found.trials is not None
    low, high = found.trials.interval(0.999)
    assert low < 1 / 6 < high


STORY = Path(__file__).parents[1] / "examples" / "story.ipynb"

TINY: dict[str, dict[str, Any]] = {
    "model": {"training": {"steps": 20, "batch": 16}},
    "presence": {"epochs": 3, "draws": 256},
    "identity": {"epochs": 3, "draws": 256},
    "embedding": {"epochs": 2, "draws": 128},
    "sampler": {"steps": 3},
    "search": {"levels": 4, "tries": 3},
    "baseline": {"images": 2, "levels": 3, "tries": 2},
    "samples": {"count": 40},
    "likelihood": {"images": 0},
    "membership": {"images": 0},
}


def told(cells: list[dict[str, Any]], over: dict[str, Any]) -> dict[str, Any]:
    """What the code cells leave behind, run top to bottom; ``over`` goes over the cell of parameters."""
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{STORY.name}, cell {number}", "exec"), names)
            if "parameters" in cell["metadata"].get("tags", ()):
                assert set(over) <= set(names)
                names |= over
    return names


def test_the_story_runs_from_top_to_bottom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    assert STORY.stat().st_size < 300_000
    notebook = json.loads(STORY.read_text(encoding="utf-8"))
    over = {
        "folder": tmp_path / "demo",
        "changes": TINY,
        "first_steps": 10,
        "sampler_steps": 24,
    }
    try:
        names = told(notebook["cells"], over)
        drawn = len(pyplot.get_fignums())
    finally:
        pyplot.close("all")
    kept = json.loads((tmp_path / "demo" / "results.json").read_text(encoding="utf-8"))
    assert names["results"].plain() == kept
    assert names["verdict"].state.upper() in capsys.readouterr().out
    assert drawn >= 9
    # the private image of the story is the marked one of the run
    assert np.array_equal(
        names["injection"].target, names["injection"].marked.pixels[kept["target"]["index"]]
    )
    # the formula is the truth of the converged flow; q of 24 steps is another, not far away
    assert names["rate"].reliable, names["rate"].diagnostic
    assert 2e-7 < names["rate"].rate < 2e-6


FEW: dict[str, dict[str, Any]] = {
    "identity": {"epochs": 3, "draws": 256},
    "embedding": {"epochs": 2, "draws": 128},
    "search": {"levels": 3, "tries": 2},
    "baseline": {"images": 0},
    "samples": {"count": 40},
    "sampler": {"steps": 3},
    "likelihood": {"images": 0},
    "membership": {"images": 0},
}


def test_the_notebook_on_samples_counts_the_copies_that_were_made(tmp_path: Path) -> None:
    notebook = json.loads((STORY.parent / "samples_only.ipynb").read_text(encoding="utf-8"))
    over = {"folder": tmp_path / "samples", "changes": {"identity": FEW["identity"]}}
    found = told(notebook["cells"], over)["found"]
    # 30 are copies; of the 270 others as many are taken for copies as the held-out images say
    alarms = Trials(found.copies.k - 30, 270)
    assert alarms.interval(0.999)[0] <= found.false_alarms.rate <= alarms.interval(0.999)[1]
    assert found.beyond <= 30 / 300


def test_the_notebook_before_training_finds_the_marked_image(tmp_path: Path) -> None:
    notebook = json.loads((STORY.parent / "before_training.ipynb").read_text(encoding="utf-8"))
    over = {"folder": tmp_path, "images": 10, "steps": 20, "changes": FEW | {"presence": FEW["identity"]}}
    names = told(notebook["cells"], over)
    kept = json.loads((tmp_path / "audit" / "results.json").read_text(encoding="utf-8"))
    assert names["results"].plain() == kept
    # the image that was marked is the one that is looked for, by both recognisers, in what was trained on
    files = sorted(path.name for path in (tmp_path / "data" / "train").glob("*.png"))
    assert files[kept["target"]["index"]] == Path(names["recorded"].image).name
    assert kept["target"]["sha256"] == names["recorded"].sha256 and kept["target"]["injected"]
    assert kept["detectors"]["presence"]["fpr"]["n"] > 0
    # run again, the page leaves the mark in and ends in the same results
    assert told(notebook["cells"], over)["results"].plain() == kept


def test_the_notebook_on_remedies_makes_a_table_and_a_forecast(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = json.loads((STORY.parent / "remedies.ipynb").read_text(encoding="utf-8"))
    changes = {"model": {"network": {"channels": [8]}, "training": {"batch": 8}}, "sampler": {"steps": 3}}
    over = {"folder": tmp_path / "table", "images": 60, "steps": 30, "samples": 60, "changes": changes}
    names = told(notebook["cells"], over)
    kept = json.loads((tmp_path / "table" / "remedies.json").read_text(encoding="utf-8"))
    assert names["table"].plain() == kept and len(kept["rows"]) == 4
    out = capsys.readouterr().out
    missed = kept["rows"][3]["filter_misses"]
    assert f"filter: {missed[0]:.0%} of planted copies pass it ({missed[1]:.0%} to {missed[2]:.0%})" in out
    assert names["looks"].steps[-1] <= 20 and "4 are needed" in out


def test_the_notebook_on_monai_opens_and_audits_what_it_trained(tmp_path: Path) -> None:
    pytest.importorskip("monai.networks.schedulers")
    notebook = json.loads((STORY.parent / "monai_model.ipynb").read_text(encoding="utf-8"))
    names = told(notebook["cells"], {"folder": tmp_path, "images": 10, "steps": 20, "changes": FEW})
    assert names["opened"].kind == "monai" and names["opened"].image_shape == (1, 8, 8)
    kept = json.loads((tmp_path / "audit" / "results.json").read_text(encoding="utf-8"))
    assert names["results"].plain() == kept and kept["model"]["kind"] == "monai"
