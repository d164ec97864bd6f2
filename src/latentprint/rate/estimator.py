"""What every estimator of q receives in addition to its subject, and reports while it works."""

from collections.abc import Callable
from typing import Any

Progress = Callable[[int, int], object]
"""Samples done, and how many are expected in all, as far as known."""

Part = dict[str, Any]
"""Plain values that JSON can hold. They depend on the estimator's settings and seed alone."""

Kept = Callable[[str, Callable[[], dict[str, object]]], Part]
"""(name of a part, how to make it) -> the part: read if an interrupted run made it, else made and kept."""


def silent(done: int, total: int, /) -> None:
    """A Progress that reports nothing."""


def anew(name: str, make: Callable[[], dict[str, object]], /) -> Part:
    """A Kept that keeps nothing."""
    return make()
