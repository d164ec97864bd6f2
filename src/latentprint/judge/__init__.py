"""What can be concluded from the counts of an audit. No torch."""

from latentprint.judge.design import Design, heldout_to_settle
from latentprint.judge.rule import Decision, Evidence, StoppedCount, Test, decide, fisher_greater

__all__ = [
    "Decision",
    "Design",
    "Evidence",
    "StoppedCount",
    "Test",
    "decide",
    "fisher_greater",
    "heldout_to_settle",
]
