"""The sets of MedMNIST v2, twelve of 28 x 28 pixels and six of 64^3 voxels, from their official files.

Smaller volumes are made from these (``data.resize``).

A file is used only if its md5 is the published one, so that numbers measured on it are comparable with
published ones.

Source: Yang et al. 2023, "MedMNIST v2", Scientific Data 10:41; md5 of the release at
    zenodo.org/records/10519652.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from hashlib import md5
from pathlib import Path

from latentprint.contracts import quoted
from latentprint.data.archive import Stored, open_arrays
from latentprint.data.images import DataError

MD5 = {
    "pathmnist": "a8b06965200029087d5bd730944a56c1",
    "chestmnist": "02c8a6516a18b556561a56cbdd36c4a8",
    "dermamnist": "0744692d530f8e62ec473284d019b0c7",
    "octmnist": "c68d92d5b585d8d81f7112f81e2d0842",
    "pneumoniamnist": "28209eda62fecd6e6a2d98b1501bb15f",
    "retinamnist": "bd4c0672f1bba3e3a89f0e4e876791e4",
    "breastmnist": "750601b1f35ba3300ea97c75c52ff8f6",
    "bloodmnist": "7053d0359d879ad8a5505303e11de1dc",
    "tissuemnist": "ebe78ee8b05294063de985d821c1c34b",
    "organamnist": "68e3f8846a6bd62f0c9bf841c0d9eacc",
    "organcmnist": "b9ceb9546e10131b32923c5bbeaea2b1",
    "organsmnist": "9ab87b696fb54e2a387ebe992d6ed5f1",
}

VOLUMES = {
    "organmnist3d": "58a2205adf14a9d0a189cb06dc78bf10",
    "nodulemnist3d": "c47c5b7d457bf6332200d2ea6d64ecd8",
    "adrenalmnist3d": "17721accfe9fb005146a47d33bc54b2f",
    "fracturemnist3d": "f01d7e6316aedf4210da0da5b7437b42",
    "vesselmnist3d": "6bb274a8846e1097066dcd64e2c4520f",
    "synapsemnist3d": "43bd14ebf3af9d3dd072446fedc14d5e",
}

_KEYS = ("train_images", "val_images", "test_images")


def require_name(name: str) -> None:
    """Refuse the name of a set that MedMNIST does not have."""
    if name not in MD5 | VOLUMES:
        known = ", ".join([*MD5, *VOLUMES])
        raise DataError(f"there is no MedMNIST set {quoted(name, 60)}; the sets are {known}")


def open_medmnist(name: str, root: Path | None, *, download: bool) -> dict[str, Stored]:
    """The arrays ``train_images``, ``val_images`` and ``test_images`` of one set, and their labels, unread.

    The file is looked for in ``root``, by default in the folder that MEDMNIST_ROOT names, otherwise in
    ~/.medmnist. The package `medmnist` downloads it only if it is missing and ``download`` is true.
    """
    require_name(name)
    official = (MD5 | VOLUMES)[name]
    folder = root or Path(os.environ.get("MEDMNIST_ROOT") or Path("~/.medmnist")).expanduser()
    path = folder / (f"{name}.npz" if name in MD5 else f"{name}_64.npz")
    if not path.is_file():
        if not download:
            raise DataError(
                f"there is no file {str(path)!r}; name its folder with --root or MEDMNIST_ROOT, "
                "or ask for --download"
            )
        _download(name, path)
    found = _md5(path)
    if found != official:
        raise DataError(
            f"{str(path)!r} is not the official file (it may be truncated): its md5 is {found}, "
            f"that of {name} is {official}"
        )
    arrays = open_arrays(path, (*_KEYS, *(key.replace("images", "labels") for key in _KEYS)))
    if missing := [key for key in _KEYS if key not in arrays]:
        raise DataError(f"{str(path)!r} lacks {', '.join(missing)}")
    return arrays


def _md5(path: Path) -> str:
    digest = md5(usedforsecurity=False)
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _download(name: str, path: Path) -> None:
    folder, size = path.parent, {} if name in MD5 else {"size": 64}
    try:
        import medmnist
    except ImportError as error:
        raise DataError(
            f"to download {name} the package medmnist is needed: pip install 'latentprint[medmnist]'"
        ) from error
    by_flag = {flag: str(entry["python_class"]) for flag, entry in medmnist.INFO.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with redirect_stdout(sys.stderr):  # a command's stdout is reserved for its --json
            getattr(medmnist, by_flag[name])(split="train", root=str(folder), download=True, **size)
    except Exception as error:  # the downloader raises its own errors, whatever went wrong
        raise DataError(
            f"{name} could not be downloaded to {str(folder)!r}: {' '.join(str(error).split())[:200]}"
        ) from error
    if not path.is_file():
        raise DataError(f"{name} could not be downloaded to {str(folder)!r}: no file came")
