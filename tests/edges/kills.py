"""A run with every stage on, killed with -9 at random moments and repeated: does it end in the same bytes?

    python tests/edges/kills.py --kills 50 --seed 0 --executor local
    python tests/edges/kills.py --kills 10 --seed 1 --executor ray --processes 2

The command runs in a child that is killed after a random time, alone, so that its workers are left behind;
the next child repeats it at once, until it has ended by itself. Then every file of the run must be that of a
run that nobody killed, but run.json and report.html, which tell times, and the lock; and the next run begins.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SETTINGS = """
[data]
images = 20
[model.network]
channels = [8, 16]
[model.training]
steps = 40
batch = 16
checkpoint_seconds = 0.0
[presence]
epochs = 3
draws = 256
[identity]
epochs = 3
draws = 256
[embedding]
epochs = 2
draws = 256
[sampler]
steps = 4
beside = ["heun:3"]
[search]
levels = 3
tries = 2
[checkpoints]
keep = 2
[baseline]
images = 3
levels = 2
tries = 2
[profile]
targets = 3
null = 3
levels = 2
tries = 2
[samples]
count = 600
[likelihood]
images = 2
probes = 1
[membership]
images = 4
[rare]
splitting = true
path = true
most = 4000
"""


def command(out: Path, settings: Path, executor: str, processes: int) -> list[str]:
    """The audit's arguments."""
    given = ["audit", "digits", "--preset", "demo", "--config", str(settings), "--out", str(out)]
    return [*given, "--executor", executor, "--processes", str(processes)]


def begun(arguments: list[str], said: Path) -> int:
    """The process that runs the command; its output goes to a file."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.umask(0o077)
        from latentprint.cli import answer

        code = answer(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    except BaseException:
        os._exit(70)


def ended(child: int, seconds: float) -> int | None:
    """The exit code, or None where it still runs after so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        gone, status = os.waitpid(child, os.WNOHANG)
        if gone:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def hashes(run: Path) -> dict[str, str]:
    """Of every file that the settings and the seed decide."""
    files = sorted(path for path in run.rglob("*") if path.is_file())
    kept = [path for path in files if str(path.relative_to(run)) not in ("run.json", "report.html", "lock")]
    return {str(one.relative_to(run)): hashlib.sha256(one.read_bytes()).hexdigest() for one in kept}


def stage(run: Path) -> str:
    """The stage that was at work."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        stages = json.loads((run / "run.json").read_text())["stages"]
        return next((name for name, one in stages.items() if one["state"] == "begun"), "between stages")
    return "before the first stage"


@contextlib.contextmanager
def cluster(place: Path) -> Iterator[None]:
    """A Ray of its own, started once, as on a cluster: to start it takes longer than to audit."""
    given = ["--head", "--block", "--num-cpus", "2", "--port", "0", "--include-dashboard", "false"]
    given += ["--temp-dir", str(place / "ray"), "--disable-usage-stats"]
    given += ["--system-config", '{"worker_niceness": 0}']
    at = place / "ray" / "ray_current_cluster"
    os.environ["RAY_AUTH_MODE"] = "disabled"  # it and its drivers are of one process here
    for _ in range(5):  # on a busy machine Ray gives its own start up after half a minute
        with (place / "ray.log").open("wb") as said:
            started = subprocess.Popen(
                [str(Path(sys.executable).with_name("ray")), "start", *given],
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        until = time.monotonic() + 120
        while started.poll() is None and not at.exists() and time.monotonic() < until:
            time.sleep(0.5)
        if started.poll() is None and at.exists():
            break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    else:
        raise AssertionError((place / "ray.log").read_text()[-3000:])
    os.environ["RAY_ADDRESS"] = at.read_text().strip()
    try:
        yield
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        started.wait(60)


def run(
    kills: int,
    seed: int,
    executor: str,
    processes: int,
    place: Path,
    steps: int = 40,
    within: float | None = None,
) -> Counter[str]:
    """The stages in which a run was killed, whose trainings take so many steps.

    A kill comes at a random moment of the first `within` seconds of a child, or of the time of a whole run.

    Raises:
        AssertionError: a run ended in other bytes, or not at all.
    """
    import torch

    import latentprint.audit  # noqa: F401  what the children need not import each time

    torch.set_num_threads(1)
    at, hit, runs = random.Random(seed), Counter[str](), 0
    settings, said, out = place / "settings.toml", place / "said", place / "killed"
    # Checkpoints along the way are for one process.
    wanted = SETTINGS.replace("steps = 40", f"steps = {steps}")
    settings.write_text(wanted if processes == 1 else wanted.replace("keep = 2", "keep = 0"))
    began = time.monotonic()
    code = ended(begun(command(place / "straight", settings, executor, processes), said), 3600)
    whole = time.monotonic() - began
    assert code == 0, said.read_text()[-3000:]
    longest = whole if within is None else min(within, whole)
    expected = hashes(place / "straight")
    print(f"straight: {whole:.0f} s, {len(expected)} files", file=sys.stderr, flush=True)
    while hit.total() < kills or out.exists():
        child = begun(command(out, settings, executor, processes), said)
        code = ended(child, at.uniform(0, longest) if hit.total() < kills else 3600)
        if code is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            hit[stage(out)] += 1
            print(f"{hit.total()} of {kills} kills, {runs} runs ended", file=sys.stderr, flush=True)
            continue
        assert code == 0, said.read_text()[-3000:]
        found = hashes(out)
        differs = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        assert not differs, f"{len(differs)} files differ: {differs[:9]}"
        runs += 1
        shutil.rmtree(out)
    return hit


def main() -> None:
    """As many kills as are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--executor", default="local")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--steps", type=int, default=40, help="of each training: the more, the more kills in it"
    )
    parser.add_argument(
        "--within", type=float, help="seconds of a child in which its kill comes: the fewer, the more a run"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        if given.executor == "ray":
            stack.enter_context(cluster(Path(place)))
        asked = (given.kills, given.seed, given.executor, given.processes, Path(place), given.steps)
        hit = run(*asked, given.within)
    print(f"{hit.total()} kills, every run ended in the same bytes; killed in {dict(hit.most_common())}")


if __name__ == "__main__":
    main()
