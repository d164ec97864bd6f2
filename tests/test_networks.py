"""The network's shape, and files that are whole or absent."""

from __future__ import annotations

import errno
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from latentprint.denoiser import NetworkDenoiser
from latentprint.networks import (
    DIGITS,
    PAPER,
    FileError,
    ModelError,
    UNetConfig,
    build_unet,
    commit,
    committed,
    load_model,
    multiple_of,
    parameters,
    save_model,
)
from latentprint.schedule import VE, SubVP
from latentprint.streams import Streams

TINY = UNetConfig((8, 16), layers_per_block=1, attention=(False, True), norm_groups=4)


def tiny(seed: int = 0) -> UNet2DModel:
    return build_unet(TINY, 1, 8, Streams(seed))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.linspace(-1, 1, 2 * 64).reshape(2, 1, 8, 8)
    return x, torch.tensor([0.3, 0.9], dtype=torch.float64)


def test_the_papers_network_works_at_28_14_and_7_pixels():
    network = build_unet(PAPER, 1, 28, Streams(0))
    seen: list[tuple[int, int]] = []
    for block in network.down_blocks:
        block.resnets[0].register_forward_hook(lambda _m, _i, out: seen.append((out.shape[1], out.shape[2])))
    with torch.no_grad():
        network(torch.zeros(1, 1, 28, 28), 0)
    assert seen == [(128, 28), (128, 14), (256, 7)]
    assert len(network.down_blocks[0].resnets) == 2


def test_levels_attend_where_they_are_told_to():
    network = tiny()
    attends = [
        any("attentions" in name for name, _ in block.named_children()) for block in network.down_blocks
    ]
    back = [any("attentions" in name for name, _ in block.named_children()) for block in network.up_blocks]
    assert attends == [False, True] and back == [True, False]


def test_weights_are_a_function_of_the_seed():
    one, again, other = (tiny(s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[k], again[k]) for k in one)
    assert not torch.equal(one["conv_in.weight"], other["conv_in.weight"])


def test_sides_that_cannot_be_halved_are_filled_up_inside_and_cut_back(tmp_path: Path):
    network = build_unet(UNetConfig((8, 16, 16), 1, norm_groups=4), 1, (7, 30), Streams(0)).eval()
    save_model(tmp_path, NetworkDenoiser(network, SubVP(), multiple=multiple_of(network)))
    denoiser = load_model(tmp_path)
    assert denoiser.multiple == 4
    x = Streams(0).noise("x", torch.arange(2), 0, (1, 7, 30))
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    filled = torch.cat([x, x[..., -1:, :]], dim=-2)
    filled = torch.cat([filled, *[filled[..., -1:]] * 2], dim=-1)
    with torch.no_grad():
        found, whole = denoiser(x, t), denoiser(filled, t)
    assert found.shape == x.shape and torch.equal(found, whole[..., :7, :30])
    assert multiple_of(torch.nn.Identity()) == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"channels": ()}, "at least 1 item"),
        ({"channels": (128, 100)}, r"32 norm groups must divide every level's channels, got \[100\]"),
        ({"attention": (True,)}, "one entry for each of the 3 levels, got 1"),
        ({"head_channels": 7}, r"heads of 7 channels .* got \[256\]"),
        ({"layers_per_block": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_shapes_are_refused(wrong: dict[str, object], said: str):
    with pytest.raises(ValueError, match=said):
        UNetConfig(**wrong)  # pyright: ignore[reportArgumentType]


def test_parameters_are_counted():
    # 8x8 digits: by hand for the two convolutions at the border, the rest from them.
    network = build_unet(DIGITS, 1, 8, Streams(0))
    assert parameters(network.conv_in) == 32 * 9 + 32
    network.conv_in.requires_grad_(False)
    assert parameters(network.conv_in) == 0 and parameters(network) > 600_000


@pytest.mark.parametrize("schedule", [SubVP(beta_max=15.0), VE(sigma_max=20.0)])
def test_a_saved_model_comes_back_whole(tmp_path: Path, schedule: SubVP | VE):
    model = NetworkDenoiser(tiny().eval(), schedule, "edm", sigma_data=0.7, mean_data=-0.2)
    save_model(tmp_path, model)
    found = load_model(tmp_path)
    assert found.config() == model.config() and found.schedule == schedule
    x, t = batch()
    with torch.no_grad():
        assert torch.equal(found(x, t), model(x, t))


@pytest.mark.parametrize("size", [8, (4, 4, 4)])
def test_a_network_that_is_told_of_augmentation_comes_back_untold(tmp_path: Path, size: Any):
    shape = UNetConfig((8, 16), layers_per_block=1, norm_groups=4, augment_labels=True)
    network, rng = build_unet(shape, 1, size, Streams(0)).eval(), torch.Generator().manual_seed(0)
    for one in network.parameters():  # MONAI's begins with outputs of zero
        one.data += 0.1 * torch.randn(one.shape, generator=rng)
    model = NetworkDenoiser(network, SubVP(), "edm", label=0)
    save_model(tmp_path, model)
    found = load_model(tmp_path)
    x = torch.randn(2, 1, *((size, size) if size == 8 else size), generator=rng)
    t = torch.tensor(0.5, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(found(x, t), model(x, t), atol=1e-6)
        apart = (found(x, t) - replace(model, label=torch.tensor([0, 3]))(x, t)).abs().flatten(1).amax(1)
        assert apart[0] < 1e-6 and apart[1] > 1e-3
    about = tmp_path / "latentprint.json"
    for wrong in (None, 3, "0", False):
        about.write_text(json.dumps(json.loads(about.read_text()) | {"label": wrong}))
        with pytest.raises(ModelError, match="its network takes 0"):
            load_model(tmp_path)


def test_a_saved_model_loads_with_diffusers(tmp_path: Path):
    network = tiny().eval()
    save_model(tmp_path, NetworkDenoiser(network, SubVP()))
    with torch.random.fork_rng(devices=[]):
        theirs = UNet2DModel.from_pretrained(tmp_path, use_safetensors=True, local_files_only=True)
    x, t = batch()
    with torch.no_grad():
        assert torch.equal(theirs(x, t.float()).sample, network(x, t.float()).sample)


class Bomb:
    """Leaves a file where it was unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def test_pickled_weights_are_refused_and_never_opened(tmp_path: Path):
    folder, mark = tmp_path / "model", tmp_path / "exploded"
    save_model(folder, NetworkDenoiser(tiny(), SubVP()))
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(
        ModelError, match=r"diffusion_pytorch_model\.bin is a pickle.*save the model as safetensors"
    ):
        load_model(folder)
    assert not mark.exists()


def test_a_pickle_under_the_name_of_safetensors_is_not_opened(tmp_path: Path):
    folder, mark = tmp_path / "model", tmp_path / "exploded"
    save_model(folder, NetworkDenoiser(tiny(), SubVP()))
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_model(folder)
    assert not mark.exists()


def test_damaged_models_are_refused_in_one_sentence(tmp_path: Path):
    with pytest.raises(ModelError, match="there is no folder"):
        load_model(tmp_path / "nowhere")
    save_model(tmp_path, NetworkDenoiser(tiny(), SubVP()))
    weights, about = tmp_path / "diffusion_pytorch_model.safetensors", tmp_path / "latentprint.json"
    whole, note = weights.read_bytes(), about.read_text()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="no whole model"):
        load_model(tmp_path)
    save_model(tmp_path, NetworkDenoiser(build_unet(DIGITS, 1, 8, Streams(0)), SubVP()))
    weights.write_bytes(whole)
    with pytest.raises(ModelError, match=r"do not fit its config\.json"):
        load_model(tmp_path)
    save_model(tmp_path, NetworkDenoiser(tiny(), SubVP()))
    about.write_text(json.dumps(json.loads(note) | {"parametrisation": "magic"}))
    with pytest.raises(ModelError, match="magic"):
        load_model(tmp_path)
    about.unlink()
    with pytest.raises(ModelError, match=r"latentprint\.json. could not be read"):
        load_model(tmp_path)


def test_only_what_diffusers_can_read_is_saved(tmp_path: Path):
    with pytest.raises(ModelError, match="build_unet can be saved, got Identity"):
        save_model(tmp_path, NetworkDenoiser(torch.nn.Identity(), SubVP()))


def test_a_commit_comes_back_and_replaces_the_one_before(tmp_path: Path):
    assert committed(tmp_path) is None
    for step in (1, 2):
        tensors = {"a": torch.full((3,), step / 3), "b": torch.tensor(step, dtype=torch.float64)}
        commit(tmp_path, tensors, {"step": step, "rate": 0.1})
        found, note = committed(tmp_path) or ({}, {})
        assert note == {"step": step, "rate": 0.1}
        assert found.keys() == tensors.keys() and all(torch.equal(found[k], tensors[k]) for k in tensors)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("survives", [0, 1])
def test_a_crash_or_a_full_disk_leaves_the_commit_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survives: int
):
    """The disk fills up at the tensors (0) or, those being written, at the marker (1)."""
    commit(tmp_path, {"a": torch.ones(3)}, {"step": 1})
    before, real, calls = sorted(f.name for f in tmp_path.iterdir()), os.fsync, iter(range(100))

    def full(fd: int) -> None:
        if next(calls) >= 2 * survives:  # each file is flushed, then its folder
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="disk is full"):
        commit(tmp_path, {"a": torch.zeros(3)}, {"step": 2})
    monkeypatch.undo()
    found, note = committed(tmp_path) or ({}, {})
    assert note == {"step": 1} and torch.equal(found["a"], torch.ones(3))
    left = {f.name for f in tmp_path.iterdir()}
    assert left >= set(before) and not any(name.endswith(".tmp") for name in left)


def test_a_damaged_commit_is_said_to_be_damaged(tmp_path: Path):
    commit(tmp_path, {"a": torch.ones(3)}, {})
    next(tmp_path.glob("tensors-*")).write_bytes(b"short")
    with pytest.raises(FileError, match="not a safetensors file"):
        committed(tmp_path)
    (tmp_path / "commit.json").write_text('{"tensors": "../elsewhere", "note": {}}')
    with pytest.raises(FileError, match="does not name its tensors"):
        committed(tmp_path)
    (tmp_path / "commit.json").write_text("{")
    with pytest.raises(FileError, match="no JSON"):
        committed(tmp_path)
