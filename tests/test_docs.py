"""What the pages name exists: links, headings, commands, options, settings, names, files, targets."""

from __future__ import annotations

import functools
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from latentprint.cli import app
from latentprint.config import AuditConfig
from latentprint.gate import Policy
from latentprint.results import Results
from latentprint.settings import SettingsError, read
from tools.reproduce.command import app as reproduce

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCED = re.compile(r"^( *)```[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:^(?: {4}[^\n]*)?\n)*?(?:^ {4}\S[^\n]*\n)(?:^(?: {4}[^\n]*)?\n)*", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(text: str) -> Iterator[str]:
    """Blocks of code, fenced or indented by four, without their indentation."""
    for found in FENCED.finditer(text):
        yield found[2]
    for found in INDENTED.finditer(FENCED.sub("\n", text)):
        yield "\n".join(line[4:] for line in found[0].splitlines())


def inline(text: str) -> list[str]:
    """Code within sentences and tables."""
    return INLINE.findall(INDENTED.sub("\n", FENCED.sub("\n", text)))


def code(text: str) -> Iterator[str]:
    """Every line of code, those that end in a backslash joined, and every piece of code in a sentence."""
    for block in blocks(text):
        yield from block.replace("\\\n", " ").splitlines()
    yield from inline(text)


def anchors(page: Path) -> set[str]:
    """The ids of a page's headings, as mkdocs and GitHub write them."""
    heads = re.findall(r"^#+ +(.+?)\s*$", FENCED.sub("\n", page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", head).strip().lower() for head in heads)
    return {re.sub(r"[\s]+", "-", head) for head in plain}


@functools.cache
def commands() -> dict[str, set[str]]:
    """The options of every command of ``latentprint``."""
    group: Any = typer.main.get_command(app)
    # `reproduce` hands everything on to the command that stands in the repository.
    every = {**group.commands, "reproduce": typer.main.get_command(reproduce)}
    return {
        name: {"--help", *(word for one in command.params for word in (*one.opts, *one.secondary_opts))}
        for name, command in every.items()
    }


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


def unknown_link(page: Path, target: str) -> str | None:
    """Why a relative link leads nowhere."""
    path, _, anchor = target.partition("#")
    to = (page.parent / path).resolve() if path else page
    if not to.exists():
        return f"{target}: no such file"
    if anchor and to.suffix == ".md" and anchor not in anchors(to):
        return f"{target}: no such heading"
    return None


def unknown_command(line: str) -> str | None:
    """Why a line of code that calls ``latentprint`` would be refused."""
    found = re.search(r"(?:^|[\s`/])latentprint (?!-)([a-z]+)(.*)", line)
    if found is None or line.startswith("from latentprint import"):
        return None
    name, rest = found[1], found[2].split("#")[0].split(" | latentprint")[0]
    if name not in commands():
        return f"{line}: no command {name}"
    if wrong := options(rest) - commands()[name]:
        return f"{line}: {name} has no {', '.join(sorted(wrong))}"
    return None


def accepted(values: dict[str, Any]) -> str | None:
    """Why neither an audit's settings nor a policy take ``values``."""
    said: list[str] = []
    for kind in (AuditConfig, Policy):
        try:
            read(kind, values)
            return None
        except SettingsError as error:
            said.append(str(error))
    return " / ".join(said)


def tables(text: str) -> Iterator[str]:
    """TOML in blocks that open with a table, and settings in sentences: ``[table] key = value``."""
    for block in blocks(text):
        if re.match(r"\s*\[[a-z_.]+\]\s*(?:#.*)?$", block.lstrip("\n").split("\n")[0]):
            yield block
    for piece in inline(text):
        if found := re.fullmatch(r"(\[[a-z_.]+\]) (\w+ = .+)", piece):
            yield f"{found[1]}\n{found[2]}"


@each_page
def test_its_links_lead_to_files_and_headings(page: Path) -> None:
    text = INLINE.sub("", FENCED.sub("\n", page.read_text(encoding="utf-8")))
    targets = re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text)
    assert not [wrong for target in targets if (wrong := unknown_link(page, target))]


@each_page
def test_the_commands_and_options_it_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not [wrong for line in code(text) if (wrong := unknown_command(line))]
    every = set().union(*commands().values(), BESIDE)
    lone = {option for piece in inline(text) if piece.startswith("--") for option in options(piece)}
    assert lone <= every


BESIDE = {"--i-trust-this-file", "--strict"}.union(
    *(
        re.findall(r'"(--[a-z][a-z-]*)"', path.read_text(encoding="utf-8"))
        for path in [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tests" / "edges").glob("*.py")]
    )
)
"""Options that pages name alone and that belong to the converter, mkdocs, a benchmark or the harness."""


@each_page
def test_the_settings_it_shows_are_accepted(page: Path) -> None:
    shown = list(tables(page.read_text(encoding="utf-8")))
    assert not [wrong for table in shown if (wrong := accepted(tomllib.loads(table)))]


@each_page
def test_the_names_it_imports_exist(page: Path) -> None:
    for line in code(page.read_text(encoding="utf-8")):
        if found := re.match(r"from (latentprint[\w.]*) import ([\w, ]+)", line):
            home = importlib.import_module(found[1])
            for name in found[2].replace(" ", "").split(","):
                assert hasattr(home, name.split("#")[0]), line


@each_page
def test_the_files_and_targets_it_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {found[1] for line in code(text) if (found := re.match(r"make ([a-z-]+)\b", line))} <= targets
    for piece in inline(text):
        named = re.fullmatch(r"((?:src|docs|tests|examples|benchmarks)/[\w./*-]*)(?:::\w+)?", piece)
        if named:
            assert list(ROOT.glob(named[1].rstrip("/"))), piece
        if found := re.fullmatch(r"[a-z_]+(?:/[a-z_]+)*\.py", piece):
            assert any((ROOT / place / found[0]).exists() for place in ("src/latentprint", "tests", ".")), (
                piece
            )
    for ran in re.findall(r"python (benchmarks/\w+\.py)", text):
        assert (ROOT / ran).exists(), ran


def test_the_layers_on_the_page_are_those_that_are_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = [one for one in project["tool"]["importlinter"]["contracts"] if one["type"] == "layers"]
    checked = [re.sub(r"[()]", "", layer) for layer in layers["layers"]]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert checked in [block.strip().split("\n") for block in blocks(page)]


def test_every_public_module_has_its_place_in_the_reference() -> None:
    """A package shows what its ``__init__`` exports; a function named as its module needs its own entry."""
    named = set[str]()
    for page in (ROOT / "docs" / "api").glob("*.md"):
        named |= set(
            re.findall(r"^::: latentprint\.([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        )
    package = ROOT / "src" / "latentprint"
    public = {path.stem for path in package.glob("[a-z]*.py")}
    public |= {path.parent.name for path in package.glob("*/__init__.py")} - {"cli", "presets"}
    assert not {module for module in public if not any(one.split(".")[0] == module for one in named)}
    for home in package.glob("*/__init__.py"):
        exported = getattr(importlib.import_module(f"latentprint.{home.parent.name}"), "__all__", ())
        for name in exported:
            module = home.parent / f"{name}.py"
            if module.exists():
                shown = {f"{home.parent.name}.{name}", f"{home.parent.name}.{name}.{name}"}
                assert shown & named, (
                    f"latentprint.{home.parent.name}.{name} is hidden by the module of that name"
                )


def test_every_field_of_the_results_stands_on_the_page_of_files() -> None:
    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`([a-z_]+)[`.]", "".join(re.findall(r"^\|([^|]*)\|", page, re.MULTILINE))))
    assert {field.alias or name for name, field in Results.model_fields.items()} <= listed


def test_the_readers_of_pages_see_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One heading\n\ntext\n\n    latentprint audit X --no-such\n\nmore\n", encoding="utf-8")
    assert unknown_link(page, "absent.md")
    assert unknown_link(page, "page.md#no-heading")
    assert unknown_link(page, "#one-heading") is None
    assert [line for line in code(page.read_text(encoding="utf-8")) if unknown_command(line)]
    assert unknown_command("latentprint audits")
    assert unknown_command("latentprint gate RUN --policy FILE") is None
    assert [tomllib.loads(table) for table in tables("a\n\n    [samples]\n    count = 3  # most\n\nb\n")] == [
        {"samples": {"count": 3}}
    ]
    assert [tomllib.loads(table) for table in tables("so `[samples] count = 0` leaves them out")] == [
        {"samples": {"count": 0}}
    ]
    assert accepted({"samples": {"counts": 3}})
    assert accepted({"samples": {"count": 3}}) is None
