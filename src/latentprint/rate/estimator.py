"""What every estimator of q is given beside its subject, and what it gives while it works."""

from collections.abc import Callable
from typing import Any

Progress = Callable[[int, int], object]
"""Samples done, and how many are expected in all as far as is known."""

Kept = Callable[[str, Callable[[], dict[str, object]]], dict[str, Any]]
"""(name of a part, how to make it) -> the part: read where an interrupted run made it, made and kept else.

Parts are plain values that JSON can hold, and functions of the estimator's settings and seed alone.
"""


def silent(done: int, total: int, /) -> None:
    """A Progress that says nothing."""


def anew(name: str, make: Callable[[], dict[str, object]], /) -> dict[str, Any]:
    """A Kept that keeps nothing."""
    return make()
