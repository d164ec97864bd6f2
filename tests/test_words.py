"""What users read: sentences of fewer than 30 words, no phrase that has to be read twice, one glossary."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import small_runs
import typer
from typer.testing import CliRunner

from latentprint.cli import app
from latentprint.gate import judge, read_policy, starter
from latentprint.report import render
from latentprint.report.dossier import render_dossier
from latentprint.report.glossary import GLOSSARY

ROOT = Path(__file__).parent.parent
LONGEST = 30
PAGES = sorted(
    path
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "howto").glob("*.md")]
    if path.name != "paper.md"  # written by `latentprint reproduce page`
)
STUMBLES = (
    r"\banew\b",
    r"(?<!there )\bis none\b",
    r"which .{3,60} has not\b[.,;]",
    r"are the least that",
    r"is the word of",
    r"It is not shown that",
    r"only known to",
    r"as they may\b",
    r"nothing stored says",
    r"how: its",
)
CASES = (
    small_runs.leak,
    small_runs.clean,
    small_runs.undecided,
    small_runs.unmarked,
    small_runs.given_samples,
)


class Text(HTMLParser):
    """The text of a page, an element a line; no style, script or cell of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.lines, self.hidden = [""], 0

    def handle_starttag(self, tag: str, _: object) -> None:
        self.hidden += tag in ("style", "script", "svg")
        if tag not in ("b", "em", "span", "a"):
            self.lines.append("")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("style", "script", "svg")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.lines[-1] += data


def of_page(page: str) -> list[str]:
    text = Text()
    text.feed(page)
    return text.lines


def of_markdown(text: str) -> list[str]:
    """Paragraphs, list items and cells of tables, without code."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    text = re.sub(r"`[^`\n]*`", "CODE", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    blocks = [""]
    for line in text.splitlines():
        if line.startswith("|"):
            blocks += line.split("|")
        elif not line.strip() or line.startswith(("    ", "#", "!")):
            blocks.append("")
        elif re.match(r"\s*([-*]|\d+\.) ", line):
            blocks.append(re.sub(r"^\s*([-*]|\d+\.) ", "", line))
        else:
            blocks[-1] += f" {line.strip()}"
    return blocks


def sentences(blocks: list[str]) -> Iterator[str]:
    for block in blocks:
        plain = " ".join(block.replace("*", "").split())
        yield from re.split(r"(?<=[.!?;:])[)\"”]? +", plain)


def literals(path: Path) -> list[str]:
    """Texts in code, with what is filled in as one word; no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    found, outside = list[str](), documents | parts
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(p.value) if isinstance(p, ast.Constant) else "X" for p in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in outside:
            found.append(node.value)
    return [one for one in found if " " in one and "\n" not in one.strip()]


def check(blocks: list[str]) -> None:
    long = [one for one in sentences(blocks) if len(one.split()) >= LONGEST]
    assert not long, long
    stumbles = [(phrase, block) for block in blocks for phrase in STUMBLES if re.search(phrase, block)]
    assert not stumbles, stumbles


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_pages_of_a_run(case: object) -> None:
    results = case().results  # type: ignore[operator]
    decision = judge(results, read_policy(starter()))
    facts = small_runs.facts()
    for page in (render(results, facts), render_dossier(results, facts, decision, {})):
        check(of_page(page))
    check([one.reason for one in decision.outcomes])
    check(list(results.verdict.reasons))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_documentation(path: Path) -> None:
    check(of_markdown(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("room", sorted(p.name for p in (ROOT / "src/latentprint").iterdir() if p.is_dir()))
def test_texts_in_code(room: str) -> None:
    for path in (ROOT / "src/latentprint" / room).rglob("*.py"):
        check(literals(path))


def test_help() -> None:
    command = typer.main.get_group(app)
    for one in command.commands.values():
        check([one.help or "", *(getattr(option, "help", None) or "" for option in one.params)])


def test_one_glossary_for_report_help_and_documentation() -> None:
    assert len(GLOSSARY) >= 25 and len({term for term, _ in GLOSSARY}) == len(GLOSSARY)
    rows = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    assert rows[6:] == [f"| {term} | {told} |" for term, told in GLOSSARY]
    said = CliRunner().invoke(app, ["glossary", "held-out"])
    assert said.exit_code == 0 and "Held-out image\n" in said.output and "FID\n" in said.output
    assert CliRunner().invoke(app, ["glossary", "xyzzy"]).exit_code == 2
    page = render(small_runs.leak().results, small_runs.facts())
    assert all(told.split(".")[0] in unescape(page) for _, told in GLOSSARY)
