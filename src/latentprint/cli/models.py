"""``latentprint convert``: converts weights that exist only as a pickle to safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentprint.cli.shared import Json, print_json
from latentprint.contracts import InputError, quoted

Trusted = Annotated[
    bool,
    typer.Option(
        "--i-trust-this-file", help="Read the pickle, in a separate process that knows only tensors."
    ),
]


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A pickle: .bin, .pt, .pth, .ckpt, .pkl.")],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="The .safetensors file, or the folder of a whole model, to write."
        ),
    ],
    trusted: Trusted = False,
    take: Annotated[
        str | None, typer.Option("--take", help="Which of several state dicts, by the key that holds it.")
    ] = None,
    flags: Annotated[
        str | None,
        typer.Option(
            "--flags",
            help="What it was trained with, where its file does not say: the flags of its command line in "
            'quotes ("--image_size 64 --learn_sigma True"), or its .yaml.',
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            "--prefix", help="What its names begin with in a larger module (Lightning), such as net."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the weights of the pickle IN as safetensors. Prints what was taken, what was left out, and
    hashes.

    IN may be a folder of diffusers whose parts are .bin files. Checkpoints of denoising-diffusion-pytorch,
    of openai's improved- and guided-diffusion, of CompVis' latent diffusion, of medfusion and of EDM become
    a folder that --model takes. EMA weights are preferred. A LightningModule may hold the network.

    Reading a pickle can run any code. It is therefore read in a separate process, which knows only torch's
    allowed types. That process looks for modules neither in the current folder nor where Python's
    environment variables point.
    """
    if not source.exists():
        raise InputError(f"{quoted(source)} does not exist")
    if not trusted:
        raise InputError(
            f"reading {quoted(source)} can run any code it holds; give --i-trust-this-file if you know where"
            " it comes from"
        )
    from latentprint.adapters.convert import convert as converted
    from latentprint.adapters.flags import flags_of

    told = None if flags is None else flags_of(flags)
    done = converted(source, target, trusted=trusted, take=take, flags=told, prefix=prefix)
    if as_json:
        sums = {"source_sha256": done.hashes[0][0], "target_sha256": done.hashes[-1][0]}
        print_json({**sums, "said": list(done.said)})
    else:
        print("\n".join([*done.said, *(f"{digest}  {name}" for digest, name in done.hashes)]))
