"""An honest run verifies; what was changed in a real run is named. Single numbers: test_assemble.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import small_runs

from latentprint.contracts import InputError
from latentprint.verify import alike, verify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(small_runs.RUNS / "marked", tmp_path / "run")
    return small_runs.written(small_runs.leak(), tmp_path / "run")


def test_a_run_as_it_was_made_verifies(folder: Path) -> None:
    found = verify(folder)
    assert found.exit_code == 0, found.sentences
    assert len(found.checks) > 300 and "agree" in found.sentences[0]


def test_results_of_other_rows_are_found(folder: Path) -> None:
    before = small_runs.leak().results.q.monte_carlo
    small_runs.written(small_runs.leak().counts(0, before.samples), folder)
    found = verify(folder)
    assert found.exit_code == 1
    wanted = f"q.monte_carlo.hits says 0, but the rows and notes say {before.hits}."
    assert wanted in found.sentences


def test_changed_settings_weights_and_detectors_are_found(folder: Path) -> None:
    file = folder / "run.json"
    record = json.loads(file.read_text())
    record["settings"]["model"]["training"]["steps"] += 1
    record["stages"]["presence"]["payload"]["detector"]["tpr"]["k"] -= 1
    file.write_text(json.dumps(record))
    (folder / "model").mkdir()
    (folder / "model" / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    paths = {check.path for check in verify(folder).altered}
    assert {"run.json settings", "run.json model weights", "detectors.presence.tpr.k"} <= paths
    assert not any(path.startswith("detectors.identity") for path in paths)


def test_agreement_is_to_rounding_and_no_further() -> None:
    assert alike(0.1 + 0.2, 0.3) and alike(None, None) and alike(1, 1.0)
    assert not alike(0.3000001, 0.3) and not alike(None, 0.0) and not alike(0, False)
    assert not alike(1e-30, 1.0001e-30)
    # Counts are exact, however large.
    assert alike(2**32, 2**32) and not alike(2**32 + 1, 2**32) and not alike(2**32 + 0.5, 2**32)


def test_what_is_no_run_or_no_result_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run"):
        verify(tmp_path / "absent")
    (folder / "results.json").unlink()
    with pytest.raises(InputError, match=r"results\.json"):
        verify(folder)
