"""Every test runs under one guard: it must leave the process's global numerical state as it found it.

Randomness is an argument here (`latentprint.streams`, `latentprint.keys`), so a test or the code under it
that moves a global generator, or changes torch's defaults for the tests after it, has a fault.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch


def global_state() -> dict[str, object]:
    """What no test may change, each as a value that can be compared."""
    name, keys, position, *gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "torch's default generator": torch.get_rng_state().numpy().tobytes(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "NumPy's legacy global generator": (name, np.asarray(keys).tobytes(), position, tuple(gauss)),
    }


def restore(state: dict[str, object], torch_rng: torch.Tensor, numpy_rng: object) -> None:
    torch.set_rng_state(torch_rng)
    np.random.set_state(numpy_rng)  # noqa: NPY002
    torch.set_default_dtype(state["torch's default dtype"])
    torch.set_grad_enabled(bool(state["torch's grad mode"]))
    torch.use_deterministic_algorithms(bool(state["torch's deterministic algorithms"]))


@pytest.fixture(autouse=True)
def global_state_stays_put() -> Iterator[None]:
    """Fails the test that moved global state, and puts it back so that only this test fails."""
    before, torch_rng = global_state(), torch.get_rng_state()
    numpy_rng = np.random.get_state()  # noqa: NPY002
    yield
    after = global_state()
    moved = [name for name in before if before[name] != after[name]]
    if moved:
        restore(before, torch_rng, numpy_rng)
        pytest.fail(f"this test moved {', '.join(moved)}; give it its own generator or Streams")


@pytest.fixture
def unpickled_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter's other process within this one: the same code, without the start of an interpreter.

    What that process keeps out is tested where it runs (test_convert.py, test_adapter_security.py).
    """
    from latentprint.adapters import convert, unpickle

    def run(call: list[str], **_: object) -> SimpleNamespace:
        return SimpleNamespace(stdout=json.dumps(unpickle.main(*call[-2:])))

    monkeypatch.setattr(convert, "subprocess", SimpleNamespace(run=run, TimeoutExpired=TimeoutError))
