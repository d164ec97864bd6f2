"""How every audit begins and ends, whatever is measured in between."""

from __future__ import annotations

from typing import Any

from latentprint.audit import stages
from latentprint.audit.work import Work, describe
from latentprint.data import Split
from latentprint.fingerprint import Injection
from latentprint.report import write_report
from latentprint.report.evidence import Evidence, write_evidence
from latentprint.verdict import verdict


def begin(work: Work, split: Split, injection: Injection, authorised_by: str | None) -> None:
    """Note the device and the authority stated, and fix which image the run is about.

    Raises:
        InputError: the run was begun with another image.
    """
    work.run.note({"device": describe(work.device)})
    if authorised_by is not None:
        work.run.note({"authorised_by": authorised_by})
    stages.remember(work, split, injection)


def finish(work: Work, answer: dict[str, Any], pictures: Evidence) -> dict[str, Any]:
    """Judge the numbers and write results, evidence and report; the results with their verdict."""
    judged = answer | {"verdict": verdict(answer)}
    work.run.write_json("results.json", judged)
    write_evidence(work.run.path, pictures)
    work.run.complete()
    write_report(work.run.path)
    return judged
