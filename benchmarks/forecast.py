"""Forecasts of the onset of memorisation against trainings that were run to the end.

Compared are the step forecast from the first half of the way (and the first 40 and 60 %), with its interval,
and the step at which the same training, run on, reached the gap of the onset. Images and seeds differ.

    python benchmarks/forecast.py [--trainings 12]
    python benchmarks/forecast.py --quick      # one training on 40 images

Twelve trainings of the small U-Net on 50 to 200 digits take ten minutes of one core.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from record import add_output, record, tell

from latentprint.config import resolve
from latentprint.data import load
from latentprint.remedies.forecast import ForecastError, Looks, forecast, measured_onset
from latentprint.remedies.table import Recipe
from latentprint.remedies.training import looks_along
from latentprint.stats import Trials

IMAGES = (50, 70, 100, 140, 200, 60, 85, 120, 170, 100, 140, 70)
PARTS = (0.4, 0.5, 0.6)


def curve(images: int, seed: int, steps: int) -> Looks:
    """A training on digits, looked at to the end."""
    settings = {"model": {"network": {"channels": [16, 32]}, "training": {"steps": steps}}}
    audit = resolve(settings, preset="demo")
    split = load("digits", seed=seed, images=images)
    held = split.heldout.pixels
    recipe = Recipe(split.train.pixels, held, held[:0], audit.model)
    return looks_along(recipe, seed, steps, lambda step: None)


def compared(looks: Looks, images: int, seed: int) -> dict[str, Any] | None:
    """The onset, and what was forecast of it from its first part; None where it was not reached."""
    truth = measured_onset(looks)
    if truth is None:
        return None
    found: dict[str, Any] = {"images": images, "seed": seed, "onset": truth}
    for part in PARTS:
        k = sum(step <= part * truth for step in looks.steps)
        try:
            told = forecast(Looks(looks.steps[:k], looks.train[:k], looks.heldout[:k]), images)
        except ForecastError as error:
            found[f"from {part:.0%}"] = {"said": str(error)}
            continue
        inside = told.low <= truth <= told.high
        found[f"from {part:.0%}"] = {
            "forecast": told.onset,
            "low": told.low,
            "high": told.high,
            "inside": inside,
            "looks_right": told.looks_right,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trainings", type=int, default=len(IMAGES))
    parser.add_argument("--quick", action="store_true")
    add_output(parser)
    asked = parser.parse_args()
    todo = [(40, 0)] if asked.quick else list(zip(IMAGES, range(asked.trainings), strict=False))
    rows = list[dict[str, Any]]()
    for images, seed in todo:
        row = compared(curve(images, seed, 150 if asked.quick else 500), images, seed)
        rows += [] if row is None else [row]
    held = dict[str, Any]()
    for part in PARTS:
        said = [row[f"from {part:.0%}"] for row in rows if "inside" in row[f"from {part:.0%}"]]
        inside = Trials(sum(one["inside"] for one in said), len(said))
        held[f"from {part:.0%}"] = {"inside": inside.k, "forecasts": inside.n, "trainings": len(rows)}
    power = None
    if len({row["images"] for row in rows}) > 2:
        x, y = (np.log([row[name] for row in rows]) for name in ("images", "onset"))
        power = float(np.polyfit(x, y, 1)[0])
    tell(record() | {"held": held, "onset_grows_with_images_to_the": power, "rows": rows}, asked)


if __name__ == "__main__":
    main()
