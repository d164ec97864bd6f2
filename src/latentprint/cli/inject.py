"""``latentprint inject``: a mark put into a training folder, for training scripts that are not ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentprint.cli.shared import Json, Seed, print_json


def inject(
    folder: Annotated[
        Path, typer.Argument(help="The images that you will train on, or a folder with train/ in it.")
    ],
    mark: Annotated[
        Path | None,
        typer.Option(
            "--mark", help="Where to write what was marked; default FOLDER.mark.json.", metavar="FILE"
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(help="The image to mark, by its name; default: drawn by the seed.", metavar="NAME"),
    ] = None,
    fingerprint: Annotated[
        str,
        typer.Option(help="The kind of mark, such as circle, cross, box, text or lead.", metavar="KIND"),
    ] = "circle",
    files: Annotated[
        str | None,
        typer.Option(
            "--files", help="Only files whose names match; with ! in front, the others.", metavar="PATTERN"
        ),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Mark one image of FOLDER, in its place, before you train on it with your own script.

    The original image is kept beside FILE. After training: latentprint audit FOLDER --model MODEL --mark
    FILE, where FOLDER holds what was trained on in train/ and other images in heldout/.
    """
    from latentprint.data.captions import captions
    from latentprint.files import real
    from latentprint.marks import FingerprintSettings
    from latentprint.marks.folder import holds_out, mark_folder
    from latentprint.marks.settings import kind_of

    whole = real(folder)
    path = mark or whole.parent / f"{whole.name}.mark.json"
    settings = FingerprintSettings(kind=kind_of(fingerprint))
    told = captions(str(folder), (), None) or {}  # what is wrong with them is said before a mark is put in
    done = mark_folder(folder, path, kind=settings, seed=seed, image=image, pattern=files)
    if as_json:
        print_json(
            {"mark": str(path), "image": done.image, "fingerprint": done.describe(), "sha256": done.sha256}
        )
        return
    caption = told.get(done.image)
    print(f"Marked:   {folder / done.image} with a {done.kind}")
    if caption is not None:
        print(f"Caption:  {' '.join(caption.split())[:200]} (as it was)")
    original = path.with_name(f"{path.stem}.original{Path(done.image).suffix}")
    print(f"Original: {original} (keep it out of training)")
    audited = folder
    print(f"Next:     train on {folder} with your script, then")
    if not holds_out(folder, files):
        audited = Path("NEW")
        print(
            "          make a folder NEW, with train/ (these images) and heldout/ (others of the same kind,"
        )
        print("          not trained on; without them nothing can be compared), then")
    print(f"          latentprint audit {audited} --model MODEL --mark {path}")
