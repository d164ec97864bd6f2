"""run.json: the settings and software with which a run was begun, and whether it may continue with these.

A run is only continued with the settings it was begun with, because its numbers follow from them. It may be
asked for more than it holds (``Growth``): its earlier settings are kept, for its results were looked at.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentprint.contracts import quoted
from latentprint.files import FileError, read_json, to_json
from latentprint.settings import sentence
from latentprint.store.lock import RunError

SCHEMA = "latentprint/run/1"

CONFIDENTIAL = "settings name places and files of private images; results.json and report.html name none"
"""The first words of run.json, for whoever opens it."""

OWN = (
    "schema",
    "confidential",
    "settings",
    "settings_sha256",
    "seed",
    "began",
    "finished",
    "versions",
    "git",
    "sessions",
    "stages",
    "earlier",
    "seal",
)
"""Keys that run.json uses itself; noted facts must have other names."""

_PACKAGES = ("latentprint", "torch", "torchvision", "diffusers", "numpy", "scipy", "scikit-learn", "pyarrow")


class _Stage(BaseModel):
    """A stage in run.json."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    state: Literal["begun", "done"]
    finished: str | None = None
    seconds: Annotated[float, Field(ge=0)] | None = None
    payload: dict[str, object] = {}


@dataclass(frozen=True)
class Growth:
    """How a run may be asked for more than it holds.

    Attributes:
        may: names (``table.key``) of the settings that may change, because what is there stays as it is.
        again: beginnings of the names of stages that then have more to do. Their rows stay.
    """

    may: tuple[str, ...] = ()
    again: tuple[str, ...] = ()


Grows = Callable[[Mapping[str, object], Mapping[str, object]], Growth]
"""(settings of the run, settings that are wanted) -> how it may grow."""


class _Earlier(BaseModel):
    """Settings with which a run was finished before it was asked for more."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    settings: dict[str, object]
    finished: str


class _Record(BaseModel):
    """The parts of run.json that every run has, in addition to noted facts."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    settings: dict[str, object]
    settings_sha256: str
    began: str
    finished: str | None
    versions: dict[str, str]
    sessions: list[dict[str, object]]
    stages: dict[str, _Stage]
    earlier: list[_Earlier] = []


INSTEAD = "put a copy of it back, or begin a run in another folder"
"""What to do about a run.json that cannot be used; the rest of the run is kept."""


def recorded(folder: Path) -> dict[str, object]:
    """run.json of a folder."""
    path = folder / "run.json"
    try:
        record = read_json(path)
    except FileError as error:
        raise RunError(f"{error}; {INSTEAD}") from error
    if record.get("schema") != SCHEMA:
        raise RunError(
            f"{quoted(path)} has the schema {quoted(record.get('schema'))}; this version reads {SCHEMA!r}."
            " Continue with the version that began it, or begin a run in another folder"
        )
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        raise RunError(f"{quoted(path)} is damaged: {sentence(error)}; {INSTEAD}") from error
    return record


def sealed(record: dict[str, object]) -> bytes:
    """run.json as it is written: with a hash of itself, which shows whether somebody changed it."""
    own = {key: value for key, value in record.items() if key != "seal"}
    return to_json(own | {"seal": sha256(to_json(own, "run.json")).hexdigest()}, "run.json")


def begun(settings: dict[str, object]) -> dict[str, object]:
    """run.json of a new run; ``settings`` in JSON's own types."""
    return {
        "schema": SCHEMA,
        "confidential": CONFIDENTIAL,
        **_settings(settings),
        "seed": settings.get("seed"),
        "began": now(),
        "finished": None,
        "versions": _versions(),
        "git": _git(),
        "sessions": [],
        "stages": {},
    }


def _settings(settings: dict[str, object]) -> dict[str, object]:
    return {"settings": settings, "settings_sha256": sha256(to_json(settings, "settings")).hexdigest()}


def continued(folder: Path, wanted: dict[str, object], grows: Grows) -> dict[str, object]:
    """run.json of a folder whose run was begun with the same settings, or may grow to these."""
    record = recorded(folder)
    if sealed(record) != to_json(record, "run.json"):
        raise RunError(
            f"{quoted(folder / 'run.json')} was changed after the run wrote it, so the run cannot go on;"
            " start again with --fresh"
        )
    held = cast("dict[str, object]", record["settings"])
    growth = grows(held, wanted)
    difference = _difference(held, wanted, "", growth.may)
    if difference is not None:
        raise RunError(
            f"{quoted(folder)} holds a run with other settings: {difference}; name another "
            "folder, or start again with --fresh"
        )
    return record if _difference(held, wanted, "") is None else _grown(record, wanted, growth)


def _grown(record: dict[str, object], wanted: dict[str, object], growth: Growth) -> dict[str, object]:
    """run.json that asks for more: not finished any more, with what it asked for before if that was
    finished."""
    stages = cast("dict[str, object]", record["stages"])
    again = {name: {"state": "begun"} for name in stages if name.startswith(growth.again)}
    earlier = cast("list[object]", record.get("earlier", []))
    if record["finished"] is not None:
        earlier = [*earlier, {"settings": record["settings"], "finished": record["finished"]}]
    rest: dict[str, object] = {"finished": None, "stages": stages | again, "earlier": earlier}
    return record | _settings(wanted) | rest


def _difference(held: Any, wanted: Any, where: str, free: Collection[str] = ()) -> str | None:
    """The first setting in which two runs differ, with both values, but for the ``free`` ones; None if they
    agree."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        for key in [*wanted, *(key for key in held if key not in wanted)]:
            name = f"{where}.{key}" if where else str(key)
            if name in free:
                continue
            if key not in held or key not in wanted:
                a, b = ("not set" if key not in side else _short(side[key]) for side in (held, wanted))
                return f"{name} is {a} there and {b} here"
            if (difference := _difference(held[key], wanted[key], name, free)) is not None:
                return difference
        return None
    if isinstance(held, list) and isinstance(wanted, list) and len(held) == len(wanted):
        found = (
            _difference(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(held, wanted, strict=True))
        )
        return next((difference for difference in found if difference is not None), None)
    # 1 and True are equal in Python, 1 and 1.0 as well; only the first pair differs as a setting.
    if held == wanted and isinstance(held, bool) == isinstance(wanted, bool):
        return None
    return f"{where or 'the whole'} is {_short(held)} there and {_short(wanted)} here"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def session() -> dict[str, object]:
    """One session of a run: when it began, in which process, and with which software."""
    return {"began": now(), "process": os.getpid(), "versions": _versions(), "git": _git()}


def now() -> str:
    """The time in UTC, to the second, as ISO 8601 writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _git() -> dict[str, object] | None:
    """The state of the source that this code runs from; None if it is not a git checkout."""
    source = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # An installed copy may be inside somebody else's checkout, to which this file does not belong.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
