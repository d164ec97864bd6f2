"""Models that others trained, and the options of an audit: every value of them, changed."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from documents import of_document, of_files
from mutations import Case, put, spoiled
from safetensors.torch import load_file, save

from latentprint import audit
from latentprint.audit.given import open_given
from latentprint.audit.images import read_images
from latentprint.audit.recipe import subject
from latentprint.cli import answer
from latentprint.config import resolve
from latentprint.networks import UNetConfig, build_unet
from latentprint.networks.saved import load_model
from latentprint.streams import Streams

_TINY = UNetConfig((8, 8), layers_per_block=1, middle_attention=False, norm_groups=4)
_WEIGHTS = "diffusion_pytorch_model.safetensors"


def prepared(folder: Path) -> None:
    """A pipeline of diffusers (pipe/), the same in two shards (shards/)."""
    network = build_unet(_TINY, 1, 8, Streams(0))
    index = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    for name, how in (("pipe", {}), ("shards", {"max_shard_size": "20KB"})):
        (folder / name / "scheduler").mkdir(parents=True)
        network.save_pretrained(folder / name / "unet", **how)
        (folder / name / "scheduler" / "scheduler_config.json").write_text(
            json.dumps(
                {
                    "_class_name": "DDPMScheduler",
                    "num_train_timesteps": 100,
                    "beta_start": 0.001,
                    "beta_end": 0.2,
                    "beta_schedule": "linear",
                    "trained_betas": None,
                    "variance_type": "fixed_small",
                    "clip_sample": False,
                    "prediction_type": "epsilon",
                    "timestep_spacing": "leading",
                    "steps_offset": 0,
                    "rescale_betas_zero_snr": False,
                }
            )
        )
        (folder / name / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", **index}))


def given(name: str, images: Mapping[str, Any] | None = None, **said: Any) -> Callable[[Path], int]:
    """``--model`` as an audit opens it, its first evaluations included; ``said`` is told of it.

    The digits are the images it is compared with, read as ``images`` says.
    """
    data = {"source": "digits", "images": 20, **(images or {})}

    @cache
    def config() -> Any:
        return resolve({"data": data, "sampler": {"name": "own"}, "given": said}, preset="demo")

    @cache
    def digits() -> Any:
        return read_images(config(), None, False)

    def read(folder: Path) -> int:
        open_given(folder / name, None, None, torch.device("cpu"), config(), digits)
        return 0

    return read


def cases(folder: Path) -> Iterator[Case]:
    """Every case; ``folder`` holds what `prepared` and ``documents.prepared`` made."""
    for name in ("pipe", "shards"):
        for file in sorted((folder / name).rglob("*.json")):
            if name == "shards" and "index" not in file.name:
                continue
            inside, document = str(file.relative_to(folder / name)), json.loads(file.read_text())
            yield from of_document(name, inside, document, {"given": given(name)})
        yield from of_files(folder, name, {"given": given(name)})
    for part, weights, read in (
        ("pipe", f"pipe/unet/{_WEIGHTS}", given("pipe")),
        ("model", f"model/{_WEIGHTS}", lambda at: 0 * id(load_model(at / "model"))),
    ):
        yield from _weights(folder, part, weights, read)
    yield from _options()


def _weights(folder: Path, part: str, file: str, read: Callable[[Path], int]) -> Iterator[Case]:
    content, tensors = (folder / file).read_bytes(), load_file(folder / file)
    for i in range(200):
        yield Case(
            f"weights {part}",
            f"weights: {file} spoiled {i}",
            (part,),
            lambda at, i=i: put(at / file, spoiled(content, random.Random(f"{file} {i}"))),
            read,
        )
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "int64": lambda one: (one * 10).long(),
        "int8": lambda one: (one * 10).to(torch.int8),
        "bool": lambda one: one > 0,
        "float64": lambda one: one.double(),
        "float16": lambda one: one.half(),
        "bfloat16": lambda one: one.bfloat16(),
        "1e10": lambda one: one * 0 + 1e10,
        "1e38": lambda one: one * 0 + 1e38,
        "nan": lambda one: one * float("nan"),
        "infinite": lambda one: one + float("inf"),
        "flat": lambda one: one.reshape(-1),
        "empty": lambda one: one.reshape(-1)[:0],
        "scalar": lambda one: one.reshape(-1)[0],
        "longer": lambda one: torch.cat([one, one]),
    }
    for kind, change in changes.items():
        for which in ("all", "first", "last"):
            names = list(tensors)
            chosen = {"all": names, "first": names[:1], "last": names[-1:]}[which]
            new = {name: change(one) if name in chosen else one for name, one in tensors.items()}
            yield Case(
                f"weights {part}",
                f"weights: {file} {which} {kind}",
                (part,),
                lambda at, n=new: put(at / file, save({k: v.contiguous() for k, v in n.items()})),
                read,
            )


VALUES = (
    "",
    " ",
    "0",
    "-1",
    "1",
    "2",
    "7",
    "1e3",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "0x10",
    "1000000000000",
    "9" * 5000,
    "x" * 300,
    "x" * 5000,
    "a\nb",
    "\udcff",
    "\u202e",
    "/dev/zero",
    "/dev/null",
    "/proc/self/mem",
    "FIFO",
    "FOLDER",
    "LOOP",
    "0,1",
    "1,1",
    "1,0",
    "nan,nan",
    "1,2,3,4",
    "0,0,9999999,2",
    "all",
    "own",
    "own:0",
    "own:5",
    "heun:0",
    "heun:-3",
    "heun:18:nosuch",
    "paper:3",
    "ancestral:12:karras:9",
    "../../etc/passwd",
    "os:system",
    "digits",
    "phantom:5000000",
    "phantom:0",
    "medmnist:x/../y",
    "natural",
    "cuda:99",
    "meta",
    "mps",
    "xla",
)
_WITH_VALUES = (
    "images",
    "samples",
    "tries",
    "search",
    "checkpoints",
    "sampler",
    "value-range",
    "guidance",
    "targets",
    "seed",
    "root",
    "device",
    "model",
    "model-argument",
    "target",
    "resize",
    "convert",
    "stored-range",
    "files",
    "labels",
    "window",
    "fingerprint",
    "region",
    "label",
    "config",
    "preset",
    "authorised-by",
    "executor",
    "processes",
    "out",
)


def _options() -> Iterator[Case]:
    """Each option of ``audit`` with each value, and the source with each, up to where training begins."""
    for value in VALUES:
        yield Case("source", f"source: {value[:60]!r} {len(value)}", (), places_here, _audited([value]))
        for option in _WITH_VALUES:
            name = f"options: --{option} {value[:60]!r} {len(value)}"
            yield Case("options", name, (), places_here, _audited(["digits", f"--{option}", value]))


def places_here(at: Path) -> None:
    os.mkfifo(at / "FIFO")
    (at / "FOLDER").mkdir()
    (at / "LOOP").symlink_to("LOOP")


def _audited(arguments: list[str]) -> Callable[[Path], int]:
    def read(folder: Path) -> int:
        known = {name: str(folder / name) for name in ("FIFO", "FOLDER", "LOOP")}
        given = [known.get(one, one) for one in arguments]
        out = [] if "--out" in given else ["--out", str(folder / "out")]
        preset = [] if "--preset" in given else ["--preset", "demo"]
        before, audit.run_audit = audit.run_audit, _until_training
        here = Path.cwd()
        try:
            os.chdir(folder)
            return answer(["audit", *given, *preset, *out])
        finally:
            os.chdir(here)
            audit.run_audit = before

    return read


def _until_training(config: Any, out: Path, where: Any = None, **more: Any) -> Any:
    """All that an audit does before it writes anything."""
    import typer

    if more.get("samples") is None:
        subject(config, where, **{name: more[name] for name in ("model", "label", "target", "checkpoints")})
    raise typer.Exit(0)
