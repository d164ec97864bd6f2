"""What runs on a GPU, without one: tensors on another device may not meet those of the processor.

The arithmetic there is the processor's, so that numbers must agree; only which device each tensor is on is
put to the test. (On an H200, on 2026-11-27, every audit failed where generated images are compared with all
training images, because those had stayed behind.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from elsewhere import Far, elsewhere
from test_audit import tiny

from latentprint import Where, run_audit
from latentprint.attacks.nearest import nearest
from latentprint.store import Run
from latentprint.streams import Streams

CUDA = "cuda"


def test_tensors_of_two_devices_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    near, index = torch.arange(6.0).reshape(2, 3), torch.tensor([1])
    with elsewhere(monkeypatch):
        far = near.to(CUDA)
        assert isinstance(far, Far) and far.device.type == (far + 1).device.type == CUDA
        assert type(far.cpu()) is torch.Tensor and far.cpu().device.type == "cpu"
        assert float((far * torch.tensor(2.0)).sum()) == 30.0  # single numbers may
        assert torch.equal(far[index].cpu(), near[index])
        for wrong in (
            lambda: far + near,
            lambda: torch.cat([near, far]),
            lambda: near[index.to(CUDA)],
            lambda: torch.nn.functional.linear(far, near),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        with pytest.raises(TypeError):
            far.numpy()


@pytest.mark.parametrize("block", [3, 4096])
@pytest.mark.parametrize("kept", ["array", "tensor", "far"])
def test_images_are_compared_where_they_are(monkeypatch: pytest.MonkeyPatch, block: int, kept: str) -> None:
    images, pool = (Streams(0).noise(name, range(9), 0, (1, 4, 4)).tanh() for name in ("images", "pool"))
    pool[4] = pool[3]  # a tie, which is searched again in float64
    expected = nearest(images, pool, 2, block=block)
    with elsewhere(monkeypatch):
        reference: Any = {"array": pool.numpy(), "tensor": pool, "far": pool.to(CUDA)}[kept]
        found = nearest(images.to(CUDA), reference, 2, block=block)
        assert isinstance(found.distance, Far)
        assert torch.equal(found.index.cpu(), expected.index)
        assert torch.equal(found.distance.cpu(), expected.distance)


def test_an_audit_on_another_device_gives_the_same_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tiny(rare={"splitting": False})
    here = run_audit(config, tmp_path / "here")
    with elsewhere(monkeypatch):
        there = run_audit(config, tmp_path / "there", where=Where(device=CUDA))
    assert here.verdict == there.verdict
    one, two = Run.read(tmp_path / "here"), Run.read(tmp_path / "there")
    for part in ("samples.model", "search.model", "samples.control"):
        rows, others = one.rows(part), two.rows(part)
        assert rows.keys() == others.keys()
        for name in rows:
            np.testing.assert_allclose(others[name], rows[name], 1e-2, 1e-4, err_msg=f"{part} {name}")
