"""The paper's tables and figures as commands, and the page that sets ours beside the published numbers.

    benchmarks/paper/NAME.toml  →  audits (resumable)  →  docs/paper/results.json, figures  →  docs/paper.md

Nothing here measures anything that an audit does not: an experiment is audits, and their numbers in the
paper's order.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from latentprint.audit import Where
from latentprint.contracts import InputError
from latentprint.progress import Report, silent
from latentprint.spread import Executor, executor
from tools.reproduce.figures import OF_NUMBERS, Files, draw
from tools.reproduce.lengths import run_lengths
from tools.reproduce.page import write_page
from tools.reproduce.plan import FOLDER, Experiment, ExperimentError, Size, experiment, names
from tools.reproduce.record import Record
from tools.reproduce.rows import Place, chosen, run_rows, tuned_units, unit_of
from tools.reproduce.summary import Entry

__all__ = [
    "FOLDER",
    "Experiment",
    "ExperimentError",
    "Place",
    "experiment",
    "names",
    "reproduce",
    "write_page",
]


def reproduce(
    name: str,
    size: Size = "mini",
    *,
    runs: Path = Path("runs/paper"),
    docs: Path = Path("docs"),
    experiments: Path = FOLDER,
    only: Sequence[str] = (),
    device: str = "cpu",
    root: Path | None = None,
    download: bool = False,
    spread: Executor = "local",
    processes: int = 1,
    tuned: bool | None = None,
    progress: Report = silent,
) -> Mapping[str, Any]:
    """Run experiment ``name`` at that size, or continue it, and write its numbers, figures and the page.

    Args:
        name: of the experiment, e.g. "table2".
        size: "mini" for minutes to hours, "cpu" for the paper's numbers of images on two cores, "full" for
            the paper's own.
        runs: the runs' folder; ``runs/NAME/SIZE/ROW`` is one run.
        docs: where ``paper/results.json``, ``paper/*.svg`` and ``paper.md`` go.
        experiments: the folder of the experiments' files.
        only: rows to run; all where none is named.
        device: where networks run.
        root: where the MedMNIST files are.
        download: whether a missing one may be fetched.
        spread: "ray" spreads the rows of a table over workers; samples of one row where it has one row.
        processes: how many train one model together (accelerate).
        tuned: arithmetic and threads as this processor is measured to be fastest with. None: at size cpu,
            unless its runs began without.
        progress: told how far each row's stages are.

    Returns: the experiment's entry in results.json.

    Raises:
        InputError: there is no such experiment, or a row cannot run, in one sentence; what was finished is
            kept, and on the page.
    """
    one = experiment(name, experiments)
    source = one if one.uses is None else experiment(one.source(size), experiments)
    if source.kind == "lengths" and processes > 1:
        raise ExperimentError(f"{source.name} keeps the weights of one training as it goes, in one process")
    place = Place(runs, Where(device, root=root, download=download, say=progress, processes=processes), tuned)
    record = Record.read(docs / "paper")
    refused: InputError | None = None
    threads = torch.get_num_threads()
    try:
        with executor(spread, device=device) as over:
            if source.kind == "lengths":
                chosen(source, size, only)  # there is one row, and no other may be asked for
                there = replace(place, where=replace(place.where, map=over))
                row, entry = _lengths(source, size, there, experiments)
                record.keep(source.name, size, row, entry)
            else:
                there = place if spread == "local" else _elsewhere(place)
                total = len(only or source.scale(size).rows)
                for done, (row, entry) in enumerate(
                    run_rows(source, size, there, only=only, map=over, experiments=experiments), 1
                ):
                    record.keep(source.name, size, row, entry)
                    progress(source.name, done, total, "rows")
    except InputError as error:
        refused = error  # a row that cannot run leaves the finished ones on the page
    finally:
        torch.set_num_threads(threads)
    if record.rows(source.name, size) and (one is not source or source.kind == "lengths"):
        record.draw(one.name, size, _figure(one, source, size, place, record, experiments))
    write_page(docs, experiments)
    if refused is not None:
        raise refused
    return record.rows(source.name, size)


def _elsewhere(place: Place) -> Place:
    """The same place as another process sees it: whole paths, and no voice, which cannot be sent."""
    from ray import cloudpickle

    import tools

    # workers import installed packages alone, which this one is not: its code goes along
    cloudpickle.register_pickle_by_value(tools)
    root = place.where.root or (Path(os.environ["MEDMNIST_ROOT"]) if "MEDMNIST_ROOT" in os.environ else None)
    there = replace(place.where, root=None if root is None else Path(root).resolve(), say=silent)
    return replace(place, runs=place.runs.resolve(), where=there)


def _lengths(source: Experiment, size: Size, place: Place, experiments: Path) -> tuple[str, Entry]:
    row = source.scale(size).rows[0]
    (unit,) = tuned_units([unit_of(source, size, row, place, experiments)], size, place)
    return row.name, run_lengths(unit, place.where)


def _figure(
    one: Experiment, source: Experiment, size: Size, place: Place, record: Record, experiments: Path
) -> Files:
    """The figure's files in the table's order: of all rows that are finished here, or, where numbers suffice,
    of all that ever were."""
    kept = record.rows(source.name, size)

    def where(row: str) -> Path:
        return unit_of(source, size, source.scale(size).row(row), place, experiments).folder

    rows = {
        row.name: kept[row.name]
        for row in source.scale(size).rows
        if row.name in kept and (one.name in OF_NUMBERS or (where(row.name) / "results.json").is_file())
    }
    return draw(one.name, size, rows, record, where, place.where.root)
