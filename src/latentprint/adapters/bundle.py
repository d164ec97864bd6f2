"""The configurations of a bundle of MONAI, read as literals: nothing in them is evaluated or imported.

A section is identified by its ``_target_``, whose class is compared and never looked up. ``@name`` is
followed to a literal. A value that begins with ``$`` or ``%`` is code or a macro, and is refused by name if
it is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from latentprint.adapters.fields import short, whole_number
from latentprint.adapters.files import inside, read_json
from latentprint.files import FileError, read, require_plain
from latentprint.networks import ModelError

Section = dict[str, Any]

_RANGES = ("ScaleIntensity", "ScaleIntensityd", "ScaleIntensityRange", "ScaleIntensityRanged")
_OLD_ARGUMENTS = {"num_channels": "channels"}
"""Argument names of MONAI Generative, before its classes came to MONAI."""


@dataclass(frozen=True)
class Found:
    """A section of a configuration whose class is known here."""

    name: str
    values: Section
    where: str


def is_monai(folder: Path) -> bool:
    """Whether a configuration of the folder names a network of MONAI. Files are read, and nothing is run."""
    try:
        plain = [file for file in _configs(folder) if file.is_file() and file.stat().st_size <= MOST_READ]
        texts = [file.read_bytes() for file in plain]
    except OSError:
        return False
    signs = (b"monai.", b"generative.networks", b'"DiffusionModelUNet"')
    return any(b"_target_" in text and any(sign in text for sign in signs) for text in texts)


MOST_READ = 2**22
"""The most bytes of a configuration (4 MiB)."""


def _configs(folder: Path) -> list[Path]:
    places = (folder, folder / "configs")
    found = [one for place in places if place.is_dir() for one in sorted(place.iterdir())]
    return [inside(folder, str(one.relative_to(folder))) for one in found if one.suffix in READERS]


def _read_yaml(path: Path) -> Section:
    try:
        import yaml  # pyright: ignore[reportMissingModuleSource]
    except ImportError as error:
        raise ModelError(f"{path.name!r} is YAML; pip install 'latentprint[monai]' reads it") from error
    try:
        raw = read(path, MOST_READ)
        found: object = yaml.safe_load(raw)
        require_plain(found, path.name, infinite=True)
    except FileError as error:
        raise ModelError(str(error)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ModelError(f"{path.name!r} is not YAML that can be read: {short(error)}") from error
    return cast(Section, found) if isinstance(found, dict) else {}


READERS: dict[str, Callable[[Path], Section]] = {
    ".json": read_json,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
}


@dataclass(frozen=True)
class Sections:
    """All configurations of a folder."""

    files: tuple[tuple[str, Section], ...]

    @staticmethod
    def of(folder: Path) -> Sections:
        return Sections(tuple((one.name, READERS[one.suffix](one)) for one in _configs(folder)))

    def found(self, names: tuple[str, ...]) -> Iterator[Found]:
        """The sections of these classes, from MONAI or its predecessor, in all files."""
        for file, root in self.files:
            for section in _walk(root):
                target = section.get("_target_")
                if not isinstance(target, str) or target.startswith(("$", "@", "%")):
                    continue
                library, name = target.partition(".")[0], target.rpartition(".")[2]
                # a bundle may leave the library out: its own loader finds a class by its bare name
                if (library in ("monai", "generative") or library == name) and name in names:
                    yield Found(name, _literals(section, root, f"{name} of {file}"), file)

    def one(self, *names: str) -> Found:
        """The only section of these classes; the same section in two files counts once."""
        found = list(self.found(names))
        if not found:
            others = sorted(name for name in self.targets() if re.search("Net|Autoencoder|VAE|KL", name))
            seen = (
                f", and {', '.join(others)} is not known here: audit it by a function of yours (--model "
                "package.module:factory --i-trust-this-code), or what it generates (--samples FOLDER)"
            )
            raise ModelError(
                f"no configuration of the folder describes a {' or '.join(names)}{seen if others else ''}"
            )
        first = found[0]
        for other in found[1:]:
            if (other.name, other.values) != (first.name, first.values):
                raise ModelError(
                    f"{first.where} and {other.where} describe two different {first.name}; leave the one "
                    "of the "
                    "weights in the folder"
                )
        return first

    def maybe(self, *names: str) -> Found | None:
        return self.one(*names) if any(True for _ in self.found(names)) else None

    def scheduler(self, schedulers: tuple[str, ...]) -> Found:
        """How images are sampled; of two schedulers with the same noise, the one for inference."""
        found = list(self.found(schedulers))
        if not found:
            raise ModelError(
                "no configuration of the folder names a scheduler, without which the noise the model was "
                'trained with is not known: add one, e.g. a scheduler.json with {"scheduler": {"_target_": '
                '"monai.networks.schedulers.DDPMScheduler", "num_train_timesteps": 1000}}'
            )
        found.sort(key=lambda one: "inference" not in one.where)
        first = found[0]
        for other in found[1:]:
            if _noise(first) != _noise(other):
                raise ModelError(
                    f"{first.where} and {other.where} describe different noise: {short(_noise(first))} and "
                    f"{short(_noise(other))}"
                )
        return first

    def targets(self) -> set[str]:
        every = (section.get("_target_") for _, root in self.files for section in _walk(root))
        return {one for one in every if isinstance(one, str)}

    def literal(self, name: str) -> object:
        """A plain value at the top level of a configuration, or None."""
        for _, root in self.files:
            value = root.get(name)
            if value is not None and not isinstance(value, str | dict):
                return value
        return None

    def steps(self) -> int | None:
        value = self.literal("num_inference_steps")
        return None if value is None else whole_number(value, "num_inference_steps", 1, 100_000)

    def unit_range(self) -> bool | None:
        """Whether the network's images lie in [0, 1] (True) or [-1, 1] (False); None if it is not written."""
        seen = set[tuple[object, object]]()
        for _, root in self.files:
            for section in _walk(root):
                name = str(section.get("_target_", "")).rpartition(".")[2]
                if name not in _RANGES:
                    continue
                low, high = ("b_min", "b_max") if "Range" in name else ("minv", "maxv")
                usual = (None, None) if "Range" in name else (0.0, 1.0)
                seen.add((section.get(low, usual[0]), section.get(high, usual[1])))
        if len(seen) != 1:
            return None
        return {(0, 1): True, (-1, 1): False}.get(cast(Any, next(iter(seen))))


def _noise(scheduler: Found) -> object:
    own = ("num_train_timesteps", "schedule", "beta_start", "beta_end", "sig_range", "s", "prediction_type")
    flow = scheduler.name == "RFlowScheduler"
    return flow, tuple((key, scheduler.values.get(key)) for key in own if key in scheduler.values)


def _walk(value: object) -> Iterator[Section]:
    if isinstance(value, dict):
        yield cast(Section, value)
    inner = cast(Any, value.values() if isinstance(value, dict) else value)
    if isinstance(value, dict | list):
        for one in inner:
            yield from _walk(one)


def _literals(section: Section, root: Section, what: str) -> Section:
    """The section's arguments as plain values."""

    def plain(value: object, name: str, depth: int = 0) -> Any:
        if depth > 20:
            raise ModelError(f"{name} of {what} refers to itself")
        if isinstance(value, list):
            return [plain(one, name, depth + 1) for one in cast(list[object], value)]
        if not isinstance(value, str):
            return value
        if value.startswith("@"):
            return plain(_followed(root, value[1:], name, what), name, depth + 1)
        if value.startswith(("$", "%")):
            raise ModelError(
                f"{name} of {what} is {short(value)}, an expression, and no code of a bundle is ever run: "
                "write "
                "the value that it has into the configuration"
            )
        return value

    kept = {key: value for key, value in section.items() if not key.startswith("_")}
    return {_OLD_ARGUMENTS.get(key, key): plain(value, key) for key, value in kept.items()}


def _followed(root: Section, reference: str, name: str, what: str) -> object:
    at: object = root
    for part in reference.replace("::", "#").split("#"):
        inner = cast(Any, at)
        if isinstance(at, dict) and part in inner:
            at = inner[part]
        elif isinstance(at, list) and part.isdecimal() and int(part) < len(inner):
            at = inner[int(part)]
        else:
            raise ModelError(f"{name} of {what} refers to {short('@' + reference)}, which is not there")
    return at
