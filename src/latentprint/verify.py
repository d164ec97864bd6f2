"""Was a run altered? Its results are assembled again from what is stored, and compared leaf by leaf.

    rows, notes, settings  →  results.assemble  →  verdict  ↔  results.json
    files on disk          →  hashes            ↔  run.json

No number is derived in a second way: the comparison is with what the audit itself would write. What a stage
noted and no row contains (error counts of detectors, Fréchet distances, estimates) is compared with that
note, and listed as taken on trust. If rows, notes and results are altered together and consistently, the run
looks like a genuine one. Only the hash of the folder, kept elsewhere, shows that.

It needs no model and no image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, cast

from latentprint.files import read_json, sha256_of, to_json
from latentprint.report.seal import SEALED, Seal, digests, holds
from latentprint.results.assemble import NOTED, assemble
from latentprint.results.read import read_plain
from latentprint.results.stored import Stored
from latentprint.store import Run
from latentprint.verdict import judged

Source = Literal["rows and notes", "files"]


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


ABSENT = _Absent()
"""Marks a value that one side lacks."""


@dataclass(frozen=True)
class Check:
    """One value, as it is in the file and as it follows from ``source``."""

    path: str
    stored: Any
    derived: Any
    source: Source

    @property
    def agrees(self) -> bool:
        """Whether both are the same, up to rounding."""
        return alike(self.stored, self.derived)

    @property
    def sentence(self) -> str:
        """The finding in words."""
        if self.agrees:
            return f"{self.path} agrees with the {self.source}."
        return f"{self.path} says {_short(self.stored)}, but the {self.source} say {_short(self.derived)}."


@dataclass(frozen=True)
class Verification:
    """What was checked.

    Attributes:
        checks: every value derived again.
        trusted: parts that a stage noted and that cannot be derived from rows.
        signer: SHA-256 of the public key that signed the dossier; None: it is not signed, or there is no
            dossier.
    """

    checks: tuple[Check, ...]
    trusted: tuple[str, ...]
    signer: str | None = None

    @property
    def altered(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.agrees)

    @property
    def exit_code(self) -> int:
        """0: everything agrees; 1: something differs."""
        return 1 if self.altered else 0

    @property
    def sentences(self) -> list[str]:
        """The outcome in words: the finding, each difference, what had to be taken on trust."""
        if self.altered:
            first = f"{len(self.altered)} of {len(self.checks)} values do not agree with what is stored."
        else:
            first = f"All {len(self.checks)} values agree with what is stored."
        rest = [check.sentence for check in self.altered]
        absent = [check for check in self.altered if check.stored is ABSENT]
        others = [check.path for check in self.altered if check.stored is not ABSENT]
        if absent and all(path.startswith("verdict.reasons.") for path in others):
            rest.append(
                "Results that an older version wrote lack newer numbers, and may word a reason otherwise."
                " The same audit command again adds them, and computes no finished stage twice."
            )
        if self.trusted:
            rest.append(f"Compared with the notes of their stages alone: {', '.join(self.trusted)}.")
        if self.signer is not None:
            rest.append(
                f"The dossier is signed by the key with SHA-256 {self.signer}: compare it with the signer's."
            )
        return [first, *rest]

    def to_dict(self) -> dict[str, object]:
        """Plain values for ``--json``."""
        altered = [
            {"path": c.path, "stored": _plain(c.stored), "derived": _plain(c.derived), "source": c.source}
            for c in self.altered
        ]
        return {
            "altered": altered,
            "checked": len(self.checks),
            "trusted": list(self.trusted),
            "signer": self.signer,
            "exit_code": self.exit_code,
        }


def verify(folder: Path | str) -> Verification:
    """Check a run folder: results.json against the stored rows and notes, and the files' hashes.

    Raises:
        InputError: there is no run, it is not finished, or results.json is missing or not a JSON object.
    """
    folder = Path(folder)
    run, written = Run.read(folder), read_plain(folder / "results.json")
    stored = Stored.of(run)
    derived = judged(assemble(stored)).plain()
    checks = [*differences(written, derived), *_from_files(folder, run.record)]
    estimates = [f"q.{name}" for name, note in stored.notes.items() if "estimate" in note]
    trusted = [part for part in (*NOTED, *estimates) if _at(derived, part) is not None]
    sealed = Seal.read(folder)
    if sealed is not None:
        checks += _from_seal(folder, sealed)
    signature = None if sealed is None else sealed.signature
    return Verification(tuple(checks), tuple(trusted), None if signature is None else signature.fingerprint)


def _from_seal(folder: Path, sealed: Seal) -> Iterator[Check]:
    """The dossier and the files it was made from, compared with the hashes in dossier.json, and the
    signature."""
    found = digests(folder)
    for name in SEALED:
        yield Check(f"dossier.json {name}", sealed.files.get(name, ABSENT), found.get(name, ABSENT), "files")
    if sealed.signature is not None:
        yield Check("dossier.json signature", "valid", "valid" if holds(sealed) else "not valid", "files")


def differences(written: Mapping[str, object], derived: Mapping[str, object]) -> Iterator[Check]:
    """Every leaf of either side, with the other side's value."""
    ours, theirs = dict(_leaves(derived, "")), dict(_leaves(written, ""))
    for path in [*ours, *(path for path in theirs if path not in ours)]:
        yield Check(path, theirs.get(path, ABSENT), ours.get(path, ABSENT), "rows and notes")


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(path, value) of everything that is not a table or list; an empty one is a leaf."""
    if isinstance(value, Mapping) and value:
        for key, one in cast(Mapping[str, object], value).items():
            yield from _leaves(one, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)) and value:
        for i, one in enumerate(cast(Sequence[Any], value)):
            yield from _leaves(one, f"{path}.{i}")
    else:
        yield path, value


def alike(stored: Any, derived: Any) -> bool:
    """Whether two values are equal. Sums may differ by rounding between processors (1e-9 relative); counts
    are exact."""
    if isinstance(stored, bool) or isinstance(derived, bool) or stored is None or derived is None:
        return stored is derived
    if isinstance(derived, int):
        return isinstance(stored, (int, float)) and stored == derived
    if isinstance(stored, (int, float)) and isinstance(derived, (int, float)):
        return math.isclose(stored, derived, rel_tol=1e-9, abs_tol=1e-300)
    return type(stored) is type(derived) and bool(stored == derived)


def _from_files(folder: Path, record: Mapping[str, object]) -> Iterator[Check]:
    """Settings, weights and detectors, compared with what run.json says about them."""
    settings = record.get("settings")
    derived = sha256(to_json(settings, "settings")).hexdigest()
    yield Check("run.json settings", record.get("settings_sha256"), derived, "files")
    for name in ("model", "control"):
        weights = folder / name / "diffusion_pytorch_model.safetensors"
        noted = _at(record, f"stages.{name}.payload.weights_sha256")
        if weights.is_file() and noted is not None:
            digest = sha256_of(weights)
            yield Check(f"run.json {name} weights", noted, digest, "files")
    given = _at(settings, "given.weights_sha256")
    if given is not None:
        noted = _at(record, "stages.model.payload.weights_sha256")
        yield Check("run.json model weights", noted, given, "files")
    for name in ("presence", "identity", "embedding"):
        noted = _at(record, f"stages.{name}.payload.detector")
        for file in sorted((folder / "detectors" / name).glob("*.json")):
            said = read_json(file).get("note")
            for key in ("tpr", "fpr", "threshold", "kinds"):
                if isinstance(said, dict) and isinstance(noted, dict) and key in said:
                    for check in differences({key: noted.get(key)}, {key: said[key]}):
                        yield Check(f"detectors.{name}.{check.path}", check.stored, check.derived, "files")


def _at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = cast(Mapping[str, object], value).get(key) if isinstance(value, Mapping) else None
    return value


def _plain(value: Any) -> Any:
    return None if value is ABSENT else value


def _short(value: Any) -> str:
    text = f"{value:.10g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
