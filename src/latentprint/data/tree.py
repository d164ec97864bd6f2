"""Image files in a folder or a zip: their names say what is trained on, what is held out, and the class.

    train/ or training/                                     to train on
    heldout/, val/, valid/, validation/, test/, testing/    held out
    a folder below                                          the class, numbered in sorted order (ImageFolder)

Hidden files and folders are ignored, and __MACOSX/ too; links to folders are not followed. A folder that
cannot be read is refused, because its images might have been trained on.
"""

from __future__ import annotations

import csv
import fnmatch
import io
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from latentprint.contracts import quoted
from latentprint.data.images import DataError
from latentprint.files import read_text

TRAIN = ("train", "training")
HELD_OUT = ("heldout", "val", "valid", "validation", "test", "testing")

MAX_FILE = 2**28
"""The most bytes of one image file (256 MiB)."""

_RATIO = 1000  # a zip member that expands more is not an image file, which is compressed already


@dataclass(frozen=True)
class Tree:
    """Files by their names, relative to their folder or zip, sorted.

    Attributes:
        where: the folder or zip, for a sentence.
        names: with slashes.
        read: a name -> the path of its file, or its bytes.
    """

    where: str
    names: tuple[str, ...]
    read: Callable[[str], Path | bytes] = field(repr=False)

    def only(self, names: Sequence[str]) -> Tree:
        """The same with only these files."""
        return replace(self, names=tuple(names))

    def with_suffix(self, suffixes: tuple[str, ...]) -> Tree:
        """The files whose names end so, in upper or lower case."""
        return self.only([name for name in self.names if name.lower().endswith(suffixes)])

    def matching(self, pattern: str | None) -> Tree:
        """The files whose name, or its last part, fits a pattern (``fnmatch``); with "!PATTERN" the other
        files.
        """
        if pattern is None:
            return self
        wanted, bare = not pattern.startswith("!"), pattern.removeprefix("!")
        fits = [
            any(fnmatch.fnmatchcase(one, bare) for one in (name, name.rpartition("/")[2])) == wanted
            for name in self.names
        ]
        if self.names and not any(fits):
            raise DataError(
                f"none of the {len(self.names)} files in {self.where} matches --files {quoted(pattern)}"
            )
        return self.only([name for name, one in zip(self.names, fits, strict=True) if one])


def folder_tree(folder: Path) -> Tree:
    """The files of a folder at any depth."""

    def refuse(error: OSError) -> None:
        raise DataError(
            f"the folder {quoted(error.filename)} cannot be read ({error.strerror}); what it holds might "
            "have "
            "been trained on: make it readable, or move it away"
        ) from error

    found: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        found += [Path(parent, name).relative_to(folder).as_posix() for name in names if name[0] != "."]
    return Tree(f"the folder {quoted(folder)}", tuple(sorted(found)), folder.__truediv__)


def zip_tree(path: Path) -> Tree:
    """The files of a zip; if a single folder contains them all, its name is left out."""
    try:
        with zipfile.ZipFile(path) as archive:
            every = [one.filename for one in archive.infolist() if not one.is_dir()]
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"{quoted(path)} cannot be read as a zip; it may be damaged ({error})") from error
    shown = [
        n for n in every if not any(part[:1] in (".", "") or part == "__MACOSX" for part in n.split("/"))
    ]
    if len(set(shown)) != len(shown):
        raise DataError(f"{quoted(path)} holds files of one name twice, so which is meant is unclear")
    tops = {name.partition("/")[0] for name in shown if "/" in name}
    around = ""
    if len(tops) == 1 and all("/" in name for name in shown) and not tops & {*TRAIN, *HELD_OUT}:
        around = f"{tops.pop()}/"
    bare = tuple(sorted(name.removeprefix(around) for name in shown))
    return Tree(f"the zip {quoted(path)}", bare, lambda name: _member(path, around + name))


def _member(path: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            about = archive.getinfo(name)
            if about.file_size > MAX_FILE or about.file_size > 2**20 + _RATIO * about.compress_size:
                raise DataError(
                    f"{quoted(name)} would grow from {about.compress_size:,} to {about.file_size:,} bytes, "
                    "as no image file does"
                )
            return archive.read(name)
    except DataError:
        raise
    except Exception as error:  # decompressors raise errors of any type
        raise DataError(f"{quoted(name)} in {quoted(path)} is damaged: {str(error)[:120]}") from error


@dataclass(frozen=True)
class Sides:
    """The training and held-out files (None: unknown), and the class of each if folders name them."""

    train: Tree
    heldout: Tree | None
    labels: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    classes: tuple[str, ...] = ()


def sides(tree: Tree, kinds: str, table: Path | None = None) -> Sides:
    """The sides and classes of image files.

    Args:
        kinds: what the files are, for a sentence.
        table: a CSV of file names and classes, in place of folders.

    Raises:
        DataError: one side is named and the other is missing, files lie outside both, or the table is
            invalid.
    """
    tops = [name.partition("/")[0].lower() if "/" in name else "" for name in tree.names]
    train = [name for name, top in zip(tree.names, tops, strict=True) if top in TRAIN]
    held = [name for name, top in zip(tree.names, tops, strict=True) if top in HELD_OUT]
    if not train and not held:
        return _classed(tree, None, table)
    if not train or not held:
        there, lacking = (
            ("train/", "heldout/, val/ or test/") if train else (f"{held[0].split('/')[0]}/", "train/")
        )
        raise DataError(f"{tree.where} has {there} but no {kinds} in {lacking}; both are needed, or neither")
    if len(train) + len(held) != len(tree.names):
        raise DataError(
            f"{tree.where} has images outside its train/ and {held[0].split('/')[0]}/; move them into one "
            "of these"
        )
    return _classed(tree.only(train), tree.only(held), table)


def _classed(train: Tree, held: Tree | None, table: Path | None) -> Sides:
    both = (train.names, () if held is None else held.names)
    if table is not None:
        named = _table(table)
        found = tuple(tuple(_named(name, named, table) for name in names) for names in both)
    else:
        start = 0 if held is None else 1
        parts = [[name.split("/")[start:-1] for name in names] for names in both]
        if not all(part for side in parts for part in side):
            return Sides(train, held)
        found = tuple(tuple(part[0] for part in side) for side in parts)
    classes = sorted({*found[0], *found[1]})
    if len(classes) < 2:
        return Sides(train, held)
    place = {name: i for i, name in enumerate(classes)}
    if table is not None and all(name.isdecimal() for name in classes):  # numbers stand for themselves
        place, classes = {name: int(name) for name in classes}, []
    labels = (tuple(place[c] for c in found[0]), tuple(place[c] for c in found[1]))
    return Sides(train, held, labels, tuple(classes))


def persons(names: Sequence[str], table: str) -> tuple[str, ...]:
    """Whose the files of these names are, by ``table``: a CSV as "FILE" (second column) or "FILE:COLUMN".

    Raises:
        DataError: it cannot be read, has no such column, or does not have one of the names.
    """
    path, _, column = table.rpartition(":") if not os.path.exists(table) else (table, "", "")
    named = _table(Path(path or table), column or None, "person")
    return tuple(_named(name, named, Path(path or table), "person") for name in names)


_NAMES = ("file", "file_name", "filename", "image", "image_id", "name", "path")
"""Headings of a column of file names."""


def _table(path: Path, column: str | None = None, what: str = "class") -> dict[str, str]:
    """File names and what belongs to each from a CSV: its second column, or the one of that heading."""
    try:
        rows = [row for row in csv.reader(io.StringIO(read_text(path, 2**26))) if row]
    except csv.Error as error:
        raise DataError(f"{quoted(path)} cannot be read as CSV: {error}") from error
    if not rows or any(len(row) < 2 for row in rows):
        raise DataError(f"{quoted(path)} must have a file name and a {what} in each line, as `scan1.png,0`")
    heads = [head.strip().lower() for head in rows[0]]
    name, value, first = 0, 1, int(heads[0] in _NAMES)
    if column is not None:
        if column.lower() not in heads:
            raise DataError(f"{quoted(path)} has no column {quoted(column)} among {', '.join(rows[0])[:200]}")
        name, value, first = (
            next((heads.index(one) for one in _NAMES if one in heads), 0),
            heads.index(column.lower()),
            1,
        )
    if any(len(row) <= max(name, value) for row in rows):
        raise DataError(f"{quoted(path)} has lines with fewer columns than its first")
    named: dict[str, str] = {}
    for row in rows[first:]:
        one, said = row[name].strip(), row[value].strip()
        if named.setdefault(one, said) != said:
            raise DataError(
                f"{quoted(path)} gives {quoted(one)} two {what} values, {quoted(named[one])} and"
                f" {quoted(said)}; leave one of the lines out"
            )
    return named


def _named(name: str, named: Mapping[str, str], table: Path, what: str = "class") -> str:
    """The table's value for a file, under its full name, its last part, or the last part without ending."""
    last = name.rpartition("/")[2]
    found = next((named[one] for one in (name, last, last.partition(".")[0]) if one in named), "")
    if not found:
        raise DataError(f"{quoted(table)} names no {what} of the image {quoted(name)}")
    return found


def masks(names: Sequence[str]) -> str:
    """A warning if about half of the files are named like others with an added word; otherwise ""."""
    stems = {name.rpartition(".")[0] for name in names}
    words: Counter[str] = Counter()
    for stem in stems:
        match = re.fullmatch(r"(.+?)([_. -]?[A-Za-z]+)", stem)
        if match and match[1] in stems:
            words[match[2]] += 1
    if not words:
        return ""
    word, count = words.most_common(1)[0]
    if count < 0.4 * len(names):
        return ""
    return (
        f"{count} of {len(names)} image files are named as another one with {word!r} after it, as masks "
        "are, and "
        f"count as images: --files '!*{word}.*' leaves them out"
    )
