"""What the files of a run say: settings, hashes of images and weights, what the detectors noted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from latentprint.files import to_json
from latentprint.report.reading import at, read_json
from latentprint.verify.check import Check

SETTINGS = {
    "q.monte_carlo.sampler.steps": "sampler.steps",
    "q.control.sampler.steps": "sampler.steps",
    "t_prime.threshold": "search.threshold",
    "likelihood.probes": "likelihood.probes",
}
"""Which setting of run.json a number repeats."""


def from_files(folder: Path, results: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[Check]:
    """Settings, weights and detectors against what run.json and results.json say of them."""
    settings, noted = record.get("settings"), record.get("settings_sha256")
    yield Check("run.json settings", noted, sha256(to_json(settings, "settings")).hexdigest(), "files")
    for path, key in SETTINGS.items():
        wanted = at(settings, key)
        if wanted is not None and at(results, path) is not None:
            yield Check(path, at(results, path), wanted, "files")
    payload = at(record, "stages.data.payload")
    if isinstance(payload, dict):
        for path, key in (
            ("data.sha256", "manifest"),
            ("data.images", "images"),
            ("data.heldout", "heldout_images"),
            ("data.shape", "shape"),
            ("target.index", "target_index"),
            ("target.sha256", "target_sha256"),
            ("target.copies", "copies"),
        ):
            if key in payload:
                yield Check(path, at(results, path), payload[key], "files")
    for name in ("model", "control"):
        weights = folder / name / "diffusion_pytorch_model.safetensors"
        noted = at(record, f"stages.{name}.payload.weights_sha256")
        if weights.is_file() and noted is not None:
            yield Check(f"run.json {name} weights", noted, sha256(weights.read_bytes()).hexdigest(), "files")
    given = at(settings, "given.weights_sha256")
    if given is not None:
        yield Check("model.weights_sha256", at(results, "model.weights_sha256"), given, "files")
        yield Check(
            "run.json model weights", at(record, "stages.model.payload.weights_sha256"), given, "files"
        )
    for name in ("presence", "identity"):
        for file in sorted((folder / "detectors" / name).glob("*.json")):
            note = at(read_json(file), "note")
            for key in ("tpr", "fpr", "threshold", "kinds"):
                if isinstance(note, dict) and key in note:
                    path = f"detectors.{name}.{key}"
                    yield Check(path, at(results, path), note[key], "files")
