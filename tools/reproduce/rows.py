"""The audits of an experiment, each in a folder of its own, near or far.

A row is one ``run_audit``. What is finished is read and not run again, what was interrupted continues, and
rows depend on nothing but their settings: a map that spreads them over machines gives the same entries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from pydantic.dataclasses import dataclass as pydantic_dataclass

from latentprint.audit import Where, run_audit
from latentprint.audit.images import read_images
from latentprint.config import AuditConfig
from latentprint.contracts import InputError, Map
from latentprint.files import read_json, write
from latentprint.progress import Report
from latentprint.settings import STRICT, Some, merge, plain, read
from tools.reproduce.plan import FOLDER, Experiment, ExperimentError, Row, Size, experiment
from tools.reproduce.shared import Unit, borrow, go_on
from tools.reproduce.summary import Entry, holds, summary, tuning_of
from tools.reproduce.tuning import tune


@dataclass(frozen=True)
class Place:
    """Where rows run: the folder of all runs, and where each audit runs.

    Attributes:
        tuned: whether arithmetic and threads are those that this processor is measured to be fastest with,
            instead of the experiment's (``tools.reproduce.tuning``). None: at size cpu, on a processor,
            unless runs of that size began without.
    """

    runs: Path
    where: Where = Where()  # noqa: RUF009 (frozen)
    tuned: bool | None = None

    def folder(self, name: str, size: Size, row: str) -> Path:
        """The folder of one row."""
        return self.runs / name / size / row


@dataclass(frozen=True)
class RunRow:
    """One row as a task that can be sent to another process: unit -> (row name, entry)."""

    place: Place

    def __call__(self, unit: Unit) -> tuple[str, Entry]:
        place, folder, config = self.place, unit.folder, unit.config
        target = unit.target(place.where)
        if not holds(folder, config, target):
            where = replace(place.where, say=_named(unit.name, place.where.say))
            if unit.lender is not None:
                borrow(unit, where)
            if unit.earlier is not None:
                go_on(unit, where)
            run_audit(config, folder, target=target, where=where)
        return unit.name, summary(folder)


def _named(row: str, say: Report) -> Report:
    """A voice that says which row it speaks of."""
    return lambda stage, done, total, unit: say(f"{row}: {stage}", done, total, unit)


def tuned_units(units: Sequence[Unit], size: Size, place: Place) -> tuple[Unit, ...]:
    """The rows with the arithmetic that this processor is fastest with, where ``place`` says so.

    Torch then uses as many threads as were fastest.

    Measured once for all runs of a size, on the first row whose images are there, and kept: rows that
    take a training from each other must agree, and what is continued, elsewhere too, ends as it began.

    Raises:
        ExperimentError: the rows do not run on a CPU, others of that size began without, or the note of what
            was measured cannot be read.
    """
    note, wanted = tuning_of(place.runs, size), place.tuned
    on_cpu = torch.device(place.where.device).type == "cpu"
    if wanted and not on_cpu:
        raise ExperimentError("--tune measures CPUs; for a GPU the experiment's file says what is used")
    if not note.is_file():
        begun = next(place.runs.glob(f"*/{size}/*/run.json"), None)
        if wanted and begun is not None:
            raise ExperimentError(
                f"{str(begun.parent)!r} began with the arithmetic of its file, and all rows of a size have"
                " the same: give another --out, or leave out --tune"
            )
        wanted = size == "cpu" and on_cpu and begun is None if wanted is None else wanted
        if not wanted or not (found := _measured(units, place.where)):
            return (*units,)
        note.parent.mkdir(parents=True, exist_ok=True)
        write(note, json.dumps(asdict(found), indent=1).encode())
    elif wanted is False:
        raise ExperimentError(
            f"rows of size {size} in {str(place.runs)!r} began with what was measured for this processor:"
            " leave out --no-tune, or give another --out"
        )
    try:
        kept = read(_Tuning, read_json(note))
    except InputError as error:
        raise ExperimentError(f"{note.name} is no note of a tuning: {error}; give another --out") from error
    torch.set_num_threads(kept.threads)
    return tuple(_with(unit, kept.settings) for unit in units)


@pydantic_dataclass(frozen=True, config=STRICT)
class _Tuning:
    """What is kept of a tuning: the settings it changes, the threads, the row measured, and its timings."""

    settings: dict[str, object]
    threads: Some
    measured_on: str
    timings: list[dict[str, object]]


def _measured(units: Sequence[Unit], where: Where) -> _Tuning | None:
    """What is fastest for the first of the rows whose images can be read; None: those of none can."""
    for unit in units:
        try:
            shape = read_images(unit.config, where.root, where.download).train.shape
        except InputError:
            continue  # the row itself says so when its turn comes
        where.say("tuning", 0, 1, "measurements")
        answer = tune(unit.config, shape)
        where.say("tuning", 1, 1, "measurements")
        model, sampling = answer.config.model, answer.config.speed.sampling
        return _Tuning(
            settings={
                "model": {"training": {"precision": model.training.precision}},
                "speed": {"sampling": {"precision": sampling.precision}},
            },
            threads=answer.threads,
            measured_on=unit.name,
            timings=[asdict(one) for one in answer.timings],
        )
    return None


def _with(unit: Unit, settings: Mapping[str, object]) -> Unit:
    """A row, and those from which it takes recognisers or a training, with these settings changed."""
    return replace(
        unit,
        config=read(AuditConfig, merge(plain(unit.config), settings)),
        lender=None if unit.lender is None else _with(unit.lender, settings),
        earlier=None if unit.earlier is None else _with(unit.earlier, settings),
    )


def chosen(experiment: Experiment, size: Size, only: Sequence[str]) -> tuple[Row, ...]:
    """The rows that were asked for; all where none is named.

    Raises:
        ExperimentError: there is none of that name.
    """
    rows = experiment.scale(size).rows
    wrong = [name for name in only if name not in {row.name for row in rows}]
    if wrong:
        raise ExperimentError(
            f"{experiment.name} at size {size} has no row {wrong[0]!r}; "
            f"it has {', '.join(row.name for row in rows)}"
        )
    return tuple(row for row in rows if not only or row.name in only)


def unit_of(
    one: Experiment,
    size: Size,
    row: Row,
    place: Place,
    experiments: Path = FOLDER,
    asking: tuple[str, ...] = (),
) -> Unit:
    """A row with its settings, its folder, and the rows from which it takes recognisers or a training.

    ``asking`` are the rows that ask for this one.

    Raises:
        ExperimentError, SettingsError: it names an experiment or a row that does not exist, or that asks for
            this one.
    """
    asking = (*asking, f"{one.name}/{row.name}")
    if asking[-1] in asking[:-1]:
        raise ExperimentError(f"rows take from each other in a circle: {', '.join(asking)}")

    def named(name: str) -> Unit:
        other, _, alone = name.rpartition("/")
        source = experiment(other, experiments) if other else one
        return unit_of(source, size, source.scale(size).row(alone), place, experiments, asking)

    if row.run is not None:
        return replace(named(row.run), name=row.name)
    scale = one.scale(size)
    lender = None if row.recognisers is None else named(row.recognisers)
    return Unit(
        row.name,
        scale.config(row),
        place.folder(one.name, size, row.name),
        row.private if lender is None else lender.private,
        lender,
        None if row.continues is None else named(row.continues),
        tuple(scale.steps),
    )


def run_rows(
    one: Experiment,
    size: Size,
    place: Place,
    *,
    only: Sequence[str] = (),
    map: Map = map,  # noqa: A002 (it is one)
    experiments: Path = FOLDER,
) -> Iterator[tuple[str, Entry]]:
    """Run or read the rows of a table; (row, entry) as each is finished.

    A row whose data are missing does not keep the others from running: what is missing is said at the end.

    Raises:
        InputError: a row could not run; the sentence names it. The others are finished by then.
    """
    asked = [unit_of(one, size, row, place, experiments) for row in chosen(one, size, only)]
    units = tuned_units(asked, size, place)
    missing: list[str] = []
    for name, entry, refused in map(_Careful(RunRow(place)), units):
        if entry is not None:
            yield name, entry
        elif refused is not None:
            missing.append(f"{name}: {refused}")
    if missing:
        raise InputError(f"{one.name} lacks {len(missing)} of its rows. {'; '.join(missing)}")


@dataclass(frozen=True)
class _Careful:
    """A row's task whose bad input is a value: the rows after it still run."""

    task: RunRow

    def __call__(self, unit: Unit) -> tuple[str, Entry | None, str | None]:
        try:
            name, entry = self.task(unit)
        except InputError as error:
            return unit.name, None, str(error)
        return name, entry, None
