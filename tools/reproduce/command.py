"""The command ``latentprint reproduce``: its options, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from latentprint.cli.shared import Device, Json, answered, print_json
from latentprint.progress import Bars
from latentprint.signals import interruptible
from tools.reproduce import reproduce as reproduced
from tools.reproduce import write_page
from tools.reproduce.plan import Size

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Name = Annotated[
    str,
    typer.Argument(
        help="table1, table2, fig3 ... fig10, deviations, passes; or page: write the page again, nothing run."
    ),
]
Scale = Annotated[
    Size,
    typer.Option(
        help="mini: minutes to hours; cpu: the paper's numbers of images, hours a row on two cores; "
        "full: the paper's size, for a GPU."
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder of the runs; the same command continues them.")]
Docs = Annotated[Path, typer.Option("--docs", help="Where paper.md and paper/ are written.")]
Only = Annotated[list[str] | None, typer.Option("--only", help="Run this row only; may be repeated.")]
Experiments = Annotated[Path, typer.Option("--experiments", help="Folder of the experiments' files.")]
Root = Annotated[Path | None, typer.Option(help="Folder of the MedMNIST files.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch a missing MedMNIST file.")]
Spread = Annotated[
    Literal["local", "ray"],
    typer.Option("--executor", help="ray: spread rows over processes or machines (extra ray)."),
]
Tune = Annotated[
    bool | None,
    typer.Option(
        "--tune/--no-tune",
        help="Arithmetic and threads as this processor is measured to be fastest with, or as the file of the"
        " experiment says. Left out: measured at size cpu, unless its runs began without.",
    ),
]
Processes = Annotated[int, typer.Option(min=1, help="Processes that train one model together (accelerate).")]


@app.command()
@answered
def reproduce(
    name: Name,
    scale: Scale = "mini",
    out: Out = Path("runs/paper"),
    docs: Docs = Path("docs"),
    only: Only = None,
    experiments: Experiments = Path("benchmarks/paper"),
    root: Root = None,
    download: Download = False,
    device: Device = "cpu",
    spread: Spread = "local",
    processes: Processes = 1,
    tune: Tune = None,
    as_json: Json = False,
) -> None:
    """Run experiment NAME of the paper, or continue it; its numbers go beside the published ones."""
    if name == "page":
        print(write_page(docs, experiments))
        return
    interruptible()
    with Bars() as bars:
        entries: Any = reproduced(
            name,
            scale,
            runs=out,
            docs=docs,
            experiments=experiments,
            only=only or (),
            device=device,
            root=root,
            download=download,
            spread=spread,
            processes=processes,
            tuned=tune,
            progress=bars,
        )
    if as_json:
        print_json(entries)
        return
    for row, entry in entries.items():
        print(f"{row}: {_told(entry)}")
    print(f"\nPage:    {docs / 'paper.md'}")
    print(f"Numbers: {docs / 'paper' / 'results.json'}")


def _told(entry: dict[str, Any]) -> str:
    """One line on what a row found."""
    if "lengths" in entry:
        found = [f"{one['step']:,} steps {one['monte_carlo']['hits']:,}" for one in entry["lengths"]]
        return f"hits among {entry['lengths'][0]['monte_carlo']['samples']:,} samples: {', '.join(found)}"
    seen, value = entry["monte_carlo"], entry["t_prime"]["value"]
    return (
        f"{seen['hits']:,} of {seen['samples']:,} samples (expected {seen['expected']:.3g}), "
        f"t' {'never' if value is None else f'{value:.3g}'}"
    )
