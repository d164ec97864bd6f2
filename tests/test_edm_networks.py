"""Networks of EDM, exported and converted, against those that NVIDIA published under Apache-2.0."""

from __future__ import annotations

import ast
import sys
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

STORED = Path(make.__file__).parent / "edm.npz"


def exported(path: Path, case: str, **changes: Any) -> Path:
    """What the command of docs/models.md writes of a snapshot."""
    settings = make.EDM[case]
    with np.load(STORED) as found:
        lines = [line.partition(" ") for line in found[f"{case}.names"].tolist()]
    tensors = {name: torch.zeros(ast.literal_eval(shape)) for name, _, shape in lines}
    bare = {name.removeprefix("model."): one for name, one in tensors.items()}
    make.fill(bare)
    taps = torch.tensor(settings.get("resample_filter", [1.0, 1.0]), dtype=torch.float32)
    for name, one in bare.items():
        if name.endswith("resample_filter"):
            one.copy_(taps.outer(taps)[None, None] / taps.sum() ** 2)
    said = {"class": "EDMPrecond", "average": True, "img_channels": 2, "use_fp16": True} | make.EDM_SHAPE
    torch.save({"edm": said | settings | changes, "state_dict": tensors}, path)
    return path


def opened_of(source: Path, folder: Path, **asked: Any) -> Any:
    convert(source, folder, trusted=True)
    return open_model(folder, asked=Asked(**asked))


@pytest.mark.parametrize("case", list(make.EDM))
def test_edm_is_what_was_published(tmp_path: Path, case: str) -> None:
    done = convert(exported(tmp_path / "edm.pt", case), tmp_path / "model", trusted=True)
    assert "averaged (EMA)" in done.said[0]
    label = 1 if "label_dim" in make.EDM[case] else None
    opened = open_model(tmp_path / "model", asked=Asked(label=label, steps=make.EDM_STEPS))
    with np.load(STORED) as found:
        output, images = (torch.from_numpy(found[f"{case}.{name}"]) for name in ("output", "images"))
    x = make.drawn(1, 2, 2, 16, 16)
    given = {} if label is None else {"class_labels": torch.tensor([label, label])}
    with torch.no_grad():
        found_output = opened.networks[0](x, torch.tensor([0.3, -1.2]), **given)
    assert torch.allclose(found_output, output, atol=1e-5)
    assert opened.own is not None and opened.own.sampler.of == "edm_sampler"
    assert float((ours(opened, x, []) - images).abs().max()) < 1e-4 * max(1.0, float(images.abs().max()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class": "VPPrecond"}, ["the class of the network must be one of EDMPrecond", "VPPrecond"]),
        ({"encoder_type": "skip"}, ["encoder_type must be one of standard, residual"]),
        ({"num_blocks": 2}, ["lack", "two different networks"]),
    ],
)
def test_what_of_edm_is_not_known_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    source = exported(tmp_path / "edm.pt", "adm", **changes)
    with pytest.raises(ModelError) as error:
        opened_of(source, tmp_path / "model", label=1)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_an_export_without_settings_names_the_command(tmp_path: Path) -> None:
    source = exported(tmp_path / "edm.pt", "adm")
    torch.save({"state_dict": torch.load(source, weights_only=True)["state_dict"]}, source)
    with pytest.raises(ModelError, match="'An EDM snapshot'"):
        convert(source, tmp_path / "model", trusted=True)
