"""What is measured beside t' and q: membership, further samplers, marks by nature, the images' facts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import small_runs
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from PIL import Image
from typer.testing import CliRunner

from latentprint.audit.images import facts, place_of, read_images
from latentprint.cli import app
from latentprint.cli.options import sampler_table
from latentprint.config import AuditConfig, DataSettings, SamplerSettings, resolve
from latentprint.contracts import InputError
from latentprint.data import DataError, load
from latentprint.data.resize import resized
from latentprint.gate import judge, read_policy
from latentprint.marks import FingerprintSettings
from latentprint.marks.settings import DRAWN
from latentprint.results.read import read_results
from latentprint.stats.roc import auc
from latentprint.store import Run
from latentprint.verify import verify

TINY = """
[data]
images = 16
[presence]
epochs = 1
draws = 64
[identity]
epochs = 1
draws = 64
[search]
levels = 3
tries = 2
[baseline]
images = 0
[samples]
count = 12
[likelihood]
images = 0
[membership]
images = 12
[membership.scores]
loss_times = 2
secmi_steps = 2
"""


def conditional(folder: Path) -> Path:
    """A pipeline of two classes with random weights, v-prediction and cosine betas."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            num_class_embeds=2,
        )
    scheduler: Any = diffusers.DPMSolverMultistepScheduler(
        prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2", rescale_betas_zero_snr=True
    )
    unet.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """(run, results): a conditional model, a mark by nature, three samplers, membership."""
    place = tmp_path_factory.mktemp("audit")
    (place / "tiny.toml").write_text(TINY)
    model = conditional(place / "model")
    given = ["audit", "digits", "--preset", "demo", "--config", place / "tiny.toml", "--out", place / "run"]
    given += ["--model", model, "--label", 1, "--target", 8, "--region", "2,1,3,4"]
    given += ["--sampler", "ancestral:2", "--sampler", "heun:3:uniform"]
    given += ["--sampler", "sde-dpm-solver++2m:4", "--json"]
    answer = CliRunner().invoke(app, [str(one) for one in given])
    assert answer.exit_code == 0, answer.output
    return place / "run", json.loads(answer.stdout)


def test_the_results_fit_the_schema_and_verify(audited: tuple[Path, dict[str, Any]]) -> None:
    run, results = audited
    assert read_results(run).plain() == results
    assert verify(run).exit_code == 0
    assert results["model"]["label"] == 1
    labels = load("digits", seed=0, images=16).train.labels
    assert results["data"]["of_class"] == labels.count(1) < 16  # 1/N counts the class that is audited
    counted = results["q"]["monte_carlo"]
    assert counted["expected"] == pytest.approx(counted["samples"] / labels.count(1))


def test_each_sampler_has_its_own_t_prime_and_q(audited: tuple[Path, dict[str, Any]]) -> None:
    run, results = audited
    assert results["q"]["monte_carlo"]["sampler"]["steps"] == 2
    other, named_with_a_plus = results["samplers"]
    assert {k: other["sampler"][k] for k in ("step", "steps", "spacing")} == {
        "step": "heun",
        "steps": 3,
        "spacing": "uniform",
    }
    # Heun: two evaluations a step and one of the last denoising
    assert other["q"]["network_evaluations"] == 12 * (3 * 2 + 1)
    rows = Run.read(run).rows("samples.model.heun-3-uniform")
    assert other["q"]["hits"] == int(rows["hit"].sum()) and other["q"]["samples"] == 12
    assert len(Run.read(run).rows("search.model.heun-3-uniform")["id"]) == 3 * 2
    rows = Run.read(run).rows("samples.model.sde-dpm-solverpp2m-4-karras")
    assert named_with_a_plus["sampler"]["step"] == "sde-dpm-solver++2m"
    assert named_with_a_plus["q"]["hits"] == int(rows["hit"].sum())
    assert named_with_a_plus["q"]["network_evaluations"] == 12 * (4 + 1)
    page = (run / "report.html").read_text()
    assert "Other ways of generating images" in page and "heun, 3 steps, uniform" in page


def test_a_natural_mark_is_looked_for_and_not_injected(audited: tuple[Path, dict[str, Any]]) -> None:
    _, results = audited
    train = load("digits", seed=0, images=16).train
    target = results["target"]
    assert (target["sha256"], target["injected"]) == (train.sha256[8], False)
    box = {"kind": "natural", "row": 2, "column": 1, "height": 3, "width": 4, "pixels": 12}
    assert target["fingerprint"] == box
    assert results["detectors"]["presence"] is not None
    assert results["q"]["monte_carlo"]["presence_hits"] is not None


def test_membership_is_that_of_the_stored_scores_and_the_gate_judges_by_it(
    audited: tuple[Path, dict[str, Any]],
) -> None:
    run, results = audited
    found = results["membership"]
    assert [one["name"] for one in found["scores"]] == ["loss", "secmi", "pia"]
    rows = {part: Run.read(run).rows(f"membership.{part}") for part in ("train", "heldout", "target")}
    assert 8 not in rows["train"]["id"] and rows["target"]["id"].tolist() == [8]
    for one in found["scores"]:
        inside, outside = rows["train"][one["name"]], rows["heldout"][one["name"]]
        share = np.mean(np.sign(inside[:, None] - outside[None]) / 2 + 0.5)
        assert one["auc"]["value"] == pytest.approx(share)
        own = rows["target"][one["name"]][0]
        assert one["target"]["p_value"] == pytest.approx((1 + (outside >= own).sum()) / 13)
        assert [share["resolved"] for share in one["at"]] == [False, False]
    each = [auc(rows["train"][n], rows["heldout"][n], 1 - 0.05 / 3) for n in ("loss", "secmi", "pia")]
    assert found["low"] == pytest.approx(max(one.low for one in each))
    assert found["high"] == pytest.approx(max(one.high for one in each))
    assert found["network_evaluations"] == 25 * (2 + (2 + 2) + 2)
    for limit, answer in ((found["high"], "pass"), (found["low"] - 1e-6, "fail")):
        policy = read_policy(f"[membership]\nauc_at_most = {limit}")
        (outcome,) = judge(read_results(run), policy).outcomes
        assert outcome.answer == answer
    assert "Membership scores" in (run / "report.html").read_text()


def test_a_hit_by_another_sampler_takes_not_found_back() -> None:
    alone, purpose = small_runs.clean().without("samplers"), "samples.model.heun-6-karras"
    verdict = alone.results.verdict
    assert verdict.state == "not found"
    assert small_runs.clean().counts(0, 2000, purpose).results.verdict == verdict
    seen = small_runs.clean().counts(3, 2000, purpose).results.verdict
    assert seen.state == "inconclusive"
    assert any("heun, 6 steps" in one and "3 of 2,000" in one for one in seen.reasons)


def test_samplers_are_read_from_the_command() -> None:
    assert sampler_table(["heun"]) == {"name": "heun"}
    assert sampler_table(["heun:18:uniform", "paper"]) == {
        "name": "heun",
        "steps": 18,
        "spacing": "uniform",
        "beside": ["paper"],
    }
    with pytest.raises(InputError, match="NAME:STEPS"):
        sampler_table(["heun:many"])
    others = SamplerSettings("ancestral", 24, beside=("heun:18", "paper", "ddim")).others()
    assert [one.label for one in others] == ["heun-18-karras", "paper", "ddim-24-karras"]
    for wrong in (("heun:x",), ("a:1:uniform:z",), ("ancestral:24",), ("unknown:3",), ("paper:5",)):
        with pytest.raises(ValueError, match=r"sampler|step"):
            SamplerSettings("ancestral", 24, beside=wrong)


def test_a_region_is_a_box_or_a_mask(tmp_path: Path) -> None:
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 2:7] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for region in ("1,2,2,5", str(tmp_path / "mask.png")):
        found = FingerprintSettings(kind="natural", region=region).mask(6, 8)
        assert found is not None and np.array_equal(found, mask > 0)
    for region, said in (("1,2,9,5", "does not lie"), ("nothing.png", "row,column"), ("1,2,3", "row,column")):
        with pytest.raises(InputError, match=said):
            FingerprintSettings(kind="natural", region=region).mask(6, 8)
    with pytest.raises(InputError, match="6 x 8, the images are 6 x 9"):
        FingerprintSettings(kind="natural", region=str(tmp_path / "mask.png")).mask(6, 9)
    for kind, region in (("natural", None), ("circle", "1,1,1,1")):
        with pytest.raises(ValueError, match="region"):
            FingerprintSettings(kind=kind, region=region)


@pytest.mark.parametrize("kind", DRAWN)
def test_every_kind_is_drawn_by_its_settings(kind: Any) -> None:
    heldout = np.full((2, 1, 24, 24), 0.5, np.float32)
    drawn = FingerprintSettings(kind=kind).drawn(heldout).draw((24, 24), np.random.default_rng(0))
    assert drawn.describe()["kind"] == kind
    changed = drawn.apply(np.full((1, 24, 24), -1, np.float32)) != -1
    assert np.array_equal(changed[0], drawn.mask(24, 24))


def test_sizes_that_differ_are_refused_or_resized_and_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(12):
        side = (20, 16 + i)
        Image.fromarray(rng.integers(0, 256, side, dtype=np.uint8)).save(tmp_path / f"{i:02}.png")
    source = {"data": {"source": str(tmp_path), "images": 8}}
    with pytest.raises(DataError, match="--resize"):
        read_images(resolve(source, preset="demo"), None, False)
    config = resolve(source, {"data": {"resize": 10}}, preset="demo")
    split = read_images(config, None, False)
    assert split.train.shape == (1, 10, 10)
    said = facts(config, split)
    assert (said.near_copies, said.resized) == (0, 10)


def test_resizing_keeps_the_middle_and_its_mean() -> None:
    ramp = np.tile(np.arange(40, dtype=np.uint8), (20, 1))  # 20 x 40: the columns 10 to 29 are kept
    small = resized(ramp, 10)
    assert small.dtype == np.uint8 and small.shape == (10, 10)
    assert np.allclose(small[5], np.arange(10, 30).reshape(10, 2).mean(1), atol=1.0)
    flat = np.full((30, 30, 3), 77, np.uint16)
    assert (resized(flat, 7) == 77).all() and resized(flat, 7).dtype == np.uint16
    assert resized(flat, 30) is flat


def test_a_target_is_found_by_its_file_or_refused_with_the_nearest(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (10, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=stored)
    train = load(tmp_path / "data.npz", seed=0).train
    Image.fromarray(np.rint(127.5 * (train.pixels[3, 0] + 1)).astype(np.uint8)).save(tmp_path / "x.png")
    assert place_of(train, tmp_path / "x.png", DataSettings()) == 3
    assert place_of(train, 7, DataSettings()) == 7 and place_of(train, None, DataSettings()) is None
    Image.fromarray(255 - stored[0]).save(tmp_path / "stranger.png")
    with pytest.raises(InputError, match=r"not among the 8 training images.*nearest, number \d"):
        place_of(train, tmp_path / "stranger.png", DataSettings())
    Image.fromarray(stored[0, :4]).save(tmp_path / "small.png")
    with pytest.raises(InputError, match="1x4x8"):
        place_of(train, tmp_path / "small.png", DataSettings())


def test_near_copies_are_counted(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 250, (12, 8, 8), dtype=np.uint8)
    stored[1], stored[2] = stored[0], stored[0] + 1  # an exact and a near copy
    np.savez(tmp_path / "d.npz", train_images=stored[:8], test_images=stored[8:])
    config = resolve({"data": {"source": str(tmp_path / "d.npz"), "images": None}}, preset="small")
    assert facts(config, read_images(config, None, False)).near_copies == 3


def test_a_folder_of_dicom_is_read_with_its_patients(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    root = Path(pydicom.data.__file__).parent
    (found,) = root.rglob("MR_small.dcm")
    for i in range(12):
        data = pydicom.dcmread(found)
        data.PatientID = f"patient {i // 2}"
        pixels = data.pixel_array.copy()
        pixels[0, 0] = i
        data.PixelData = pixels.tobytes()
        data.save_as(tmp_path / f"{i:02}" if i % 2 else tmp_path / f"{i:02}.dcm")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    config = resolve({"data": {"source": str(tmp_path), "images": None, "resize": 16}}, preset="small")
    split = read_images(config, None, False)
    assert len(split.train) + len(split.heldout) == 12 and split.train.shape == (1, 16, 16)
    assert not set(split.train.identities or ()) & set(split.heldout.identities or ())
    said = facts(config, split)
    assert (said.resized, said.identities + said.heldout_identities) == (16, 6)
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "photo.png")
    with pytest.raises(InputError, match="DICOM files and other images"):
        read_images(config, None, False)


def test_settings_of_before_stay_as_they_were() -> None:
    config = AuditConfig()
    assert config.fingerprint.kind == "circle" and config.membership.images == 0
    assert config.data.resize is None and config.sampler.beside == ()
