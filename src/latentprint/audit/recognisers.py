"""Every recogniser as a stage: fitted and kept, or read from the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from latentprint.audit.context import Context
from latentprint.detector import FitState, Fitted
from latentprint.networks.speed import Evaluation
from latentprint.results.model import Detector
from latentprint.results.value import Note
from latentprint.store import RunError

State = TypeVar("State")


def last_of(states: Iterator[State], see: Callable[[State], None]) -> State:
    """The last of a stream of states, after a function has seen each of them."""
    last: State | None = None
    for last in states:
        see(last)
    if last is None:
        raise ValueError("a stage ended without a state")
    return last


Recogniser = TypeVar("Recogniser", bound=Fitted[Any, Any])


def recogniser(
    context: Context,
    note: Note[Detector],
    said: str,
    fit: Callable[[], Iterator[FitState[Recogniser]]],
    load: Callable[[Path, torch.device, Evaluation], Recogniser | None],
    value: Callable[[Recogniser], Detector],
) -> Recogniser:
    """The recogniser that a stage notes (``said`` in words), fitted and kept, or read from the run."""
    name = note.name
    folder = context.run.path / "detectors" / name
    with context.stage(name):
        if not context.run.stage(name).done:

            def say(state: FitState[Recogniser]) -> None:
                # Early stopping makes the number of epochs unknown; the bar ends where the fit does.
                epochs = state.epoch if state.detector is not None else state.epochs
                context.say(f"fitting {said}", state.epoch, epochs, "epochs")

            last = last_of(fit(), say)
            assert last.detector is not None  # the last state of a fit holds it
            last.detector.save(folder)
            context.finish(note, value(last.detector), epochs=last.epoch, best_epoch=last.best_epoch)
    found = load(folder, context.device, context.config.speed.detectors)
    if found is None:
        raise RunError(f"the {name} detector is missing in {folder}; start again with --fresh")
    return found
