"""The options that ``audit`` and ``check`` share, each written once: what to audit, how much of it, where.

Typer reads a command's options from its signature. ``taking`` gives a command the fields of a dataclass as
options, in their order and before its own, and hands it one value of that class.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from latentprint.cli.prompts import PromptOptions
from latentprint.cli.shared import (
    Device,
    Json,
    given,
    not_negative,
    require_begun,
    sampler_table,
    stored_range,
    whole_number,
)
from latentprint.contracts import InputError, quoted

if TYPE_CHECKING:
    from latentprint.adapters import Opened

Options = TypeVar("Options")

FOREIGN = "--i-trust-this-code and --model-argument are for --model package.module:factory"


@dataclass(frozen=True)
class AuditOptions(PromptOptions):
    """The options of an audit; None: the preset decides."""

    data: Annotated[
        str, typer.Argument(help="digits, phantom:N, phantom3d:N, medmnist:NAME, a folder, or an .npz file.")
    ]
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run; default runs/DATA.")] = None
    config: Annotated[Path | None, typer.Option(help="Settings as TOML; they override the preset's.")] = None
    preset: Annotated[
        str,
        typer.Option(
            help="Settings to start from: small (2 CPU cores), small3d (volumes), paper (a GPU), demo."
        ),
    ] = "small"
    images: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train on this many images, drawn by the seed. With --model or --samples: latentprint drew"
            " this many, and they were trained on.",
        ),
    ] = None
    samples: Annotated[
        str | None,
        typer.Option(
            help="Images to sample from the model; or a folder, .zip, .npz or .npy of generated images to"
            " audit instead of a model.",
            metavar="N|PATH",
        ),
    ] = None
    tries: Annotated[int | None, typer.Option(min=1, help="Tries per noise level, the paper's M.")] = None
    search: Annotated[
        Literal["exhaustive", "bisection", "sequential", "subsample", "range"] | None,
        typer.Option("--search", help="How t' is found."),
    ] = None
    checkpoints: Annotated[
        str | None,
        typer.Option(
            "--checkpoints",
            help="t' over training: how many checkpoints to keep, or with --model the folder of its"
            " checkpoints.",
        ),
    ] = None
    sampler: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME, NAME:STEPS or NAME:STEPS:SPACING of a step, 'paper' for the paper's 1,000 stochastic"
            " steps, or 'own' (own:STEPS) for what a given model's pipeline does; default with --model: that,"
            " in at most about 100 steps. Repeat it to measure several side by side.",
            metavar="NAME",
        ),
    ] = None
    value_range: Annotated[
        Literal["0,1", "-1,1"] | None,
        typer.Option(
            "--value-range",
            help="With --model: the range of its images, 0,1 or -1,1, if its files do not say.",
        ),
    ] = None
    targets: Annotated[
        str | None,
        typer.Option(
            "--targets", help="Also rank training images by t': all, how many, or places such as 3,14."
        ),
    ] = None
    control: Annotated[
        bool | None, typer.Option(help="Also train the same recipe without the private image.")
    ] = None
    seed: Annotated[
        int | None, typer.Option(callback=not_negative, help="Everything random follows from this number.")
    ] = None
    root: Annotated[Path | None, typer.Option(help="Folder of the MedMNIST files.")] = None
    download: Annotated[bool, typer.Option("--download", help="Fetch a missing MedMNIST file.")] = False
    device: Device = "cpu"
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Audit this model, trained by others on DATA: its folder, or package.module:factory, a"
            " function of yours that makes it (adapters.from_module).",
            metavar="FOLDER|MODULE:FACTORY",
        ),
    ] = None
    trusted: Annotated[
        bool, typer.Option("--i-trust-this-code", help="Run the code that --model MODULE:FACTORY names.")
    ] = False
    arguments: Annotated[
        list[str] | None,
        typer.Option(
            "--model-argument", help="An argument of that factory; repeatable.", metavar="NAME=VALUE"
        ),
    ] = None
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="Training image to look for: its number, or an image file; default: drawn by the seed.",
            metavar="N|FILE",
        ),
    ] = None
    resize: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Resize images to squares of this side.")
    ] = None
    convert: Annotated[
        Literal["rgb", "grey"] | None,
        typer.Option(help="Convert every image to rgb or grey, as training scripts do."),
    ] = None
    stored_range: Annotated[
        str | None,
        typer.Option(
            "--stored-range",
            help="Stored values of black and white, if they are not the type's limits: 0,4095 or 0,1.",
            metavar="LOW,HIGH",
        ),
    ] = None
    files: Annotated[
        str | None,
        typer.Option(
            "--files",
            help="Only files whose names match, such as '*_t1.png'; with ! in front, the others.",
            metavar="PATTERN",
        ),
    ] = None
    labels: Annotated[
        str | None,
        typer.Option("--labels", help="CSV of file names and classes, if folders do not name them."),
    ] = None
    window: Annotated[
        str | None,
        typer.Option("--window", help="How DICOM and NIfTI values are mapped: file, none, or CENTRE,WIDTH."),
    ] = None
    orientation: Annotated[
        Literal["ras", "closest", "stored"] | None,
        typer.Option("--orientation", help="NIfTI axes: ras (refuses oblique ones), closest, or stored."),
    ] = None
    patient: Annotated[
        str | None,
        typer.Option(
            "--group-pattern",
            "--patient",
            help="Finds the person in a file's name: a regular expression such as 'sub-([0-9]+)'.",
            metavar="REGEX",
        ),
    ] = None
    groups: Annotated[
        str | None,
        typer.Option(
            help="Whose a file is, by a CSV of file names and persons, or by a column of it.",
            metavar="CSV[:COLUMN]",
        ),
    ] = None
    volumes: Annotated[
        bool | None,
        typer.Option("--volumes", help="DICOM files are slices of series, or have frames: volumes."),
    ] = None
    fingerprint: Annotated[
        str | None,
        typer.Option(
            help="The mark: one that is injected, such as circle, cross, box, text, lead, patch; natural"
            " (with --region); none (c_id alone). Default: circle; with --model none.",
            metavar="KIND",
        ),
    ] = None
    region: Annotated[
        str | None,
        typer.Option(
            help="A mark the image carries by nature: row,column,height,width in pixels (volumes:"
            " slice,row,column,depth,height,width), or the file of a mask.",
            metavar="BOX|FILE",
        ),
    ] = None
    label: Annotated[
        int | None,
        typer.Option(
            "--label", min=0, help="With --model: the class to audit, if the model is class-conditional."
        ),
    ] = None
    fingerprints: Annotated[
        int | None,
        typer.Option(
            "--fingerprints",
            min=0,
            help="Also mark 2 N other images and train on about half of them, drawn by coin. This shows how"
            " typical the private image is, and gives a lower bound on epsilon.",
            metavar="N",
        ),
    ] = None
    as_json: Json = False

    def __post_init__(self) -> None:
        """Refuse what can be refused at once, before torch is imported.

        Raises:
            InputError: a preset, source, model, target or device that does not exist, or text that is no
                number, range or sampler.
        """
        require_begun(self.data, self.preset, self.config, self.device)
        text = self.target or ""
        files = {"--target": None if text.removeprefix("-").isdecimal() else text, "--labels": self.labels}
        if self.model is not None and ":" not in self.model:
            files["--model"] = self.model
        for option, name in files.items():
            if name and not os.path.exists(name):
                raise InputError(f"{option} {quoted(name)} does not exist")
        if self.fingerprint is not None:
            from latentprint.marks.settings import kind_of  # numpy and pydantic, but no torch

            kind_of(self.fingerprint)
        if self.given_samples is None and self.samples is not None and whole_number(self.samples) < 1:
            raise InputError("--samples takes a number of images, 1 or more, or generated images, got 0")
        _ = (
            self.kept,
            self.scales,
            self.ranked,
            sampler_table(self.sampler or []),
            stored_range(self.stored_range),
        )
        if self.model is None and self.left is not None:
            raise InputError(
                "--checkpoints takes how many to keep, 1 or more, or with --model the folder of its"
                f" checkpoints, got {quoted(self.left)} without the model"
            )
        if self.model is None and (self.trusted or self.arguments):
            raise InputError(FOREIGN)
        if self.model is None and (self.value_range or self.lora_weight is not None):
            raise InputError("--value-range and --lora-weight belong to a model that is given (--model)")
        asked = ("label", "tries", "search", "checkpoints", "sampler", "targets", "control")
        said = [one for one in asked if getattr(self, one) is not None and getattr(self, one) is not False]
        if self.given_samples is not None and said:
            raise InputError(
                f"--{said[0]} is asked of a model, and generated images (--samples) come without one: "
                "leave it out"
            )

    @property
    def given_samples(self) -> Path | None:
        """The generated images to audit; None if ``samples`` is a number of images to generate.

        Raises:
            InputError: it is neither a number nor something that exists.
        """
        if self.samples is None or self.samples.isdecimal():
            return None
        path = Path(self.samples)
        if not path.exists():
            raise InputError(
                "--samples takes a number of images, or a folder, .zip, .npz or .npy file, got "
                + quoted(self.samples)
            )
        return path

    def opened(self) -> Path | Opened | None:
        """The given model: its folder, or the result of the user's own code.

        Raises:
            InputError: the user did not say that the code is trusted, or it makes no model.
        """
        if self.model is None:
            return None
        from latentprint.adapters import arguments_of, from_factory, is_factory  # torch, only where needed

        if is_factory(self.model):
            if self.trusted:
                print(f"Running the code of {self.model}, as you said that you trust it.", file=sys.stderr)
            return from_factory(self.model, arguments_of(self.arguments or []), trusted=self.trusted)
        if self.trusted or self.arguments:
            raise InputError(FOREIGN)
        return Path(self.model)

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.out or Path("runs") / _name(self.data)

    @property
    def kept(self) -> int | None:
        """How many checkpoints the audit keeps of its own training; None: the settings decide."""
        return whole_number(self.checkpoints) if self.checkpoints and self.checkpoints.isdecimal() else None

    @property
    def left(self) -> str | None:
        """The folder of the checkpoints that a given model's training left."""
        return self.checkpoints if self.kept is None else None

    def settings(self) -> dict[str, object]:
        """The file's settings overridden by the options; an option that was not given decides nothing."""
        from latentprint.files import read_toml
        from latentprint.settings import merge, own_settings

        options: dict[str, dict[str, object]] = {
            "data": {
                "source": self.data,
                "images": self.images,
                "resize": self.resize,
                "convert": self.convert,
                "stored_range": stored_range(self.stored_range),
                "files": self.files,
                "labels": self.labels,
                "window": self.window,
                "orientation": self.orientation,
                "patient": self.patient,
                "groups": self.groups,
                "volumes": self.volumes,
            },
            "samples": {
                "count": None if self.given_samples or not self.samples else whole_number(self.samples)
            },
            "search": {"tries": self.tries, "method": self.search},
            "checkpoints": {"keep": self.kept},
            "sampler": sampler_table(self.sampler or [])
            | {"guidance": self.scales[0] if self.scales else None},
            "given": {"value_range": self.value_range, **self.tuned},
            "prompts": self.asked,
            "fingerprint": {"kind": self.kind, "region": self.region},
            "profile": {"targets": self.ranked},
            "canaries": {"count": self.fingerprints},
        }
        file = read_toml(self.config) if self.config is not None else {}
        own: dict[str, object] = {}
        if self.model is not None or self.given_samples is not None:
            own["data"] = {"images": None}  # a preset says on how many images we would train
        if self.model is not None and not self.sampler and "sampler" not in file and ":" not in self.model:
            own |= own_settings(self.preset)
        tables = {name: given(values) for name, values in options.items()}
        return merge(merge(own, file), tables | given({"seed": self.seed, "control": self.control}))

    @property
    def ranked(self) -> Any:
        """What ``--targets`` asks for (`search.settings.Targets`); None if it was not given."""
        if self.targets is None:
            return None
        from latentprint.search.settings import parse_targets  # scipy, only where needed

        return parse_targets(self.targets)

    @property
    def private(self) -> int | str | None:
        """The target: a number, or the path of an image; for a given model the first of --targets 3,14."""
        text = self.target
        if text is None and self.model is not None and self.targets is not None:
            return self.ranked[0] if isinstance(self.ranked, tuple) else None
        return whole_number(text) if text is not None and text.removeprefix("-").isdecimal() else text

    @property
    def kind(self) -> str | None:
        """The kind of fingerprint; a region alone means a natural one."""
        return "natural" if self.fingerprint is None and self.region is not None else self.fingerprint


def _name(data: str) -> str:
    """A folder name for a data source: ``medmnist:breastmnist`` -> ``medmnist-breastmnist``."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(data).name).strip("-.") or "run"


def taking(options: type[Options]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: the command gets the fields of the dataclass ``options`` as options, and receives one
    value of it.

    The command's first parameter is that value; its others stay options of its own.
    """
    shared = inspect.signature(options, eval_str=True).parameters

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        _, *own = inspect.signature(command, eval_str=True).parameters.values()

        def run(**given: Any) -> None:
            value = options(**{name: given.pop(name) for name in shared})
            command(value, **given)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        keyword = inspect.Parameter.KEYWORD_ONLY
        every = [one.replace(kind=keyword) for one in (*shared.values(), *own)]
        run.__signature__ = inspect.Signature(every)  # pyright: ignore[reportFunctionMemberAccess]
        return run

    return decorate
