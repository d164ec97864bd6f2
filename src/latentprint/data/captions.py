"""The prompts of images, in the forms that fine-tuning scripts read.

    FILE.csv          file name, prompt; a first line may name the columns (file_name,text)
    metadata.jsonl    {"file_name": ..., "text": ...} a line, beside the images, or metadata.csv  (datasets);
                      of a list of captions the first, as the scripts take it where they do not draw
    photo.txt         beside photo.png                                                            (kohya)

Every image needs a prompt, and every prompt an image. If one is missing, the model was trained on another
set.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import cast

from latentprint.contracts import quoted
from latentprint.data.files import SUFFIXES
from latentprint.data.images import DataError
from latentprint.data.tree import Tree, folder_tree, zip_tree
from latentprint.files import FileError, parse_json, read_text

METADATA = ("metadata.jsonl", "metadata.csv")

FORMS = (".csv", ".jsonl", ".json", ".txt")
"""Endings of a file of prompts; all but JSON lines are read as CSV."""

MAX_PROMPT = 10_000
"""The most characters of one prompt."""

_MOST = 2**28
_NAMES = ("file_name", "file", "filename", "image", "name", "path")
_TEXTS = ("text", "prompt", "caption", "additional_feature")


def captions(source: str, names: Sequence[str], file: Path | None) -> Mapping[str, str] | None:
    """The prompts of images by name; every one of ``names`` has one.

    Args:
        source: the folder or zip that they come from.
        names: the images' names, as ``ImageSet.names``.
        file: the file of prompts: a CSV or JSON lines, or a folder with one of the forms above; None: beside
            the images.

    Returns: None if no file was named and there is none beside the images.

    Raises:
        DataError: a file cannot be read; an image has no prompt, two, or one that is too long; a prompt's
            image is missing.
    """
    tree = _tree(Path(source))
    held = tree.with_suffix(SUFFIXES).names if tree is not None else tuple(names)
    if file is not None and not file.is_dir():
        where = quoted(file)
        if file.suffix.lower() not in FORMS:
            raise DataError(
                f"{where} must be a table of prompts ({', '.join(FORMS)}) or a folder with one; pandas "
                'writes one: frame[["file_name", "text"]].to_csv("prompts.csv", index=False)'
            )
        found = _table(file, file.name, "")
    else:
        within = folder_tree(file) if file is not None else tree
        if within is None:
            return None
        where = within.where
        found = _beside(within, held)
        if not found:
            if file is not None:
                raise DataError(f"{where} holds no prompts: neither {' nor '.join(METADATA)} nor .txt files")
            return None
    given = _placed(found, held, where)
    lacking = [name for name in names if name not in given]
    if lacking:
        raise DataError(
            f"{where} has no prompt for {len(lacking)} of the {len(names)} images, {quoted(lacking[0])} for "
            "one; give each image that was trained on its prompt, or leave the others out with --files"
        )
    return given


def _tree(source: Path) -> Tree | None:
    if source.is_dir():
        return folder_tree(source)
    return zip_tree(source) if source.suffix.lower() == ".zip" and source.is_file() else None


def _beside(tree: Tree, images: Sequence[str]) -> dict[str, str]:
    """Prompts by the names of images: from metadata files at any depth, otherwise from .txt files."""
    found = dict[str, str]()
    for name in tree.names:
        place = PurePosixPath(name)
        if place.name in METADATA:
            folder = "" if str(place.parent) == "." else f"{place.parent}/"
            for image, text in _table(tree.read(name), name, folder).items():
                if image in found:
                    raise DataError(f"the image {quoted(image)} has two prompts in {tree.where}")
                found[image] = text
    if found:
        return found
    texts = set(tree.with_suffix((".txt",)).names)
    for image in images:
        beside = f"{image.rpartition('.')[0]}.txt"
        if beside in texts:
            found[image] = _prompt(_read(tree.read(beside), beside).strip(), beside)
    return found


def _read(content: Path | bytes, name: str) -> str:
    try:
        return read_text(content, _MOST) if isinstance(content, Path) else content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{quoted(name)} is not UTF-8 text") from error
    except FileError as error:
        raise DataError(str(error)) from error


def _table(content: Path | bytes, name: str, folder: str) -> dict[str, str]:
    """Image names and prompts of a CSV or of JSON lines; ``folder`` comes before the names."""
    text = _read(content, name)
    rows = _json_lines(text, name) if name.endswith((".jsonl", ".json")) else _csv(text, name)
    found = dict[str, str]()
    for image, prompt in rows:
        key = folder + image.strip().replace("\\", "/").removeprefix("./")
        if key in found:
            raise DataError(f"{quoted(name)} has two prompts for the image {quoted(image)}")
        found[key] = _prompt(prompt, name)
    if not found:
        raise DataError(f"{quoted(name)} holds no prompts")
    return found


def _json_lines(text: str, name: str) -> list[tuple[str, str]]:
    rows = list[tuple[str, str]]()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line, f"line {number} of {quoted(name)}")
        except FileError as error:
            raise DataError(str(error)) from error
        image, prompt = (next((entry[k] for k in keys if k in entry), None) for keys in (_NAMES, _TEXTS))
        if prompt is None:  # the scripts take any column, if there is one besides the file's name
            others = [one for key, one in entry.items() if key not in _NAMES]
            prompt = others[0] if len(others) == 1 else None
        if isinstance(prompt, list):
            prompt = next(iter(cast(list[object], prompt)), None)
        if not isinstance(image, str) or not isinstance(prompt, str):
            raise DataError(
                f'line {number} of {quoted(name)} must hold a file_name and a text, as {{"file_name": '
                '"scan1.png", "text": "a chest film"}'
            )
        rows.append((image, prompt))
    return rows


def _csv(text: str, name: str) -> list[tuple[str, str]]:
    try:
        lines = [row for row in csv.reader(io.StringIO(text)) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{quoted(name)} cannot be read as CSV: {error}") from error
    if not lines:
        return []
    head = [cell.strip().lower() for cell in lines[0]]
    image = next((head.index(one) for one in _NAMES if one in head), None)
    prompt = next((head.index(one) for one in _TEXTS if one in head), None)
    if image is not None and prompt is None and len(head) == 2:
        prompt = 1 - image  # a column of any name, as in JSON lines
    if image is not None and prompt is not None:
        lines = lines[1:]
    else:
        image, prompt = 0, 1
    short = next((i for i, row in enumerate(lines, 1) if len(row) <= max(image, prompt)), None)
    if short is not None:
        raise DataError(
            f"line {short} of {quoted(name)} must have a file name and a prompt, as "
            '`scan1.png,"a chest film, frontal"`'
        )
    return [(row[image], row[prompt]) for row in lines]


def _prompt(text: str, where: str) -> str:
    if len(text) > MAX_PROMPT:
        raise DataError(
            f"a prompt in {quoted(where)} has more than {MAX_PROMPT:,} characters, the most that is read"
        )
    return text


def _placed(found: Mapping[str, str], images: Sequence[str], where: str) -> dict[str, str]:
    """Prompts by the images' own names; a name without folders means the only image whose name ends so."""
    whole, last = set(images), dict[str, list[str]]()
    for image in images:
        last.setdefault(image.rpartition("/")[2], []).append(image)
    given, left = dict[str, str](), list[str]()
    for name, text in found.items():
        if name in whole:
            given[name] = text
        elif len(last.get(name.rpartition("/")[2], ())) == 1:
            given[last[name.rpartition("/")[2]][0]] = text
        else:
            left.append(name)
    if left:
        raise DataError(
            f"{where} has prompts for {len(left)} images that are not there, {quoted(left[0])} for one; name "
            "the folder that the model was trained on, or take these lines out"
        )
    return given
