"""How every audit begins and ends, whatever is measured in between."""

from __future__ import annotations

from latentprint.audit import stages
from latentprint.audit.work import Work, describe
from latentprint.data import Split
from latentprint.fingerprint import Injection
from latentprint.report import write_report
from latentprint.report.evidence import Evidence, write_evidence
from latentprint.results import Results
from latentprint.results.assemble import assemble
from latentprint.results.stored import Stored
from latentprint.verdict import judged


def begin(work: Work, split: Split, injection: Injection, authorised_by: str | None) -> None:
    """Note the device and the authority stated, and fix which image the run is about.

    Raises:
        InputError: the run was begun with another image.
    """
    work.run.note({"device": describe(work.device)})
    if authorised_by is not None:
        work.run.note({"authorised_by": authorised_by})
    stages.remember(work, split, injection)


def finish(work: Work, pictures: Evidence) -> Results:
    """Put the stored numbers together, judge them, and write results, evidence and report."""
    found = judged(assemble(Stored.of(work.run)))
    work.run.write_json("results.json", found.plain())
    write_evidence(work.run.path, pictures)
    work.run.complete()
    write_report(work.run.path)
    return found
