"""``docs/paper.md``: what the paper printed, and what we measured, one under the other.

Made from ``docs/paper/results.json`` and the experiments' files alone. No number on the page is typed in:
the published ones stand in the experiments' files, ours in results.json, with the device and the time beside
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentprint.config import AuditConfig, resolve
from latentprint.files import write
from latentprint.progress import duration
from latentprint.settings import plain, read
from tools.reproduce import tables
from tools.reproduce.claims import table as claims_table
from tools.reproduce.plan import FOLDER, SIZES, Experiment, Size, experiment, names
from tools.reproduce.record import Record
from tools.reproduce.summary import Entry

PAGE = "paper.md"
_OPTIONS: Mapping[Size, str] = {"mini": "", "cpu": " --scale cpu", "full": " --scale full --device cuda"}

HEAD = """# The paper's tables and figures, reproduced

Dombrowski and Kainz 2023, *Quantifying Sample Anonymity in Score-Based Generative Models with Adversarial
Fingerprinting*, arXiv 2306.01363. This page is written by `latentprint reproduce`; every number of ours comes
from [paper/results.json](paper/results.json), with its settings, device and time. The command stands in the
repository, not in the installed package: clone it, and `make setup`. Each experiment exists at up to three
sizes: **mini**, tens of images, minutes to hours; **cpu**, the paper's numbers of images and 28 x 28 pixels,
a few hours a row on two CPU cores; **full**, the paper's own, for a GPU. What was not run is said to be so.

    latentprint reproduce table2                                    # mini; repeat it to continue
    latentprint reproduce table2 --scale cpu --only breastmnist     # one row at the paper's N
    latentprint reproduce table2 --scale full --device cuda         # the paper's size
    latentprint reproduce page                                      # this page again, nothing run

A row that was interrupted, by `kill -9` too, continues where it was when its command is given again.
At size cpu it is measured first which arithmetic and how many threads are fastest on the processor at hand;
what was chosen stands in the row's settings. `--no-tune` takes those of the experiment's file.

In all tables *passes* is how often the training saw each image: steps times images a step, over the images of
the set. The paper does not print its images a step.
"""


CLAIMS_LEAD = """Each answer is computed from the numbers below by a rule (`tools/reproduce/claims.py`); the
largest size that was run answers. At the small size images, network and training are far from the paper's.
An answer there is about the claim as such, not about the paper's numbers."""


def write_page(docs: Path, experiments: Path = FOLDER) -> Path:
    """Write ``docs/paper.md`` from what was reproduced so far; its path.

    Raises:
        InputError: results or experiments cannot be read, or the page cannot be written.
    """
    record = Record.read(docs / "paper")
    every = sorted((experiment(name, experiments) for name in names(experiments)), key=lambda one: one.order)
    claims = ["## The claims of the paper", "", CLAIMS_LEAD, "", *claims_table(record), ""]
    parts = [HEAD, "\n".join(claims), *(_section(one, every, record) for one in every)]
    write(docs / PAGE, "\n".join(parts).encode(), public=True)
    return docs / PAGE


def _section(one: Experiment, every: Sequence[Experiment], record: Record) -> str:
    lines = [f"## {one.title}", "", f"*The paper:* {one.shows}", ""]
    for size in SIZES:
        if isinstance(one.uses, Mapping) and size not in one.uses:
            continue
        source = next((other for other in every if other.name == one.source(size)), one)
        if size not in source.scales:
            continue
        lines += _size(one, source, size, record)
    if one.found:
        lines += [one.found.strip(), ""]
    return "\n".join(lines)


def _size(one: Experiment, source: Experiment, size: Size, record: Record) -> Iterator[str]:
    scale, rows = source.scale(size), record.rows(source.name, size)
    missing = [row.name for row in scale.rows if row.name not in rows]
    command = f"latentprint reproduce {one.name}{_OPTIONS[size]}"
    yield f"### {size}: `{command}`"
    yield ""
    if scale.note and one is source:
        yield scale.note.strip()
        yield ""
    if rows and one is source:
        yield from _numbers(source, size, rows)
    files = record.figures.get(one.name, {}).get(size)
    for file in files or []:
        yield f"![{one.title}: {size}](paper/{size}/{file})"
        yield ""
    if files == [] and one is not source and rows:
        yield "Nothing to show: the finished rows hold no image of this kind."
        yield ""
    if missing and one is not source:
        yield f"**Not run:** {', '.join(missing)} of {source.name}, from whose runs this is drawn."
        yield ""
    elif len(missing) == len(scale.rows):
        yield f"**Not run.** Time: {scale.hours or 'not measured'}."
        yield ""
        if len(missing) > 1:
            yield f"One row of it: `{command} --only ROW`, where ROW is one of {', '.join(missing)}."
            yield ""
    elif missing:
        yield f"**Not run:** {', '.join(missing)}. Time of the whole: {scale.hours or 'not measured'}."
        yield ""


def _numbers(source: Experiment, size: Size, rows: Mapping[str, Entry]) -> Iterator[str]:
    made = [(row, rows[row.name]) for row in source.scale(size).rows if row.name in rows]
    if source.kind == "lengths":
        for _, entry in made:
            yield from tables.lengths(entry)
            yield from _differences([entry])
            yield from _circumstances([("one training", entry)])
        return
    yield from tables.audits(source, made)
    yield from tables.whole_set(made)
    yield from tables.estimates(made)
    yield from _differences([entry for _, entry in made])
    yield from _circumstances([(row.name, entry) for row, entry in made])


def _differences(entries: Sequence[Entry]) -> Iterator[str]:
    """In words, every setting in which these runs differ from the paper's recipe."""
    paper = resolve(preset="paper")
    said = {sentence: None for entry in entries for sentence in differences(entry, paper)}
    yield "Differences from the paper's recipe, from the settings of the runs:"
    yield ""
    for sentence in said:
        yield f"- {sentence}"
    yield ""


def differences(entry: Entry, paper: AuditConfig) -> list[str]:
    """The settings of a run that are not the paper's, each a sentence."""
    ours = read(AuditConfig, entry["settings"])
    ran, said = ours.model.training, paper.model.training
    out: list[str] = []
    if (ran.steps, ran.batch) != (said.steps, said.batch):
        out.append(
            f"Training: {ran.steps:,} steps of {ran.batch} images; the paper trains for {said.steps:,} steps "
            f"(its batch is not printed, our recipe takes {said.batch})."
        )
    if ours.model.network != paper.model.network:
        mine, theirs = ours.model.network, paper.model.network
        out.append(
            f"U-Net: channels {'-'.join(map(str, mine.channels))}, {mine.layers_per_block} layers a block; "
            f"the paper's has three levels, taken as {'-'.join(map(str, theirs.channels))} with "
            f"{theirs.layers_per_block}."
        )
    changed = [
        f"{name} {here} instead of {there}"
        for name, here, there in _changed(plain(ran), plain(said))
        if name in ("parametrisation", "times", "decay", "learning_rate", "beta2", "ema")
    ]
    if changed:
        out.append(f"Training recipe: {', '.join(changed)}.")
    out += _arithmetic(ours)
    if ours.sampler.name != "paper":
        out.append(
            f"Sampler: {ours.sampler.name} with {ours.sampler.steps} steps; the paper's is the reverse SDE "
            "of Song et al., 1,000 steps (docs/method.md compares their laws)."
        )
    for name, here in (("c_p", ours.presence), ("c_id", ours.identity)):
        if here.backbone != "resnet50":
            out.append(f"{name} is the backbone {here.backbone!r}; the paper's is a ResNet-50.")
    if ours.fid.features != "inception" and (fid := entry.get("fid")):
        out.append(
            f"FID is over features of {fid['features']!r}, not of Inception: not comparable with the paper's."
        )
    out.append(
        f"t': {ours.search.levels} noise levels, {ours.search.tries} tries each (the paper: M = 16). "
        "The largest t with any hit grows with levels and tries; 'sure' is the largest t whose hits false "
        "alarms cannot explain."
    )
    return out


def _arithmetic(ours: AuditConfig) -> list[str]:
    """Where networks multiply in bfloat16; no sentence where they never do."""
    parts = {
        "training": ours.model.training.precision,
        "sampling": ours.speed.sampling.precision,
        "detectors": ours.speed.detectors.precision,
    }
    coarse = [part for part, precision in parts.items() if precision != "float32"]
    if not coarse:
        return []
    return [
        f"Arithmetic: bfloat16 inside the networks in {', '.join(coarse)}, which the paper does not say of "
        "its own (docs/precision.md states how far it moves a result)."
    ]


def _changed(here: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name, value in here.items():
        if there.get(name) != value:
            yield name, value, there.get(name)


def _circumstances(made: Sequence[tuple[str, Entry]]) -> Iterator[str]:
    yield "Measured:"
    yield ""
    for name, entry in made:
        device = entry["device"] or {}
        where = device.get("name") or f"{device.get('type', '?')}, {device.get('threads', '?')} thread(s)"
        times = entry["seconds"]
        told = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in times.items() if seconds >= 1)
        total = duration(sum(times.values()))
        torch = entry["versions"].get("torch", "?")
        lent = f" {name}: c_p and c_id are those of {entry['recognisers']}." if "recognisers" in entry else ""
        if "continues" in entry:
            lent += f" Its training goes on with that of {entry['continues']}, whose time is not in this sum."
        yield f"- {name}: {entry['began'][:10]}, {where}, torch {torch}, {total} in all ({told}).{lent}"
    yield ""
