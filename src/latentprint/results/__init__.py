"""The results of an audit as values: one form from the stored rows to every page. It never imports torch."""

from latentprint.results.model import SCHEMA, Measured, Results, Rule, Verdict
from latentprint.results.value import Value

__all__ = ["SCHEMA", "Measured", "Results", "Rule", "Value", "Verdict"]
