"""docs/precision.md promises tests by name; a promise without its test is a fault."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "precision.md"


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE.read_text())
    assert len(named) > 40
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not re.search(rf"^def {test}\(", (TESTS / file).read_text(), flags=re.MULTILINE)
    ]
    assert missing == []


def test_every_line_of_a_table_names_its_test():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    claims = [row for row in rows if not row.startswith(("| step", "|---"))]
    assert [row for row in claims if "test_" not in row and "the same |" not in row] == []
