"""Pages for people: the report (safe to pass on), the evidence (confidential), comparison and model card."""

from latentprint.report.page import render, write_report

__all__ = ["render", "write_report"]
