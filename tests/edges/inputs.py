"""What else is read: prompts, marks, keys, dossiers, checkpoints, rows, converted models, other commands."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import typer
from documents import command, of_document, of_files
from models import given
from mutations import DAMAGES, Case, put, spoiled
from PIL import Image

from latentprint.cli import answer
from latentprint.data.captions import captions
from latentprint.detector import DetectorConfig, NetworkDetector, load_detector
from latentprint.marks.folder import mark_folder, read_mark
from latentprint.networks import UNetConfig, build_unet
from latentprint.schedule import SubVP
from latentprint.stats import DetectorRates, Trials
from latentprint.streams import Streams
from latentprint.training import TrainConfig, train

COUNT = 6
EACH = 80
"""Spoiled forms of each file."""

_NAMES = tuple(f"{i}.png" for i in range(COUNT))
_PIXELS = np.random.default_rng(1).integers(0, 256, (COUNT, 8, 8), dtype=np.uint8)


def prepared(folder: Path) -> None:
    """Inputs as they should be, each in a folder of its own; ``folder`` is prepared by the other modules."""
    _prompts(folder)
    np.savez(folder / "trained.npz", images=np.random.default_rng(2).integers(0, 256, (60, 8, 8), np.uint8))
    (folder / "marked").mkdir()
    _pictures(folder / "marked" / "set")
    mark_folder(folder / "marked" / "set", folder / "marked" / "mark.json")
    _key(folder)
    _checkpoint(folder / "training")
    _detector(folder / "detector")
    _models(folder)


def _pictures(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, pixels in zip(_NAMES, _PIXELS, strict=True):
        Image.fromarray(pixels).save(folder / name)
    return folder


def _prompts(folder: Path) -> None:
    """Three ways to state prompts: FILE.csv elsewhere, metadata.jsonl and .txt files beside the images."""
    rows = [(name, f"a scan, number {i}") for i, name in enumerate(_NAMES)]
    for way in ("csv", "jsonl", "txt"):
        place = _pictures(folder / "prompts" / way)
        if way == "csv":
            lines = [f'{name},"{text}"' for name, text in rows]
            (place / "metadata.csv").write_text("\n".join(["file_name,text", *lines]))
        elif way == "jsonl":
            lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
            (place / "metadata.jsonl").write_text("\n".join(lines))
        else:
            for name, text in rows:
                (place / name).with_suffix(".txt").write_text(text)
    (folder / "prompts" / "apart.csv").write_text("\n".join(f'{name},"{text}"' for name, text in rows))


def _key(folder: Path) -> None:
    """A key to sign with, and a run with a signed dossier."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(pem)
    shutil.copytree(folder / "run", folder / "signed")
    with contextlib.redirect_stdout(io.StringIO()):
        assert answer(["dossier", str(folder / "signed"), "--key", str(folder / "key.pem")]) == 0


_TINY = UNetConfig((8, 8), layers_per_block=1, middle_attention=False, norm_groups=4)
_TRAINING = TrainConfig(steps=3, batch=2, warmup=0, checkpoint_seconds=0.0)


def _trained(folder: Path) -> int:
    """A training that goes on where ``folder`` says it was."""
    images = (_PIXELS[:, None] / 127.5 - 1).astype(np.float32)
    network = build_unet(_TINY, 1, 8, Streams(0))
    for _ in train(images, network, SubVP(), _TRAINING, Streams(0), torch.device("cpu"), folder):
        pass
    return 0


def _checkpoint(folder: Path) -> None:
    """A training after one of its steps."""
    images = (_PIXELS[:, None] / 127.5 - 1).astype(np.float32)
    network = build_unet(_TINY, 1, 8, Streams(0))
    states = train(images, network, SubVP(), _TRAINING, Streams(0), torch.device("cpu"), folder)
    next(states)
    states.close()  # pyright: ignore[reportAttributeAccessIssue]


def _detector(folder: Path) -> None:
    """A c_p whose weights are drawn."""
    config = DetectorConfig(backbone="small")
    network = config.network("presence", Streams(0), 2).eval()
    rates = DetectorRates(Trials(3, 4), Trials(0, 4), {}, "presence (small)")
    NetworkDetector("presence", network, 0.5, rates, config, 1, (1, 8, 8)).save(folder)  # type: ignore[arg-type]


def _models(folder: Path) -> None:
    """Folders of MONAI and of `latentprint convert`, where their libraries are there."""
    if "monai" in _LIBRARIES:
        import test_monai as monai

        net = monai.network("DiffusionModelUNet", monai.UNET)
        schedule = monai.scheduler("DDPMScheduler", num_train_timesteps=20, beta_start=0.01, beta_end=0.3)
        monai.folder_of(folder / "monai", {"unet": (net, monai.UNET)}, schedule)
    if "denoising_diffusion_pytorch" in _LIBRARIES:
        import test_convert as convert

        _, checkpoint = convert.trained_by_lucidrains("pred_v", "sigmoid")
        work = folder / "work"
        work.mkdir()
        convert.taken(work, checkpoint, "model")
        (work / "model").rename(folder / "lucidrains")
        shutil.rmtree(work)


def _there(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


_LIBRARIES = frozenset(filter(_there, ("monai", "denoising_diffusion_pytorch", "nibabel")))


def cases(folder: Path) -> Iterator[Case]:
    """Every case; ``folder`` is `prepared`."""
    yield from _of_prompts(folder)
    yield from _of_marks(folder)
    yield from _of_keys(folder)
    yield from _of_rows(folder)
    yield from of_files(folder, "detector", {"load": lambda at: 0 * id(load_detector(at / "detector"))})
    note = json.loads((folder / "training" / "commit.json").read_text())
    yield from of_document("training", "commit.json", note, {"train": lambda at: _trained(at / "training")})
    note = json.loads((folder / "detector" / "commit.json").read_text())
    read = {"load": lambda at: 0 * id(load_detector(at / "detector"))}
    yield from of_document("detector", "commit.json", note, read)
    yield from of_files(folder, "training", {"train": lambda at: _trained(at / "training")})
    for name in ("monai", "lucidrains"):
        if not (folder / name).is_dir():
            continue
        for file in sorted((folder / name).rglob("*.json")):
            inside, document = str(file.relative_to(folder / name)), json.loads(file.read_text())
            yield from of_document(name, inside, document, {"given": given(name, value_range="-1,1")})
        yield from of_files(folder, name, {"given": given(name, value_range="-1,1")})
    yield from _of_commands(folder)


def of_bytes(
    folder: Path, file: str, group: str, needs: tuple[str, ...], read: Callable[[Path], int]
) -> Iterator[Case]:
    """A file of the prepared folder, damaged in every way and spoiled in many."""
    content = (folder / file).read_bytes()
    for damage, apply in DAMAGES.items():
        yield Case(group, f"{group}: {file} {damage}", needs, lambda at, a=apply: a(at / file), read)
    for i in range(EACH):
        change = lambda at, i=i: put(at / file, spoiled(content, random.Random(f"{file} {i}")))  # noqa: E731
        yield Case(group, f"{group}: {file} spoiled {i}", needs, change, read)


def _of_prompts(folder: Path) -> Iterator[Case]:
    def read(at: Path, way: str, file: str | None) -> int:
        named = None if file is None else at / "prompts" / file
        captions(str(at / "prompts" / way), _NAMES, named)
        return 0

    for way, file in (("csv", "metadata.csv"), ("jsonl", "metadata.jsonl"), ("txt", "0.txt")):
        path = f"prompts/{way}/{file}"
        yield from of_bytes(folder, path, f"prompts {way}", ("prompts",), partial(read, way=way, file=None))
        yield from of_bytes(
            folder, path, f"prompts in {way}", ("prompts",), partial(read, way="csv", file=way)
        )
        yield from of_bytes(
            folder, path, f"inject {way}", ("prompts",), partial(_injected, way=f"prompts/{way}")
        )
    apart = partial(read, way="csv", file="apart.csv")
    yield from of_bytes(folder, "prompts/apart.csv", "prompts apart", ("prompts",), apart)
    for line in ({}, {"file_name": 3, "text": "a"}, {"file_name": "0.png", "text": None}, {"text": ["a"]}):
        for i, wrong in enumerate((line, [line], "a", None, {**line, "file_name": "../0.png"})):
            text = "\n".join([json.dumps(wrong), json.dumps({"file_name": "1.png", "text": "x" * 20_000})])
            yield Case(
                "prompts jsonl",
                f"prompts: line {json.dumps(line)} {i}",
                ("prompts",),
                lambda at, t=text: put(at / "prompts" / "jsonl" / "metadata.jsonl", t.encode()),
                partial(read, way="jsonl", file=None),
            )


def _injected(at: Path, way: str) -> int:
    """A mark put into a folder; where that is refused, nothing may have been marked."""
    before = {path: path.read_bytes() for path in (at / way).glob("[1-9].png")}
    code = answer(["inject", str(at / way), "--mark", str(at / "m.json"), "--image", "3.png"])
    after = {path: path.read_bytes() for path in (at / way).glob("[1-9].png")}
    if code and (before != after or (at / "m.json").exists()):
        raise AssertionError("it was refused, and yet an image was marked")
    return code


def _of_marks(folder: Path) -> Iterator[Case]:
    def read(at: Path) -> int:
        read_mark(at / "marked" / "mark.json").mask(8, 8)
        return 0

    document = json.loads((folder / "marked" / "mark.json").read_text())
    yield from of_document("marked", "mark.json", document, {"mark": read})
    yield from of_bytes(folder, "marked/mark.json", "marks", ("marked",), read)
    for kind in ("png", "png-16", "jpg", "bmp", "webp", "tif", "tif-lzw"):
        place = f"images/{kind}"
        file = next((folder / place).glob("3.*")).name
        yield from of_bytes(
            folder, f"{place}/{file}", f"inject {kind}", (place,), partial(_marked, place, file)
        )


def _marked(place: str, file: str, at: Path) -> int:
    return answer(["inject", str(at / place), "--mark", str(at / "m.json"), "--image", file])


def _of_keys(folder: Path) -> Iterator[Case]:
    def sign(at: Path) -> int:
        return answer(["dossier", str(at / "run"), "--key", str(at / "key.pem")])

    yield from of_bytes(folder, "key.pem", "keys", ("key.pem", "run"), sign)
    verify = lambda at: answer(["verify", str(at / "signed")])  # noqa: E731
    seal = json.loads((folder / "signed" / "dossier.json").read_text())
    for case in of_document("signed", "dossier.json", seal, {"verify": verify}, noticed=("verify",)):
        # Whoever takes the signature away has an unsigned dossier, which is one too.
        yield replace(case, noticed=not case.name.endswith(" signature null"))
    yield from of_bytes(folder, "signed/dossier.html", "dossier", ("signed",), verify)


def _of_rows(folder: Path) -> Iterator[Case]:
    """Stored rows with values that no stage writes: a column gone, of another type, out of its range."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def changed(path: Path, column: str, change: Callable[[Any], Any]) -> None:
        table = pq.read_table(path)
        place, values = table.column_names.index(column), table[column].to_numpy().copy()
        new = change(values)
        table = table.remove_column(place) if new is None else table.set_column(place, column, pa.array(new))
        out = io.BytesIO()
        pq.write_table(table, out)
        put(path, out.getvalue())

    def to(value: float) -> Callable[[Any], Any]:
        def change(values: Any) -> Any:
            values = values.astype(np.float64) if values.dtype.kind == "f" else values.astype(np.int64)
            values[: 1 + len(values) // 2] = value
            return values

        return change

    changes: dict[str, Callable[[Any], Any]] = {
        "gone": lambda values: None,
        "as text": lambda values: values.astype(str),
        "as a float": lambda values: values.astype(np.float64) + 0.5,
        "as a flag": lambda values: values.astype(np.float64) > 0,
        "negative": to(-1),
        "many": to(10**12),
        "most": to(2**62),
        "nan": lambda values: values.astype(np.float64) * np.nan,
        "infinite": lambda values: values.astype(np.float64) + np.inf,
        "constant": lambda values: values * 0,
        "reversed": lambda values: values[::-1],
    }
    for part in sorted((folder / "run" / "probes").glob("*.parquet")):
        file = f"run/probes/{part.name}"
        for column in pq.read_schema(part).names:
            for name, change in changes.items():
                yield Case(
                    "rows",
                    f"verify: rows {part.name} {column} {name}",
                    ("run",),
                    lambda at, f=file, k=column, c=change: changed(at / f, k, c),
                    command("verify", "RUN"),
                )


_FILTER = ("filter", "IN", "--train", "TRAINED", "--images", "30", "--out", "OUT")
_COMMANDS: dict[tuple[str, ...], tuple[str, ...]] = {
    _FILTER: ("IN", "--train", "--images", "--share", "--seed", "--root", "--out"),
    ("inject", "SET", "--mark", "OUT"): ("SET", "--mark", "--image", "--fingerprint", "--files", "--seed"),
    ("remedies", "digits", "--quick", "--out", "OUT"): (
        "digits", "--config", "--preset", "--images", "--fingerprints", "--only", "--seed", "--root", "--out",
    ),
    ("forecast", "digits", "--until", "1"): ("digits", "--until", "--config", "--preset", "--images"),
    ("check", "digits", "--preset", "demo"): ("digits", "--config", "--images", "--window", "--patient"),
    ("compare", "RUN", "OTHER", "--page", "OUT"): ("RUN", "OTHER", "--page"),
    ("card", "RUN", "--into", "OUT"): ("RUN", "--into", "--name"),
    ("gate", "RUN", "--policy", "POLICY"): ("RUN", "--policy"),
    ("convert", "IN", "OUT", "--i-trust-this-file"): ("IN", "OUT", "--take", "--flags"),
}  # fmt: skip
"""Commands, and which of their words are replaced by something else; options that they lack are added."""


def _of_commands(folder: Path) -> Iterator[Case]:
    from models import VALUES, places_here

    for words, replaced in _COMMANDS.items():
        for what in replaced:
            for value in VALUES:
                if value.startswith(".."):  # what is written there would stay
                    continue
                line = list(words)
                if not what.startswith("--"):
                    line[line.index(what)] = value
                elif what in line:
                    line[line.index(what) + 1] = value
                else:
                    line += [what, value]
                yield Case(
                    f"options of {words[0]}",
                    f"{words[0]}: {what} {value[:60]!r} {len(value)}",
                    ("run", "other", "policy.toml", "marked", "images/png", "trained.npz"),
                    places_here,
                    partial(_said, tuple(line)),
                )
    for kind in ("png", "tif", "npz", "npy", "zip"):
        file = f"images/{kind}/0.{kind}"
        source = f"images/{kind}" if kind in ("png", "tif") else file
        said = {"IN": source, "OUT": "OUT" if kind in ("png", "tif") else "PASSED"}
        line = tuple(said.get(one, one) for one in _FILTER)
        yield from of_bytes(
            folder, file, f"filter {kind}", (f"images/{kind}", "trained.npz"), partial(_said, line)
        )


def _said(words: tuple[str, ...], at: Path) -> int:
    named = {
        "IN": "images/png", "SET": "marked/set", "TRAINED": "trained.npz", "OUT": "out", "PASSED": "out.npz",
        "RUN": "run", "OTHER": "other", "POLICY": "policy.toml",
        "FIFO": "FIFO", "FOLDER": "FOLDER", "LOOP": "LOOP",
    }  # fmt: skip
    line = [str(at / named[one]) if one in named else one for one in words]

    def enough(*_: object, **__: object) -> Any:
        raise typer.Exit(0)

    with contextlib.chdir(at), contextlib.ExitStack() as stack:
        if words[0] in _TRAINS:  # what comes after is a training
            __import__(_TRAINS[words[0]].rpartition(".")[0])
            stack.enter_context(mock.patch(_TRAINS[words[0]], enough))
        return answer(line)


_TRAINS = {
    "remedies": "latentprint.remedies.run._units",
    "forecast": "latentprint.remedies.training.looks_along",
    "check": "latentprint.preflight._own",
}
