"""results.json from a file: size-limited, validated before anything uses it, refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from latentprint.contracts import InputError, quoted
from latentprint.files import read_json
from latentprint.results.model import SCHEMA, Results
from latentprint.results.stored import first

OLDER = ("latentprint/1",)
"""Schemas of former versions, whose numbers do not say what they may be compared with."""


def read_results(path: Path | str) -> Results:
    """The results of a run, from its folder or from the file itself."""
    path = Path(path)
    file = path / "results.json" if path.is_dir() else path
    return checked(read_plain(file))


def read_plain(file: Path) -> dict[str, object]:
    """The JSON object in a results file, of any version except the older ones."""
    written = read_json(file)
    if written.get("schema") in OLDER:
        raise InputError(
            f"the results are of schema {written['schema']}, which an older version wrote; run the audit"
            f" again in a new folder to have them in {SCHEMA}"
        )
    return written


def checked(written: dict[str, object]) -> Results:
    """Plain values as results."""
    if "schema" not in written:
        raise InputError(f"these results name no schema; {SCHEMA} is needed")
    if written["schema"] != SCHEMA:
        raise InputError(
            f"the results are of schema {quoted(written['schema'])}, and this version of latentprint reads"
            f" {SCHEMA}; read them with the version that wrote them, or run the audit again in a new folder"
        )
    try:
        return Results.model_validate_json(json.dumps(written), strict=True)
    except ValidationError as error:
        raise InputError(f"the results are not of schema {SCHEMA}: {first(error)}") from error
