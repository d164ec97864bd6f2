"""Checkpoints of medfusion: converted, and compared with what its published code answered."""

from __future__ import annotations

import ast
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_own_sampler import ours

from latentprint.adapters import Asked, ModelError, open_model
from latentprint.adapters.convert import convert

sys.path.insert(0, str(Path(__file__).parent / "published"))

import make

pytestmark = pytest.mark.usefixtures("unpickled_here")

STORED = Path(make.__file__).parent / "medfusion.npz"


def checkpoint(path: Path, case: str, **changes: Any) -> Path:
    """A ``.ckpt`` as Lightning writes it, its settings among them, classes of medfusion's too."""
    with np.load(STORED) as found:
        lines = [line.partition(" ") for line in found[f"{case}.names"].tolist()]
        betas = torch.from_numpy(found["betas"])
    tensors = {name: torch.zeros(ast.literal_eval(shape)) for name, _, shape in lines}
    make.fill(tensors)
    averaged = any(name.startswith("ema_model.") for name in tensors)
    for name, one in tensors.items():
        if name.startswith("noise_estimator.") and averaged:
            one.zero_()
    tensors["noise_scheduler.betas"] = betas
    module = types.ModuleType("medical_diffusion.models.estimators.unet")
    kind = type("UNet", (), {"__module__": module.__name__})
    module.UNet = kind  # type: ignore[attr-defined]
    settings = {"estimator_objective": "x_T", **make.MEDFUSION[case], "noise_estimator": kind}
    settings |= {"noise_estimator_kwargs": make.MEDFUSION_UNET, "optimizer": torch.optim.AdamW}
    settings["noise_scheduler_kwargs"] = {"timesteps": make.MEDFUSION_STEPS}
    content = {
        "hyper_parameters": changes.pop("hyper_parameters", settings),
        "pytorch-lightning_version": "1",
    }
    parents = {".".join(module.__name__.split(".")[:k]): types.ModuleType("") for k in range(1, 4)}
    sys.modules |= {**parents, module.__name__: module}
    try:
        torch.save({"state_dict": tensors | changes, **content}, path)
    finally:
        for name in (*parents, module.__name__):
            del sys.modules[name]
    return path


def opened_of(folder: Path, case: str, steps: int | None = None) -> Any:
    side = 16 if case == "latents" else 8
    images = make.drawn(9, 4, 1, side, side).clamp(-1, 1).numpy()
    guided: dict[str, Any] = {"label": 1, "guidance": 3.0} if case == "latents" else {}
    return open_model(folder, asked=Asked(images=lambda: images, steps=steps, **guided))


@pytest.mark.parametrize("case", list(make.MEDFUSION))
def test_medfusion_is_what_its_code_is(tmp_path: Path, case: str) -> None:
    """Noise at every timestep, the autoencoder, and its own samples by all timesteps and by seven."""
    done = convert(checkpoint(tmp_path / "last.ckpt", case), tmp_path / "model", trusted=True)
    assert ("not averaged" in done.said[0]) == (case != "latents")
    with np.load(STORED) as found:
        expected = {name: torch.from_numpy(found[f"{case}.{name}"]) for name in ("noisy", "all", "7")}
        encoded = torch.from_numpy(found["latents.encoded"])
    opened, steps = opened_of(tmp_path / "model", case), make.MEDFUSION_STEPS
    sch, t = opened.denoiser.schedule, (torch.arange(steps, dtype=torch.float64) + 1) / steps
    clean, noise = make.drawn(2, steps, 1, 2, 2), make.drawn(3, steps, 1, 2, 2)
    mixed = sch.alpha(t).reshape(-1, 1, 1, 1) * clean + sch.sigma(t).reshape(-1, 1, 1, 1) * noise
    assert torch.allclose(mixed.float(), expected["noisy"], atol=2e-6)
    channels = opened.shape[0]
    for name, count in (("all", steps), ("7", 7)):
        model = opened if name == "all" else opened_of(tmp_path / "model", case, count)
        noises = [make.drawn(100 + place, 2, channels, 8, 8) for place in range(count)]
        with torch.no_grad():
            images = model.codec.decode(ours(model, make.drawn(1, 2, channels, 8, 8), noises))
        if make.MEDFUSION[case]["clip_x0"]:
            images = images.clamp(-1, 1)  # as every image is before it is looked at
        assert float((images - expected[name]).abs().max()) < 1e-4 * max(1.0, float(images.abs().max()))
    if case == "latents":
        with torch.no_grad():
            latents = opened.codec.encode(make.drawn(5, 2, 1, 16, 16).clamp(-1, 1))
        assert torch.allclose(latents, encoded, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hyper_parameters": {}}, ["medfusion", "--estimator_objective", "--clip_x0"]),
        ({"noise_estimator.more": torch.ones(2)}, ["0 are lacking, 1 are left over", "'more'"]),
        (
            {"noise_estimator.in_blocks.0.1.attention.to_q.weight": torch.ones(2)},
            ["use_attention", "--model package.module:factory"],
        ),
    ],
)
def test_what_of_medfusion_is_not_known_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ModelError) as error:
        convert(checkpoint(tmp_path / "last.ckpt", "pixels", **changes), tmp_path / "model", trusted=True)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_flags_say_what_its_file_does_not(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "last.ckpt", "pixels", hyper_parameters={})
    flags = {"estimator_objective": "x_0", "clip_x0": False, "do_input_centering": True}
    convert(source, tmp_path / "model", trusted=True, flags=flags)
    config = json.loads((tmp_path / "model" / "medfusion.json").read_text())
    assert (config["predicts"], config["clip"]) == ("sample", None)
