"""What was reproduced so far, by experiment, size and row: ``docs/paper/results.json`` and the figures.

Rows are added one by one and stay, so that an hour here and ten minutes there add up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentprint.contracts import InputError
from latentprint.files import write
from tools.reproduce.plan import Size
from tools.reproduce.summary import Entry

SCHEMA = "latentprint/paper/1"
RESULTS = "results.json"


@dataclass
class Record:
    """See the module; ``folder`` is ``docs/paper``."""

    folder: Path
    experiments: dict[str, dict[str, dict[str, Entry]]] = field(
        default_factory=dict[str, dict[str, dict[str, Entry]]]
    )
    figures: dict[str, dict[str, list[str]]] = field(default_factory=dict[str, dict[str, list[str]]])

    @classmethod
    def read(cls, folder: Path) -> Record:
        """The record in ``folder``; an empty one where there is none yet.

        Raises:
            InputError: the file is there but is none of ours.
        """
        path = folder / RESULTS
        if not path.exists():
            return cls(folder)
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if values["schema"] != SCHEMA:
                raise InputError(f"{str(path)!r} is of schema {values['schema']!r}, not {SCHEMA!r}")
            return cls(folder, values["experiments"], values["figures"])
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{str(path)!r} holds no results of ours: {error}") from error

    def rows(self, name: str, size: Size) -> dict[str, Entry]:
        """The finished rows of an experiment at a size; empty where there are none."""
        return self.experiments.get(name, {}).get(size, {})

    def keep(self, name: str, size: Size, row: str, entry: Entry) -> None:
        """Add a row, or put it in the place of the one of that name; and write the file."""
        self.experiments.setdefault(name, {}).setdefault(size, {})[row] = entry
        self.write()

    def draw(self, name: str, size: Size, files: Mapping[str, bytes]) -> None:
        """Write a figure's files into ``folder/SIZE`` and remember their names, also that there are none."""
        (self.folder / size).mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            write(self.folder / size / file, content, public=True)
        self.figures.setdefault(name, {})[size] = sorted(files)
        self.write()

    def write(self) -> None:
        """Write results.json: wholly there or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        values = {"schema": SCHEMA, "experiments": self.experiments, "figures": self.figures}
        text = json.dumps(values, indent=1, sort_keys=True, allow_nan=False) + "\n"
        write(self.folder / RESULTS, text.encode(), public=True)
