"""Rows by id in part files, each written once and completely.

    FOLDER/part-PURPOSE@FIRST-LAST.parquet           rows of scalars: columns (n,), among them ``id``
    FOLDER/PURPOSE/part-FIRST-LAST.safetensors       rows of arrays: ``id`` (n,), ``values`` (n, ...)

A name is a function of the ids alone, so that writing the same ids again replaces the same file. If the ids
have gaps, a hash of them is added to the name. An id belongs to one part: parts never overlap.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentprint.contracts import quoted
from latentprint.files import read, write
from latentprint.store.lock import RunError

Columns = dict[str, NDArray[Any]]
Encode = Callable[[Columns], bytes]
Decode = Callable[[bytes], Columns]

MAX_PART = 2**32
"""The most bytes of a part that is read (4 GiB)."""

MAX_VALUES = 2**27
"""The most values of a part of scalars: 1 GiB in memory."""

_PURPOSE = re.compile(r"[a-z0-9_][a-z0-9._-]{0,99}")


def require_purpose(purpose: str) -> str:
    """The purpose, if it can be part of a file name."""
    if not _PURPOSE.fullmatch(purpose) or purpose.endswith("."):
        raise RunError(f"a purpose must be made of a-z, 0-9, '.', '_' and '-', got {purpose[:100]!r}")
    return purpose


def parquet_bytes(columns: Columns) -> bytes:
    """Columns (n,) of booleans, integers and floats -> a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    # from_pandas=False keeps NaN a number instead of turning it into a missing value.
    arrays = [pa.array(column, from_pandas=False) for column in columns.values()]
    pq.write_table(pa.table(arrays, names=list(columns)), sink, compression="zstd")
    return sink.getvalue()


def parquet_columns(content: bytes) -> Columns:
    """The inverse of `parquet_bytes`."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(io.BytesIO(content))
    about = file.metadata
    if about.num_rows * about.num_columns > MAX_VALUES:  # a few kilobytes can stand for any number of rows
        raise RunError(f"it states {about.num_rows:,} rows of {about.num_columns} columns, more than any run")
    table = file.read(use_threads=False)
    return {name: table[name].to_numpy() for name in table.column_names}


def safetensors_bytes(columns: Columns) -> bytes:
    """Arrays (n, ...) -> a safetensors file."""
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(column) for name, column in columns.items()})


def safetensors_columns(content: bytes) -> Columns:
    """The inverse of `safetensors_bytes`."""
    from safetensors.numpy import load

    return load(content)


@dataclass(frozen=True)
class _Part:
    """What is known about a part without reading it again."""

    ids: NDArray[np.int64]  # rising
    kinds: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
    columns: Columns | None

    def holds(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The ids among the rising ``ids`` that are in this part."""
        apart = ids[-1] < self.ids[0] or ids[0] > self.ids[-1]
        return ids[:0] if apart else np.intersect1d(self.ids, ids)


@dataclass
class Parts:
    """The parts of one purpose. The folder is read only once, because nobody else writes a locked run.

    Attributes:
        keep: whether rows stay in memory after they were read or written, or are read again when needed.
    """

    folder: Path
    prefix: str
    suffix: str
    encode: Encode
    decode: Decode
    keep: bool
    _known: dict[str, _Part] | None = None

    def append(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Write one part, or replace the part with the same ids."""
        part = _checked(columns, self._what())
        if not len(part["id"]):
            return
        name, known, new = self._name(part["id"]), self._load(), self._part(part)
        for other, held in known.items():
            if other == name:
                continue
            self._require_alike(new, held)
            if len(twice := held.holds(new.ids)):
                raise RunError(f"{self._what()} already holds id {twice[0]} in another part")
        write(self.folder / name, self.encode(part))
        known[name] = new

    def rows(self) -> Columns:
        """All rows, sorted by id; an empty mapping if there are none."""
        known = self._load()
        if not known:
            return {}
        first = next(iter(known.values()))
        for part in known.values():
            self._require_alike(part, first)
        parts = [part.columns or self._read(self.folder / name) for name, part in known.items()]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in first.kinds}
        order = np.argsort(whole["id"], kind="stable")
        ids = whole["id"][order]
        if len(twice := ids[1:][ids[1:] == ids[:-1]]):
            raise RunError(f"{self._what()} holds id {twice[0]} more than once; remove one of its parts")
        return {name: column[order] for name, column in whole.items()}

    def missing(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The ids among ``ids`` that no part holds, in the order given."""
        held = [part.ids for part in self._load().values()]
        return ids[~np.isin(ids, np.concatenate(held))] if held else ids

    def _load(self) -> dict[str, _Part]:
        if self._known is None:
            paths = sorted(self.folder.glob(f"*{self.suffix}"))
            ours = [path for path in paths if path.name.startswith(self.prefix)]
            self._known = {path.name: self._part(self._read(path)) for path in ours}
        return self._known

    def _part(self, columns: Columns) -> _Part:
        kinds = {name: (column.dtype, column.shape[1:]) for name, column in columns.items()}
        return _Part(columns["id"], kinds, columns if self.keep else None)

    def _read(self, path: Path) -> Columns:
        content = read(path, MAX_PART)
        try:
            part = _checked(self.decode(content), quoted(path))
        except RunError as error:
            raise RunError(f"{quoted(path)} is no part of a run: {error}") from error
        except (MemoryError, ImportError):  # the part may be as it should be
            raise
        except Exception as error:  # on damaged files, foreign libraries raise errors of their own
            raise RunError(
                f"{quoted(path)} cannot be read ({' '.join(str(error).split())[:100]}); if it is damaged,"
                " remove it and repeat the command"
            ) from error
        if not len(part["id"]) or path.name != self._name(part["id"]):
            raise RunError(
                f"{quoted(path)} holds other ids than its name says; remove it and repeat the command"
            )
        return part

    def _name(self, ids: NDArray[np.int64]) -> str:
        first, last = int(ids[0]), int(ids[-1])
        gaps = "" if last - first + 1 == len(ids) else "-" + blake2b(ids.tobytes(), digest_size=4).hexdigest()
        return f"{self.prefix}{first:09d}-{last:09d}{gaps}{self.suffix}"

    def _require_alike(self, part: _Part, other: _Part) -> None:
        if part.kinds == other.kinds:
            return
        for name in [*part.kinds, *other.kinds]:
            a, b = (
                "missing" if kind is None else f"{kind[0]}{list(kind[1]) or ''}"
                for kind in (part.kinds.get(name), other.kinds.get(name))
            )
            if a != b:
                raise RunError(f"{self._what()}: the column {name!r} is {a} in one part and {b} in another")

    def _what(self) -> str:
        return f"{self.folder.name}/{self.prefix.rstrip('@')}"


def _checked(columns: Mapping[str, NDArray[Any]], what: str) -> Columns:
    """Columns of one length, sorted by id, in types that can be stored."""
    part = {name: np.asarray(column) for name, column in columns.items()}
    if "id" not in part or part["id"].dtype.kind not in "iu" or part["id"].ndim != 1:
        raise RunError(f"{what} needs a column 'id' of integers")
    for name, column in part.items():
        if column.dtype.kind not in "biuf" or column.ndim < 1 or len(column) != len(part["id"]):
            raise RunError(
                f"{what}: the column {name!r} needs one number for each of {len(part['id'])} ids, "
                f"got {column.dtype} of shape {column.shape}"
            )
    order = np.argsort(part["id"], kind="stable")
    ids = part["id"][order].astype(np.int64)
    if len(ids) and ids[0] < 0:
        raise RunError(f"{what}: an id must be 0 or more, got {ids[0]}")
    if len(twice := ids[1:][ids[1:] == ids[:-1]]):
        raise RunError(f"{what}: id {twice[0]} occurs more than once")
    # Column order is part of the file. Sorted by name, with the id first, it does not depend on how the
    # caller built the mapping.
    names = ["id", *sorted(name for name in part if name != "id")]
    return {name: ids if name == "id" else part[name][order] for name in names}
