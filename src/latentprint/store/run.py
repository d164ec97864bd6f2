"""One directory per run: settings, the state of each stage, rows by id.

    run.json    schema, settings, versions, git, facts noted, stages with payloads  (`store.record`)
    probes/     rows of scalars by purpose and id                                   (`store.parts`)
    arrays/     rows of arrays by purpose and id
    lock        the process that writes

Every file is complete or absent, a stage is finished when run.json says so, and missing rows are asked for by
id. So a run that was killed at any moment and opened again with the same settings continues where it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from latentprint.contracts import quoted
from latentprint.files import Raw, disk, make_folder, plain, sweep, to_json, write
from latentprint.store.lock import Lock, RunError
from latentprint.store.parts import (
    Parts,
    parquet_bytes,
    parquet_columns,
    require_purpose,
    safetensors_bytes,
    safetensors_columns,
)
from latentprint.store.record import OWN, Grows, Growth, begun, continued, now, recorded, sealed, session


@dataclass(frozen=True)
class StageState:
    """The state of one stage.

    Attributes:
        done: whether it was finished.
        payload: the values it was finished with; empty before.
        seconds: its time over all sessions; None if not measured.
    """

    name: str
    done: bool
    payload: Mapping[str, object]
    seconds: float | None


class Run:
    """A run that this process may read, and write if `open` made it. Use it as a context manager."""

    def __init__(self, path: Path, record: Raw, lock: Lock | None) -> None:
        self.path = path
        self._record = record
        self._lock = lock
        self._pid = os.getpid()
        self._parts: dict[str, Parts] = {}
        self._clock: dict[str, float] = {}

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        settings: Mapping[str, object],
        *,
        fresh: bool = False,
        grows: Grows = lambda held, wanted: Growth(),
    ) -> Run:
        """Create the run, or continue it if the folder holds a run with the same settings.

        Args:
            settings: everything from which the results follow, in JSON's types.
            fresh: start over; a run that the folder already holds is moved to PATH.old-1 (-2, ...), not
                deleted.
            grows: how a run that is continued may be asked for more; it is then not finished any more.

        Raises:
            RunError: the folder holds a run with other settings (the first difference is named) or something
                else, is being written by another process, or cannot be written.
        """
        folder = Path(path)
        wanted = plain(settings, "settings")
        make_folder(folder)
        _require_ours(folder)
        lock = Lock(folder / "lock")
        try:
            if fresh and (folder / "run.json").exists():
                _move_away(folder)
                lock.release()
                make_folder(folder)
                lock = Lock(folder / "lock")
            there = (folder / "run.json").exists()
            record = continued(folder, wanted, grows) if there else begun(wanted)
            for part in (folder, folder / "probes", *_folders(folder / "arrays")):
                sweep(part)
            run = cls(folder, record, lock)
            run._record["sessions"].append(session())
            run._commit()
        except BaseException:
            lock.release()
            raise
        return run

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Run:
        """Open a run for reading: not locked, and refusing every write.

        Raises:
            RunError: the folder holds no run, or one of another schema.
        """
        folder = Path(path)
        if not (folder / "run.json").is_file():
            raise RunError(f"{quoted(folder)} holds no run: there is no run.json in it")
        return cls(folder, recorded(folder), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes write the run; closing twice does no harm."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def settings(self) -> Mapping[str, object]:
        """The settings as they were saved."""
        return self._record["settings"]

    @property
    def earlier(self) -> tuple[Mapping[str, object], ...]:
        """The settings with which it was finished before it was asked for more, oldest first."""
        return tuple(one["settings"] for one in self._record.get("earlier", ()))

    @property
    def record(self) -> Mapping[str, object]:
        """run.json."""
        return self._record

    @property
    def finished(self) -> tuple[StageState, ...]:
        """The stages that are done."""
        return tuple(one for name in self._record["stages"] if (one := self.stage(name)).done)

    def note(self, facts: Mapping[str, object]) -> None:
        """Set facts in run.json on which no result depends: device, manifest, weights_sha256 and the like.

        Raises:
            RunError: a name that run.json uses itself, a value JSON cannot hold, or the run cannot be
                written.
        """
        if own := [name for name in facts if name in OWN]:
            raise RunError(f"run.json keeps {own[0]!r} itself; note the fact under another name")
        changed = {name: plain(value, name) for name, value in facts.items()}
        if any(
            self._record.get(name) != value or name not in self._record for name, value in changed.items()
        ):
            self._record.update(changed)
            self._commit()

    def stage(self, name: str) -> StageState:
        """The state of a stage; one that was never begun is not done."""
        entry = self._record["stages"].get(require_purpose(name), {})
        return StageState(name, entry.get("state") == "done", entry.get("payload", {}), entry.get("seconds"))

    def begin(self, name: str) -> None:
        """Start a stage's clock. The time of an interrupted session is not counted."""
        self._clock[require_purpose(name)] = time.monotonic()
        entry = self._record["stages"].setdefault(name, {"state": "begun"})
        if entry["state"] != "done":
            self._commit()

    def finish(self, name: str, payload: Mapping[str, object] | None = None) -> None:
        """Commit a stage with a small payload: from then on it is done, and stays done. Finishing again
        replaces the payload.

        Raises:
            RunError: a value JSON cannot hold, or the run cannot be written (the stage is not done then).
        """
        entry: dict[str, object] = {"state": "done", "finished": now()}
        if (began := self._clock.get(require_purpose(name))) is not None:
            entry["seconds"] = round(time.monotonic() - began, 3)
        entry["payload"] = plain(payload or {}, name)
        stages = self._record["stages"]
        before = stages.get(name)
        stages[name] = entry
        try:
            self._commit()
        except BaseException:
            if before is None:
                del stages[name]
            else:
                stages[name] = before
            raise

    def complete(self) -> None:
        """Record when the run ended."""
        self._record["finished"] = now()
        self._commit()

    def append(self, purpose: str, columns: Mapping[str, NDArray[Any]], /) -> None:
        """Keep rows: columns (n,), among them ``id``. The same ids again replace their rows.

        Raises:
            RunError: rows that do not fit those before (`Parts.append`), or the run cannot be written.
        """
        self._require_writer()
        if wide := [name for name, column in columns.items() if np.ndim(column) != 1]:
            raise RunError(
                f"{purpose}: the column {wide[0]!r} needs one number per id; arrays go to append_array"
            )
        self._rows(purpose).append(columns)

    def rows(self, purpose: str, /) -> dict[str, NDArray[Any]]:
        """All rows of a purpose, sorted by id, each id once; an empty mapping if there are none.

        Raises:
            RunError: a part is damaged, or an id occurs twice.
        """
        return self._rows(purpose).rows()

    def missing(self, purpose: str, ids: Iterable[int] | NDArray[np.int64], /) -> NDArray[np.int64]:
        """The ids among ``ids`` that have no row yet, in the order given."""
        return self._rows(purpose).missing(_ids(ids))

    def append_array(
        self, purpose: str, ids: Iterable[int] | NDArray[np.int64], values: NDArray[Any], /
    ) -> None:
        """Keep one array per id: values (n, ...), e.g. features or images.

        Raises:
            RunError: as `append`.
        """
        self._require_writer()
        self._arrays(purpose).append({"id": _ids(ids), "values": values})

    def array(self, purpose: str, /) -> tuple[NDArray[np.int64], NDArray[Any]] | None:
        """(ids (n,) rising, values (n, ...)) of a purpose, or None if nothing was kept.

        Raises:
            RunError: a part is damaged, or an id occurs twice.
        """
        kept = self._arrays(purpose).rows()
        return (kept["id"], kept["values"]) if kept else None

    def missing_array(self, purpose: str, ids: Iterable[int] | NDArray[np.int64], /) -> NDArray[np.int64]:
        """The ids among ``ids`` that have no array yet, in the order given."""
        return self._arrays(purpose).missing(_ids(ids))

    def write(self, name: str, content: bytes) -> Path:
        """Write a file of the run completely or not at all, e.g. report.html or evidence/target.png.

        Raises:
            RunError: the name leaves the run's folder, or the run cannot be written.
        """
        self._require_writer()
        path = self.path / name
        if ".." in Path(name).parts or Path(name).is_absolute() or name in ("run.json", "lock", ""):
            raise RunError(f"a file of a run must lie inside its folder, got {name!r}")
        write(path, content, public=name == "results.json")
        return path

    def write_json(self, name: str, value: Mapping[str, object]) -> Path:
        """Write a JSON file of the run; equal values give equal bytes.

        Raises:
            RunError: a value JSON cannot hold, or as `write`.
        """
        return self.write(name, to_json(value, name))

    def _rows(self, purpose: str) -> Parts:
        prefix = f"part-{require_purpose(purpose)}@"
        parts = Parts(self.path / "probes", prefix, ".parquet", parquet_bytes, parquet_columns, keep=True)
        return self._parts.setdefault(prefix, parts)

    def _arrays(self, purpose: str) -> Parts:
        folder = self.path / "arrays" / require_purpose(purpose)
        parts = Parts(folder, "part-", ".safetensors", safetensors_bytes, safetensors_columns, keep=False)
        return self._parts.setdefault(f"{purpose}/", parts)

    def _commit(self) -> None:
        self._require_writer()
        write(self.path / "run.json", sealed(self._record))

    def _require_writer(self) -> None:
        if self._lock is None:
            raise RunError(f"the run {quoted(self.path)} was opened to be read, or is closed")
        if os.getpid() != self._pid:
            raise RunError(
                f"the run {quoted(self.path)} is written by the process that opened it, not by its children"
            )


def _ids(ids: Iterable[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)


def _folders(folder: Path) -> list[Path]:
    return [folder, *(entry for entry in folder.glob("*") if entry.is_dir())]


def _require_ours(folder: Path) -> None:
    """A folder without run.json may only hold what a run killed in its first moment leaves."""
    if (folder / "run.json").exists():
        return
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in ("lock", ".run.json.tmp"))
    if foreign:
        raise RunError(
            f"{quoted(folder)} is not empty and holds no run (there is {quoted(foreign[0])}, but no "
            "run.json); name an empty or new folder"
        )


def _move_away(folder: Path) -> None:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    with disk(folder, "moved away"):
        folder.rename(aside)
