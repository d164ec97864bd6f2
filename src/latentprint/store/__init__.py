"""A run on disk: one directory that survives interruption at any moment. Never imports torch."""

from latentprint.store.lock import RunError
from latentprint.store.record import SCHEMA, Growth
from latentprint.store.run import Run, StageState

__all__ = ["SCHEMA", "Growth", "Run", "RunError", "StageState"]
