"""Commands that only read: report, gate, compare, verify, card, dossier, glossary. None loads torch."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer

from latentprint.cli.shared import Json, MaybeRun, RunFolder, RunFolders, print_json
from latentprint.contracts import InputError


def report(run: RunFolder) -> None:
    """Write report.html of RUN again, from its results.json."""
    from latentprint.report import write_report

    print(write_report(run))


def gate(
    run: MaybeRun = None,
    policy: Annotated[
        Path | None, typer.Option(help="TOML file with your thresholds.", exists=True, dir_okay=False)
    ] = None,
    starter: Annotated[bool, typer.Option("--starter", help="Print a commented policy.")] = False,
    as_json: Json = False,
) -> None:
    """Judge RUN by your policy: exit 0 passes, 1 fails, 2 could not judge, with a reason for each rule."""
    if not starter and (run is None or policy is None):
        raise typer.BadParameter("name a run and --policy FILE, or ask for --starter")
    from latentprint.gate import judge_file
    from latentprint.gate import starter as starter_text
    from latentprint.results.read import read_results

    if starter or run is None or policy is None:
        print(starter_text(), end="")
        return
    decision = judge_file(read_results(run), policy)
    if as_json:
        print_json(decision.to_dict())
    else:
        for outcome in decision.outcomes:
            print(f"{outcome.answer:<8}{outcome.rule}: {outcome.reason}")
        print(decision.sentence)
    raise typer.Exit(decision.exit_code)


def compare(
    runs: RunFolders,
    page: Annotated[Path | None, typer.Option(help="Also write the comparison as an HTML page.")] = None,
    as_json: Json = False,
) -> None:
    """Compare RUNS: differences with intervals. Is one recipe safer than another, or is it noise?"""
    names = _names(runs)
    from latentprint.compare import compare as compared
    from latentprint.files import write
    from latentprint.report.comparison import render_comparison
    from latentprint.results.read import read_results

    comparison = compared({name: read_results(run) for name, run in zip(names, runs, strict=True)})
    if page is not None:
        write(page, render_comparison(comparison).encode(), public=True)
    if as_json:
        print_json(comparison.to_dict())
        return
    for line in comparison.lines:
        print(f"{line.name}: {line.hits:,} of {line.samples:,} ({line.low:.3g} to {line.high:.3g})")
    for difference in comparison.differences:
        print(difference.sentence)
    for caution in comparison.cautions:
        print(f"Note: {caution}")


def verify(run: RunFolder, as_json: Json = False) -> None:
    """Derive every number of RUN again from what is stored; exit 1 if results.json was altered."""
    from latentprint.verify import verify as verified

    found = verified(run)
    if as_json:
        print_json(found.to_dict())
    else:
        print("\n".join(found.sentences))
    raise typer.Exit(found.exit_code)


def card(
    run: RunFolder,
    name: Annotated[
        str | None, typer.Option(help='The model\'s name on the printed card; "model" else.')
    ] = None,
    into: Annotated[Path | None, typer.Option(help="A README.md whose audit section is replaced.")] = None,
) -> None:
    """Print a Hugging Face model card for RUN, or put the audit's section into an existing one."""
    from latentprint.files import MAX_JSON, read_text, write
    from latentprint.report.modelcard import model_card, replace_section, section
    from latentprint.report.public import RunFacts
    from latentprint.results.read import read_results

    if into is not None and name is not None:
        raise InputError(
            "--name stands on a whole card, and --into writes only the audit's section: leave one out"
        )
    results, record = read_results(run), RunFacts.read(run)
    if into is None:
        print(model_card(results, record, name or "model"), end="")
        return
    text = read_text(into, MAX_JSON) if into.exists() else ""
    write(into, replace_section(text, section(results, record)).encode(), public=True)
    print(into)


def dossier(
    run: RunFolder,
    policy: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with your thresholds; the dossier shows its answers.", exists=True, dir_okay=False
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="Sign with this Ed25519 key (PEM file; extra sign).", exists=True, dir_okay=False),
    ] = None,
) -> None:
    """Write dossier.html of RUN: its numbers under the questions that a release must answer, for printing."""
    from latentprint.files import write
    from latentprint.gate import judge_file
    from latentprint.report.dossier import render_dossier
    from latentprint.report.public import RunFacts
    from latentprint.report.seal import digests, private_key, seal
    from latentprint.results.read import read_results

    results, facts = read_results(run), RunFacts.read(run)
    decision = None if policy is None else judge_file(results, policy)
    signing = None if key is None else private_key(key)
    files = digests(run, ("results.json", "run.json"))
    page = render_dossier(results, facts, decision, files).encode()
    write(run / "dossier.html", page, public=True)
    files["dossier.html"] = sha256(page).hexdigest()
    seal(run, files, None if decision is None else decision.policy_sha256, signing)
    print(run / "dossier.html")


def glossary(
    word: Annotated[str, typer.Argument(help="Only terms that contain this text.", show_default=False)] = "",
) -> None:
    """Print the meaning of the words used in reports and in this help."""
    from latentprint.report.glossary import GLOSSARY

    found = [(term, told) for term, told in GLOSSARY if word.lower() in f"{term} {told}".lower()]
    if not found:
        raise typer.BadParameter(f"no term contains {word!r}; leave it out to see all {len(GLOSSARY)}")
    for term, told in found:
        print(f"{term}\n    {told}")


def _names(runs: list[Path]) -> list[str]:
    """The folders' own names, with as many of those above them as tell them apart.

    Raises:
        InputError: a run is named twice.
    """
    from latentprint.files import real

    parts = [real(run).parts for run in runs]
    if len(set(parts)) < len(parts):
        raise InputError("a run is named twice; a comparison is between different ones")
    for depth in range(1, max(map(len, parts))):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [str(run) for run in runs]
