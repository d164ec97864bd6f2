"""The separate process of `latentprint.adapters.convert`: IN, a pickle -> its tensors as safetensors, and a
list.

Run by its path, isolated (``python -I``), so that nothing of latentprint, of the working directory or of the
environment is in reach; it imports torch and safetensors alone. Every tensor keeps its place in the file as
its name: the keys that lead to it, joined by a line feed, which no name holds. Plain numbers and words on the
way are kept too. Objects of the training libraries named in HARMLESS are left out, and in a checkpoint of
Lightning those of every package but Python's own: an empty class that accepts everything and does nothing
replaces them. It prints a JSON object: {"reason": ...}, or {"plain", "left"}.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from typing import Any

HARMLESS = (
    "pytorch_lightning.",
    "lightning.",
    "lightning_fabric.",
    "omegaconf.",
    "argparse.",
    "pathlib.",
    "ema_pytorch.",
    "medical_diffusion.",
    "torch.optim.",
    "torch.nn.modules.loss.",
)
MOST_READ = 2**25
"""The most bytes of a pickle that are read for its names (32 MiB); torch keeps tensors outside of it."""

_KEPT_BY_LIGHTNING = (
    "functools.partial",
    "copyreg._reconstructor",
    "enum.",
    "datetime.",
    "types.SimpleNamespace",
)
"""What of Python's own library the hyperparameters of a LightningModule may hold."""
SEPARATOR = "\n"
_MOST = 100_000


class Left:
    """What is not read."""

    def __init__(self, *given: object, **named: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, value: object) -> None: ...

    def __hash__(self) -> int:
        return id(self)


def flat(value: Any, path: tuple[str, ...], tensors: dict[str, Any], plain: dict[str, Any]) -> None:
    """Tensors and plain values of a nest of dictionaries, by the keys that lead to them."""
    import torch

    if len(tensors) + len(plain) > _MOST or len(path) > 12:
        raise ValueError("it holds more, or deeper, than a checkpoint does")
    name = SEPARATOR.join(path)
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided:
            raise ValueError(f"its tensor {' / '.join(path)} is not dense")
        tensors[name] = value.detach().contiguous().clone()
    elif isinstance(value, bool | int | float | str) and len(str(value)) < 1000:
        plain[name] = value
    elif isinstance(value, dict):
        for key, one in value.items():
            if isinstance(key, str | int) and SEPARATOR not in str(key):
                flat(one, (*path, str(key)), tensors, plain)
    elif isinstance(value, list | tuple):
        for place, one in enumerate(value):
            flat(one, (*path, str(place)), tensors, plain)


def pickle_in(source: str) -> bytes | None:
    """The start of the pickle in a zip of torch's, empty if there is none; None: it is not a zip."""
    if not zipfile.is_zipfile(source):
        return None
    with zipfile.ZipFile(source) as archive:
        inner = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
        if inner is None:
            return b""
        with archive.open(inner) as stream:
            return stream.read(MOST_READ)


def _left(name: str, from_lightning: bool) -> bool:
    """Whether objects of this class are left out; a LightningModule may store objects of any package."""
    if name.startswith(HARMLESS):
        return True
    own = name.split(".")[0] in sys.stdlib_module_names or name.startswith("__builtin__")
    return from_lightning and (not own or name.startswith(_KEPT_BY_LIGHTNING))


def main(source: str, target: str) -> dict[str, Any]:
    """Print what was found; the tensors are written to ``target``."""
    import safetensors.torch
    import torch
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    from_lightning = b"pytorch-lightning_version" in (pickle_in(source) or b"")

    try:
        try:
            unknown = get_unsafe_globals_in_checkpoint(source)
        except Exception:  # a file of another format; loading it will say more
            unknown = []
        if refused := sorted(name for name in unknown if not _left(name, from_lightning)):
            return {"reason": "classes", "classes": refused[:5]}
        stubs: list[Any] = [(type("Left", (Left,), {}), name) for name in unknown]
        with safe_globals(stubs):
            found = torch.load(source, map_location="cpu", weights_only=True)
        tensors, plain = dict[str, Any](), dict[str, Any]()
        flat(found, (), tensors, plain)
        if not tensors:
            return {"reason": "it holds no tensors"}
        safetensors.torch.save_file(tensors, target)
    except Exception as error:  # whatever it is, it is printed and not raised across processes
        said = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
        if "weights_only" in said:  # torch's advice would be to switch its protection off
            named = re.search(r"GLOBAL ([\w.]+)", said)
            return {"reason": "classes", "classes": [named.group(1)] if named else []}
        return {"reason": said[:300] or type(error).__name__}
    return {"plain": plain, "left": sorted(unknown)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2])))
