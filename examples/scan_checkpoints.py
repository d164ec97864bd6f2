"""When did a training begin to memorise? t' of one image at each checkpoint it left."""

from pathlib import Path
from typing import Any

from latentprint import resolve, run_audit


def scan_checkpoints(
    model: Path, checkpoints: Path, images: str, target: int, out: Path, **settings: Any
) -> list[tuple[int, float | None]]:
    """(step, t') of each checkpoint, earliest first; t' is None where the image never came back.

    Args:
        model: what the training ended in.
        checkpoints: a folder of models, each a folder named with its step (``checkpoint-500``).
        images: what it was trained on.
        target: the training image to look for.
        out: the folder of the run.
        settings: tables of settings that go over the preset's.
    """
    config = resolve({"data": {"source": images}}, settings, preset="small")
    results = run_audit(config, out, model=model, target=target, checkpoints=checkpoints)
    found = results.checkpoints
    assert found is not None  # since checkpoints were named
    for row in found.steps:
        print(f"after {row.step:>7} steps  t' = {row.value}")
    print(found.sentence)
    return [(row.step, row.value) for row in found.steps]
