"""A model that others trained, through the whole audit: what is kept of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d import UNet2DModel
from typer.testing import CliRunner

from latentprint import resolve, run_audit
from latentprint.adapters import open_model
from latentprint.audit import stages
from latentprint.audit.context import Context, Where, open_device
from latentprint.audit.given import as_it_is, given_images, open_given
from latentprint.audit.images import read_images
from latentprint.audit.stages import Audited, Detectors
from latentprint.cli import app
from latentprint.contracts import InputError
from latentprint.data import load
from latentprint.denoiser import NetworkDenoiser
from latentprint.files import parse_toml
from latentprint.gate import judge, read_policy
from latentprint.networks import build_unet, save_model
from latentprint.report import RunFacts
from latentprint.report.modelcard import model_card
from latentprint.results.read import read_results
from latentprint.results.searched import Sampler as SamplerValue
from latentprint.schedule import EDM, SubVP
from latentprint.store import Run, RunError
from latentprint.streams import Streams
from latentprint.verify import verify

TINY = """
[data]
images = 24
[identity]
epochs = 3
draws = 256
[sampler]
steps = 3
[search]
levels = 3
tries = 3
[embedding]
epochs = 2
draws = 128
[baseline]
images = 3
levels = 2
tries = 2
[samples]
count = 40
[likelihood]
images = 1
probes = 1
"""


def unet(seed: int, channels: int) -> UNet2DModel:
    """A network with random weights that leaves torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(
            sample_size=8,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
        )


def ddpm(folder: Path, seed: int = 0, channels: int = 1) -> Path:
    """A pipeline with random weights, as diffusers itself writes it."""
    scheduler: Any = diffusers.DDPMScheduler()
    pipeline: Any = diffusers.DDPMPipeline(unet=unet(seed, channels), scheduler=scheduler)
    pipeline.save_pretrained(folder)
    return folder


def ours(folder: Path) -> Path:
    """A model as an audit leaves it, untrained."""
    config = resolve(preset="demo")
    network = build_unet(config.model.network, 1, (8, 8), Streams(0))
    save_model(folder, NetworkDenoiser(network, SubVP(), "edm"))
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("settings") / "tiny.toml"
    file.write_text(TINY)
    return file


def command(settings: Path, out: Path, *more: object) -> list[str]:
    every = ["audit", "digits", "--preset", "demo", "--config", settings, "--out", out, *more]
    return [str(one) for one in every]


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory, settings: Path) -> tuple[Path, Path, dict[str, Any]]:
    """(model, run, results) of a diffusers pipeline, through the command."""
    place = tmp_path_factory.mktemp("given")
    model, out = ddpm(place / "pipeline"), place / "run"
    answer = CliRunner().invoke(app, command(settings, out, "--model", model, "--target", 5, "--json"))
    assert answer.exit_code == 0, answer.output
    return model, out, json.loads(answer.stdout)


def test_a_diffusers_pipeline_is_audited_without_code(audited: tuple[Path, Path, dict[str, Any]]) -> None:
    model, out, results = audited
    assert read_results(out).plain() == results
    train = load("digits", seed=0, images=24).train
    assert results["target"] == {
        "index": 5,
        "sha256": train.sha256[5],
        "copies": 1,
        "fingerprint": None,
        "injected": False,
    }
    assert results["detectors"]["presence"] is None
    assert results["model"]["kind"] == "diffusers"
    assert results["model"]["weights_sha256"] == open_model(model).weights_sha256
    assert any("ancestral, 3 steps" in note for note in results["model"]["notes"])
    q = results["q"]["monte_carlo"]
    assert (q["presence_hits"], q["hits"]) == (None, q["identity_hits"])
    assert results["t_prime"]["presence_hits"] is None
    assert results["q"]["control"] is None
    assert results["fid"]["features"] == "pixels"
    assert results["likelihood"]["bits_per_dim"]["n"] == 1
    rows = Run.read(out).rows("samples.model")
    assert q["samples"] == len(rows["id"]) == 40
    assert q["hits"] == np.count_nonzero(rows["identity"] >= results["detectors"]["identity"]["threshold"])


def test_verify_finds_nothing_altered_and_then_what_was(
    audited: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, out, results = audited
    found = verify(out)
    assert found.exit_code == 0, found.sentences
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in out.rglob("*"):
        if file.is_file() and file.name != "results.json":
            (copy / file.relative_to(out)).parent.mkdir(parents=True, exist_ok=True)
            (copy / file.relative_to(out)).write_bytes(file.read_bytes())
    wrong = json.loads(json.dumps(results))
    wrong["model"]["weights_sha256"] = "0" * 64
    wrong["q"]["monte_carlo"]["presence_hits"] = 3
    (copy / "results.json").write_text(json.dumps(wrong))
    assert {check.path for check in verify(copy).altered} == {
        "model.weights_sha256",
        "q.monte_carlo.presence_hits",
    }


def test_the_report_speaks_of_one_recogniser_and_of_no_place(
    audited: tuple[Path, Path, dict[str, Any]],
) -> None:
    model, out, results = audited
    page = (out / "report.html").read_text()
    assert "Two recognisers" not in page and "both recognisers" not in page and "Mark recognised" not in page
    assert "One recogniser" in page and "Said to be trained" in page and "rate 1/N depends on that" in page
    shared = page + (out / "results.json").read_text() + (out / "run.json").read_text()
    assert str(model) not in shared and str(model.parent) not in shared
    evidence = (out / "evidence" / "index.html").read_text()
    assert "before it was marked" not in evidence and "nan" not in evidence.lower().split("base64")[0]
    card = model_card(read_results(out), RunFacts.read(out), "a model")
    assert results["model"]["weights_sha256"] in card


def test_the_gate_judges_by_one_detector(audited: tuple[Path, Path, dict[str, Any]]) -> None:
    results = read_results(audited[1])
    policy = '[q]\nat_most = 1.0\nlevel = 0.95\nestimators = ["monte_carlo"]\n'
    policy += "[detectors]\nsensitivity_at_least = 0.9999\nfalse_alarms_at_most = 0.0\nlevel = 0.95\n"
    rate, sensitivity, _ = judge(results, read_policy(policy)).outcomes
    assert rate.answer == "pass"
    assert sensitivity.answer == "unknown"
    assert f"at least {results.detectors.identity.tpr.lower(0.95):.3g}" in sensitivity.reason


def test_the_same_command_continues_and_another_model_is_refused_by_its_weights(
    audited: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    model, out, results = audited
    config = resolve(parse_toml(TINY, "tiny"), preset="demo")
    before = (out / "results.json").read_bytes()
    moved = tmp_path / "moved"
    model.rename(moved)
    try:
        assert run_audit(config, out, model=moved, target=5).plain() == results
        assert (out / "results.json").read_bytes() == before
        with pytest.raises(RunError, match=r"given\.target is 5 there and 6 here"):
            run_audit(config, out, model=moved, target=6)
        with pytest.raises(RunError, match=r"given\.weights_sha256 is '[0-9a-f]{64}' there and"):
            run_audit(config, out, model=ddpm(tmp_path / "other", seed=1), target=5)
        with pytest.raises(RunError, match="control is not set there and True here"):
            run_audit(config, out)
    finally:
        moved.rename(model)


def test_a_folder_that_an_audit_left_is_audited_too(tmp_path: Path, settings: Path) -> None:
    out = tmp_path / "run"
    answer = CliRunner().invoke(
        app, command(settings, out, "--model", ours(tmp_path / "model"), "--tries", 2, "--json")
    )
    assert answer.exit_code == 0, answer.output
    results = json.loads(answer.stdout)
    assert results["model"]["kind"] == "latentprint"
    assert verify(out).exit_code == 0
    # drawn by the seed, of the training images
    train = load("digits", seed=0, images=24).train
    assert results["target"]["sha256"] == train.sha256[results["target"]["index"]]


def test_a_drawn_target_has_no_near_copy(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    pixels[1:12] = pixels[0]
    np.savez(tmp_path / "data.npz", train_images=pixels[:13], test_images=pixels[13:])
    given = open_given(ddpm(tmp_path / "model"), None, None, torch.device("cpu"), resolve(preset="small"))
    assert given is not None
    for seed in range(3):
        config = resolve(
            {"seed": seed, "data": {"source": str(tmp_path / "data.npz"), "images": None}}, preset="small"
        )
        _, injection = given_images(as_it_is(config), given, read_images(config, None, False))
        assert (injection.index, injection.copies) == (12, 1)
    chosen = open_given(tmp_path / "model", None, 3, torch.device("cpu"), config)
    assert chosen is not None
    _, injection = given_images(as_it_is(config), chosen, read_images(config, None, False))
    assert (injection.index, injection.copies, len(injection.control)) == (3, 12, 1)
    np.savez(tmp_path / "data.npz", train_images=pixels[:12], test_images=pixels[13:])
    with pytest.raises(InputError, match="each of the 12 images has a near copy"):
        given_images(as_it_is(config), given, read_images(config, None, False))


@pytest.mark.parametrize("device", ["mps", "xpu:1"])
def test_a_device_without_float64_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    def made(*size: int, dtype: torch.dtype = torch.float32, device: object = None) -> torch.Tensor:
        if dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype. Use float32.\nMore lines.")
        return torch.full(size, 0.0)

    monkeypatch.setattr(torch, "zeros", made)
    monkeypatch.setattr(torch, "ones", made)
    with pytest.raises(InputError, match=f"'{device}' computes nothing in float64.*use cpu or a cuda"):
        open_device(device)


def test_q_of_a_given_model_s_own_sampler_is_estimated_by_its_path(tmp_path: Path) -> None:
    """Its times are the scheduler's; a description names them by their hash and cannot give them back."""
    file, out = tmp_path / "tiny.toml", tmp_path / "run"
    own = TINY.replace("steps = 3", 'name = "own:3"')
    file.write_text(f"{own}[rare]\npath = true\nmost = 400\n")
    model = ddpm(tmp_path / "pipeline")
    answer = CliRunner().invoke(app, command(file, out, "--model", model, "--target", 5, "--json"))
    assert answer.exit_code == 0, answer.output
    q = json.loads(answer.stdout)["q"]
    assert q["path"]["sampler"] == q["monte_carlo"]["sampler"]
    assert q["path"]["sampler"]["of"] == "DDPMScheduler"


def test_a_model_of_karras_keeps_its_denoiser_under_another_name_of_time(tmp_path: Path) -> None:
    network = build_unet(resolve(preset="demo").model.network, 1, (8, 8), Streams(0))
    with torch.no_grad():
        for one in network.parameters():  # untrained, the last layer gives 0 whatever it is told
            one.add_(0.02)
    save_model(tmp_path / "model", NetworkDenoiser(network, EDM(0.01, 40.0), "edm"))
    theirs = open_model(tmp_path / "model").denoiser
    given = open_given(tmp_path / "model", None, None, torch.device("cpu"), resolve(preset="small"))
    assert given is not None and given.opened.denoiser.schedule.start == 1
    x = torch.linspace(-1, 1, 192).reshape(3, 1, 8, 8)
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    sigma = 0.01 * 4000**t
    with torch.no_grad():
        torch.testing.assert_close(given.opened.denoiser(x, t), theirs(x, sigma), rtol=1e-5, atol=1e-6)
    assert any("0.01 x 4000^t" in note for note in given.entry(SamplerValue(step="ancestral")).notes)


def test_a_latent_model_is_noised_and_sampled_in_its_own_space(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        coder = AutoencoderKL(
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=2,
            norm_num_groups=4,
            sample_size=16,
            scaling_factor=0.4,
        )
    scheduler: Any = diffusers.DDIMScheduler()
    pipeline: Any = diffusers.LDMPipeline(unet=unet(0, 2), scheduler=scheduler, vqvae=coder)
    pipeline.save_pretrained(tmp_path / "latent")
    given = open_given(tmp_path / "latent", None, None, torch.device("cpu"), resolve(preset="small"))
    assert given is not None and not given.pixels
    opened, config = given.opened, resolve({"sampler": {"steps": 2}}, preset="demo")
    context = Context(config, cast(Any, None), Where(batch=512), opened.codec, opened.shape)
    target = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 16, 16)
    audited = Audited(opened.denoiser, Detectors(None, cast(Any, None)), target)

    n, t = 2000, 0.3
    ids, at = torch.arange(n), torch.full((n,), t, dtype=torch.float64)
    begun = stages.noised_probe(context, audited).begin(at, ids)
    schedule = opened.denoiser.schedule
    with torch.no_grad():
        clean = 0.4 * coder.eval().encode(torch.from_numpy(target)[None]).latent_dist.mean[0]
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    # 128 means of 2,000 normals each: all within 4.5 standard errors but for a chance of 1 in 1,000
    assert float((begun.mean(0) - alpha * clean).abs().max()) < 4.5 * sigma / n**0.5
    assert float(begun.std(0).mean()) == pytest.approx(sigma, rel=0.02)

    prior = stages.prior_probe(context, audited)
    assert prior.begin(at, ids).shape == (n, 2, 8, 8)
    ((_, images, _),) = prior.images(stages.at(schedule.start, 2), np.arange(2))
    assert images.shape == (2, 1, 16, 16) and not images.requires_grad


def test_what_cannot_be_audited_is_one_sentence_and_exit_2(tmp_path: Path, settings: Path) -> None:
    out = tmp_path / "run"

    def refused(*more: object) -> str:
        answer = CliRunner().invoke(app, command(settings, out, *more))
        assert answer.exit_code == 2, answer.output
        assert "Traceback" not in answer.output and answer.stdout == ""
        lines = answer.stderr.strip().splitlines()
        assert len(lines) == 1
        assert not out.exists()
        return lines[0]

    model = ddpm(tmp_path / "model")
    assert "3x8x8" in (said := refused("--model", ddpm(tmp_path / "rgb", channels=3))) and "1x8x8" in said
    assert "no image 24 among 24" in refused("--model", model, "--target", 24)
    assert "no image -1" in refused("--model", model, "--target", -1)
    assert "name one (--model)" in refused("--label", 1)
    assert "label" in refused("--model", model, "--label", 1)
    assert "--control" in refused("--model", model, "--control")
    assert "does not exist" in refused("--model", tmp_path / "nothing")
    (tmp_path / "weights.pt").write_bytes(b"\x80\x04.")
    assert "pickle" in refused("--model", tmp_path / "weights.pt")
    (tmp_path / "empty").mkdir()
    assert "holds no" in refused("--model", tmp_path / "empty")


def test_check_counts_the_work_of_a_given_model(tmp_path: Path, settings: Path) -> None:
    """3 steps of ancestral sampling and a last denoising for 40 images; nothing trained, one recogniser."""
    model = ddpm(tmp_path / "model")
    given = ["check", "digits", "--preset", "demo", "--config", settings, "--model", model, "--json"]
    answer = CliRunner().invoke(app, [str(one) for one in given])
    assert answer.exit_code in (0, 1), answer.output
    found = json.loads(answer.stdout)
    costs = {cost["stage"]: cost for cost in found["costs"]}
    assert {"search.model", "samples.model"} <= set(costs)
    assert not {"model", "control", "presence"} & set(costs)
    assert costs["samples.model"]["evaluations"] == 40 * (3 + 1)
    assert found["facts"]["model"] == "diffusers"
    assert found["facts"]["weights sha256"] == open_model(model).weights_sha256
    answer = CliRunner().invoke(app, ["check", "digits", "--model", str(tmp_path / "nothing")])
    assert answer.exit_code == 2 and "does not exist" in answer.stderr
