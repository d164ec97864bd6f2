"""How every audit begins and ends, whatever is measured in between."""

from __future__ import annotations

from collections.abc import Callable

from latentprint.audit import stages
from latentprint.audit.context import Context, describe
from latentprint.data import Split
from latentprint.fingerprint import Injection
from latentprint.report import write_report
from latentprint.report.evidence import Evidence, write_evidence
from latentprint.results import Results
from latentprint.results.assemble import assemble
from latentprint.results.stored import Stored
from latentprint.verdict import judged


def begin(context: Context, split: Split, injection: Injection, authorised_by: str | None) -> None:
    """Note the device and the stated authority, and fix which image the run is about."""
    context.run.note({"device": describe(context.device)})
    if authorised_by is not None:
        context.run.note({"authorised_by": authorised_by})
    stages.remember(context, split, injection)


def finish(context: Context, pictures: Callable[[Results], Evidence]) -> Results:
    """Derive the results from the stored numbers, judge them, and write results, report and the ``pictures``
    of both."""
    found = judged(assemble(Stored.of(context.run)))
    context.run.write_json("results.json", found.plain())
    write_evidence(context.run.path, pictures(found))
    context.run.complete()
    write_report(context.run.path)
    return found
