"""The audits of an experiment, each in a folder of its own, near or far.

A row is one ``run_audit``. What is finished is read and not run again, what was interrupted continues, and
rows depend on nothing but their settings: a map that spreads them over machines gives the same entries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from latentprint.audit import Where, run_audit
from latentprint.audit.images import read_images
from latentprint.config import AuditConfig
from latentprint.contracts import InputError, Map
from latentprint.files import read_json, write
from latentprint.progress import Report
from latentprint.settings import merge, plain, read
from tools.reproduce.plan import FOLDER, Experiment, ExperimentError, Row, Size, experiment
from tools.reproduce.shared import Unit, borrow, go_on
from tools.reproduce.summary import Entry, holds, summary, tuning_of
from tools.reproduce.tuning import tune


@dataclass(frozen=True)
class Place:
    """Where rows run: the folder of all runs, and where each audit runs.

    Attributes:
        tuned: whether arithmetic and threads are those that this processor is measured to be fastest with,
            instead of the experiment's (``tools.reproduce.tuning``).
    """

    runs: Path
    where: Where = Where()  # noqa: RUF009 (frozen)
    tuned: bool = False

    def folder(self, name: str, size: Size, row: str) -> Path:
        """The folder of one row."""
        return self.runs / name / size / row


@dataclass(frozen=True)
class RunRow:
    """One row as a task that can be sent to another process: unit -> (row name, entry)."""

    place: Place

    def __call__(self, unit: Unit) -> tuple[str, Entry]:
        place, folder, config = self.place, unit.folder, unit.config
        if place.tuned:
            config = tuned(config, folder, place)
        target = unit.target(place.where)
        if not holds(folder, config, target):
            where = replace(place.where, say=_named(unit.name, place.where.say))
            if unit.lender is not None:
                borrow(unit, config, where)
            if unit.earlier is not None:
                go_on(unit, config, where)
            run_audit(config, folder, target=target, where=where)
        return unit.name, summary(folder)


def _named(row: str, say: Report) -> Report:
    """A voice that says which row it speaks of."""
    return lambda stage, done, total, unit: say(f"{row}: {stage}", done, total, unit)


def tuned(config: AuditConfig, folder: Path, place: Place) -> AuditConfig:
    """The settings with the arithmetic this processor is fastest with, and torch given as many threads.

    What was chosen for a row stays: a run that is continued, elsewhere too, ends as it began.

    Raises:
        ExperimentError: the row does not run on a CPU.
    """
    if torch.device(place.where.device).type != "cpu":
        raise ExperimentError("--tune measures CPUs; for a GPU the experiment's file says what is used")
    note = tuning_of(folder)
    if note.is_file():
        found = read_json(note)
        kept = merge(plain(config), found["settings"])
        torch.set_num_threads(found["threads"])
        return read(AuditConfig, kept)
    place.where.say("tuning", 0, 1, "measurements")
    answer = tune(config, read_images(config, place.where.root, place.where.download).train.shape)
    model, sampling = answer.config.model, answer.config.speed.sampling
    said = {
        "settings": {
            "model": {"training": {"precision": model.training.precision}},
            "speed": {"sampling": {"precision": sampling.precision}},
        },
        "threads": answer.threads,
        "timings": [asdict(one) for one in answer.timings],
    }
    note.parent.mkdir(parents=True, exist_ok=True)
    write(note, json.dumps(said, indent=1).encode())
    torch.set_num_threads(answer.threads)
    return answer.config


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
    units = [unit_of(one, size, row, place, experiments) for row in chosen(one, size, only)]
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
