"""The settings that a model was trained with, as people have them: the words of a command line, or a .yaml
file."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path

from latentprint.adapters.bundle import READERS
from latentprint.adapters.fields import short
from latentprint.networks import ModelError


def flags_of(text: str) -> dict[str, object]:
    """``--flags``: "--image_size 64 --learn_sigma True ..." by name, or the content of a .yaml or .json
    file."""
    path = Path(text)
    if path.suffix in READERS:
        if not path.is_file():
            raise ModelError(f"there is no file {text!r}, which --flags names")
        return READERS[path.suffix](path)
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ModelError(f"--flags cannot be read as the words of a command line: {error}") from error
    pairs = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    names, values = pairs[::2], pairs[1::2]
    bad = next((name for name in names if not name.startswith("--") or not name[2:].isidentifier()), None)
    if bad is not None or len(names) != len(values):
        raise ModelError(
            '--flags are pairs of a name and a value, "--image_size 64 --learn_sigma True", or a .yaml '
            f"file; got {short(bad if bad is not None else text)}"
        )
    return {name[2:]: _plain(value) for name, value in zip(names, values, strict=True)}


def _plain(text: str) -> bool | int | float | str:
    """A value as argparse would have read it."""
    if text.lower() in ("true", "yes", "t", "y"):
        return True
    if text.lower() in ("false", "no", "f", "n"):
        return False
    try:
        found: object = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return found if isinstance(found, int | float) else text
