"""Models that MONAI, denoising-diffusion-pytorch and diffusers trained until they repeat images, audited.

The training and both audits are those of ``benchmarks/trained_elsewhere.py --quick``, which has larger ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import trained_elsewhere as there

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

NEEDS = {
    "monai": "monai",
    "monai-volumes": "monai",
    "denoising-diffusion-pytorch": "denoising_diffusion_pytorch",
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("library", there.LIBRARIES)
def test_the_audit_finds_what_was_repeated_and_not_in_the_twin(tmp_path: Path, library: str) -> None:
    pytest.importorskip(NEEDS.get(library, "diffusers"))
    found = there.compare(library, *there.QUICK, tmp_path)
    assert found["own"]["verdict"] == "reproduces", found["own"]["because"]
    assert found["twin"]["verdict"] != "reproduces", found["twin"]["because"]
