"""Results of real small runs: `assemble` on their rows, as they are and with rows or notes changed.

``tests/runs`` holds what audits left (run.json and the rows), made by ``tests/runs/make.sh``. A variant
changes what is stored and is put together again, so that no test invents a result.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from latentprint.report import RunFacts
from latentprint.results import Results, Rule
from latentprint.results.assemble import assemble
from latentprint.results.stored import Rows, Stored
from latentprint.store import Run
from latentprint.verdict import judged

RUNS = Path(__file__).parent / "runs"


@dataclass(frozen=True)
class SmallRun:
    """What a run stored, with changes."""

    stored: Stored

    @property
    def results(self) -> Results:
        return judged(assemble(self.stored), Rule())

    def note(self, stage: str, key: str, **values: Any) -> SmallRun:
        """With some values of a note changed, or the note added."""
        notes = {name: dict(of) for name, of in self.stored.notes.items()}
        before = notes.setdefault(stage, {}).get(key)
        notes[stage][key] = (dict(before) if isinstance(before, Mapping) else {}) | values
        return SmallRun(replace(self.stored, notes=notes))

    def without(self, *stages: str) -> SmallRun:
        """As if these stages had never run."""
        notes = {name: of for name, of in self.stored.notes.items() if name not in stages}
        return SmallRun(replace(self.stored, notes=notes))

    def rows(self, purpose: str, changed: Rows) -> SmallRun:
        """With other rows of a purpose."""
        before = self.stored.kept
        return SmallRun(replace(self.stored, kept=lambda name: changed if name == purpose else before(name)))

    def counts(self, hits: int, samples: int, purpose: str = "samples.model", alone: int = 0) -> SmallRun:
        """With ``hits`` joint detections among ``samples`` rows; c_id alone saw ``alone`` more.

        Rows that were hits stay as they were. The others are made unlike any real image.
        """
        before = self.stored.rows(purpose)
        were, others = np.flatnonzero(before["hit"]), np.flatnonzero(~before["hit"])
        place = np.arange(samples)
        source = np.where(
            place < hits, np.resize(were if len(were) else others, samples), np.resize(others, samples)
        )
        rows = {name: column[source] for name, column in before.items()}
        rows["id"], rows["hit"] = place, place < hits
        rows["presence_hit"], rows["identity_hit"] = place < hits, place < hits + alone
        if "pool_distance" in rows:
            rows["pool_distance"] = np.where(rows["hit"], rows["pool_distance"], 100 * rows["pool_ten"])
        for column, far in (("distance", 100.0), ("aligned", 100.0), ("patches", 100.0), ("embedding", 0.0)):
            if (name := f"whole_{column}") in rows:
                rows[name] = np.where(rows["hit"], rows[name], far)
        return self.rows(purpose, rows)


@cache
def run(name: str) -> SmallRun:
    """A committed run as it is: ``marked``, ``given`` or ``samples``."""
    return SmallRun(Stored.of(Run.read(RUNS / name)))


def facts(name: str = "marked") -> RunFacts:
    return RunFacts.read(RUNS / name)


def leak() -> SmallRun:
    """50 digits, one of them marked, learned by heart; with every stage there is."""
    return run("marked")


def clean() -> SmallRun:
    """The same with no detection among 4,000 samples, nor in the control."""
    silent = leak().counts(0, 4000, alone=3).counts(0, 4000, "samples.control")
    return silent.counts(0, 400, "samples.model.heun-6-karras").without("splitting")


def undecided() -> SmallRun:
    """The same with too few samples to say anything about 1/N, and no control."""
    few = leak().counts(0, 30, alone=1)
    return few.without("splitting", "samples.control", "search.control", "samplers", "baseline")


def unmarked() -> SmallRun:
    """A model that others trained: no mark and no c_p, no control, a private image that comes back."""
    return run("given")


def given_samples() -> SmallRun:
    """Generated images in the place of a model; some of them are training images but for a little noise."""
    return run("samples")


def written(small: SmallRun, folder: Path, name: str = "marked") -> Path:
    """The results as a run folder holds them."""
    (folder / "results.json").write_text(json.dumps(small.results.plain()), encoding="utf-8")
    shutil.copy(RUNS / name / "run.json", folder / "run.json")
    return folder


def many_rows(count: int) -> Results:
    """The marked run with its profile's rows repeated, each under a hash of its own."""
    results = leak().results
    assert results.profile is not None
    own = results.profile.rows
    rows = [
        own[i * len(own) // count].model_copy(update={"sha256": hashlib.sha256(b"%d" % i).hexdigest()})
        for i in range(count)
    ]
    return results.model_copy(update={"profile": results.profile.model_copy(update={"rows": tuple(rows)})})
