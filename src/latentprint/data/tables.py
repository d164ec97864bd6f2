"""Images in the tables of Hugging Face: Parquet files, and folders that datasets' ``save_to_disk`` wrote.

Both are Arrow tables with an image column: encoded files, alone or as {bytes, path}. Their class names are in
the schema's metadata, and their splits in the names of files or folders. Batches are read a few rows at a
time, so that a column that repeats one value does not have to fit into memory.

Source: Apache Parquet and Arrow IPC formats; huggingface/datasets, ``features.Image`` and ``save_to_disk``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from latentprint.contracts import quoted
from latentprint.data.files import decode
from latentprint.data.images import DataError, ImageSet
from latentprint.data.listing import Listing, Preparation, Rows
from latentprint.data.tree import HELD_OUT, TRAIN
from latentprint.files import read_json

_BATCH = 32  # rows decoded from a Parquet page at once
_SPLITS = re.compile(r"(?<![a-z])(train|training|heldout|validation|valid|val|testing|test)(?![a-z])")


@dataclass(frozen=True)
class Table:
    """Files of one split: all Parquet, or all Arrow streams; their rows follow one another."""

    files: tuple[Path, ...]
    image: str
    label: str | None
    classes: tuple[str, ...]

    def rows(self, column: str) -> Iterator[Any]:
        """The values of one column, row by row (for a struct, its field ``image.bytes``)."""
        for path in self.files:
            for batch in _batches(path, column.partition(".")[0]):
                values = batch.column(0)
                if "." in column:
                    values = values.field(column.partition(".")[2])
                yield from values

    def count(self) -> int:
        """How many rows."""
        return sum(_count(path) for path in self.files)


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote the folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def saved_sides(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Split -> its Arrow files, for a folder that ``save_to_disk`` wrote; "" if it has no splits."""
    if (folder / "dataset_dict.json").is_file():
        named = read_json(folder / "dataset_dict.json").get("splits")
        names = [str(name) for name in cast(list[Any], named)] if isinstance(named, list) else []
        return {name: _saved_files(folder / name) for name in names if "/" not in name and name[:1] != "."}
    return {"": _saved_files(folder)}


def _saved_files(folder: Path) -> tuple[Path, ...]:
    listed = read_json(folder / "state.json").get("_data_files")
    names = [one.get("filename") for one in cast(list[dict[str, object]], listed or [])]
    files = tuple(folder / Path(str(name)).name for name in names)
    if not files or not all(path.is_file() for path in files):
        raise DataError(f"{quoted(folder)} lacks the files that its state.json names; save the dataset again")
    return files


def parquet_sides(files: list[Path]) -> dict[str, tuple[Path, ...]]:
    """Split -> its Parquet files, by a word in a file's name or the name of its folder; "" if there is
    none."""
    out: dict[str, list[Path]] = {}
    for path in files:
        found, folder = _SPLITS.search(path.stem.lower()), path.parent.name.lower()
        side = found[1] if found else folder if folder in (*TRAIN, *HELD_OUT) else ""
        out.setdefault(side, []).append(path)
    return {name: tuple(paths) for name, paths in out.items()}


def table_sides(files: dict[str, tuple[Path, ...]], where: str) -> tuple[Table, Table | None]:
    """The training images, and the held-out ones (None: unknown)."""
    train = sorted(path for name in files if name in TRAIN for path in files[name])
    held = sorted(path for name in files if name in HELD_OUT for path in files[name])
    if not train and not held:
        return _table(tuple(sorted(p for paths in files.values() for p in paths)), where), None
    if not train or (len(train) + len(held) != sum(map(len, files.values()))):
        raise DataError(f"{where} has the splits {sorted(files)}; it needs train, and test or validation")
    return _table(tuple(train), where), _table(tuple(held), where) if held else None


def table_listing(table: Table, source: str, how: Preparation) -> Listing:
    """A table's images, decoded as they are read."""
    field = table.image
    labels = None
    if table.label is not None:
        values = [value.as_py() for value in table.rows(table.label)]
        if all(isinstance(value, int) for value in values):
            labels = tuple(int(value) for value in values)

    def read(rows: Rows) -> Iterator[ImageSet]:
        wanted = iter(rows.tolist())
        row = next(wanted, None)
        for i, value in enumerate(table.rows(field)):
            if row is None:
                return
            if i == row:
                content = value.as_py()
                if not content:
                    raise DataError(
                        f"{source}: row {i} holds no image bytes; files beside a table are not read"
                    )
                yield how.images(decode(content, f"row {i}", how.convert).stored[None], source)
                row = next(wanted, None)

    return Listing(source, table.count(), read, labels=labels)


def _table(files: tuple[Path, ...], where: str) -> Table:
    import pyarrow as pa

    schema = _schema(files[0])
    for path in files[1:]:
        if _schema(path).names != schema.names:
            raise DataError(f"{where}: its files hold different columns")
    images: list[str] = []
    for field in schema:
        kind = field.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            images.append(f"{field.name}.bytes")
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            images.append(field.name)
    named = [name for name in images if name.partition(".")[0] in ("image", "img", "images")]
    chosen = named or images
    if len(chosen) != 1:
        raise DataError(
            f"{where} must have one column of encoded images (binary, or bytes and path); its columns are "
            f"{', '.join(map(str, schema.names))[:200]}"
        )
    label = next((name for name in ("label", "labels", "class") if name in schema.names), None)
    return Table(files, chosen[0], label, _class_names(schema.metadata or {}, label))


def _class_names(metadata: dict[bytes, bytes], label: str | None) -> tuple[str, ...]:
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()


def _schema(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() == ".parquet":
            return pq.read_schema(path)
        with pa.memory_map(str(path)) as file:
            return pa.ipc.open_stream(file).schema
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _count(path: Path) -> int:
    import pyarrow.parquet as pq

    if path.suffix.lower() == ".parquet":
        return int(pq.read_metadata(path).num_rows)
    return sum(batch.num_rows for batch in _batches(path, None))


def _batches(path: Path, column: str | None) -> Iterator[Any]:
    """Record batches with one column, or with all if None is given."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() == ".parquet":
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(_BATCH, columns=None if column is None else [column])
            return
        with pa.memory_map(str(path)) as mapped:
            for batch in pa.ipc.open_stream(mapped):
                yield batch if column is None else batch.select([column])
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{quoted(path)} cannot be read; it may be damaged ({' '.join(str(error).split())[:120]})"
    )
