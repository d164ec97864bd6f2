"""An audit on a disk that is full, a little larger, full again: one sentence each time, and the same bytes.

    python tests/edges/full.py FOLDER disk 4     a file system of its own, which root may mount (unshare -m)
    python tests/edges/full.py FOLDER file 4     the limit of one file (RLIMIT_FSIZE), as anybody

FOLDER/expected is the run that had room. The room grows each time by so little that many different writers
meet its end.
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

from kills import hashes

from latentprint.cli import answer

SETTINGS = """
control = false
[data]
images = 20
[model.network]
channels = [8, 8]
layers_per_block = 1
middle_attention = false
norm_groups = 4
[model.training]
steps = 12
batch = 8
checkpoint_seconds = 0.0
[presence]
epochs = 2
draws = 128
[identity]
epochs = 2
draws = 128
[sampler]
steps = 3
[search]
levels = 2
tries = 2
[baseline]
images = 0
[profile]
targets = 0
[samples]
count = 24
[likelihood]
images = 0
[fid]
samples = 24
features = "pixels"
"""


def audited(out: Path, settings: Path) -> tuple[int, str]:
    """(exit code, what was said on stderr) of the audit."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = answer(["audit", "digits", "--preset", "demo", "--config", str(settings), "--out", str(out)])
    return code, said.getvalue().strip()


def room(kind: str, place: Path, kib: int, first: bool) -> None:
    """Exactly so much for all files, or for each."""
    if kind == "file":
        resource.setrlimit(resource.RLIMIT_FSIZE, (kib * 1024, resource.RLIM_INFINITY))
        return
    how = f"size={kib}k" if first else f"remount,size={kib}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", how, "none", str(place)], check=True, capture_output=True)


def main(folder: Path, kind: str, finer: int = 2) -> None:
    """Prints which file had no room, and how often, as JSON; each room is 1 + 1/finer times the last."""
    import torch

    torch.set_num_threads(1)
    settings, place = folder / "settings.toml", folder / "small"
    place.mkdir()
    refused, kib = Counter[str](), 4
    while True:
        room(kind, place, kib, first=kib == 4)
        code, said = audited(place / "run", settings)
        if code == 0:
            break
        last = said.splitlines()[-1]
        assert code == 2 and "Traceback" not in said and len(last) <= 400, said
        assert last.startswith("latentprint: ") and ("disk is full" in last or "ulimit -f" in last), said
        refused[last.partition(" could")[0].rpartition("/")[2]] += 1
        kib += kib // finer
    assert hashes(place / "run") == hashes(folder / "expected")
    print(json.dumps(refused))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:4]))
