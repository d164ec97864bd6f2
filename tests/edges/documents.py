"""Runs, policies, settings and models of our own: every value and every file of them, changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import small_runs
from mutations import DAMAGES, GONE, KINDS, TOML, Case, changed, places, put, same

from latentprint.cli import answer
from latentprint.cli.options import AuditOptions
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

Read = Callable[[Path], int]


def command(*given: str) -> Read:
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
    "dossier": command("dossier", "RUN", "--policy", "POLICY"),
}
_BESIDE = {"gate": ("policy.toml",), "compare": ("other",), "dossier": ("policy.toml",)}


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
    (folder / "settings.toml").write_text(_settings())
    save_model(folder / "model", NetworkDenoiser(build_unet(DIGITS, 1, 8, Streams(0)), SubVP()))


def _settings() -> str:
    """All settings of the demo, as dotted keys of one line each."""

    def lines(table: dict[str, Any], path: str) -> Iterator[str]:
        for key, value in table.items():
            if isinstance(value, dict):
                yield from lines(value, f"{path}{key}.")
            elif value is not None:
                yield f"{path}{key} = {json.dumps(value)}"

    return "\n".join(lines(plain(resolve({}, preset="demo")), ""))


def cases(folder: Path) -> Iterator[Case]:
    """Every case of them; ``folder`` is `prepared`."""
    yield from _documents(folder)
    yield from _tables(folder)
    yield from _files(folder)


def _documents(folder: Path) -> Iterator[Case]:
    results = json.loads((folder / "run" / "results.json").read_text())
    record = json.loads((folder / "run" / "run.json").read_text())
    recorded = {"resume": resume, **{k: JUDGES[k] for k in ("verify", "report", "card", "dossier")}}
    yield from of_document("run", "results.json", results, JUDGES, noticed=("verify",))
    yield from of_document("run", "run.json", record, recorded, noticed=("resume",))
    for name in ("config.json", ABOUT):
        about = json.loads((folder / "model" / name).read_text())
        yield from of_document("model", name, about, {"load": loaded})


def of_document(
    part: str,
    file: str,
    document: Any,
    readings: dict[str, Read],
    *,
    noticed: tuple[str, ...] = (),
    most: int | None = None,
) -> Iterator[Case]:
    """Every value of a JSON document of ``part`` replaced in every way, before every reader.

    Of more than ``most`` values as many, evenly spaced.
    """
    every = list(places(document))
    for path in every[:: 1 if most is None else -(-len(every) // most)]:
        for kind in KINDS:
            if same(document, path, kind):
                continue
            for reader, read in readings.items():
                yield Case(
                    f"{reader} {part}/{file}",
                    f"{reader}: {part}/{file} {'.'.join(map(str, path))} {kind}",
                    (part, *_BESIDE.get(reader, ())),
                    lambda at, d=document, p=path, k=kind: put(at / part / file, changed(d, p, k)),
                    read,
                    reader in noticed,
                )


def _tables(folder: Path) -> Iterator[Case]:
    for name, needs, read in (
        ("policy.toml", ("policy.toml", "run"), JUDGES["gate"]),
        ("settings.toml", ("settings.toml",), configured),
    ):
        lines = (folder / name).read_text().splitlines()
        for number, line in enumerate(lines):
            if "=" not in line or line.startswith("#"):
                continue
            key = line.partition("=")[0].strip()
            others = {kind: "" if kind == GONE else f"{key} = {value}" for kind, value in TOML.items()}
            for kind, new in {**others, "unknown": f"{key}x = 1"}.items():
                text = "\n".join([*lines[:number], new, *lines[number + 1 :]]).encode()
                yield Case(
                    name,
                    f"{name}: {number} {key} {kind}",
                    needs,
                    lambda at, n=name, t=text: put(at / n, t),
                    read,
                )


def _files(folder: Path) -> Iterator[Case]:
    judges = JUDGES | {"resume": resume}
    yield from of_files(folder, "run", judges)
    yield from of_files(folder, "model", {"load": loaded})


def of_files(folder: Path, part: str, readings: dict[str, Read]) -> Iterator[Case]:
    """Every file of ``part`` damaged in every way, before every reader."""
    for file in sorted(path for path in (folder / part).rglob("*") if path.is_file()):
        if file.name == "lock":
            continue
        inside = file.relative_to(folder)
        for damage, apply in DAMAGES.items():
            for reader, read in readings.items():
                yield Case(
                    f"{reader} files of {part}",
                    f"{reader}: {inside} {damage}",
                    (part, *_BESIDE.get(reader, ())),
                    lambda at, i=inside, a=apply: a(at / i),
                    read,
                )
