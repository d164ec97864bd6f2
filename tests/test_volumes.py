"""Volumes from files to evidence: reading, area resizing, phantoms, networks, recognisers, pages."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from latentprint.adapters import Asked, open_model
from latentprint.audit.images import padding
from latentprint.cli import app
from latentprint.config import resolve
from latentprint.contracts import InputError
from latentprint.data import DataError, copies_of, load, near_duplicates
from latentprint.data.load import require_source
from latentprint.data.resize import all_resized, averaged
from latentprint.denoiser import NetworkDenoiser
from latentprint.detector import DetectorConfig, augmix, fit_presence, load_detector
from latentprint.detector.draws import Shown
from latentprint.fingerprint import CircleConfig
from latentprint.networks import UNetConfig, build_unet, load_model, multiple_of, save_model
from latentprint.report.evidence import Evidence, Noised, planes, render_evidence, slices
from latentprint.schedule import VP
from latentprint.streams import Streams
from latentprint.training import train

MEDMNIST = Path(os.environ.get("MEDMNIST_ROOT", Path(__file__).parents[2] / "shared" / "medmnist"))


def stored(count: int, sides: tuple[int, ...] = (6, 8, 10), seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, *sides), dtype=np.uint8)


# --- reading --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [None, 1, -1])
@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_of_volumes_are_read_whatever_axis_has_the_channels(
    tmp_path: Path, axis: int | None, channels: int
) -> None:
    values = stored(10, (6, 8, 10, channels) if axis else (6, 8, 10))
    np.savez(tmp_path / "v.npz", images=values if axis != 1 else np.moveaxis(values, -1, 1))
    split = load(tmp_path / "v.npz", seed=0, images=6)
    expected = (np.moveaxis(values, -1, 1) if axis else values[:, None]) / 127.5 - 1
    assert split.train.shape == ((channels, 6, 8, 10) if axis else (1, 6, 8, 10))
    every = np.concatenate([split.train.pixels, split.heldout.pixels])
    assert {one.tobytes() for one in every.round(4)} == {
        one.tobytes() for one in expected.astype(np.float32).round(4)
    }


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((9, 2, 8, 8), "channels"),
        ((9, 8, 8, 4), "channels"),
        ((9, 8, 8, 8, 5), "channels"),
        ((2,) * 6, "volumes"),
    ],
)
def test_arrays_that_are_neither_are_refused(tmp_path: Path, shape: tuple[int, ...], words: str) -> None:
    np.savez(tmp_path / "v.npz", images=np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match=words) as caught:
        load(tmp_path / "v.npz", seed=0)
    assert "\n" not in str(caught.value)


def test_area_resizing_is_the_mean_over_what_a_voxel_covers() -> None:
    volume = stored(1, (8, 12, 6))[0]
    fine = np.repeat(np.repeat(np.repeat(volume, 5, 0), 5, 1), 5, 2).astype(np.float64)  # a common multiple
    exact = fine.reshape(5, 8, 5, 12, 5, 6).mean((1, 3, 5))
    assert np.allclose(averaged(volume.astype(np.float64), 5), exact)
    assert np.array_equal(averaged(volume, 5), np.rint(exact).astype(np.uint8))
    colour = np.stack([volume, volume // 2, volume], -1)
    assert np.allclose(averaged(colour.astype(np.float64), 5)[..., 0], exact)
    assert all_resized(np.stack([volume] * 2), 4).shape == (2, 4, 4, 4)


@pytest.mark.skipif(
    not (MEDMNIST / "adrenalmnist3d_64.npz").is_file(), reason="adrenalmnist3d_64.npz is absent"
)
def test_the_official_file_is_read_and_brought_to_16() -> None:
    split = load("medmnist:adrenalmnist3d", seed=0, root=MEDMNIST, images=8, resize=16)
    assert split.train.shape == (1, 16, 16, 16) and len(split.train) == 8
    assert split.overlap is not None and split.overlap.heldout == 98 + 298
    with np.load(MEDMNIST / "adrenalmnist3d_64.npz") as arrays:
        first = arrays["train_images"][:400]
    means = first.reshape(-1, 16, 4, 16, 4, 16, 4).mean((2, 4, 6)) / 127.5 - 1
    found = [float(np.abs(one - means).mean((1, 2, 3)).min()) for one in split.train.pixels[:, 0]]
    assert min(found) < 0.005  # rounded to 8 bits
    with pytest.raises(DataError, match="adrenalmnist3d, fracturemnist3d"):
        load("medmnist:adrenal3d", seed=0, root=MEDMNIST)


def test_phantom_volumes_follow_from_the_seed_and_differ() -> None:
    one, again, other = (load("phantom3d:12:12", seed=seed) for seed in (3, 3, 4))
    assert one.train.shape == (1, 12, 12, 12) and len(one.heldout) > 100
    assert one.train.sha256 == again.train.sha256 != other.train.sha256
    assert near_duplicates(one.train.pixels) == [] or not list(near_duplicates(one.train.pixels))
    assert copies_of(one.train.pixels[3], one.train.pixels).tolist() == [3]
    assert load("phantom3d:2", seed=0).train.shape == (1, 16, 16, 16)
    require_source("phantom3d:2")  # what a command line asks first


# --- networks and recognisers ---------------------------------------------------------------------------


def by_patches(network: torch.nn.Module, side: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A network applied to volumes whose cubes of ``side`` voxels a side are its channels, cube by cube."""

    def call(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        places = list(itertools.product(range(side), repeat=3))
        parts = [x[:, :, d::side, h::side, w::side] for d, h, w in places]
        answer, out = network(torch.stack(parts, 2).flatten(1, 2), t), torch.empty_like(x)
        for at, (d, h, w) in enumerate(places):
            out[:, :, d::side, h::side, w::side] = answer.unflatten(1, (-1, side**3))[:, :, at]
        return out

    return call


@pytest.mark.parametrize("patch_size", [1, 2])
def test_the_network_is_monais_and_its_files_load_with_monai(tmp_path: Path, patch_size: int) -> None:
    nets = pytest.importorskip("monai.networks.nets")
    from safetensors.torch import load_file

    config = UNetConfig((8, 16), layers_per_block=1, norm_groups=8, patch_size=patch_size)
    network, again = (build_unet(config, 1, (8, 8, 8), Streams(2)) for _ in range(2))
    with torch.no_grad():  # MONAI's last layer begins at zero
        for one in (network, again):
            for weight in one.parameters():
                weight += 0.01
    x, t = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3.0, 900.0])
    denoiser = NetworkDenoiser(network.eval(), VP(), "epsilon", multiple=multiple_of(network))
    with torch.no_grad():
        assert torch.equal(network(x, t), again.eval()(x, t))
        save_model(tmp_path, denoiser)
        settings = json.loads((tmp_path / "config.json").read_text())
        with torch.random.fork_rng(devices=[]):
            theirs = getattr(nets, settings.pop("_target_").rpartition(".")[2])(**settings)
        theirs.load_state_dict(load_file(tmp_path / "diffusion_pytorch_model.safetensors"))
        assert torch.equal(by_patches(theirs.eval(), patch_size)(x, t), network(x, t))
        back = load_model(tmp_path)
        level = torch.full((2,), 0.3, dtype=torch.float64)
        assert torch.equal(back(x, level), denoiser(x, level))
        odd = x[..., :7, :5]  # filled up with the voxels at the border, and cut back
        full = torch.nn.functional.pad(odd, (0, -5 % multiple_of(network), 0, 1, 0, 0), mode="replicate")
        assert torch.equal(back(odd, level), denoiser(full, level)[..., :7, :5]) or torch.allclose(
            back(odd, level), denoiser(full, level)[..., :7, :5], atol=1e-5
        )
    given = open_model(tmp_path, asked=Asked(images=lambda: x.numpy()))
    assert given.image_shape == (1, 8, 8, 8) and given.kind == "latentprint"
    with torch.no_grad():
        assert torch.equal(given.denoiser(x, level), denoiser(x, level))
    with pytest.raises(InputError, match="made for volumes"):
        open_model(tmp_path, asked=Asked(images=lambda: x[:, :, 0].numpy()))
    with pytest.raises(InputError, match="middle_attention true"):
        build_unet(UNetConfig((8,), middle_attention=False, norm_groups=8), 1, (8, 8, 8), Streams(0))
    with pytest.raises(InputError, match="patch_size at 1"):
        build_unet(UNetConfig((8,), norm_groups=8, patch_size=2), 1, 8, Streams(0))
    broken = json.loads((tmp_path / "config.json").read_text()) | {"channels": [8, 24]}
    (tmp_path / "config.json").write_text(json.dumps(broken))
    with pytest.raises(InputError, match="do not fit"):
        load_model(tmp_path)


def test_the_preset_sees_cubes_of_voxels_and_says_what_it_pads() -> None:
    network = resolve(preset="small3d").model.network
    assert (network.patch_size, len(network.channels)) == (2, 2)
    assert multiple_of(build_unet(network, 1, (16, 16, 16), Streams(0))) == 4
    assert padding(network, (1, 16, 16, 16)) == ()
    (said,) = padding(network, (1, 10, 12, 14))
    assert "10 x 12 x 14" in said and "multiples of 4" in said and "padded to 12 x 12 x 16" in said
    assert padding(network, (1, 16, 16, 16), "bfloat16") == ()


@pytest.mark.parametrize(("side", "exact"), [(16, False), (8, True)])
def test_on_a_grid_of_eight_places_gradients_are_of_full_precision(
    side: int, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's bfloat16 convolutions of volumes gave NaN gradients there."""
    config = resolve(preset="small3d").model
    settings = replace(config.training, steps=1, batch=2)
    assert settings.precision == "bfloat16"
    assert bool(padding(config.network, (1, side, side, side), "bfloat16")) == exact
    network = build_unet(config.network, 1, (side, side, side), Streams(0))
    seen: list[bool] = []
    network.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    pixels = np.random.default_rng(0).uniform(-1, 1, (4, 1, side, side, side)).astype(np.float32)
    list(train(pixels, network, VP(), settings, Streams(0)))
    assert seen and not any(one == exact for one in seen)


def test_augmix_changes_slices_and_is_repeatable() -> None:
    x = load("phantom3d:20:10", seed=0).train.pixels
    one, again = (augmix(Shown.of(x), np.random.default_rng(1))[:] for _ in range(2))
    assert one.shape == x.shape and np.array_equal(one, again) and np.abs(one - x).mean() > 0.005
    assert one.min() >= -1 and one.max() <= 1


def test_a_recogniser_of_volumes_sees_balls_and_comes_back_whole(tmp_path: Path) -> None:
    split = load("phantom3d:60:10", seed=0)
    pixels = np.concatenate([split.train.pixels, split.heldout.pixels[:100]])
    config = DetectorConfig(
        "small", epochs=8, patience=8, draws=256, learning_rate=4e-3, noise=0.1, augmix=False
    )
    *_, last = fit_presence(pixels, CircleConfig((0.25, 0.35), grey=1.0), config, Streams(1))
    detector = last.detector
    assert detector is not None and detector.shape == (1, 10, 10, 10)
    assert detector.rates.tpr.rate > 0.8 and detector.rates.fpr.rate < 0.2
    assert detector.features(torch.from_numpy(pixels[:3])).shape == (3, 576)
    detector.save(tmp_path)
    again = load_detector(tmp_path)
    assert again is not None
    x = torch.from_numpy(pixels[:5])
    with torch.no_grad():
        assert torch.equal(again(x), detector(x))
    with pytest.raises(ValueError, match="fitted on images"):
        again(x[..., 0])


# --- evidence -------------------------------------------------------------------------------------------


def test_planes_go_through_the_mark_and_an_image_is_its_own() -> None:
    volume = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    found = planes(volume, (1, 2, 3))
    assert found.shape == (2, 4, 5 + 5 + 4)
    assert np.array_equal(found[:, :, :5], volume[:, 1])
    assert np.array_equal(found[:, :3, 5:10], volume[:, :, 2]) and (found[:, 3, 5:10] == -1).all()
    assert np.array_equal(found[:, :3, 10:], volume[..., 3])
    assert np.array_equal(planes(volume[:, 0], (1, 1)), volume[:, 0])
    assert [np.array_equal(one, volume[:, i]) for i, one in enumerate(slices(volume))] == [True] * 3
    assert len(slices(volume[:, 0])) == 1


def test_the_page_shows_three_planes_and_every_slice() -> None:
    volume = np.random.default_rng(0).uniform(-1, 1, (1, 5, 6, 7)).astype(np.float32)
    noised = Noised(0.5, volume, -volume, 0.9, 0.8, True)
    page = render_evidence(Evidence(volume, noised=[noised], at=(1, 2, 3)))
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(one))).size for one in re.findall(r"base64,([^\"]+)", page)
    ]
    assert sizes.count((7 + 7 + 6, 6)) == 4 and sizes.count((7, 6)) == 5  # target, x_t, result, difference
    assert "5 of 5" in page and "script-src" not in page
    assert page.count('<figure class="at">') == 1 and "stand side by side: slice 2, and" in page
    flat = render_evidence(Evidence(volume[:, 0], noised=[]))
    assert "slices" not in flat.partition("</style>")[2]


# --- the whole audit ------------------------------------------------------------------------------------

TINY = """
[data]
heldout = 0.5
[model.network]
channels = [8, 8]
layers_per_block = 1
norm_groups = 8
[model.training]
steps = 10
batch = 4
warmup = 2
precision = "float32"
[presence]
backbone = "small"
epochs = 2
draws = 64
augmix = false
[identity]
backbone = "small"
epochs = 2
draws = 64
augmix = false
[sampler]
steps = 3
[search]
levels = 3
tries = 2
[baseline]
images = 0
[samples]
count = 12
control = 8
[likelihood]
images = 2
probes = 2
"""


def test_an_audit_of_volumes_from_files_to_pages(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.uniform(40, 220, (64, 4, 4, 4)).astype(np.uint8)
    values = np.repeat(np.repeat(np.repeat(coarse, 2, 1), 2, 2), 2, 3)
    np.savez(tmp_path / "secret-name.npz", images=values)
    (tmp_path / "tiny.toml").write_text(TINY)
    command = ["audit", str(tmp_path / "secret-name.npz"), "--config", str(tmp_path / "tiny.toml")]
    ended = CliRunner().invoke(
        app,
        [*command, "--preset", "small3d", "--images", "32", "--resize", "8", "--out", str(tmp_path / "run")],
    )
    assert ended.exit_code in (0, 1, 2), ended.output
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["data"]["shape"] == [1, 8, 8, 8] and {"slice", "row", "column"} <= set(
        found["target"]["fingerprint"]
    )
    assert found["fid"]["features"] == "detector presence (small)" and found["likelihood"] is not None
    assert found["whole_set"] is not None
    report = (tmp_path / "run" / "report.html").read_text()
    assert "data:image" not in report and "secret-name" not in report
    assert "8 of 8" in (tmp_path / "run" / "evidence" / "index.html").read_text()


def test_a_network_that_volumes_cannot_have_is_refused_before_anything_is_fitted(tmp_path: Path) -> None:
    command = ["audit", "phantom3d:24:8", "--preset", "demo", "--images", "24", "--out", str(tmp_path / "r")]
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 2 and "leave middle_attention true" in ended.output
    assert not (tmp_path / "r").exists()


def test_nifti_samples_are_audited_and_planted_copies_found(tmp_path: Path) -> None:
    nib = pytest.importorskip("nibabel")
    rng = np.random.default_rng(1)

    def volume(seed: int) -> np.ndarray[Any, Any]:
        coarse = np.random.default_rng(seed).integers(20, 236, (4, 4, 4), dtype=np.uint8)
        return np.repeat(np.repeat(np.repeat(coarse, 2, 0), 2, 1), 2, 2)

    for folder, seeds in (("train", range(24)), ("test", range(100, 140)), ("made", range(200, 218))):
        (tmp_path / folder).mkdir()
        for i in seeds:
            image = nib.Nifti1Image(volume(i), np.eye(4))
            image.header["descrip"] = b"JANE DOE"
            nib.save(image, tmp_path / folder / f"jane-{i}.nii.gz")
    for i in range(6):  # nearly what was trained on
        noisy = np.clip(volume(i) + rng.normal(0, 4, (8, 8, 8)), 0, 255).astype(np.uint8)
        nib.save(nib.Nifti1Image(noisy, np.eye(4)), tmp_path / "made" / f"copy-{i}.nii.gz")
    data = tmp_path / "data"
    data.mkdir()
    for side in ("train", "test"):
        (tmp_path / side).rename(data / side)
    (tmp_path / "tiny.toml").write_text(TINY)
    arguments = [
        "audit",
        str(data),
        "--samples",
        str(tmp_path / "made"),
        "--preset",
        "small3d",
        "--images",
        "24",
    ]
    more = ["--resize", "8", "--config", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "run")]
    ended = CliRunner().invoke(app, [*arguments, *more])
    assert ended.exit_code in (0, 1, 2), ended.output
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["whole_set"]["copies"]["k"] >= 6 and found["whole_set"]["copies"]["n"] == 24
    for page in ("results.json", "report.html", "run.json"):
        text = (tmp_path / "run" / page).read_text()
        assert "JANE" not in text and "jane" not in text, page
    flat = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "flat.npz", images=flat)
    ended = CliRunner().invoke(
        app, ["audit", str(data), "--samples", str(tmp_path / "flat.npz"), *more[2:-1], "other"]
    )
    assert ended.exit_code == 2 and "the samples are 1x8x8 (channels x sides)" in " ".join(
        ended.output.split()
    )
