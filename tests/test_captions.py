"""Prompts of images, in the forms that fine-tuning scripts read; what is wrong is named."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentprint.data import DataError
from latentprint.data.captions import MAX_PROMPT, captions

NAMES = ("a.png", "b.png", "sub/c.png")
TEXTS = {"a.png": "a chest film, frontal", "b.png": 'the "second"', "sub/c.png": "line\u2028or 胸 <b>x</b>"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in NAMES:
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / name)
    return folder


def written(path: Path, rows: list[tuple[str, str]], head: tuple[str, str] | None = None) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([*([head] if head else []), *rows])
    return path


def lines(path: Path, entries: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(one) for one in entries), encoding="utf-8")
    return path


def as_csv(images: Path) -> Path:
    return written(images.parent / "p.csv", list(TEXTS.items()))


def as_named_csv(images: Path) -> Path:
    rows = [(text, name) for name, text in TEXTS.items()]
    return written(images.parent / "p.csv", rows, ("caption", "File_Name"))


def as_json_lines(images: Path) -> Path:
    return lines(images.parent / "p.jsonl", [{"file_name": n, "text": t} for n, t in TEXTS.items()])


def as_metadata(images: Path) -> None:
    lines(images / "metadata.jsonl", [{"file_name": n, "text": t, "more": 1} for n, t in TEXTS.items()])


def as_metadata_of_each_folder(images: Path) -> None:
    first = [{"file_name": n, "text": TEXTS[n]} for n in NAMES[:2]]
    lines(images / "metadata.jsonl", first)
    written(images / "sub" / "metadata.csv", [("c.png", TEXTS[NAMES[2]])], ("file_name", "text"))


def as_any_column(images: Path) -> None:
    """A column of any name, as the scripts read it, and the first of several captions."""
    rows = [{"file_name": name, "findings": [text, "other words"]} for name, text in TEXTS.items()]
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def as_any_column_of_a_csv(images: Path) -> None:
    written(images / "metadata.csv", list(TEXTS.items()), ("file_name", "findings"))


def as_texts(images: Path) -> None:
    for name, text in TEXTS.items():
        (images / name).with_suffix(".txt").write_text(f"{text}\n", encoding="utf-8")


@pytest.mark.parametrize(
    "form",
    [
        as_csv,
        as_named_csv,
        as_json_lines,
        as_metadata,
        as_metadata_of_each_folder,
        as_any_column,
        as_any_column_of_a_csv,
        as_texts,
    ],
)
def test_every_form_gives_the_same_prompts(images: Path, form: Any) -> None:
    assert captions(str(images), NAMES, form(images)) == TEXTS


def test_a_name_without_its_folder_is_enough_where_one_image_ends_so(images: Path) -> None:
    file = written(images.parent / "p.csv", [(Path(n).name, t) for n, t in TEXTS.items()])
    assert captions(str(images), NAMES, file) == TEXTS


def test_a_table_in_another_format_is_named(images: Path) -> None:
    (images.parent / "p.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"must be a table of prompts .*to_csv"):
        captions(str(images), NAMES, images.parent / "p.parquet")


def test_where_nothing_lies_beside_the_images_there_are_none(images: Path) -> None:
    assert captions(str(images), NAMES, None) is None


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([("a.png", "x"), ("b.png", "y")], "no prompt for 1 of the 3 images, 'sub/c.png'"),
        ([*TEXTS.items(), ("d.png", "z")], "prompts for 1 images that are not there, 'd.png'"),
        ([*TEXTS.items(), ("a.png", "z")], "two prompts for the image 'a.png'"),
        ([("a.png",)], r"line 1 of .* must have a file name and a prompt"),
        ([("a.png", "x" * (MAX_PROMPT + 1))], "more than 10,000 characters"),
        ([], "holds no prompts"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(images: Path, rows: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        captions(str(images), NAMES, written(images.parent / "p.csv", rows))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"file_name": "a.png"}', "line 1 of .* must hold a file_name and a text"),
        (b'{"file_name": "a.png", "text": 7}', "must hold a file_name and a text"),
        (b'{"file_name": ', "line 1"),
        (b'{"file_name": "a.png", "text": "\xff"}', "not UTF-8"),
        (b'"a.png"', "line 1"),
    ],
)
def test_what_is_wrong_with_json_lines_is_named(images: Path, content: bytes, says: str) -> None:
    (images / "metadata.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=says):
        captions(str(images), NAMES, None)


def test_a_folder_without_prompts_is_named(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no prompts: neither metadata\.jsonl"):
        captions(str(images), NAMES, tmp_path / "images" / "sub")
