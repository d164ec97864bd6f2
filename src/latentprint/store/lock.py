"""One process, and one opening of it, writes a run at a time."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from latentprint.contracts import quoted
from latentprint.files import FileError, disk, read_json


class RunError(FileError):
    """A run that cannot be opened, read or written, with the reason in one sentence."""


class Lock:
    """A lock, held until `release`. The operating system drops it when the process ends, for whatever
    reason."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path, mode=0o600)
        with disk(path, "locked"):
            try:
                self._lock.acquire(blocking=False)
            except Timeout as error:
                raise RunError(
                    f"the run {quoted(path.parent)} is being written by another process"
                    f"{_holder(path.parent)}; wait for it or end it"
                ) from error

    def release(self) -> None:
        """Release the lock; the file stays. Releasing twice does no harm."""
        self._lock.release()


def _holder(folder: Path) -> str:
    """The process of the run's last session, if run.json says which."""
    with suppress(FileError, LookupError, TypeError):
        return f" ({int(read_json(folder / 'run.json')['sessions'][-1]['process'])})"
    return ""
