"""Was a run altered? Every number of results.json that follows from stored counts or rows is derived again.

    rows (probes/*.parquet)  →  counts  →  rates, intervals, tests, t', verdict
    files on disk            →  hashes

Three answers for each number: it agrees, it differs (then one of the two was altered, or written by another
version), or nothing that is stored says it again. The last kind is listed, not passed over: what nobody can
recompute must be taken on trust. Rows and results altered together, consistently, cannot be told from a run
that went that way; only the hash of the folder, kept elsewhere, shows that.

Needs no model and no image. A lone results.json can be checked too, from its own counts.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from latentprint.contracts import InputError
from latentprint.report.reading import at, read_json
from latentprint.store import Run
from latentprint.verify.check import Check, alike
from latentprint.verify.counts import from_counts
from latentprint.verify.files import from_files
from latentprint.verify.rows import LIKELIHOODS, PURPOSES, from_rows

__all__ = [
    "Check",
    "Verification",
    "alike",
    "from_counts",
    "from_files",
    "from_rows",
    "verify",
    "verify_results",
]


@dataclass(frozen=True)
class Verification:
    """What was checked.

    Attributes:
        checks: every number derived again.
        unchecked: paths of numbers that nothing stored says again.
        notes: what was missing for a deeper check, in sentences.
    """

    checks: tuple[Check, ...]
    unchecked: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def altered(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.agrees)

    @property
    def exit_code(self) -> int:
        """0: everything that could be derived agrees; 1: something differs; 2: nothing could be derived."""
        return 2 if not self.checks else 1 if self.altered else 0

    @property
    def sentences(self) -> list[str]:
        """The outcome in words: the finding, each difference, what was not checked."""
        rows = sum(check.source == "rows" for check in self.checks)
        if self.altered:
            first = (
                f"{len(self.altered)} of {len(self.checks)} derived values do not agree with results.json."
            )
        else:
            first = (
                f"All {len(self.checks)} derived values agree ({rows} of them counted from the stored rows)."
            )
        rest = [check.sentence for check in self.altered] + list(self.notes)
        if self.unchecked:
            rest.append(f"Nothing stored says these again: {', '.join(self.unchecked)}.")
        return [first, *rest]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        altered = [
            {"path": c.path, "stored": c.stored, "derived": c.derived, "source": c.source}
            for c in self.altered
        ]
        return {
            "altered": altered,
            "checked": len(self.checks),
            "from_rows": sum(check.source == "rows" for check in self.checks),
            "unchecked": list(self.unchecked),
            "notes": list(self.notes),
            "exit_code": self.exit_code,
        }


def verify(folder: Path | str) -> Verification:
    """Check a run folder: results.json against its own counts, the stored rows, and the files' hashes.

    Raises:
        InputError: there is no run, or results.json is missing, no JSON object or not of the schema.
    """
    folder = Path(folder)
    run, results = Run.read(folder), read_json(folder / "results.json")
    rows = {purpose: run.rows(purpose) for purpose in [*PURPOSES.values(), *LIKELIHOODS.values()]}
    with _readable():
        checks = [*from_counts(results), *from_rows(results, rows), *from_files(folder, results, run.record)]
    missing = [p for part, p in PURPOSES.items() if not rows[p] and at(results, part) is not None]
    notes = [
        f"The rows of {purpose} are not stored, so its counts were not counted again." for purpose in missing
    ]
    return _verification(results, checks, notes)


def verify_results(results: Mapping[str, Any]) -> Verification:
    """Check a lone results mapping from its own counts.

    Raises:
        InputError: it is not of the schema.
    """
    note = "Only results.json was given: its counts were taken as they stand."
    with _readable():
        checks = list(from_counts(results))
    return _verification(results, checks, [note])


@contextmanager
def _readable() -> Generator[None]:
    """One sentence where results.json is so far from its schema that it cannot be checked at all."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise InputError(f"results.json is not of schema latentprint/1: {error!r}") from error


def _verification(results: Mapping[str, Any], checks: Sequence[Check], notes: Sequence[str]) -> Verification:
    covered = [check.path for check in checks]
    leaves = dict.fromkeys(_numbers(results, ""))
    open_ = [path for path in leaves if not any(path == c or path.startswith(f"{c}.") for c in covered)]
    return Verification(tuple(checks), tuple(open_), tuple(notes))


def _numbers(value: Any, path: str) -> Iterator[str]:
    """Paths of all numbers; a list counts as one."""
    if isinstance(value, Mapping):
        for key, one in cast(Mapping[str, Any], value).items():
            yield from _numbers(one, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        if any(True for one in cast(list[Any], value) for _ in _numbers(one, path)):
            yield path
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path
