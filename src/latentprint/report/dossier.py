"""One printable page for whoever signs: the numbers of a run under the questions that they help to answer.

It computes no number. Every value comes from results.json through ``measures``, and every clause names its
values in ``frameworks``. ``report.seal`` ties the page to the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latentprint.report.first import first_screen
from latentprint.report.frameworks import FRAMEWORKS, Clause
from latentprint.report.glossary import LIMITS
from latentprint.report.measures import MEASURES, Measure
from latentprint.report.page import page
from latentprint.report.provenance import FACTS, HASHES, known
from latentprint.report.public import RunFacts, said
from latentprint.results import Results

if TYPE_CHECKING:
    from latentprint.gate import Decision


@dataclass(frozen=True)
class Answered:
    """A clause with the numbers that help to answer it, of those that this audit measured."""

    clause: Clause
    measures: tuple[Measure, ...]


def measured(results: Results, run: RunFacts) -> dict[str, Measure]:
    """Every number that this audit measured, by key."""
    found = {key: make(results, run) for key, make in MEASURES.items()}
    return {key: one for key, one in found.items() if one is not None}


def render_dossier(
    results: Results, run: RunFacts, decision: Decision | None, files: Mapping[str, str]
) -> str:
    """The page.

    Args:
        results, run: the finished run.
        decision: of ``latentprint gate``, if a policy was given.
        files: SHA-256 of the files that it was made from, by name.
    """
    found, first = measured(results, run), first_screen(results)
    frameworks = [
        (
            one,
            [
                Answered(clause, tuple(found[key] for key in clause.measures if key in found))
                for clause in one.clauses
            ],
        )
        for one in FRAMEWORKS
    ]
    untested = [said(one) for one in (*results.not_done, *LIMITS)]
    return page(
        "dossier.html.j2",
        "Evidence for a release decision",
        scripted=False,
        first=first,
        weak=[one for one in found.values() if one.weak],
        numbers=list(found.values()),
        frameworks=frameworks,
        decision=decision,
        untested=untested,
        facts=known(FACTS, results, run),
        hashes=[*known(HASHES, results, run), *((f"File {name}", sha) for name, sha in files.items())],
    )
