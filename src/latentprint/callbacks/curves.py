"""Destinations of the curve of a watched training.

Anything with the form ``(numbers by name, step)`` is a log: ``accelerator.log``, or ``log`` of a run of W&B.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentprint.callbacks.watch import Log
from latentprint.files import make_folder


def csv_curve(path: Path | str) -> Log:
    """A log that adds a line to a CSV file for each audit; existing lines stay."""
    place = Path(path)
    make_folder(place.parent)

    def log(values: Mapping[str, float], step: int) -> None:
        new = not place.exists()
        with place.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", *(name.removeprefix("latentprint/") for name in values)])
            writer.writerow([step, *(f"{value:.6g}" for value in values.values())])

    return log


def tensorboard_curve(writer: Any) -> Log:
    """A log for TensorBoard; ``writer`` is a ``torch.utils.tensorboard.SummaryWriter``."""

    def log(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return log
