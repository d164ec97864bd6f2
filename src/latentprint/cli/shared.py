"""What every command shares: its options, and how it answers errors and Ctrl-C.

Results go to stdout (with ``--json``, and nothing else there), progress and notes to stderr. Bad input: one
sentence on stderr, exit 2, nothing lost. Ctrl-C: what was finished is kept, and how to continue is printed.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from latentprint.contracts import InputError

Out = Annotated[Path, typer.Option("--out", help="Folder of the run; the same command again continues it.")]
Seed = Annotated[int, typer.Option(help="Everything random follows from this number.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print results as JSON on stdout, and nothing else there.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Put a run that the folder holds aside; begin anew.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]
RunFolder = Annotated[Path, typer.Argument(help="Folder of a finished run.")]


@contextmanager
def answering(*expected: type[Exception]) -> Generator[None]:
    """Turn expected errors into one sentence and exit 2, and Ctrl-C into the line that continues.

    ``expected`` are errors that, in this command, can only be about what the user gave.
    """
    try:
        yield
    except (InputError, *expected) as error:
        print(f"latentprint: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as stop:
        command = shlex.join(["latentprint", *sys.argv[1:]])
        print(f"\nStopped. What was finished is kept; continue with:\n    {command}", file=sys.stderr)
        raise typer.Exit(130) from stop


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    json.dump(value, sys.stdout, indent=2)
    print()
