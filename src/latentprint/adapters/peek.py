"""What a pickle is about, by the names in it. Its opcodes are read, and none is executed.

    train.ckpt      "state_dict", "net.input_blocks.0.0.weight", "pytorch-lightning_version"
    model.pt        diffusers.models.unets.unet_2d.UNet2DModel: a module, which only its own code can read

Source: Python's pickletools, which parses a pickle without a machine that would run it.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, islice
from pathlib import Path

from latentprint.adapters.unpickle import HARMLESS, MOST_READ, pickle_in

_MOST_OPCODES = 2_000_000
_PICKLES = 4  # torch before 1.6 wrote three small ones ahead of the object
_PLAIN = (
    "torch",
    "collections",
    "numpy",
    "builtins",
    "__builtin__",
    "_codecs",
    "argparse",
    "pathlib",
    "copyreg",
)


@dataclass(frozen=True)
class Names:
    """The names in a pickle.

    Attributes:
        words: its strings: keys, names of tensors.
        classes: what it would import, "package.module.Class".
    """

    words: frozenset[str]
    classes: frozenset[str]

    @property
    def foreign(self) -> tuple[str, ...]:
        """The classes that are more than tensors, numbers, containers and what a converter leaves unread."""
        strange = [one for one in self.classes if one.split(".")[0] not in _PLAIN or ".nn.modules." in one]
        found = [one for one in strange if not one.startswith(HARMLESS)]
        return tuple(sorted(found, key=lambda one: (not re.search("UNet|Model$|Net$", one), one)))


@dataclass(frozen=True)
class Form:
    """A network that can be recognised by the names of its tensors.

    Attributes:
        name: what it is, as the middle of a sentence.
        signs: how some of its names end; all of them must occur.
        options: what ``latentprint convert IN FOLDER --i-trust-this-file`` also needs; None: no option holds
            the network's settings, so its tensors belong next to its configuration.
    """

    name: str
    signs: tuple[str, ...]
    options: str | None


FORMS = (
    Form("denoising-diffusion-pytorch (lucidrains)", ("model.init_conv.weight", "betas"), ""),
    Form(
        "CompVis' latent diffusion",
        ("model.diffusion_model.input_blocks.0.0.weight", "betas"),
        "--flags project.yaml",
    ),
    Form(
        "openai's guided- or improved-diffusion",
        ("input_blocks.0.0.weight", "time_embed.0.weight"),
        '--flags "$MODEL_FLAGS $DIFFUSION_FLAGS"',
    ),
    Form("medfusion", ("noise_estimator.in_conv.conv.weight",), ""),
    Form("EDM (Karras et al.)", ("model.map_layer0.weight", "model.map_layer1.weight"), ""),
    Form("a UNet2DModel of diffusers", ("conv_in.weight", "time_embedding.linear_1.weight"), None),
    Form("a DiffusionModelUNet of MONAI", ("conv_in.conv.weight", "time_embed.0.weight"), None),
)


def form_of(names: Iterable[str]) -> Form | None:
    """The network whose tensors have these names, with any prefix."""
    every = tuple(names)
    return next((form for form in FORMS if prefixes(every, form)), None)


def prefixes(names: Iterable[str], form: Form) -> tuple[str, ...]:
    """The prefixes of this network's names, shortest first; "" if there is none."""
    every = frozenset(names)
    first, *rest = form.signs
    heads = {name.removesuffix(first) for name in every if name.endswith(first)}
    whole = {head for head in heads if head in ("",) or head.endswith(".")}
    return tuple(
        sorted((h for h in whole if all(h + one in every for one in rest)), key=lambda h: (len(h), h))
    )


def is_average(prefix: str) -> bool:
    """Whether a prefix says that these weights are averaged."""
    parts = re.split(r"[./_]", prefix.lower())
    return ("ema" in parts or any(one.startswith("averag") for one in parts)) and "online" not in parts


def names_in(file: Path) -> Names:
    """The names in a pickle, or in one that torch saved; empty if the file is neither."""
    words, classes, last = set[str](), set[str](), ["", ""]
    try:
        stream = BytesIO(_pickle(file))
        every = chain.from_iterable(pickletools.genops(stream) for _ in range(_PICKLES))
        for code, value, _ in islice(every, _MOST_OPCODES):
            if code.name == "STACK_GLOBAL":
                classes.add(".".join(last))
            elif isinstance(value, str):
                if code.name == "GLOBAL":
                    classes.add(value.replace(" ", ".", 1))
                else:
                    words.add(value)
                    last = [last[1], value]
    except (ValueError, OSError, KeyError, EOFError, OverflowError, zipfile.BadZipFile):
        pass  # it is truncated, damaged or not a pickle: the part read so far still counts
    return Names(frozenset(words), frozenset(classes))


def _pickle(file: Path) -> bytes:
    """The pickle itself: ``data.pkl`` in a zip of torch's, otherwise the file."""
    if (inner := pickle_in(str(file))) is not None:
        return inner
    with file.open("rb") as stream:
        return stream.read(MOST_READ)
