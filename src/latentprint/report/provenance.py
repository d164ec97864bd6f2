"""Where the numbers came from: hashes, versions, device; only from a list of fields fit to be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from latentprint import words
from latentprint.report.blocks import Block, Pairs, Section
from latentprint.report.reading import at, count, digest, items, mapping, number, public_source
from latentprint.report.reading import words as text

HASHES = (
    ("Training images (manifest)", "results", "data.sha256"),
    ("Private image", "results", "target.sha256"),
    ("Model weights", "run", "weights_sha256"),
    ("Settings", "run", "settings_sha256"),
    ("Policy", "results", "verdict.policy.sha256"),
)
DEVICE = ("name", "type", "kind", "count", "threads", "memory_gib")
_VERSION = re.compile(r"[\w.+!-]{1,60}")


def provenance(results: Mapping[str, Any], run: Mapping[str, Any]) -> Section:
    """Where the numbers come from: data, hashes, versions, device, time."""
    sources: dict[str, Mapping[str, Any]] = {"results": results, "run": run}
    hashes = [
        (name, value) for name, where, path in HASHES if (value := digest(sources[where], path)) is not None
    ]
    shape = " × ".join(
        words.number(one) for one in (number({"x": v}, "x") for v in items(results, "data.shape")) if one
    )
    heldout = count(results, "data.heldout")
    rows = [
        ("Training images", f"{words.whole(count(results, 'data.images'))} from {public_source(results)}"),
        ("Images never trained on", words.whole(heldout)),
        ("Training images with a near copy among them", words.whole(count(results, "data.near_copies"))),
        ("Brought to one size, in pixels", words.whole(count(results, "data.resized"))),
        ("Persons (training, never trained on)", _persons(results)),
        ("Shape (channels × height × width)", shape or words.NOTHING),
        ("Private image", f"number {words.whole(count(results, 'target.index'))} of the training images"),
        ("Mark", _mark(mapping(results, "target.fingerprint"))),
        ("Model", _model(mapping(results, "model"))),
        ("Seed", words.NOTHING if (seed := count(run, "seed")) is None else str(seed)),
        ("Device", _device(run)),
        ("Versions", _versions(run)),
        ("Source state", _git(run)),
        ("Run began", _time(run, "began") or _time(run, "started")),
        ("Run ended", _time(run, "finished") or _time(run, "ended")),
        ("Authorised by", text(run, "authorised_by", 300) or "not stated"),
        ("Schema", text(results, "schema", 40) or words.NOTHING),
    ]
    rows = [row for row in rows if row[1] != words.NOTHING]
    blocks: list[Block] = [Pairs(rows)]
    if hashes:
        blocks.append(Pairs(hashes, mono=True))
    lead = (
        "Enough to repeat the run and to notice a change. latentprint verify checks every number against the"
        " stored counts."
    )
    return Section("provenance", "Where these numbers come from", lead, blocks)


def _persons(results: Mapping[str, Any]) -> str:
    """How many persons the images show, where their identities are known."""
    train, heldout = (count(results, f"data.{key}") for key in ("identities", "heldout_identities"))
    return words.NOTHING if train is None else f"{train:,}, {words.whole(heldout)}; none on both sides"


def _model(given: Mapping[str, Any]) -> str:
    """A model from outside; one that this run trained goes without saying."""
    kind = text(given, "kind", 40)
    label = count(given, "label")
    return words.NOTHING if kind is None else f"given ({kind}{'' if label is None else f', class {label}'})"


def model_notes(results: Mapping[str, Any]) -> list[str]:
    """What must be known of a model from outside, in sentences."""
    notes = items(results, "model.notes")
    return [said for note in notes[:20] if (said := text({"note": note}, "note")) is not None]


def _mark(fingerprint: Mapping[str, Any]) -> str:
    kind = text(fingerprint, "kind", 40)
    if kind is None:
        return "none was added"
    parts = [
        f"{name} {words.number(value)}"
        for name in ("row", "column", "radius", "grey")
        if (value := number(fingerprint, name)) is not None
    ]
    return ", ".join([kind, *parts])


def _device(run: Mapping[str, Any]) -> str:
    device = at(run, "device")
    if isinstance(device, str):
        return text(run, "device", 120) or words.NOTHING
    parts = [
        said
        for key in DEVICE
        if (
            said := text(device, key, 80)
            or (words.number(n) if (n := number(device, key)) is not None else None)
        )
    ]
    return ", ".join(parts) or words.NOTHING


def _versions(run: Mapping[str, Any]) -> str:
    parts = [
        f"{name} {version}"
        for name, version in mapping(run, "versions").items()
        if isinstance(version, str) and _VERSION.fullmatch(name) and _VERSION.fullmatch(version)
    ]
    return ", ".join(parts[:40]) or words.NOTHING


def _git(run: Mapping[str, Any]) -> str:
    for path in ("git.commit", "git.sha", "git"):
        commit = digest(run, path)
        if commit:
            dirty = at(run, "git.dirty") is True
            return f"{commit[:12]}{', with changes that were not committed' if dirty else ''}"
    return words.NOTHING


def _time(run: Mapping[str, Any], key: str) -> str:
    value = at(run, key)
    fits = isinstance(value, str) and re.fullmatch(
        r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?[\d.+:Z-]{0,14}", value
    )
    return value.replace("T", " ")[:16] + " UTC" if fits and isinstance(value, str) else words.NOTHING


def stage_rows(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(stage, time) from ``timings: {name: seconds}`` or ``stages: {name: {seconds}}``."""
    timings, stages = mapping(run, "timings"), mapping(run, "stages")
    found: dict[str, float] = {}
    for name in timings or stages:
        seconds = number({"x": timings[name]}, "x") if timings else number({"x": stages[name]}, "x.seconds")
        if seconds is not None and re.fullmatch(r"[\w .-]{1,60}", name):
            found[name.replace("_", " ")] = seconds
    if not found:
        return []
    rows = [(name, words.duration(seconds)) for name, seconds in found.items()]
    return [*rows, ("Together", words.duration(sum(found.values())))]
