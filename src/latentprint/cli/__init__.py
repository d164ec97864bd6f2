"""The command line: one Typer app, with its commands in the modules of this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated, Any

import typer

from latentprint.cli import audits, cures, inject, judgements, known, models, reproduce
from latentprint.cli.shared import Usage, answered, say
from latentprint.contracts import shortened

app = typer.Typer(
    name="latentprint",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Tells you, before you publish an image generator, whether it can give back a training image.",
    epilog="What the words mean: latentprint glossary.",
)
for command in (
    audits.demo,
    audits.audit,
    audits.check,
    known.calibrate,
    models.convert,
    judgements.report,
    judgements.gate,
    judgements.compare,
    judgements.verify,
    judgements.card,
    judgements.dossier,
    judgements.glossary,
    inject.inject,
    cures.remedies,
    cures.forecast,
):
    app.command()(answered(command))
app.command(name="filter")(answered(cures.filter_))
app.command(context_settings=reproduce.ANYTHING)(answered(reproduce.reproduce))


def _version(asked: bool) -> None:
    if asked:
        from latentprint import __version__

        print(f"latentprint {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@cache
def _command() -> Callable[..., Any]:
    return typer.main.get_command(app)


def answer(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code. Missing options are refused in one sentence, like any bad
    input."""
    try:
        code = _command()(list(arguments) or ["--help"], standalone_mode=False, prog_name="latentprint")
    except Usage as error:
        message: str = error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
        say(shortened(message, 380))
        return 2
    return code if isinstance(code, int) else 0
