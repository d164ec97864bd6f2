"""Ctrl-C, SIGTERM and SIGHUP end a command without a traceback, and with a sentence on how to continue.

Every file of a run is complete at any moment, so a command may end at any moment. While modules are imported
it ends at once, because an exception would surface in the middle of an import. Once its work begins, the
signal becomes an exception, by which bars and workers are closed.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from types import FrameType


class Stopped(KeyboardInterrupt):
    """A signal came; its argument is the number."""


def catch_signals() -> None:
    """From here on a signal ends the process at once, with the sentence that says how to continue."""
    for number in _numbers():
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP, and this stays so
            signal.signal(number, _at_once)


def interruptible() -> None:
    """From here on a signal that `catch_signals` caught is an exception (`Stopped`)."""
    for number in _numbers():
        if signal.getsignal(number) is _at_once:
            signal.signal(number, _raise)


def stopped(number: int) -> str:
    """The sentence printed when a signal ends the program."""
    how = "Stopped" if number == signal.SIGINT else f"Stopped by {signal.Signals(number).name}"
    command = shlex.join(["latentprint", *sys.argv[1:]])
    return f"\n{how}. What was finished is kept; continue with:\n    {command}"


def _numbers() -> list[signal.Signals]:
    return [one for one in signal.Signals if one.name in ("SIGINT", "SIGTERM", "SIGHUP")]


def _at_once(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{stopped(number)}\n".encode(errors="backslashreplace"))
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)
