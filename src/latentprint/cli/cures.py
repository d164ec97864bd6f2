"""``latentprint remedies``, ``forecast``, ``filter``: what to do about a model that gives images back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from latentprint.cli.shared import Fresh, Json, Seed, print_json, require_begun
from latentprint.contracts import InputError, quoted
from latentprint.signals import interruptible

if TYPE_CHECKING:
    from latentprint.attacks.filter import Filter
    from latentprint.data import ImageSet
    from latentprint.stats import Trials


def remedies(
    data: Annotated[str, typer.Argument(help="The training images, as for audit.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder; default remedies/DATA.")] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="100 images, a small network, few steps and samples: a first look."),
    ] = False,
    config: Annotated[Path | None, typer.Option(help="Settings as TOML; they override the preset's.")] = None,
    preset: Annotated[str, typer.Option(help="Settings to start from, as for audit.")] = "small",
    images: Annotated[
        int | None, typer.Option(min=1, help="Train on this many images, drawn by the seed.")
    ] = None,
    fingerprints: Annotated[
        int,
        typer.Option(min=1, help="About how many marked images each training gets; as many are left out."),
    ] = 10,
    only: Annotated[
        str | None, typer.Option("--only", help="Names of remedies, with commas between; default all.")
    ] = None,
    seed: Seed = 0,
    root: Annotated[Path | None, typer.Option(help="Folder of the MedMNIST files.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch a missing MedMNIST file.")] = False,
    spread: Annotated[
        Literal["local", "ray"],
        typer.Option("--executor", help="ray: spread rows over processes or machines (extra ray)."),
    ] = "local",
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Train on DATA without and with each remedy, and print risk and quality side by side.

    Every row has the same images, marks, seeds and measures. The same command again continues.
    """
    require_begun(data, preset, config)
    names = None if only is None else tuple(part.strip() for part in only.split(",") if part.strip())
    if names is not None:
        from latentprint.remedies.table import require_known

        require_known(names)
    from latentprint.config import resolve
    from latentprint.files import read_toml

    interruptible()
    settings = [_QUICK] if quick else []
    settings += [] if config is None else [read_toml(config)]
    # The options given here override the file.
    data_named: dict[str, object] = {"source": data, **({} if images is None else {"images": images})}
    over: list[dict[str, object]] = [*settings, {"seed": seed, "data": data_named}]
    audit = resolve(*over, preset=preset)
    from latentprint.progress import Bars
    from latentprint.remedies import RemediesConfig, compare_remedies
    from latentprint.remedies.rows import told
    from latentprint.spread import executor

    wanted = RemediesConfig(audit, fingerprints, names)
    folder = out or Path("remedies") / (Path(data).name or "data").replace(":", "-")
    with executor(spread) as over_units, Bars() as bars:
        # A progress bar cannot be sent to another machine; there only finished rows are counted.
        table = compare_remedies(
            wanted, folder, root=root, download=download, fresh=fresh, progress=bars, map=over_units
        )
    if as_json:
        print_json(table.plain())
        return
    print("\n".join(told(table)))
    print(f"\nNumbers: {folder / 'remedies.json'}\nPicture: {folder / 'remedies.svg'}")


def forecast(
    data: Annotated[str, typer.Argument(help="The training images, as for audit.")],
    until: Annotated[int, typer.Option("--until", min=1, help="Steps to train and look at.")] = 200,
    config: Annotated[Path | None, typer.Option(help="Settings as TOML; they override the preset's.")] = None,
    preset: Annotated[str, typer.Option(help="Settings to start from, as for audit.")] = "small",
    images: Annotated[
        int | None, typer.Option(min=1, help="Train on this many images, drawn by the seed.")
    ] = None,
    seed: Seed = 0,
    root: Annotated[Path | None, typer.Option(help="Folder of the MedMNIST files.")] = None,
    as_json: Json = False,
) -> None:
    """From the first steps of a training on DATA: when does it begin to memorise, and what would help?"""
    require_begun(data, preset, config)
    from latentprint.config import resolve
    from latentprint.files import read_toml

    interruptible()
    named: dict[str, object] = {"source": data, **({} if images is None else {"images": images})}
    over: list[dict[str, object]] = [] if config is None else [read_toml(config)]
    audit = resolve(*over, {"seed": seed, "data": named}, preset=preset)
    most = audit.model.training.steps
    if not 1 <= until <= most:
        raise InputError(f"a forecast looks at 1 to {most:,} steps, which the training has; got {until:,}")
    from dataclasses import asdict

    import numpy as np
    from torch import device

    from latentprint.audit.costs import require_memory
    from latentprint.audit.images import read_images
    from latentprint.progress import Bars
    from latentprint.remedies.forecast import forecast as forecasted
    from latentprint.remedies.table import Recipe
    from latentprint.remedies.training import looks_along

    split = read_images(audit, root, download=False)
    require_memory(audit, split.train.shape, device("cpu"), trains=True)
    train, held = (np.asarray(one.pixels) for one in (split.train, split.heldout))
    with Bars() as bars:
        looks = looks_along(
            Recipe(train, held, held[:0], audit.model),
            audit.seed,
            until,
            lambda step: bars("training", min(step, until), until, "steps"),
        )
    found = forecasted(looks, len(split.train))
    if as_json:
        print_json(asdict(found) | {"sentences": list(found.sentences), "looks": asdict(looks)})
    else:
        print("\n".join(found.sentences))


_QUICK: dict[str, object] = {
    "data": {"images": 100},
    "model": {
        "network": {"channels": [16, 32], "layers_per_block": 1, "middle_attention": False, "norm_groups": 8},
        "training": {"steps": 250, "batch": 64, "learning_rate": 4e-3, "warmup": 20, "ema": 0.95},
    },
    "sampler": {"steps": 16},
    "samples": {"count": 200},
    "likelihood": {"images": 0},
}
"""Settings for a table in a few minutes on two cores, based on the preset "small"; its models memorise
little."""


def filter_(
    samples: Annotated[Path, typer.Argument(help="Generated images: a folder, .zip, .npz or .npy.")],
    train: Annotated[str, typer.Option(help="What the model was trained on; a DATA as audit takes it.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where to write the images that pass: an .npz or, for a folder of files, another folder."
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="How many of them it was trained on, drawn by the seed as in audit."),
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

    The criterion is that of the audit, calibrated on held-out images. If DATA has no split of its own and
    --images does not say which were trained on, all of them count as training images.
    """
    from latentprint.data import require_source

    require_source(train)
    if not samples.exists():
        raise InputError(
            f"{quoted(samples)} does not exist; generated images are a folder, .zip, .npz or .npy"
        )
    if not 0 < share < 1:
        raise InputError(f"--share is a share of good images, between 0 and 1, got {share}")
    if out is not None:
        _require_place(out, samples)
    import numpy as np

    from latentprint.adapters.samples import open_samples, require_like_range
    from latentprint.attacks.filter import filter_for
    from latentprint.data import load

    interruptible()
    found = open_samples(samples)
    split = load(train, seed=seed, images=images, root=root)
    require_like_range(found, split)
    sieve = filter_for(split, whole=images is None, share=share, seed=seed)
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
    """Check that the passed images can be written to ``out``.

    Raises:
        InputError: it is neither an .npz file nor, for a folder of samples, another folder; or something is
            there already, which would be lost or be taken for images that passed.
    """
    from latentprint.files import real

    if out.suffix.lower() == ".npz":
        if out.exists():
            raise InputError(f"{quoted(out)} exists already and is not overwritten; name another --out")
        return
    if not samples.is_dir() or out.is_file():
        raise InputError(f"--out must be an .npz, or for a folder of samples a folder; got {str(out)!r}")
    if real(out) == real(samples):
        raise InputError(f"the images that pass are written to another folder than {str(samples)!r}")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(
            f"the folder {quoted(out)} is not empty, and what it holds would be taken for images that passed;"
            " name another --out"
        )


def _write(out: Path, samples: Path, found: ImageSet, kept: list[int]) -> None:
    """Write the images that pass: as an array, or as the files that they were.

    Raises:
        InputError: no image passed, or they were not files.
    """
    from io import BytesIO

    import numpy as np

    from latentprint.files import write

    if not kept:
        raise InputError(f"none of the {len(found):,} images passes the filter, so nothing was written")
    if out.suffix.lower() == ".npz":
        content = BytesIO()
        np.savez_compressed(content, images=np.moveaxis(found.pixels[np.array(kept)], 1, -1))
        write(out, content.getvalue())
        return
    if found.names is None:
        raise InputError("these samples are not separate image files; name an .npz file for those that pass")
    for place in kept:
        write(out / found.names[place], (samples / found.names[place]).read_bytes())


def _plain(sieve: Filter, found: ImageSet, rejected: list[int]) -> dict[str, object]:
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


def _counted(trials: Trials) -> dict[str, object]:
    from latentprint.results.whole_set import Share

    return Share.of(trials).plain()
