"""Mutations of everything that is read: each must end in a result or in one sentence, and in bounded time.

    python tests/edges/harness.py --count 50000 --seed 0 --log FILE        (make edges)

A case is a document (results.json, run.json, policy, settings, a model's configuration), a place in it, and
what stands there instead; a file of a run or a model that is missing, cut, a folder, a pipe, a pickle; an
image, table or archive of any format with bytes spoiled; an option with a value. What reads it runs in
children of this process, with 4 GiB of address space more than they begin with and 30 seconds each. A case
fails on a traceback, an exit code other than 0, 1 and 2, a refusal of several lines or of more than 400
letters, want of memory, and on a change that `verify` or a resumed run does not notice.

With ``--log`` what was tried is written down, and the same command goes on where it was stopped; ``--again``
tries what failed in a log.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import documents
import foreign
import images
import inputs
import models
import torch
from mutations import Case

from latentprint.cli.shared import refusal, say

SECONDS = 30
MEMORY = 4 * 2**30
LETTERS = 400
BATCH = 100
_MEMORY_SENTENCE = "the memory of this machine or device is not enough"


def prepared(folder: Path) -> None:
    """Everything as it should be."""
    documents.prepared(folder)
    models.prepared(folder)
    images.prepared(folder / "images")
    inputs.prepared(folder)
    foreign.prepared(folder)


def cases(folder: Path) -> Iterator[Case]:
    """Every case there is; ``folder`` is `prepared`."""
    yield from documents.cases(folder)
    yield from models.cases(folder)
    yield from inputs.cases(folder)
    yield from foreign.cases(folder)
    for case in images.cases(folder / "images"):
        yield Case(
            case.group,
            case.name,
            tuple(f"images/{name}" for name in case.needs),
            lambda at, c=case: c.make(at / "images"),
            lambda at, c=case: c.read(at / "images"),
            case.noticed,
        )


def drawn(every: list[Case], seed: int) -> list[Case]:
    """All cases in an order of the seed in which every group comes as often as another, while it lasts."""
    at = random.Random(seed)
    at.shuffle(every)
    rank = Counter[str]()
    order = list[tuple[int, float, Case]]()
    for case in every:
        order.append((rank[case.group], at.random(), case))
        rank[case.group] += 1
    return [case for _, _, case in sorted(order, key=lambda one: one[:2])]


def fault(case: Case, folder: Path) -> str | None:
    """What is wrong with how a case ended; None where nothing is."""

    def late(*_: object) -> None:
        raise TimeoutError(f"longer than {SECONDS} seconds")

    out, err, began = io.StringIO(), io.StringIO(), time.monotonic()
    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = case.read(folder)
            except Exception as error:  # readers that are no command: what the command line would say
                sentence = None if isinstance(error, TimeoutError) else refusal(error)
                if sentence is None:
                    return "traceback: " + traceback.format_exc()[-900:]
                with contextlib.redirect_stderr(err):
                    say(sentence)
                code = 2
    finally:
        signal.alarm(0)
    said = err.getvalue().strip()
    if "Traceback" in said or code not in (0, 1, 2):
        return f"exit {code}: {said[-900:]}"
    if time.monotonic() - began > SECONDS:
        return "too slow"
    if _MEMORY_SENTENCE in said:
        return "too much memory"
    one_line = said.startswith("latentprint: ") and "\n" not in said and len(said) <= LETTERS
    answered = bool(out.getvalue()) and not said  # gate's answer 2: could not judge, a reason for each rule
    if code == 2 and not one_line and not answered:
        return f"refusal of {len(said)} letters: {said}"
    if code == 0 and case.noticed:
        return "not noticed"
    return None


def run(
    count: int,
    seed: int,
    seconds: float = float("inf"),
    log: Path | None = None,
    again: Path | None = None,
    only: str = "",
    part: tuple[int, int] = (1, 1),
) -> tuple[int, list[str]]:
    """(cases tried, what failed): ``count`` cases in the order of ``seed``, or what fits into ``seconds``.

    ``again`` names the log of a run: only what failed in it is tried. ``only`` is a regular expression that
    the names of groups must hold; ``part`` (i, n) takes the i-th of n parts, for n processes at once.
    """
    torch.set_num_threads(1)
    ram = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=ram if ram.is_dir() else None) as place:
        good, kept = Path(place) / "good", log or Path(place) / "log"
        good.mkdir()
        prepared(good)
        before = _digest(good)
        every = [case for case in cases(good) if re.search(only, case.group)]
        _accepts(every, Path(place))
        if again is not None:
            failed = {name for name, wrong in _logged(again).items() if wrong is not None}
            every = [case for case in every if case.name in failed]
        print(f"{len(every):,} cases in all", file=sys.stderr, flush=True)
        until = time.monotonic() + seconds  # of trying: a busy machine takes minutes to prepare
        todo = drawn(every, seed)[:count][part[0] - 1 :: part[1]]
        known = len(todo)
        done = _logged(kept)
        todo = [case for case in todo if case.name not in done]
        said = 0
        while todo and time.monotonic() < until:
            _in_a_child(todo[:BATCH], Path(place), kept)
            done = _logged(kept)
            todo = [case for case in todo[:BATCH] if case.name not in done] + todo[BATCH:]
            if len(done) >= said:
                said = len(done) + 10 * BATCH
                failed = sum(wrong is not None for wrong in done.values())
                print(f"{len(done):,} of {known:,} cases, {failed} failed", file=sys.stderr, flush=True)
        assert _digest(good) == before, "a case changed what the others begin with"
    return len(done), [f"{name}: {wrong}" for name, wrong in done.items() if wrong is not None]


def _accepts(every: list[Case], place: Path) -> None:
    """Nothing, where what is unchanged is read as it should be; and the children need not import again.

    Raises:
        AssertionError: a refusal, so that the cases of this group would show nothing.
    """
    refused = list[str]()
    for case in {case.group: case for case in every if case.needs}.values():
        # An image that is none of those trained on is refused, and of options only some are possible.
        if case.group.startswith(("target", "options")):
            continue
        folder = _laid_out(case, place)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                code = case.read(folder)
            except ValueError as error:
                code = str(error)
        if code not in (0, 1):
            refused.append(f"{case.name}, unchanged: {code} {said.getvalue()}")
        shutil.rmtree(folder)
    assert not refused, "\n".join(refused)


def _digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _logged(log: Path) -> dict[str, str | None]:
    """Name -> fault of the cases in the log."""
    lines = log.read_text().splitlines() if log.exists() else []
    return {one["case"]: one["fault"] for one in map(json.loads, lines)}


def _in_a_child(part: list[Case], place: Path, log: Path) -> None:
    """Tries some cases in a process that cannot take the memory of this one; a line in the log for each.

    A case that kills the process, or that no alarm reaches, ends the batch, and is written down by us.
    """
    marker = place / "trying"
    marker.write_text("")
    child = os.fork()
    if child == 0:
        try:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
            for case in part:
                marker.write_text(case.name)
                began = time.monotonic()
                wrong = _tried(case, place)
                spent = round(time.monotonic() - began, 2)
                with log.open("a") as file:
                    file.write(json.dumps({"case": case.name, "fault": wrong, "seconds": spent}) + "\n")
                marker.write_text("")
        finally:
            os._exit(0)
    while True:
        ended, _ = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.time() - marker.stat().st_mtime > 4 * SECONDS:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.05)
    if name := marker.read_text():
        with log.open("a") as file:
            file.write(json.dumps({"case": name, "fault": "the process that tried it died"}) + "\n")
    shutil.rmtree(place / "case", ignore_errors=True)


def _tried(case: Case, place: Path) -> str | None:
    folder = _laid_out(case, place)
    case.make(folder)
    wrong = fault(case, folder)
    shutil.rmtree(folder)
    return wrong


def _laid_out(case: Case, place: Path) -> Path:
    """A folder with what a case needs; its files are links to the prepared ones."""
    folder = place / "case"
    folder.mkdir()
    for name in case.needs:
        source = place / "good" / name
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, copy_function=os.link)
        else:
            os.link(source, target)
    (folder / "images").mkdir(exist_ok=True)
    return folder


def main() -> None:
    """The whole of it, or as much as is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--log", type=Path)
    parser.add_argument("--again", type=Path, help="try what failed in this log")
    parser.add_argument("--only", default="", help="a regular expression that the names of groups must hold")
    parser.add_argument("--part", default="1/1", help="2/3: the second of three parts")
    given = parser.parse_args()
    i, n = map(int, given.part.split("/"))
    tried, failed = run(given.count, given.seed, given.seconds, given.log, given.again, given.only, (i, n))
    for one in failed:
        print(one)
    kinds = Counter(one.split(":")[0] for one in failed)
    print(f"{tried:,} inputs, {len(failed)} failed {dict(kinds) or ''}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
