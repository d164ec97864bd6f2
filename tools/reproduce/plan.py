"""An experiment of the paper as a file: what is run at which size, and the numbers that were published.

    title, shows, kind, order   what it is: "audits" (a table: one audit a row), "lengths" (one training,
                                looked at after several numbers of steps), "pictures" (drawn from the runs of
                                the experiment that ``uses`` names, for all sizes or each)
    [[published]]               the paper's numbers, one table a row
    [mini], [cpu], [full]       the same experiment at up to three sizes: a preset, settings over it, its
                                rows ([[cpu.rows]])

A file opens, in its comments, with its command, its time and the numbers to expect; ``hours`` and ``note``
say the same to the page. Unknown keys are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from latentprint.config import AuditConfig, resolve
from latentprint.contracts import InputError
from latentprint.files import read_toml
from latentprint.settings import SettingsError, merge, read

FOLDER = Path("benchmarks/paper")
Size = Literal["mini", "cpu", "full"]
SIZES: tuple[Size, ...] = ("mini", "cpu", "full")


class ExperimentError(InputError):
    """An experiment that does not exist or cannot be read, in one sentence."""


@dataclass(frozen=True)
class Published:
    """One row of a published table; None where the paper prints nothing."""

    name: str
    images: int | None = None
    samples: int | None = None
    expected: float | None = None
    presence_hits: int | None = None
    identity_hits: int | None = None
    hits: int | None = None
    t_prime: float | None = None
    presence_accuracy: float | None = None
    identity_accuracy: float | None = None
    fid_train: float | None = None
    fid_test: float | None = None


@dataclass(frozen=True)
class Row:
    """One audit, and which published row it stands beside.

    Attributes:
        settings: over those of the scale.
        private: x_p, by the sha256 of the image as it is stored; None: the seed draws it.
        recognisers: the row whose x_p, c_p and c_id this one takes, as all of the paper's Table 1 do:
            "ROW", or "EXPERIMENT/ROW" of the same size.
        continues: the row whose training, at a constant rate, this one goes on with where it was run.
        run: "EXPERIMENT/ROW": this row shows that run of the same size, and has no settings of its own.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    published: str | None = None
    private: str | None = None
    recognisers: str | None = None
    continues: str | None = None
    run: str | None = None


@dataclass(frozen=True)
class Scale:
    """The experiment at one size.

    Attributes:
        preset, settings: of every row.
        rows: the audits, in the order of the table.
        steps: for "lengths", the training lengths looked at: rising multiples of ten.
        hours: how long all rows take on the named machine, in words.
        note: how this size differs from the paper, and why.
    """

    preset: str
    rows: tuple[Row, ...]
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    steps: tuple[int, ...] = ()
    hours: str = ""
    note: str = ""

    def row(self, name: str) -> Row:
        """The row of that name.

        Raises:
            SettingsError: there is none.
        """
        found = next((row for row in self.rows if row.name == name), None)
        if found is None:
            raise SettingsError(f"there is no row {name!r}, only {', '.join(row.name for row in self.rows)}")
        return found

    def config(self, row: Row) -> AuditConfig:
        """The settings of one row.

        Raises:
            SettingsError: they cannot be used.
        """
        return resolve(merge(self.settings, row.settings), preset=self.preset)


@dataclass(frozen=True)
class Experiment:
    """See the module. ``shows`` says what the paper claims, ``found`` what one should know of our numbers."""

    name: str
    title: str
    kind: Literal["audits", "lengths", "pictures"]
    shows: str
    order: int = 0
    uses: str | Mapping[Size, str] | None = None
    found: str = ""
    published: tuple[Published, ...] = ()
    scales: Mapping[Size, Scale] = field(default_factory=dict[Size, Scale])

    def source(self, size: Size) -> str:
        """The experiment from whose runs this one is made at that size: itself, unless it ``uses`` others.

        Raises:
            ExperimentError: it has no such size.
        """
        found = self.uses.get(size) if isinstance(self.uses, Mapping) else self.uses or self.name
        if found is None:
            raise ExperimentError(f"{self.name} has no size {size!r}")
        return found

    def scale(self, size: Size) -> Scale:
        """The experiment at that size.

        Raises:
            ExperimentError: it has none.
        """
        if size not in self.scales:
            raise ExperimentError(f"{self.name} has no size {size!r}; it has {', '.join(self.scales)}")
        return self.scales[size]

    def of(self, row: Row) -> Published | None:
        """The published row beside one of ours."""
        return next((one for one in self.published if one.name == (row.published or row.name)), None)


def names(folder: Path = FOLDER) -> tuple[str, ...]:
    """The experiments in ``folder``, by name.

    Raises:
        ExperimentError: there is no such folder, or no experiment in it.
    """
    found = tuple(sorted(path.stem for path in folder.glob("*.toml")))
    if not found:
        raise ExperimentError(
            f"there are no experiments in {str(folder)!r}; they stand in benchmarks/paper of the source "
            "tree: run this there, or name the folder with --experiments"
        )
    return found


def experiment(name: str, folder: Path = FOLDER) -> Experiment:
    """The experiment of that name.

    Raises:
        ExperimentError: there is none.
        SettingsError: its file cannot be read.
    """
    known = names(folder)
    if name not in known:
        raise ExperimentError(f"{name!r} is not an experiment; there are {', '.join(known)}, and page")
    values = read_toml(folder / f"{name}.toml")
    scales = {size: values.pop(size) for size in SIZES if size in values}
    made = read(Experiment, {"name": name, **values, "scales": scales})
    _check(made)
    return made


def _check(one: Experiment) -> None:
    if one.kind == "pictures" and (one.uses is None or one.scales):
        raise SettingsError(f"{one.name} is drawn from other runs: it needs `uses` and no sizes of its own")
    if one.kind != "pictures" and (one.uses is not None or not one.scales):
        raise SettingsError(f"{one.name} needs [mini], [cpu] or [full], and no `uses`")
    for size, scale in one.scales.items():
        if len({row.name for row in scale.rows}) < len(scale.rows) or not scale.rows:
            raise SettingsError(f"{one.name}, {size}: rows are needed, each with a name of its own")
        if one.kind == "lengths" and not _usable(scale):
            raise SettingsError(
                f"{one.name}, {size}: one row and rising multiples of ten up to its training steps are "
                f"needed as `steps`, got {list(scale.steps)} for {len(scale.rows)} rows"
            )
        for row in scale.rows:
            _check_row(one, scale, row)


def _check_row(one: Experiment, scale: Scale, row: Row) -> None:
    named = [name for name in (row.recognisers, row.continues) if name is not None]
    for name in named:
        if "/" not in name:
            scale.row(name)
    if row.recognisers is not None and row.private is not None:
        raise SettingsError(f"{one.name}: {row.name} takes x_p with the recognisers; leave out `private`")
    if row.run is not None and (row.settings or named or row.private or "/" not in row.run):
        raise SettingsError(f'{one.name}: {row.name} shows a run "EXPERIMENT/ROW", without more settings')


def _usable(scale: Scale) -> bool:
    steps, last = scale.steps, scale.config(scale.rows[0]).model.training.steps
    return (
        len(scale.rows) == 1
        and len(steps) > 0
        and all(a < b for a, b in pairwise(steps))
        and all(step > 0 and (step % 10 == 0 or step == last) for step in steps)
        and steps[-1] <= last
    )
