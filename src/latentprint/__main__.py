"""The command ``latentprint``: signals first, everything else after.

``python -m latentprint`` does the same, but Python then looks for modules in the current folder first. Do not
use it in a folder that a stranger filled (docs/security.md).
"""

from __future__ import annotations

import os
import sys

from latentprint.signals import catch_signals


def main() -> None:
    """Entry point of the command ``latentprint``."""
    catch_signals()
    os.umask(0o077)  # files that a library writes are private too
    _occupy()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]

    from latentprint.cli import answer

    sys.exit(answer(sys.argv[1:]))


def _occupy() -> None:
    """Open the standard streams that the caller closed, so that no file of a run gets their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))


if __name__ == "__main__":
    main()
