"""Progress of long work, with its rate and the remaining time, on stderr.

On a terminal it shows one bar per stage (rich). Elsewhere (a log file, CI) it prints one plain line when a
stage starts, every fifteen seconds while it runs, and when it ends, so that a log stays readable. Nothing
here touches stdout.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

LOG_EVERY_SECONDS = 15.0
LINES_OF_PACE = 5
"""The rate in a line of a log is that since so many lines ago: a minute, or as much as there is."""


class Report(Protocol):
    """Called by long work: ``done`` of ``total`` ``unit``s of ``stage`` are finished."""

    def __call__(self, stage: str, done: int, total: int, unit: str) -> None: ...


def silent(stage: str, done: int, total: int, unit: str) -> None:
    """A Report that reports nothing."""


def duration(seconds: float) -> str:
    """Seconds in words: ``8 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _Pace(ProgressColumn):
    """Rate and remaining time, measured over this process only: a resumed stage does not look fast."""

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(f"{duration(task.finished_time or 0.0)}", style="green")
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("…", style="dim")
        remaining = task.time_remaining
        left = f", {duration(remaining)} left" if remaining is not None else ""
        return Text(f"{speed:,.4g} {task.fields['unit']}/s{left}", style="cyan")


class Bars:
    """A Report that draws; use it as a context manager."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._live = (
            Progress(
                TextColumn("{task.description}", justify="left"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                _Pace(),
                console=console,
            )
            if console.is_terminal
            else None
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._spoken: dict[str, deque[tuple[float, int]]] = {}

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, stage: str, done: int, total: int, unit: str) -> None:
        if self._live is not None:
            if stage not in self._tasks:
                # A resumed stage starts where it stopped, so its rate counts only this process's work.
                self._tasks[stage] = self._live.add_task(stage, total=total, completed=done, unit=unit)
            self._live.update(self._tasks[stage], completed=done, total=total)
            return
        self._log(stage, done, total, unit)

    def _log(self, stage: str, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        first = stage not in self._started
        if first:
            self._started[stage] = (now, done)
        lately = self._spoken.setdefault(stage, deque(maxlen=LINES_OF_PACE))
        if not first and done < total and now - lately[-1][0] < LOG_EVERY_SECONDS:
            return
        # Work changes its pace (an estimator first learns, then draws): the last minute foretells the rest,
        # and a finished stage tells its whole pace.
        began, at = lately[0] if lately and done < total else self._started[stage]
        lately.append((now, done))
        elapsed = now - began
        pace = ""
        if done > at and elapsed > 0:
            rate = (done - at) / elapsed
            left = f", {duration((total - done) / rate)} left" if done < total else f", {duration(elapsed)}"
            pace = f", {rate:,.4g} {unit}/s{left}"
        print(f"{stage}: {done:,} of {total:,} {unit}{pace}", file=sys.stderr, flush=True)
