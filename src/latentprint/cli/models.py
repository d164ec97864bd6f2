"""``latentprint convert``: weights that exist only as a pickle, as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentprint.cli.shared import Json, print_json

Trusted = Annotated[
    bool,
    typer.Option(
        "--i-trust-this-file", help="Read the pickle, in a separate process that knows only tensors."
    ),
]


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A pickle: .bin, .pt, .pth, .ckpt, .pkl.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The .safetensors file to write.")],
    trusted: Trusted = False,
    as_json: Json = False,
) -> None:
    """Write the tensors of the pickle IN as safetensors; both files' sha256 are printed.

    Reading a pickle can run any code. It is read in a process of its own, which looks for modules neither in
    the current folder nor where Python's environment variables point, and knows only torch's allowed types.
    """
    from latentprint.adapters.convert import convert as converted

    before, after = converted(source, target, trusted=trusted)
    if as_json:
        print_json({"source_sha256": before, "target_sha256": after})
    else:
        print(f"{before}  {source}\n{after}  {target}")
