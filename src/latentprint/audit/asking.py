"""The prompts that a text-to-image model is asked: those of the images, and further ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from latentprint.adapters import Opened, with_prompt
from latentprint.adapters.text.model import prompt_sha256
from latentprint.config import AuditConfig
from latentprint.contracts import InputError
from latentprint.data import Split
from latentprint.data.captions import captions
from latentprint.denoiser import Denoiser


@dataclass(frozen=True)
class Asks:
    """How many prompts an audit asks (`audit.prompts`), from which its cost follows (`audit.costs`).

    Attributes:
        conditions: under which x_p is looked for besides its own.
        train, heldout: pairs that are asked, each under its own prompt.
        further: prompts of no image; with no pairs none is asked.
        base: whether the base model is asked the same.
        attention: whether the network's attention to the words is watched.
    """

    conditions: int
    train: int
    heldout: int
    further: int
    base: bool
    attention: bool


@dataclass(frozen=True)
class Prompts:
    """Prompts of images, and further ones.

    Attributes:
        train, heldout: the prompt of each image; None: a held-out image has no prompt.
        further: other prompts that are asked.
        own: the prompt of x_p.
        guidance: the audit's guidance scale.
        passes: through the network for one evaluation at that scale.
        cut: for each training prompt, how many tokens at its end the model never sees.
    """

    train: tuple[str, ...]
    heldout: tuple[str | None, ...]
    further: tuple[str, ...]
    own: str = ""
    guidance: float = 1.0
    passes: int = 1
    cut: tuple[int, ...] = field(default=(), repr=False)

    @property
    def alike(self) -> bool:
        """Whether all images share one prompt, so that one condition serves them all."""
        return len({*self.train, *self.heldout}) == 1

    @property
    def every(self) -> tuple[str, ...]:
        """Every prompt once."""
        heldout = (one for one in self.heldout if one is not None)
        return tuple(dict.fromkeys((*self.train, *heldout, *self.further, "")))

    def condition(self, prompt: str, guidance: float | None = None) -> dict[str, object]:
        """The prompt that q and t' belong to, as results state it: a hash of its words."""
        scale = self.guidance if guidance is None else guidance
        return {"guidance": scale, "prompt": prompt_sha256(prompt)[:16]}

    def identity(self) -> dict[str, object]:
        """Plain values that identify all prompts of the audit."""
        words = "\0".join([*self.train, "", *map(repr, self.heldout), "", *self.further])
        digest = sha256(words.encode("utf-8", "surrogatepass")).hexdigest()
        return {"prompts_sha256": digest, "guidance": self.guidance, "prompt": prompt_sha256(self.own)}

    def listed(self) -> tuple[tuple[str, str], ...]:
        """(whose, words) of every prompt, for the confidential page."""
        train = [(f"training image {i}", text) for i, text in enumerate(self.train)]
        further = [(f"further prompt {i}", text) for i, text in enumerate((*self.further, ""), 1)]
        return (*further, *train)

    def notes(self) -> tuple[str, ...]:
        """What a reader must know about the prompts."""
        scale = f"guidance {self.guidance:g}" if self.guidance > 1 else "no guidance"
        if self.passes == 2:
            scale += ": each evaluation is two passes through the network"
        count = len(set(self.train))
        some = f"{count:,} different prompts of {len(self.train):,} training images"
        if count == 1:
            some = f"the {len(self.train):,} training images share one prompt"
            some += "" if self.own else ", the empty one"
        said = [f"{some}; the private image was looked for under its own, with {scale}"]
        if cut := sum(one > 0 for one in self.cut):
            said.append(
                f"{cut:,} of the prompts are longer than the text encoder reads, and were cut off at their "
                "end, as its pipeline does"
            )
        if None in self.heldout:
            lacking = sum(one is None for one in self.heldout)
            said.append(
                f"{lacking:,} of {len(self.heldout):,} held-out images have no prompt, and are left out of"
                " measurements under their own prompts"
            )
        return tuple(said)


def read_prompts(config: AuditConfig, split: Split) -> Prompts:
    """The prompts of the images, read from where the settings say."""
    settings, names = config.prompts, split.train.names
    file = None if settings.file is None else Path(settings.file)
    if file is not None and not file.exists():
        raise InputError(f"there is no file or folder of prompts {str(file)!r} (--prompts)")
    if file is not None and names is None:
        raise InputError(
            f"prompts belong to images by their file names, and those of {split.name} have none; give a "
            "folder of image files, or one prompt for all (--prompt)"
        )
    found = None if names is None else captions(config.data.source, names, file)
    if found is None:
        if not settings.ask:
            raise InputError(
                "this model is conditioned on text, and nothing says which prompts it was trained with. Name "
                "a CSV of file names and prompts (--prompts FILE.csv), put a metadata.jsonl or .txt files "
                'beside the images; or give the one prompt of all of them (--prompt "a photo of sks")'
            )
        first, *rest = settings.ask
        count = len(split.train), len(split.heldout)
        return Prompts((first,) * count[0], (first,) * count[1], tuple(rest))
    assert names is not None  # found by their names
    held = tuple(found.get(name) for name in split.heldout.names or (None,) * len(split.heldout) if name)
    held = held if len(held) == len(split.heldout) else (None,) * len(split.heldout)
    return Prompts(tuple(found[name] for name in names), held, settings.ask)


def measurable(config: AuditConfig, prompts: Prompts | None) -> AuditConfig:
    """The settings without the measures that need a prompt for every held-out image, if one of them has
    none."""
    if prompts is None or None not in prompts.heldout:
        return config
    return replace(
        config,
        baseline=replace(config.baseline, images=0),
        membership=replace(config.membership, images=0),
        profile=replace(config.profile, targets=0),
    )


def require_none(config: AuditConfig, *, given: bool = True) -> None:
    """Refuse prompts for a model that takes none.

    Args:
        config: the settings.
        given: whether the model was trained elsewhere.

    Raises:
        InputError: the settings name prompts, a base model or a LoRA; or, without a model, a mark of
            `latentprint inject`.
    """
    if config.given.mark is not None and not given:
        raise InputError("--mark says what a model was trained on, and none was given (--model)")
    asked, said = config.prompts, config.given
    if asked.file or asked.ask or asked.guidance or said.base or said.lora:
        raise InputError(
            "--prompts, --prompt, several scales of --guidance, --lora and --base are for a text-to-image "
            "model, and this one is not conditioned on text"
        )


def sampled_under(opened: Opened, own: bool, guidance: float, prompt: str) -> Denoiser:
    """The model under a prompt, as it is sampled from."""
    return with_prompt(opened, prompt, guidance).sampled(own)


def of_numbers(prompts: Prompts, numbers: Sequence[int]) -> list[str]:
    """Prompts by the image numbers of `audit.comparison`: training images, then the held-out images twice."""
    train, held = prompts.train, prompts.heldout
    found = [train[i] if i < len(train) else held[(i - len(train)) % len(held)] for i in numbers]
    return [one or "" for one in found]
