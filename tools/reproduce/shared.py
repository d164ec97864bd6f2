"""What rows of a table share: x_p and the two recognisers of it, as in the paper's Table 1, or a training.

Subsets of a source are nested (``data.load``), so an image of the smallest is in all of them. Its mark
follows from the seed alone where its place is given. A row that takes recognisers begins with those of
another row, and states their errors as they were measured there. At a constant rate a longer training begins
as a shorter one did, to the last bit, so that a row can go on where another ended.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from latentprint.audit import Where, recipe, stages
from latentprint.audit.context import Context
from latentprint.audit.growing import grown
from latentprint.audit.images import read_images
from latentprint.audit.lifecycle import begin
from latentprint.config import AuditConfig
from latentprint.results.model import IDENTITY, PRESENCE, TARGET
from latentprint.store import Run
from tools.reproduce.plan import ExperimentError


@dataclass(frozen=True)
class Unit:
    """A row that can be run by itself, in another process too.

    Attributes:
        private: x_p, by the sha256 of the image as it is stored; None: the seed draws it.
        lender: the row whose recognisers this one takes; None: it fits its own.
        earlier: the row whose training this one goes on with; None: it begins its own.
        lengths: the numbers of steps at which the row's training is looked at; () for an audit.
    """

    name: str
    config: AuditConfig
    folder: Path
    private: str | None = None
    lender: Unit | None = None
    earlier: Unit | None = None
    lengths: tuple[int, ...] = ()

    @property
    def full_name(self) -> str:
        """EXPERIMENT/ROW of the run that is meant: another table may show it under this row's name."""
        return f"{self.folder.parents[1].name}/{self.folder.name}"

    def subject(self, where: Where) -> recipe.Subject:
        """What the row's run is about.

        Raises:
            InputError: as ``run_audit``.
        """
        target = self.target(where)
        about = recipe.subject(self.config, where, model=None, label=None, target=target, checkpoints=None)
        lengths = {"lengths": [*self.lengths]} if self.lengths else {}
        return replace(about, settings=about.settings | lengths)

    def target(self, where: Where) -> int | None:
        """The place of x_p among the training images; None: the seed draws it.

        Raises:
            ExperimentError: it is not among them.
            DataError: the images cannot be read.
        """
        if self.private is None:
            return None
        train = read_images(self.config, where.root, where.download).train
        if self.private not in train.sha256:
            raise ExperimentError(
                f"none of the {len(train)} training images of {self.config.data.source} has the sha256 "
                f"{self.private[:12]}...: name an image of the smallest row as `private`"
            )
        return train.sha256.index(self.private)


def borrow(unit: Unit, where: Where) -> None:
    """Begin the run of ``unit`` with the recognisers of its lender, which are fitted first if they are
    missing.

    Raises:
        ExperimentError: the two rows look for different images, or fit recognisers differently.
        InputError: as ``run_audit``.
    """
    lender = unit.lender
    if lender is None:
        raise ValueError(f"{unit.name} fits recognisers of its own")
    for part in ("seed", "fingerprint", "presence", "identity"):
        if getattr(unit.config, part) != getattr(lender.config, part):
            raise ExperimentError(
                f"{unit.name} cannot take the recognisers of {lender.name}: their settings differ in {part}"
            )
    if lender.lender is None:
        _fit(lender, where)
    else:
        borrow(lender, where)
    lent = Run.read(lender.folder)
    about = unit.subject(where)
    with Run.open(unit.folder, about.settings, grows=grown) as run:
        begin(Context(about.config, run, where), about.split, about.injection, None)
        mine, theirs = (_target(one) for one in (run, lent))
        if mine != theirs:
            raise ExperimentError(
                f"{unit.name} cannot take the recognisers of {lender.name}, which look for another image: "
                "give both the same `private`"
            )
        for note in (PRESENCE, IDENTITY):
            kept = Path("detectors", note.name)
            if not run.stage(note.name).done:
                shutil.copytree(lender.folder / kept, unit.folder / kept, dirs_exist_ok=True)
                run.finish(note.name, lent.stage(note.name).payload)
                run.note({"recognisers": lender.full_name})


def go_on(unit: Unit, where: Where) -> None:
    """Begin the run of ``unit`` with the last state of the training that it goes on with, where that was run.

    It saves time and nothing else: trained from its first step on, the row has the same weights.

    Raises:
        ExperimentError: that training is the longer one, or is another one.
    """
    earlier = unit.earlier
    if earlier is None:
        raise ValueError(f"{unit.name} begins a training of its own")
    mine, theirs = unit.config.model.training, earlier.config.model.training
    same = replace(unit.config.model, training=replace(mine, steps=theirs.steps)) == earlier.config.model
    if not same or mine.decay != "none" or mine.steps < theirs.steps:
        raise ExperimentError(
            f"{unit.name} can go on with the training of {earlier.name} only with as many steps or more of"
            " the very same settings, at a constant rate"
        )
    state, ready = Path("checkpoints", "model"), earlier.folder / "run.json"
    if (unit.folder / state).exists():
        return
    if not ready.is_file() or not Run.read(earlier.folder).stage("model").done:
        return
    about = unit.subject(where)
    with Run.open(unit.folder, about.settings, grows=grown) as run:
        # The name comes last: a kill leaves no half of a checkpoint under it.
        shutil.copytree(earlier.folder / state, unit.folder / "begun", dirs_exist_ok=True)
        (unit.folder / state).parent.mkdir(exist_ok=True)
        run.note({"continues": earlier.full_name})
        (unit.folder / "begun").rename(unit.folder / state)


def _target(run: Run) -> str:
    return TARGET.kind.model_validate(run.stage(TARGET.name).payload[TARGET.key]).sha256


def _fit(lender: Unit, where: Where) -> None:
    """Fit the recognisers of a row in its own run, which its audit will continue; nothing where it has
    them."""
    if (lender.folder / "run.json").is_file():
        run = Run.read(lender.folder)
        if all(run.stage(note.name).done for note in (PRESENCE, IDENTITY)):
            return
    about = lender.subject(where)
    with Run.open(lender.folder, about.settings) as run:
        context = Context(about.config, run, where)
        begin(context, about.split, about.injection, None)
        stages.detectors(context, about.split, about.injection, about.unmarked(about.injection.control))
