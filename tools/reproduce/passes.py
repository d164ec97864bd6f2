"""t' against the passes over each image, for all rows of a size that differ in set, images and length alone.

    passes = training steps x images a step / images of the set

Rows of another network, another rate or another sampler are left out. A training that is looked at after
several lengths gives a point for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tools.reproduce.plan import Size
from tools.reproduce.record import Record
from tools.reproduce.summary import Entry


@dataclass(frozen=True)
class Point:
    """One set after one length. ``value`` is t', ``certain`` the sure one; None where x_p never came back."""

    source: str
    images: int
    steps: int
    passes: float
    value: float | None
    certain: float | None


def over_each(entry: Entry, steps: int | None = None) -> float:
    """How often the training of a row saw each image, up to ``steps`` if given."""
    training = entry["settings"]["model"]["training"]
    return (steps or training["steps"]) * training["batch"] / entry["data"]["images"]


def points(record: Record, like: Entry, size: Size) -> list[Point]:
    """All rows of the size with the recipe of ``like``, by set and passes; each training length once."""
    recipe, found = _recipe(like), dict[tuple[str, int, int], Point]()
    for name in record.experiments:
        for entry in record.rows(name, size).values():
            if _recipe(entry) == recipe:
                for point in _of(entry):
                    found.setdefault((point.source, point.images, point.steps), point)
    return sorted(found.values(), key=lambda one: (one.source, one.passes))


def _of(entry: Entry) -> Iterator[Point]:
    source, images = entry["data"]["source"], entry["data"]["images"]
    last = entry["settings"]["model"]["training"]["steps"]
    for one in entry.get("lengths") or [{"step": last, **entry}]:
        t_prime, step = one["t_prime"], one["step"]
        yield Point(source, images, step, over_each(entry, step), t_prime["value"], t_prime["certain"])


def _recipe(entry: Entry) -> Mapping[str, Any]:
    """What else moves t': the network, the training but for its length and its arithmetic, the sampler, the
    levels and the tries."""
    settings = entry["settings"]
    training = settings["model"]["training"]
    kept = ("batch", "learning_rate", "decay", "ema", "beta2", "parametrisation", "times")
    return {
        "network": settings["model"]["network"],
        "training": {name: training[name] for name in kept},
        "sampler": settings["sampler"],
        "search": settings["search"],
    }
