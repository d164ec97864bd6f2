"""What the pages may show: texts without paths and file names, and a list of known facts from run.json.

Pages are made to be passed on. Numbers come from `Results`, which holds no name and no path. The texts in it,
and everything from run.json, pass through this module. The template does the escaping.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentprint.contracts import InputError
from latentprint.files import read_json
from latentprint.results.stored import first
from latentprint.results.value import Sha256

_PATH = re.compile(
    r"""(?:(?<=^)|(?<=[\s'"(=,:;\[]))          # at the start of a token
        (?:~|\.{1,2}|[A-Za-z]:)?[\\/][^\s'"<>|)\]]*   # /a/b, ~/a, ../a, C:\\a
        (?:[ ][^\s'"<>|()\[\]]{0,80}[\\/][^\s'"<>|)\]]+)*  # and on after a space: /a b/c
        |\w+://\S+                              # addresses
        |[^\s\\/'"]+\.(?:png|jpe?g|tiff?|bmp|gif|dcm|dicom|nii|npz|npy|csv|parquet|pt|pth|ckpt|safetensors)\b""",
    re.VERBOSE | re.IGNORECASE,
)
_PUBLIC_SOURCE = re.compile(r"(digits)|(phantom)(?::\d+)?|medmnist:([a-z0-9_]{1,40})", re.IGNORECASE)


def said(text: str, limit: int = 600) -> str:
    """A short text without control characters, paths, addresses and file names."""
    text = text if len(text) <= 4 * limit else text[: 4 * limit].rpartition(" ")[0]
    clean = "".join(c if c.isprintable() else " " for c in text).strip()
    clean = _PATH.sub("[withheld]", clean)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def public_source(source: str) -> str:
    """The origin of the images: public sets by name, private ones only by kind."""
    found = _PUBLIC_SOURCE.fullmatch(source)
    if found is None:
        return "a private set of images"
    if found[1]:
        return "the public set of handwritten digits"
    return "drawn phantoms" if found[2] else f"the public set {found[3]} (MedMNIST)"


class _Fact(BaseModel):
    """A part of run.json. Keys that are not named here are not read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Device(_Fact):
    """The device on which the run was computed."""

    type: str = ""
    name: str = ""
    threads: int | None = None

    @property
    def words(self) -> str:
        """One line: "cpu, 2 threads"."""
        threads = "" if self.threads is None else f"{self.threads} threads"
        return ", ".join(said(one, 80) for one in (self.name, self.type, threads) if one)


class Source(_Fact):
    """The state of latentprint's own source."""

    commit: str = Field(pattern="^[0-9a-f]{7,64}$")
    dirty: bool = False


class StageTime(_Fact):
    """The time of a stage, and the hash of the weights that it made."""

    seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    payload: dict[str, object] = {}


class RunFacts(_Fact):
    """The facts of run.json that may be published."""

    seed: int | None = None
    began: datetime | None = None
    finished: datetime | None = None
    settings_sha256: Sha256 | None = None
    authorised_by: str | None = None
    device: Device | None = None
    git: Source | None = None
    versions: dict[str, str] = {}
    stages: dict[str, StageTime] = {}

    @property
    def weights_sha256(self) -> str | None:
        """Hash of the weights that this run trained."""
        found = self.stages.get("model", StageTime()).payload.get("weights_sha256")
        return found if isinstance(found, str) and re.fullmatch("[0-9a-f]{64}", found) else None

    @property
    def seconds(self) -> dict[str, float]:
        """Time by stage, for the stages that were timed."""
        timed = {said(name, 60): one.seconds for name, one in self.stages.items()}
        return {name: seconds for name, seconds in timed.items() if seconds is not None}

    @classmethod
    def read(cls, folder: Path) -> RunFacts:
        """The facts in a run folder.

        Raises:
            InputError: run.json is missing, or is not the record of a run.
        """
        try:
            return cls.model_validate_json(json.dumps(read_json(folder / "run.json")), strict=True)
        except ValidationError as error:
            raise InputError(
                f"run.json is not the record of a run: {first(error)}; put a copy of it back, or audit again"
                " in another folder"
            ) from error
