"""``latentprint filter``: what to do once a model is known to give training images back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentprint.cli.shared import Json, Seed, print_json
from latentprint.contracts import InputError
from latentprint.signals import interruptible

if TYPE_CHECKING:
    from latentprint.attacks.filter import Filter
    from latentprint.data import ImageSet
    from latentprint.stats import Trials


def filter_(
    samples: Annotated[Path, typer.Argument(help="Generated images: a folder, .zip, .npz or .npy.")],
    train: Annotated[str, typer.Option(help="What the model was trained on; a DATA as audit takes it.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Where the images that pass go: an .npz, or for a folder of files another folder."),
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="It was trained on so many of them, drawn by the seed as audit does.")
    ] = None,
    share: Annotated[
        float,
        typer.Option(help="Share of good images that may be kept back; the more, the fewer copies pass."),
    ] = 0.01,
    seed: Seed = 0,
    root: Annotated[Path | None, typer.Option(help="Folder of the MedMNIST files.")] = None,
    as_json: Json = False,
) -> None:
    """Keep back the generated images SAMPLES that are copies of training images; say how many copies pass.

    The criterion is that of the audit, calibrated by held-out images. Where DATA has no split of its own and
    --images does not say which were trained on, all of them count as trained on.
    """
    import numpy as np

    from latentprint.adapters.samples import open_samples
    from latentprint.attacks.filter import filter_for
    from latentprint.data import load

    interruptible()
    if out is not None:
        _require_place(out, samples)
    found = open_samples(samples)
    sieve = filter_for(
        load(train, seed=seed, images=images, root=root), whole=images is None, share=share, seed=seed
    )
    copies = sieve.copies(found.pixels)
    if out is not None:
        _write(out, samples, found, np.flatnonzero(~copies).tolist())
    rejected = np.flatnonzero(copies).tolist()
    if as_json:
        print_json(_plain(sieve, found, rejected))
        return
    print("\n".join(sieve.told(len(found), len(rejected))))
    for place in rejected:
        print(f"kept back: {place if found.names is None else found.names[place]}")


def _require_place(out: Path, samples: Path) -> None:
    """Nothing, if what passes can be written to ``out``.

    Raises:
        InputError: it is neither an .npz nor, for a folder of samples, another folder.
    """
    if out.suffix.lower() == ".npz":
        return
    if not samples.is_dir() or out.is_file():
        raise InputError(f"--out must be an .npz, or for a folder of samples a folder; got {str(out)!r}")
    if out.resolve() == samples.resolve():
        raise InputError(f"the images that pass are written to another folder than {str(samples)!r}")


def _write(out: Path, samples: Path, found: ImageSet, kept: list[int]) -> None:
    """The images that pass: as an array, or as the files that they were.

    Raises:
        InputError: none did, or they were no files.
    """
    from io import BytesIO

    import numpy as np

    from latentprint.files import write

    if not kept:
        raise InputError(f"none of the {len(found):,} images passes the filter, so nothing was written")
    if out.suffix.lower() == ".npz":
        content = BytesIO()
        np.savez_compressed(content, images=np.moveaxis(found.pixels[kept], 1, -1))
        write(out, content.getvalue())
        return
    if found.names is None:
        raise InputError("these samples are no image files of their own; name an .npz for those that pass")
    for place in kept:
        write(out / found.names[place], (samples / found.names[place]).read_bytes())


def _plain(sieve: Filter, found: ImageSet, rejected: list[int]) -> dict[str, Any]:
    names = found.names
    return {
        "samples": len(found),
        "kept": len(found) - len(rejected),
        "rejected": rejected,
        "names": None if names is None else [names[place] for place in rejected],
        "criterion": sieve.criterion,
        "threshold": sieve.threshold,
        "share": sieve.share,
        "missed": _counted(sieve.all_missed),
        "missed_by_change": {name: _counted(one) for name, one in sieve.missed.items()},
        "good_kept_back": _counted(sieve.rejected),
    }


def _counted(trials: Trials) -> dict[str, Any]:
    from latentprint.results.whole_set import Share

    return Share.of(trials).plain()
