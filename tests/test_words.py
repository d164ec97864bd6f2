"""What people read, in pages, code and comments: short sentences, nothing to be read twice, one glossary."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
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
    r"(?<!there )\bis none\b(?! of)",
    r"which .{3,60} has not\b[.,;]",
    r"are the least that",
    r"is the word of",
    r"It is not shown that",
    r"only known to",
    r"as they may\b",
    r"nothing stored says",
    r"how: its",
)
REMARK = 36
"""Words of a sentence in a docstring or comment; what has no two letters, as in formulas, is no word."""
STUMBLES_OF_CODE = (
    *STUMBLES[:2],
    r"\b(is|are) held against\b",
    r"\bfor the reason given\b",
    r"^Nothing,",
    r"\bset aside\b",
    r"\bin the place of\b",
    r"\b(stand|stands|stood) beside\b",
    r"\bcan(not)? be had\b",
    r"\b(stopped|stops|stop) on sight\b",
    r"\bbut for a\b",
    r"\bsave by\b",
    r"\bsays? again\b",
    r"\bpassed over\b",
    r"\bknown again\b",
    r"\bthe very (same|image|settings|batch|sampler)\b",
    r"\bat (its|their) word\b",
    r"\bnobody vouches\b",
    r"\bless (the|its|what|that) ",
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


def remarks(path: Path) -> list[str]:
    """Docstrings by paragraphs and entries, without tables and equations; and comments."""
    source, found = path.read_text(encoding="utf-8"), [""]
    for node in ast.walk(ast.parse(source)):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            found.append("")
            for line in map(str.strip, value.value.splitlines()):
                if not line or "   " in line or re.match(r"(\w+, )*\w+:( |$)", line):
                    found.append("")
                if "   " not in line:
                    found[-1] += f" {line}"
    before = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not re.match("# (noqa|pyright|fmt)", token.string):
            if token.start[0] != before + 1:
                found.append("")
            found[-1] += token.string.replace("#", " ")
            before = token.start[0]
    return [" ".join(one.split()) for one in found]


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


@pytest.mark.parametrize("room", sorted(p.name for p in (ROOT / "src/latentprint").iterdir() if p.is_dir()))
def test_docstrings_and_comments(room: str) -> None:
    check_remarks((ROOT / "src/latentprint" / room).rglob("*.py"))


def test_docstrings_and_comments_of_modules_outside_rooms() -> None:
    check_remarks((ROOT / "src/latentprint").glob("*.py"))


def check_remarks(paths: Iterable[Path]) -> None:
    for path in paths:
        blocks = remarks(path)
        long = [one for one in sentences(blocks) if len(re.findall(r"\w*[A-Za-z]{2}\w*", one)) >= REMARK]
        assert not long, (path.name, long)
        stumbles = [(phrase, one) for one in blocks for phrase in STUMBLES_OF_CODE if re.search(phrase, one)]
        assert not stumbles, (path.name, stumbles)


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
