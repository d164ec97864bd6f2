"""The table of equality in docs/models.md says what the tests compare, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import test_convert
import test_edm_networks
import test_medfusion
import test_own_sampler
import test_published

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
ORDER = ("epsilon", "v", "sample", "velocity", "consistency function", "F")
WORDS = {"v_prediction": "v", "pred_noise": "epsilon", "pred_v": "v", "pred_x0": "sample"}
WORDS |= {"x_T": "epsilon", "x_0": "sample"}


def compared() -> Iterator[tuple[str, str, str]]:
    """(library, sampler, prediction) of every case of the tests."""
    monai = pytest.importorskip("test_monai", exc_type=ImportError)
    for name, settings, _ in test_own_sampler.DISCRETE:
        yield "diffusers", name, settings.get("prediction_type", "epsilon")
    yield "diffusers", "CMStochasticIterativeScheduler", "consistency function"
    yield "diffusers", "IPNDMScheduler", "v"
    yield "diffusers", "FlowMatchEulerDiscreteScheduler", "velocity"
    for prediction in test_own_sampler.EDM_EULER:
        yield "diffusers", "EDMEulerScheduler", prediction
    for name, settings, _ in monai.PIXELS_BY:
        flow = name == "RFlowScheduler"
        yield "MONAI", name, "velocity" if flow else settings.get("prediction_type", "epsilon")
    for objective, *_ in test_convert.LUCIDRAINS:
        yield "denoising-diffusion-pytorch", "GaussianDiffusion", objective
    for case, _, more in test_published.CASES:
        flags = test_published.make.OPENAI.get(case, {}) | more
        library = "openai's improved-diffusion" if case == "improved" else "openai's guided-diffusion"
        sampler = "ddim_sample" if "ddim" in str(flags.get("timestep_respacing")) else "p_sample"
        if flags.get("learn_sigma"):
            sampler += ", learned variance"
        yield library, sampler, "sample" if flags.get("predict_xstart") else "epsilon"
    for case, settings in test_medfusion.make.MEDFUSION.items():
        sampler = "DiffusionPipeline" + " (VAE, classes, guidance)" * (case == "latents")
        yield "medfusion", sampler, settings.get("estimator_objective", "x_T")
    for case in test_edm_networks.make.EDM:
        kind = test_edm_networks.make.EDM[case]["model_type"]
        yield f"EDM (Karras et al.), {kind}", "edm_sampler, deterministic", "F"
    yield "CompVis' latent-diffusion (KL, VQ, classes)", "DDIMSampler, eta 1", "epsilon"


def table() -> str:
    """One row for each library and sampler."""
    rows: dict[tuple[str, str], set[str]] = {}
    for library, sampler, prediction in compared():
        rows.setdefault((library, sampler), set()).add(WORDS.get(prediction, prediction))
    lines = ["| library | its sampler | it predicts |", "|---|---|---|"]
    for (library, sampler), found in rows.items():
        assert found <= set(ORDER)
        lines.append(f"| {library} | {sampler} | {', '.join(one for one in ORDER if one in found)} |")
    return "\n".join(lines)


def test_the_page_has_the_table_of_what_is_compared() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), f"docs/models.md needs this table:\n{table()}"
