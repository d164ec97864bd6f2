"""Pages for people: the report (safe to pass on), the evidence (confidential), comparison and model card."""

from latentprint.report.comparison import render_comparison
from latentprint.report.evidence import Evidence, Noised, Sample, render_evidence, write_evidence
from latentprint.report.page import render, write_report
from latentprint.report.public import RunFacts

__all__ = [
    "Evidence",
    "Noised",
    "RunFacts",
    "Sample",
    "render",
    "render_comparison",
    "render_evidence",
    "write_evidence",
    "write_report",
]
