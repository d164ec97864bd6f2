"""``latentprint demo`` and ``latentprint audit``: the whole method, from images to a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from latentprint.cli.shared import Device, Fresh, Json, Out, Seed, answering, print_json
from latentprint.progress import Bars
from latentprint.settings import load, merge


def demo(
    out: Out = Path("demo"),
    seed: Seed = 0,
    device: Device = "cpu",
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """The whole method on 100 real handwritten digits: a few minutes on two CPU cores, with a report."""
    with answering():
        _audit({"seed": seed}, "demo", out, device, as_json, fresh=fresh)


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
    with answering():
        over = merge(load(config) if config is not None else {}, _given(given))
        _audit(over, preset, folder, device, as_json, fresh=fresh, root=root, download=download)


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
        print_json(results)
        return
    verdict = results["verdict"]
    print(f"\n{verdict['state'].upper()}")
    for reason in verdict["reasons"]:
        print(f"  - {reason}")
    print(f"\nReport:       {out / 'report.html'}")
    print(f"Numbers:      {out / 'results.json'}")
    print(f"Confidential: {out / 'evidence' / 'index.html'}")
