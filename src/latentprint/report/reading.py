"""What the pages may read from results.json and run.json, field by field.

Pages are made to be passed on, so nothing is ever copied whole: a field is asked for by name and kind, and
comes back checked (a finite number, a count, a hex digest, a short text with paths and file names withheld)
or as None. Escaping is the template's business; this module keeps private things out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from latentprint import files
from latentprint.contracts import InputError
from latentprint.stats import Trials

SCHEMA = "latentprint/1"
STATES = ("reproduces", "not found", "inconclusive")

_PATH = re.compile(
    r"""(?:(?<=^)|(?<=[\s'"(=,:;\[]))          # at the start of a token
        (?:~|\.{1,2}|[A-Za-z]:)?[\\/][^\s'"<>|)\]]*   # /a/b, ~/a, ../a, C:\\a
        |\w+://\S+                              # addresses
        |[^\s\\/'"]+\.(?:png|jpe?g|tiff?|bmp|gif|dcm|dicom|nii|npz|npy|csv|parquet|pt|pth|ckpt|safetensors)\b""",
    re.VERBOSE | re.IGNORECASE,
)
_PUBLIC_SOURCE = re.compile(r"(digits)|(phantom)(?::\d+)?|medmnist:([a-z0-9_]{1,40})", re.IGNORECASE)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a run.

    Raises:
        InputError: the file is missing, or holds no JSON object (`files.read_json`).
    """
    if not path.exists():
        raise InputError(f"{path.name} is missing in the run folder; has the audit finished?")
    return files.read_json(path)


def at(source: Any, path: str) -> Any:
    """The value at ``a.b.c``, or None where any part of the way is missing."""
    for key in path.split("."):
        if not isinstance(source, Mapping):
            return None
        source = cast(Mapping[str, Any], source).get(key)
    return source


def number(source: Any, path: str) -> float | None:
    """A finite number, or None."""
    value = at(source, path)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def rate(source: Any, path: str) -> float | None:
    """A number in [0, 1], or None."""
    value = number(source, path)
    return value if value is not None and 0 <= value <= 1 else None


def confidence(source: Any, path: str) -> float:
    """A confidence level strictly between 0.5 and 1; 0.95 where none is stated."""
    value = number(source, path)
    return value if value is not None and 0.5 < value < 1 else 0.95


def count(source: Any, path: str) -> int | None:
    """A whole number from 0 to 2^53 (what JSON keeps exactly), or None."""
    value = number(source, path)
    return int(value) if value is not None and 0 <= value <= 2**53 and value == int(value) else None


def trials(source: Any, path: str) -> Trials | None:
    """A count {k, n} with n > 0, or None."""
    k, n = count(source, f"{path}.k"), count(source, f"{path}.n")
    return Trials(k, n) if k is not None and n and k <= n else None


def mapping(source: Any, path: str) -> Mapping[str, Any]:
    """The object at ``path``; an empty one where there is none."""
    value = at(source, path)
    return cast(Mapping[str, Any], value) if isinstance(value, Mapping) else {}


def items(source: Any, path: str) -> Sequence[Any]:
    """The list at ``path``; an empty one where there is none."""
    value = at(source, path)
    return cast(Sequence[Any], value) if isinstance(value, (list, tuple)) else ()


def numbers(source: Any, path: str) -> list[float | None]:
    """A list of numbers in which what is no finite number reads as None."""
    return [number({"x": value}, "x") for value in items(source, path)]


def words(source: Any, path: str, limit: int = 600) -> str | None:
    """A short text without control characters, paths, addresses and file names, or None."""
    value = at(source, path)
    if not isinstance(value, str):
        return None
    clean = "".join(c if c.isprintable() else " " for c in value).strip()
    clean = _PATH.sub("[withheld]", clean)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def digest(source: Any, path: str) -> str | None:
    """A hexadecimal hash of 7 to 128 digits, or None."""
    value = at(source, path)
    return value.lower() if isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F]{7,128}", value) else None


def public_source(results: Any) -> str:
    """Where the images came from: public sets by name, anything private by its kind only."""
    value = at(results, "data.source")
    found = _PUBLIC_SOURCE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return "a private set of images"
    if found[1]:
        return "the public set of handwritten digits"
    return "drawn phantoms" if found[2] else f"the public set {found[3]} (MedMNIST)"


def two_recognisers(results: Any) -> bool:
    """Whether the mark was looked for beside the image; not where x_p carries none."""
    detectors = at(results, "detectors")
    return not isinstance(detectors, Mapping) or at(detectors, "presence") is not None


def check(results: Mapping[str, Any]) -> None:
    """Refuse what is no results mapping.

    Raises:
        InputError: another schema, no data size, no count, or no verdict.
    """
    if at(results, "schema") != SCHEMA:
        raise InputError(f"results of schema {SCHEMA} are needed, got {at(results, 'schema')!r}")
    if not count(results, "data.images"):
        raise InputError("the results do not say how many images the model was trained on (data.images)")
    hits, samples = count(results, "q.monte_carlo.hits"), count(results, "q.monte_carlo.samples")
    if hits is None or not samples or hits > samples:
        raise InputError("the results hold no count of generated images (q.monte_carlo.hits of samples)")
    if at(results, "verdict.state") not in STATES:
        state = at(results, "verdict.state")
        raise InputError(f"the verdict's state must be one of {', '.join(STATES)}, got {state!r}")
    if at(results, "verdict.state") == "reproduces" and not hits and at(results, "copies.leaks") is not True:
        raise InputError("the verdict says that the image comes back, but no generated image was recognised")
