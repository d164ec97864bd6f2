"""What a page is made of: sections of tables, figures, lists and notes. The template knows only these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

WIDE, NARROW = 700, 336
"""The two widths at which a chart is drawn, in CSS pixels."""


@dataclass(frozen=True)
class Table:
    """A table; ``numeric`` columns are set flush right, with figures of equal width."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool] = ()
    note: str = ""
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Figure:
    """One chart drawn at two widths, its legend, and its numbers as a table."""

    name: str
    title: str
    wide: Markup
    narrow: Markup
    legend: Sequence[tuple[str, str]]
    caption: str
    table: Table
    hint: str = ""
    kind: ClassVar[str] = "figure"

    @classmethod
    def drawn(
        cls,
        name: str,
        title: str,
        draw: Callable[[float], Markup],
        caption: str,
        table: Table,
        legend: Sequence[tuple[str, str]] = (),
        hint: str = "",
    ) -> Figure:
        """The chart at both widths."""
        return cls(name, title, draw(WIDE), draw(NARROW), legend, caption, table, hint)


@dataclass(frozen=True)
class Note:
    """A paragraph of plain text."""

    text: str
    kind: ClassVar[str] = "note"


@dataclass(frozen=True)
class Pairs:
    """Names with their meanings: definitions, provenance."""

    rows: Sequence[tuple[str, str]]
    mono: bool = False
    kind: ClassVar[str] = "pairs"


@dataclass(frozen=True)
class Points:
    """A plain list."""

    rows: Sequence[str]
    kind: ClassVar[str] = "points"


@dataclass(frozen=True)
class Profile:
    """The per-image table: the first rows in the page, and all rows as data for the script that sorts
    them."""

    shown: Sequence[tuple[str, str, str, str]]
    total: int
    data: Sequence[tuple[str, float | None, float | None, int]]
    kind: ClassVar[str] = "profile"


Block = Table | Figure | Note | Pairs | Points | Profile


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor ``name``, title, leading sentence and content."""

    name: str
    title: str
    lead: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class First:
    """The first screen. ``state`` is leak, clean or unsure, and chooses the colours."""

    state: str
    word: str
    headline: str
    big: str
    big_text: str
    answers: Sequence[tuple[str, str]]
    tally: Table
    reasons: Sequence[str]
    sub: str = ""


@dataclass(frozen=True)
class Page:
    """A whole report: its first screen, and the sections below."""

    title: str
    first: First
    sections: Sequence[Section] = field(default_factory=tuple)
