"""Where the numbers came from: hashes, versions, device. Only fields on a list of publishable ones are
shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from latentprint import words
from latentprint.report.blocks import Pairs, Section
from latentprint.report.public import RunFacts, public_source, said
from latentprint.results import Results

Fact = tuple[str, Callable[[Results, RunFacts], str | None]]

FACTS: tuple[Fact, ...] = (
    ("Training images", lambda r, _: f"{r.data.images:,} from {public_source(r.data.source)}"),
    ("Images never trained on", lambda r, _: words.integer(r.data.heldout)),
    ("Left out of these", lambda r, _: None if r.data.left_out is None else said(r.data.left_out.sentence)),
    ("Training images with a near copy among them", lambda r, _: _whole(r.data.near_copies)),
    ("Training images of the class that is audited", lambda r, _: _whole(r.data.of_class)),
    ("Also to be known of the images", lambda r, _: said("; ".join(r.data.remarks)) or None),
    ("Brought to one size, in pixels", lambda r, _: _whole(r.data.resized)),
    ("Persons (training, never trained on)", lambda r, _: _persons(r)),
    ("Shape (channels × height × width)", lambda r, _: " × ".join(map(str, r.data.shape))),
    ("Private image", lambda r, _: f"number {r.target.index:,} of the training images"),
    ("Mark", lambda r, _: _mark(r)),
    ("Model", lambda r, _: _model(r)),
    ("Seed", lambda _, run: None if run.seed is None else str(run.seed)),
    ("Device", lambda _, run: None if run.device is None else run.device.words),
    ("Versions", lambda _, run: said(", ".join(f"{k} {v}" for k, v in run.versions.items()))),
    ("Source state", lambda _, run: _git(run)),
    ("Run began", lambda _, run: _time(run.began)),
    ("Run ended", lambda _, run: _time(run.finished)),
    ("Authorised by", lambda _, run: said(run.authorised_by or "not stated", 300)),
    ("Schema", lambda r, _: r.schema_),
)

HASHES: tuple[Fact, ...] = (
    ("Training images (manifest)", lambda r, _: r.data.sha256),
    ("Private image", lambda r, _: r.target.sha256),
    ("Model weights", lambda r, run: weights(r, run)),
    ("Settings", lambda _, run: run.settings_sha256),
)


def provenance(results: Results, run: RunFacts) -> Section:
    """Where the numbers come from: data, hashes, versions, device, time."""
    lead = (
        "Enough to repeat the run and to notice a change. latentprint verify checks every number against the"
        " stored counts."
    )
    blocks = [Pairs(known(FACTS, results, run)), Pairs(known(HASHES, results, run), mono=True)]
    return Section("provenance", "Where these numbers come from", lead, blocks)


def known(facts: Sequence[Fact], results: Results, run: RunFacts) -> list[tuple[str, str]]:
    """(name, value) of the known facts."""
    return [(name, found) for name, fact in facts if (found := fact(results, run))]


def weights(results: Results, run: RunFacts) -> str | None:
    """Hash of the audited weights: the given ones, or those that the run trained."""
    given = None if results.model is None else results.model.weights_sha256
    return given or run.weights_sha256


def _whole(value: int | None) -> str | None:
    return None if value is None else words.integer(value)


def _persons(results: Results) -> str | None:
    data = results.data
    if data.identities is None:
        return None
    return f"{data.identities:,}, {words.integer(data.heldout_identities)}; none on both sides"


def _mark(results: Results) -> str:
    mark = results.target.fingerprint
    if mark is None:
        return "none was added"
    drawn = (mark.model_extra or {}).items()
    numbers = [f"{k} {words.number(v)}" for k, v in drawn if isinstance(v, int | float)]
    return said(", ".join([mark.kind, *numbers]), 200)


def _model(results: Results) -> str | None:
    """A model from outside; a model that this run trained is not mentioned."""
    given = results.model
    if given is None:
        return None
    return f"given ({said(given.kind, 40)}{'' if given.label is None else f', class {given.label}'})"


def _git(run: RunFacts) -> str | None:
    if run.git is None:
        return None
    return run.git.commit[:12] + (", with changes that were not committed" if run.git.dirty else "")


def _time(when: datetime | None) -> str | None:
    return None if when is None else when.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
