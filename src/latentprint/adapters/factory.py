"""``--model package.module:factory``: a model made by the user's own code, which is run because the user said
to trust it.

The factory returns a result of ``from_module`` or ``open_model``; its arguments are plain values. The
module's name, the hash of its source and the arguments become part of the run's settings, so a run only
continues with the same code.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from latentprint.adapters.fields import short
from latentprint.adapters.opened import Opened
from latentprint.networks import ModelError

FLAG = "--i-trust-this-code"

_NAMED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_factory(model: object) -> bool:
    """Whether this names a factory: "package.module:function", and nothing that is on disk."""
    text = os.fspath(model) if isinstance(model, str | os.PathLike) else ""
    return _NAMED.fullmatch(str(text)) is not None and not Path(str(text)).exists()


def arguments_of(pairs: Sequence[str]) -> dict[str, object]:
    """``NAME=VALUE`` of the command line -> arguments; a value is JSON, otherwise the text itself.

    Raises:
        ModelError: an argument has no name.
    """
    out = dict[str, object]()
    for pair in pairs:
        name, found, text = pair.partition("=")
        if not found or not name.isidentifier():
            raise ModelError(f"an argument of the factory is NAME=VALUE, got {short(pair)}")
        try:
            out[name] = json.loads(text)
        except ValueError:
            out[name] = text
    return out


def from_factory(
    name: str, arguments: Mapping[str, object] | None = None, *, trusted: bool = False
) -> Opened:
    """The result of the user's factory "package.module:function"; the working directory is searched too.

    Raises:
        ModelError: ``trusted`` was not given, there is no such function, it fails, or it returns no model.
    """
    if not trusted:
        raise ModelError(
            f"{name!r} names Python code, which would be run here with all your rights: give {FLAG} if it "
            "is yours"
        )
    place, _, function = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(place)
        factory: Any = module
        for part in function.split("."):
            factory = getattr(factory, part)
        made: object = factory(**(arguments or {}))
    except ModelError:
        raise
    except Exception as error:  # the user's code may raise anything; its own words say it best
        raise ModelError(f"{name!r} gave no model: {type(error).__name__}: {short(error)}") from error
    opened = cast(Opened, made)
    if not isinstance(made, Opened):
        raise ModelError(
            f"{name!r} must return what latentprint.adapters.from_module(network, schedule, shape=...) "
            f"gives; it returned {type(made).__name__}"
        )
    file = inspect.getsourcefile(module)
    source = None if file is None else sha256(Path(file).read_bytes()).hexdigest()
    origin = {"factory": name, "source_sha256": source, "arguments": dict(arguments or {})}
    note = f"made by {name}, code that whoever ran the audit said to trust"
    return replace(opened, notes=(*opened.notes, note), identity={**opened.identity, **origin})
