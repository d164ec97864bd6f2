"""``latentprint demo``, ``audit`` and ``check``: the whole method, from images to a verdict, and its cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from latentprint.cli.shared import Device, Fresh, Json, Out, Seed, answering, print_json
from latentprint.contracts import InputError
from latentprint.progress import Bars
from latentprint.search.settings import parse_targets
from latentprint.settings import load, merge

Data = Annotated[
    str, typer.Argument(help="digits, phantom:N, medmnist:NAME, a folder of images, or an .npz file.")
]
MaybeOut = Annotated[Path | None, typer.Option("--out", help="Folder of the run; default runs/DATA.")]
Config = Annotated[Path | None, typer.Option(help="Settings as TOML; they go over the preset's.")]
Preset = Annotated[
    str, typer.Option(help="Settings to start from: small (2 CPU cores), paper (a GPU), demo.")
]
Images = Annotated[int | None, typer.Option(help="Train on this many images, drawn by the seed.")]
Samples = Annotated[int | None, typer.Option(help="Images to sample from the model.")]
Tries = Annotated[int | None, typer.Option(help="Tries per noise level, the paper's M.")]
SamplerName = Annotated[
    str | None, typer.Option(help="'paper' for the paper's 1,000 stochastic steps, or the name of a step.")
]
TargetsText = Annotated[
    str | None,
    typer.Option("--targets", help="Also rank training images by t': all, how many, or places such as 3,14."),
]
Control = Annotated[bool | None, typer.Option(help="Also train the same recipe without the private image.")]
MaybeSeed = Annotated[int | None, typer.Option(help="Everything random follows from this number.")]
Root = Annotated[Path | None, typer.Option(help="Folder of the MedMNIST files.")]
Authority = Annotated[
    str | None, typer.Option("--authorised-by", help="Who stated which authority for this audit; it is kept.")
]
Model = Annotated[
    Path | None,
    typer.Option(
        "--model", help="Audit this model, trained by others on DATA (a folder of diffusers, EDM or ours)."
    ),
]
Target = Annotated[
    int | None,
    typer.Option(
        "--target", help="With --model: which training image to look for; default: drawn by the seed."
    ),
]
Label = Annotated[
    int | None,
    typer.Option("--label", help="With --model: the class to audit, where it is conditional on one."),
]
Download = Annotated[bool, typer.Option("--download", help="Fetch a missing MedMNIST file.")]


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
    data: Data,
    out: MaybeOut = None,
    config: Config = None,
    preset: Preset = "small",
    images: Images = None,
    samples: Samples = None,
    tries: Tries = None,
    sampler: SamplerName = None,
    targets: TargetsText = None,
    control: Control = None,
    seed: MaybeSeed = None,
    root: Root = None,
    download: Download = False,
    device: Device = "cpu",
    authorised_by: Authority = None,
    model: Model = None,
    target: Target = None,
    label: Label = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Train on DATA with one marked image among it, and report whether that image comes back.

    With --model nothing is trained: that model is asked for one of the images as it stands.
    """
    with answering():
        if model is not None and control:
            raise InputError(
                "--control trains a second model as the first was, which nothing says of a given one"
            )
        over = _over(config, data, images, samples, tries, sampler, targets, control, seed)
        folder = out or Path("runs") / _name(data)
        _audit(
            over,
            preset,
            folder,
            device,
            as_json,
            fresh=fresh,
            root=root,
            download=download,
            authorised_by=authorised_by,
            model=model,
            target=target,
            label=label,
        )


def check(
    data: Data,
    out: MaybeOut = None,
    config: Config = None,
    preset: Preset = "small",
    images: Images = None,
    samples: Samples = None,
    tries: Tries = None,
    sampler: SamplerName = None,
    targets: TargetsText = None,
    control: Control = None,
    seed: MaybeSeed = None,
    root: Root = None,
    download: Download = False,
    device: Device = "cpu",
    model: Model = None,
    as_json: Json = False,
) -> None:
    """What ``audit`` with these options would run and cost here; exit 1 where something deserves a look."""
    with answering():
        from latentprint.config import resolve
        from latentprint.preflight import check as preflight

        if model is not None:
            raise InputError(
                "check measures audits that train their own model; it does not know what one of a given model"
                " costs, so run audit --model with few --samples first"
            )
        over = _over(config, data, images, samples, tries, sampler, targets, control, seed)
        folder = out or Path("runs") / _name(data)
        found = preflight(resolve(over, preset=preset), folder, device=device, root=root, download=download)
    if as_json:
        print_json(found.to_dict())
    else:
        print("\n".join(found.lines()))
    raise typer.Exit(found.exit_code)


def _over(
    config: Path | None,
    data: str,
    images: int | None,
    samples: int | None,
    tries: int | None,
    sampler: str | None,
    targets: str | None,
    control: bool | None,
    seed: int | None,
) -> dict[str, Any]:
    """The file's settings with the options over them; an option that was not given decides nothing."""
    options: dict[str, dict[str, Any]] = {
        "data": {"source": data, "images": images},
        "samples": {"count": samples},
        "search": {"tries": tries},
        "sampler": {"name": sampler},
        "profile": {"targets": None if targets is None else parse_targets(targets)},
    }
    given: dict[str, Any] = {
        table: {key: value for key, value in values.items() if value is not None}
        for table, values in options.items()
    }
    given |= {key: value for key, value in (("seed", seed), ("control", control)) if value is not None}
    return merge(load(config) if config is not None else {}, given)


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
    authorised_by: str | None = None,
    model: Path | None = None,
    target: int | None = None,
    label: int | None = None,
) -> None:
    from latentprint.audit import run_audit  # torch is imported only where it is needed
    from latentprint.config import resolve

    settings = resolve(over, preset=preset)
    with Bars() as bars:
        results = run_audit(
            settings,
            out,
            device=device,
            root=root,
            download=download,
            fresh=fresh,
            authorised_by=authorised_by,
            model=model,
            target=target,
            label=label,
            progress=bars,
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
