"""Audit a model that somebody else trained: a diffusers folder, and the images it was trained on."""

from pathlib import Path
from typing import Any

from latentprint import resolve, run_audit
from latentprint.results import Results


def audit_model(model: Path, images: str, target: int, out: Path, **settings: Any) -> Results:
    """Can ``model`` give back image number ``target`` of ``images``?

    Args:
        model: a folder as ``DDPMPipeline.save_pretrained`` writes it; pickles are refused.
        images: a folder with ``train/`` and ``heldout/``, an .npz file, or the name of a set.
        target: the training image to look for, as it stands.
        out: the folder of the run; the same call again continues it.
        settings: tables of settings that go over the preset's, e.g. ``samples={"count": 10_000}``.
    """
    config = resolve({"data": {"source": images}}, settings, preset="small")
    results = run_audit(config, out, model=model, target=target)
    counted, verdict = results.q.monte_carlo, results.verdict
    print(verdict.state, *verdict.reasons, sep="\n- ")
    print(f"{counted.hits} of {counted.samples}: q in [{counted.low:.2g}, {counted.high:.2g}]")
    return results
