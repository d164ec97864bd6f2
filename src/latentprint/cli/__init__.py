"""The command line: one Typer app; the commands stand in the modules beside this one."""

from __future__ import annotations

import typer

from latentprint.cli import audits, judgements, known, reproduce

app = typer.Typer(
    name="latentprint",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Tells you, before you publish an image generator, whether it can give back a training image.",
)
for command in (
    audits.demo,
    audits.audit,
    audits.check,
    known.calibrate,
    judgements.report,
    judgements.gate,
    judgements.compare,
    judgements.verify,
    judgements.card,
):
    app.command()(command)
app.command(context_settings=reproduce.ANYTHING)(reproduce.reproduce)


def main() -> None:
    """Entry point of the command ``latentprint``."""
    app()
