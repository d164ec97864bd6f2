"""What all commands share: options, and the handling of errors and signals.

Results go to stdout (with ``--json``, and nothing else there), progress and notes to stderr. Bad input, a
full disk, too little memory, a closed pipe: one sentence on stderr, exit 2, nothing lost. Ctrl-C and other
signals: finished work is kept, and the way to continue is printed. Exit 1 is reserved for commands that
judge.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from latentprint.contracts import InputError, quoted, require_device, shortened
from latentprint.signals import stopped

Out = Annotated[Path, typer.Option("--out", help="Folder of the run; the same command again continues it.")]


def not_negative(value: int | None) -> int | None:
    """A seed as it was given.

    Raises:
        typer.BadParameter: it is below 0, or larger than 63 bits.
    """
    if value is not None and not 0 <= value < 2**63:
        raise typer.BadParameter(f"a seed is a whole number from 0 to 2^63 - 1, got {quoted(value)}")
    return value


Seed = Annotated[int, typer.Option(callback=not_negative, help="Everything random follows from this number.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print results as JSON on stdout, and nothing else there.")
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Move a run that the folder holds aside, and start over.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or cuda:1 (the second).")]


def _finished(run: Any) -> Any:
    """One run, or several, with results; checked before anything that takes long is imported."""
    for one in run if isinstance(run, list) else [] if run is None else [run]:
        file = one / "results.json" if os.path.isdir(one) else one
        if not os.path.exists(file):
            say(f"{quoted(file)} does not exist; a run that is finished is needed")
            raise typer.Exit(2)
    return run


RunFolder = Annotated[Path, typer.Argument(help="Folder of a finished run.", callback=_finished)]
MaybeRun = Annotated[Path | None, typer.Argument(help="Folder of a finished run.", callback=_finished)]
RunFolders = Annotated[
    list[Path],
    typer.Argument(help="Two runs or more; the first is the reference.", callback=_finished),
]

HEAVY = ("torch", "torchvision", "diffusers", "sklearn")
"""Packages of the extra ``torch``, which a light install lacks."""

LONGEST = 1000
"""The most letters of a sentence on stderr; a command with its paths must never be cut."""


def say(sentence: str) -> None:
    """One line on stderr."""
    line = " ".join(f"latentprint: {sentence}".split())
    print(line if len(line) <= LONGEST else line[: LONGEST - 3] + "...", file=sys.stderr)


def answered(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with every way in which it can end turned into an exit code and one sentence."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        try:
            command(**given)
            sys.stdout.flush()
        except typer.Exit:
            raise
        except KeyboardInterrupt as stop:
            number = stop.args[0] if stop.args else signal.SIGINT
            print(stopped(number), file=sys.stderr)
            raise typer.Exit(128 + number) from stop
        except BrokenPipeError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what remains to be flushed has no reader
            say("the program that read the output has ended; nothing else was lost")
            raise typer.Exit(2) from error
        except Exception as error:
            if isinstance(error, Usage):
                raise
            sentence = refusal(error)
            if sentence is None:
                traceback.print_exc()
                sentence = "this is an error of latentprint itself; please report it with the lines above"
            say(sentence)
            raise typer.Exit(2) from error

    return run


Usage: type[Exception] = typer.BadParameter.__bases__[0]
"""The errors that Typer raises if it does not understand the options."""


def refusal(error: Exception) -> str | None:
    """The sentence for an error caused by the user or the machine; None for any other error."""
    if isinstance(error, InputError):
        # What a library said may repeat all that it was given.
        said = "" if isinstance(error.__cause__, InputError | None) else str(error.__cause__)
        return str(error).replace(said, shortened(said)) if len(said) > 120 else str(error)
    if isinstance(error, OSError) and error.errno is not None:
        from latentprint.files import reason

        return f"{quoted(error.filename or 'the output')} cannot be used: {reason(error)}"
    if type(error).__name__ == "ValidationError":
        from latentprint.settings import ValidationError, sentence

        return sentence(error) if isinstance(error, ValidationError) else None
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in HEAVY:
        return (
            f"this command needs PyTorch and the libraries around it ({error.name} is not installed):"
            " pip install 'latentprint[torch]'. report, gate, compare, verify, card and dossier work without"
        )
    # torch and Ray have their own errors for it, and neither is imported only for a refusal
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    unmapped = isinstance(error, ImportError) and "failed to map segment" in str(error)
    if memory or unmapped or "can't allocate memory" in str(error):
        return "the memory of this machine or device is not enough; what was finished is kept: smaller" + (
            " batches or images, or fewer of them, need less"
        )
    return None


def require_begun(data: str, preset: str, config: Path | None, device: str = "cpu") -> None:
    """Refuse a source, preset, settings file or device name that does not exist.

    Raises:
        InputError: there is not.
    """
    from latentprint.data import require_source
    from latentprint.files import read_toml
    from latentprint.settings import presets

    if preset not in presets():
        raise InputError(f"{quoted(preset)} is not a preset; there are {', '.join(presets())}")
    require_device(device)
    require_source(data)
    if config is not None:
        read_toml(config)


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    json.dump(value, sys.stdout, indent=2)
    print()


def given(options: Mapping[str, object]) -> dict[str, object]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def stored_range(text: str | None) -> list[float] | None:
    """The two numbers of ``--stored-range``.

    Raises:
        InputError: the text is not LOW,HIGH.
    """
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--stored-range is LOW,HIGH, as 0,4095, got {quoted(text)}") from error
    return [low, high]


def whole_number(text: str) -> int:
    """The whole number that ``text`` is known to be.

    Raises:
        InputError: it is larger than anything that is counted here.
    """
    if len(text) > 18:
        raise InputError(f"a whole number of up to 18 digits is needed, got {quoted(text)}")
    return int(text)


def sampler_table(named: list[str]) -> dict[str, object]:
    """The settings of samplers named on the command line: the first is the audit's own.

    Raises:
        InputError: the number of steps is not one.
    """
    if not named:
        return {}
    if named[0].partition(":")[0] == "own":
        return given({"name": named[0], "beside": named[1:] or None})
    name, *rest = named[0].split(":", 2)
    if rest and not rest[0].isdecimal():
        raise InputError(f"a sampler is NAME, NAME:STEPS or NAME:STEPS:SPACING, got {quoted(named[0])}")
    if rest and name == "paper":
        raise InputError(f"the paper's sampler has its own steps, got {quoted(named[0])}; name it 'paper'")
    own = dict(
        zip(("name", "steps", "spacing"), (name, *map(whole_number, rest[:1]), *rest[1:]), strict=False)
    )
    return {**own, **given({"beside": named[1:] or None})}
