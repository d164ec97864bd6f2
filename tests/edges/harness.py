"""Mutations of everything that is read: each must end in a result or in one sentence, and in bounded time.

    python tests/edges/harness.py --count 50000 --seed 0        (make edges)

A case is a document (results.json, run.json, policy, settings, the files of a model), a place in it, and
what stands there instead (`KINDS`); or a file of a run that is missing, cut, a folder, a pipe, a pickle. What
reads it runs in children of this process, with 4 GiB of address space more than they begin with and 30
seconds each. A case fails on a traceback, an exit code other than 0, 1 and 2, a refusal of several lines or
of more than 400 letters, and on a change that `verify` or a resumed run does not notice.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import small_runs
import torch

from latentprint.cli import answer
from latentprint.cli.options import AuditOptions
from latentprint.cli.shared import LONGEST, refusal
from latentprint.config import resolve
from latentprint.denoiser import NetworkDenoiser
from latentprint.gate import starter
from latentprint.networks import DIGITS, build_unet
from latentprint.networks.saved import ABOUT, load_model, save_model
from latentprint.schedule import SubVP
from latentprint.settings import plain
from latentprint.store import Run
from latentprint.store.record import sealed
from latentprint.streams import Streams

SECONDS = 30
MEMORY = 4 * 2**30
MARK = "@@edge@@"
GONE = "removed"

KINDS: dict[str, str] = {
    "null": "null",
    "true": "true",
    "zero": "0",
    "negative": "-1",
    "half": "0.5",
    "tiny": "1e-320",
    "huge": "1e300",
    "overflow": "1e400",
    "nan": "NaN",
    "infinity": "-Infinity",
    "many": str(10**12),
    "digits": "1" * 5000,
    "empty text": '""',
    "text": '"thorough"',
    "long text": '"' + "x/y " * 25_000 + '"',
    "surrogate": '"\\ud800"',
    "list": "[]",
    "table": "{}",
    "deep": "[" * 100_000 + "]" * 100_000,
    GONE: "",
}
TOML = KINDS | {
    "null": "nul",
    "nan": "nan",
    "infinity": "-inf",
    "surrogate": '"\\ud800"',
    "deep": "[" * 20_000 + "]" * 20_000,
    "long text": '"' + "x/y " * 10_000 + '"',
    "datetime": "2020-01-01T00:00:00Z",
}


@dataclass(frozen=True)
class Case:
    """One input: its name, how it is made, what reads it, and whether that must notice it."""

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], int]
    noticed: bool = False


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document, tables and lists themselves included."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield from places(below, (*path, key))


def changed(document: Any, path: tuple[Any, ...], kind: str) -> str:
    """The document as JSON, with the value at ``path`` replaced."""
    whole = json.loads(json.dumps(document))
    at = whole
    for key in path[:-1]:
        at = at[key]
    if kind == GONE:
        del at[path[-1]]
        return json.dumps(whole)
    at[path[-1]] = MARK
    return json.dumps(whole).replace(f'"{MARK}"', KINDS[kind])


def same(document: Any, path: tuple[Any, ...], kind: str) -> bool:
    """Whether the replacement is what stood there."""
    for key in path:
        document = document[key]
    with contextlib.suppress(ValueError, RecursionError):
        if kind == "tiny" and document == 0:
            return True  # the same to the last bit that a number between 0 and 1 has
        return json.dumps(document) == json.dumps(json.loads(KINDS[kind])) if KINDS[kind] else False
    return False


def command(*given: str) -> Callable[[Path], int]:
    """A command on the run (RUN), with POLICY for its policy."""

    def read(folder: Path) -> int:
        names = {"RUN": "run", "POLICY": "policy.toml", "OTHER": "other"}
        return answer([str(folder / names[one]) if one in names else one for one in given])

    return read


JUDGES = {
    "gate": command("gate", "RUN", "--policy", "POLICY"),
    "verify": command("verify", "RUN"),
    "report": command("report", "RUN"),
    "card": command("card", "RUN"),
    "compare": command("compare", "RUN", "OTHER", "--json"),
}


def resume(folder: Path) -> int:
    """The run opened to go on; 0 only where nothing of it had changed."""
    settings = json.loads((small_runs.RUNS / "marked" / "run.json").read_text())["settings"]
    with Run.open(folder / "run", settings) as run:
        for purpose in ("search.model", "samples.model"):
            run.rows(purpose)
    return 0


def configured(folder: Path) -> int:
    """Settings as ``audit --config`` reads them."""
    resolve(AuditOptions("digits", config=folder / "settings.toml").settings(), preset="demo")
    return 0


def loaded(folder: Path) -> int:
    """A model of our own."""
    load_model(folder / "model")
    return 0


def prepared(folder: Path) -> None:
    """A finished run with its record sealed, a second one, a policy, settings, a model: all as should be."""
    for name in ("run", "other"):
        shutil.copytree(small_runs.RUNS / "marked", folder / name)
        small_runs.written(small_runs.leak(), folder / name)
        record = json.loads((folder / name / "run.json").read_text())
        (folder / name / "run.json").write_bytes(sealed(record))
    (folder / "policy.toml").write_text(starter())
    (folder / "settings.toml").write_text(settings_toml())
    save_model(folder / "model", NetworkDenoiser(build_unet(DIGITS, 1, 8, Streams(0)), SubVP()))


def settings_toml() -> str:
    """All settings of the demo, as dotted keys of one line each."""

    def lines(table: dict[str, Any], path: str) -> Iterator[str]:
        for key, value in table.items():
            if isinstance(value, dict):
                yield from lines(value, f"{path}{key}.")
            elif value is not None:
                yield f"{path}{key} = {json.dumps(value)}"

    return "\n".join(lines(plain(resolve({}, preset="demo")), ""))


def cases(folder: Path) -> Iterator[Case]:
    """Every case there is; ``folder`` is `prepared`."""
    yield from _documents(folder)
    yield from _tables(folder)
    yield from _files(folder)


def _documents(folder: Path) -> Iterator[Case]:
    results = json.loads((folder / "run" / "results.json").read_text())
    record = json.loads((folder / "run" / "run.json").read_text())
    about = {name: json.loads((folder / "model" / name).read_text()) for name in ("config.json", ABOUT)}
    readers = {
        "run/results.json": (results, JUDGES),
        "run/run.json": (record, {"resume": resume, **{k: JUDGES[k] for k in ("verify", "report", "card")}}),
        **{f"model/{name}": (value, {"load": loaded}) for name, value in about.items()},
    }
    for file, (document, readings) in readers.items():
        for path in places(document):
            for kind in KINDS:
                if same(document, path, kind):
                    continue
                for reader, read in readings.items():
                    yield Case(
                        f"{reader}: {file} {'.'.join(map(str, path))} {kind}",
                        lambda at, f=file, d=document, p=path, k=kind: _put(
                            at / f, changed(d, p, k).encode()
                        ),
                        read,
                        noticed=reader == "resume" or (reader == "verify" and file.endswith("results.json")),
                    )


def _tables(folder: Path) -> Iterator[Case]:
    for name, read in (("policy.toml", JUDGES["gate"]), ("settings.toml", configured)):
        lines = (folder / name).read_text().splitlines()
        for number, line in enumerate(lines):
            if "=" not in line or line.startswith("#"):
                continue
            key = line.partition("=")[0].strip()
            for kind, value in TOML.items():
                new = "" if kind == GONE else f"{key} = {value}"
                text = "\n".join([*lines[:number], new, *lines[number + 1 :]])
                yield Case(f"{name} {key} {kind}", lambda at, n=name, t=text: _put(at / n, t.encode()), read)
            renamed = "\n".join([*lines[:number], f"{key}x = 1", *lines[number + 1 :]])
            yield Case(f"{name} {key} unknown", lambda at, n=name, t=renamed: _put(at / n, t.encode()), read)


def _files(folder: Path) -> Iterator[Case]:
    damages: dict[str, Callable[[Path], None]] = {
        GONE: lambda path: path.unlink(),
        "empty": lambda path: path.write_bytes(b""),
        "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "noise": lambda path: path.write_bytes(random.Random(0).randbytes(5000)),
        "pickle": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
        "text": lambda path: path.write_text("\udcff\x00{", errors="surrogateescape"),
        "deep": lambda path: path.write_text("[" * 100_000),
        "folder": lambda path: _instead(path, path.mkdir),
        "pipe": lambda path: _instead(path, lambda: os.mkfifo(path)),
        "zero": lambda path: _instead(path, lambda: path.symlink_to("/dev/zero")),
        "loop": lambda path: _instead(path, lambda: path.symlink_to(path.name)),
        "sparse": lambda path: os.truncate(path, 2**33),
    }
    judges = JUDGES | {"resume": resume}
    for file in sorted(path for part in ("run", "model") for path in (folder / part).rglob("*")):
        if not file.is_file() or file.name == "lock":
            continue
        inside = file.relative_to(folder)
        readings = judges if inside.parts[0] == "run" else {"load": loaded}
        for damage, apply in damages.items():
            for reader, read in readings.items():
                yield Case(f"{reader}: {inside} {damage}", lambda at, i=inside, a=apply: a(at / i), read)


def _instead(path: Path, make: Callable[[], None]) -> None:
    path.unlink()
    make()


def _put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


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
                    return "traceback: " + traceback.format_exc()[-700:]
                print(f"latentprint: {sentence}", file=err)
                code = 2
    finally:
        signal.alarm(0)
    said = err.getvalue().strip()
    if "Traceback" in said or code not in (0, 1, 2):
        return f"exit {code}: {said[-700:]}"
    one_line = said.startswith("latentprint: ") and "\n" not in said and len(said) <= LONGEST
    answered = bool(out.getvalue()) and not said  # gate's answer 2: could not judge, a reason for each rule
    if code == 2 and not one_line and not answered:
        return f"refusal of {len(said)} letters: {said[:200]}"
    if code == 0 and case.noticed:
        return "not noticed"
    if time.monotonic() - began > SECONDS:
        return "too slow"
    return None


def run(count: int, seed: int, seconds: float = float("inf"), batch: int = 100) -> tuple[int, list[str]]:
    """(cases tried, what failed): ``count`` cases drawn by ``seed``, as many as fit into ``seconds``."""
    until = time.monotonic() + seconds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        prepared(Path(place) / "good")
        every = list(cases(Path(place) / "good"))
        drawn = random.Random(seed).sample(every, min(count, len(every)))
        tried, failed = 0, list[str]()
        for first in range(0, len(drawn), batch):
            if time.monotonic() > until:
                break
            part = drawn[first : first + batch]
            failed += _in_a_child(part, Path(place), until)
            tried += len(part)
            if first % (batch * 10) == 0:
                print(
                    f"{tried:,} of {len(drawn):,} ({len(every):,}), {len(failed)} failed",
                    file=sys.stderr,
                    flush=True,
                )
    return tried, failed


def _in_a_child(part: list[Case], place: Path, until: float) -> list[str]:
    """The faults of some cases, tried in a process that cannot take the memory of this one."""
    log = place / "faults"
    log.write_text("")
    child = os.fork()
    if child == 0:
        try:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
            with log.open("a") as file:
                for case in part:
                    folder = place / "case"
                    shutil.copytree(place / "good", folder)
                    case.make(folder)
                    file.write(f"?{case.name}\n")
                    file.flush()
                    wrong = fault(case, folder)
                    file.write(json.dumps([case.name, wrong]) + "\n")
                    file.flush()
                    shutil.rmtree(folder)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    shutil.rmtree(place / "case", ignore_errors=True)
    lines = [line for line in log.read_text().splitlines() if line]
    done = [json.loads(line) for line in lines if line.startswith("[")]
    failed = [f"{name}: {wrong}" for name, wrong in done if wrong]
    if len(done) < len(part):
        last = lines[-1] if lines else "nothing"
        failed.append(f"the process that tried it died: {last}")
    return failed


def main() -> None:
    """The whole of it, or as much as is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    given = parser.parse_args()
    tried, failed = run(given.count, given.seed, given.seconds)
    for one in failed:
        print(one)
    kinds = Counter(one.split(":")[0] for one in failed)
    print(f"{tried:,} inputs, {len(failed)} failed {dict(kinds) or ''}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
