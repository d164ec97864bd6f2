"""The command line: ``latentprint demo | audit | report``.

Results go to stdout (with ``--json``, and nothing else there), progress and notes to stderr. Bad input: one
sentence on stderr, exit 2, nothing lost. Ctrl-C: what was finished is kept, and how to continue is printed.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from latentprint.contracts import InputError
from latentprint.progress import Bars
from latentprint.settings import load, merge

app = typer.Typer(
    name="latentprint",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Tells you, before you publish an image generator, whether it can give back a training image.",
)

Out = Annotated[Path, typer.Option("--out", help="Folder of the run; the same command again continues it.")]
Seed = Annotated[int, typer.Option(help="Everything random follows from this number.")]
Json = Annotated[bool, typer.Option("--json", help="Print results.json on stdout, and nothing else there.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Put a run that the folder holds aside; begin anew.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]


@contextmanager
def answering(command: str) -> Iterator[None]:
    """Turn expected errors into one sentence and exit 2, and Ctrl-C into the line that continues."""
    try:
        yield
    except InputError as error:
        print(f"latentprint: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as stop:
        print(f"\nStopped. What was finished is kept; continue with:\n    {command}", file=sys.stderr)
        raise typer.Exit(130) from stop


def _same_command() -> str:
    return shlex.join(["latentprint", *sys.argv[1:]])


@app.command()
def demo(
    out: Out = Path("demo"),
    seed: Seed = 0,
    device: Device = "cpu",
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """The whole method on 100 real handwritten digits: a few minutes on two CPU cores, with a report."""
    with answering(_same_command()):
        _audit({"seed": seed}, "demo", out, device, as_json, fresh=fresh)


@app.command()
def audit(
    data: Annotated[
        str, typer.Argument(help="digits, phantom:N, medmnist:NAME, a folder of images, or an .npz file.")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run; default runs/<data>.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings as TOML; they override the preset's.")] = None,
    preset: Annotated[
        str, typer.Option(help="Settings to start from: small (two CPU cores), paper (a GPU), demo.")
    ] = "small",
    images: Annotated[int | None, typer.Option(help="Train on this many images, drawn by the seed.")] = None,
    samples: Annotated[int | None, typer.Option(help="Images to sample from the model.")] = None,
    tries: Annotated[int | None, typer.Option(help="Tries per noise level, the paper's M.")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="'paper' for the paper's 1,000 stochastic steps, or a sampler's name.")
    ] = None,
    control: Annotated[
        bool | None, typer.Option(help="Also train the same recipe without the private image.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Everything random follows from this number.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the MedMNIST files.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch a missing MedMNIST file.")] = False,
    device: Device = "cpu",
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Audit DATA: train on it, or take --model, and report whether a training image comes back."""
    given: dict[str, Any] = {
        "seed": seed,
        "control": control,
        "data": {"source": data, "images": images},
        "samples": {"count": samples},
        "search": {"tries": tries},
        "sampler": {"name": sampler},
    }
    folder = out or Path("runs") / _name(data)
    with answering(_same_command()):
        over = merge(load(config) if config is not None else {}, _given(given))
        _audit(over, preset, folder, device, as_json, fresh=fresh, root=root, download=download)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Write report.html of RUN again from its results.json."""
    from latentprint.report import write_report

    with answering(_same_command()):
        print(write_report(run))


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Only what the user named: None means that the preset or the file decides."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            inner = _given(value)  # pyright: ignore[reportUnknownArgumentType]
            if inner:
                out[key] = inner
        elif value is not None:
            out[key] = value
    return out


def _name(data: str) -> str:
    """A folder name for a data source: ``medmnist:breastmnist`` -> ``medmnist-breastmnist``."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(data).name).strip("-.") or "run"


def _audit(
    over: dict[str, Any],
    preset: str,
    out: Path,
    device: str,
    as_json: bool,
    *,
    fresh: bool = False,
    root: Path | None = None,
    download: bool = False,
) -> None:
    from latentprint.audit import run_audit  # torch is imported only where it is needed
    from latentprint.config import resolve

    settings = resolve(over, preset=preset)
    with Bars() as bars:
        results = run_audit(
            settings, out, device=device, root=root, download=download, fresh=fresh, progress=bars
        )
    if as_json:
        json.dump(results, sys.stdout, indent=2)
        print()
        return
    verdict = results["verdict"]
    print(f"\n{verdict['state'].upper()}")
    for reason in verdict["reasons"]:
        print(f"  - {reason}")
    print(f"\nReport:       {out / 'report.html'}")
    print(f"Numbers:      {out / 'results.json'}")
    print(f"Confidential: {out / 'evidence' / 'index.html'}")


def main() -> None:
    """Entry point of the command ``latentprint``."""
    app()
