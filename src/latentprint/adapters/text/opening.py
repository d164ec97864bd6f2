"""Text-to-image pipelines of diffusers, opened part by part.

    model_index.json                        the pipeline's class and parts, each from a literal table
    unet/ or transformer/                   the network
    text_encoder/, tokenizer/, ..._2, ..._3 what reads prompts (extra ``text``)
    vae/                                    an AutoencoderKL, Sana's an AutoencoderDC
    scheduler/scheduler_config.json         the noise, and what the network predicts

No code of the folder is run. Parts that it may lack (safety checker, feature extractor) are not needed.

A checkpoint of diffusers' training scripts holds only what was trained (unet/, unet_ema/, text_encoder/). Its
other parts and its index are those of the model that the training began with, or of the folder around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from latentprint.adapters.build import read_network, sides
from latentprint.adapters.fields import number, short, some
from latentprint.adapters.files import files_sha256, inside, read_json, subfolder
from latentprint.adapters.latent import LatentCodec, factor
from latentprint.adapters.opened import Asked, Opened, written_down
from latentprint.adapters.own import Own, own_sampler
from latentprint.adapters.schedulers import SCHEDULERS, Network, complete, denoiser_of, hint, mu_of
from latentprint.adapters.text.encoders import ENCODERS, TOKENIZERS, read_encoder, read_tokenizer
from latentprint.adapters.text.families import FAMILIES, About, Family, Reader, guided
from latentprint.adapters.text.lora import add_lora, lora_file
from latentprint.adapters.text.model import Text
from latentprint.denoiser import Denoiser
from latentprint.networks import ModelError
from latentprint.sampler import sampler_from

INDEX = "model_index.json"

_LEFT_OUT = {
    "safety_checker": "the pipeline's safety checker is left out: what it would black out is audited",
    "feature_extractor": "",
    "image_encoder": "",
}
"""Parts that do not change what the model generates, with a note for the reader on each."""


AVERAGED = "_ema"
"""What the scripts add to the name of the folder of averaged weights."""


def whole_of(folder: Path, beside: Path | None) -> Path | None:
    """The folder of the whole text-to-image model that ``folder`` is or is a checkpoint of; None: it is
    neither.

    Raises:
        ModelError: it is a checkpoint of one, and nothing says where its other parts are.
    """
    if _is_text(folder):
        return folder
    if inside(folder, INDEX).is_file() or not any(_is_network(folder, one) for one in FAMILIES.values()):
        return None
    around = folder.resolve().parent
    for one in (beside, around):
        if one is not None and _is_text(one):
            return one
    raise ModelError(
        f"{folder.name!r} is a checkpoint of a text-to-image model and holds its network alone; name the "
        "model that its training began with, whose other parts it shares and which is the control too: "
        "--base FOLDER"
    )


def _is_network(folder: Path, family: Family) -> bool:
    kinds = [read_json(inside(one, "config.json")).get("_class_name") for one in _networks(folder, family)]
    return family.network in kinds


def _networks(folder: Path, family: Family) -> list[Path]:
    """The folders of the network, averaged weights first."""
    both = (subfolder(folder, family.folder + end) for end in (AVERAGED, ""))
    return [one for one in both if inside(one, "config.json").is_file()]


def _is_text(folder: Path) -> bool:
    """Whether the folder's index names a text encoder or a tokenizer."""
    if not inside(folder, INDEX).is_file():
        return False
    index = read_json(folder / INDEX)
    return any(name.startswith(("text_encoder", "tokenizer")) for name in index)


def open_text(folder: Path, whole: Path, asked: Asked) -> Opened:
    """The text-to-image model in ``folder``, under the empty prompt; ``Opened.text`` asks it under others.

    ``whole`` has the parts that ``folder`` lacks (`whole_of`).
    """
    index = read_json(inside(whole, INDEX))
    family = _family(index)
    if asked.label is not None:
        raise ModelError("a label was given, but this model is conditioned on text: give prompts (--prompts)")
    where = _Where(folder, whole)
    readers, files = _readers(where, index, family)
    place = next(iter(_networks(folder, family)), subfolder(folder, family.folder))
    module, config, own_files = read_network(place, (family.network,))
    adapted, remarks = _adapted(module, readers, family, asked)
    autoencoder, vae_config, vae_files = read_network(where.part("vae"), (family.autoencoder,))
    scheduler = complete(read_json(inside(where.part("scheduler"), "scheduler_config.json")))
    shape, notes = _shape(family, config, factor(vae_config), asked)
    codec = LatentCodec.of(autoencoder, vae_config, shape)
    name = str(index["_class_name"])
    gives = int(config.get("out_channels") or config["in_channels"]) // family.packs**2
    channels = shape[0], gives
    mu = _mu(scheduler, family, shape, config)

    def finish(prompted: nn.Module) -> tuple[Denoiser, Own]:
        network = Network(prompted, channels, variance=channels[1] == 2 * channels[0])
        denoiser, _ = denoiser_of(network, scheduler)
        nearest = sampler_from(hint(scheduler, denoiser))
        found = own_sampler(scheduler, denoiser, nearest, asked.steps, name, mu, asked.most)
        return denoiser, found

    size = codec.image_shape[1], codec.image_shape[2]
    usual = 1.0 if family.distilled and not guided(config) else family.guidance
    guidance = number(usual if asked.guidance is None else asked.guidance, "guidance", 0.0, 1000.0)
    zeros = family.zeros and index.get("force_zeros_for_empty_prompt", True) is not False
    text = Text(family, module, readers, About(size, config, index), guidance, finish, zeros)
    _require_fit(text, family)
    denoiser, own = text.under("", guidance)
    said = denoiser_of(Network(module, channels, variance=channels[1] == 2 * channels[0]), scheduler)[1]
    if place.name.endswith(AVERAGED):
        remarks += (f"the averaged weights ({place.name}) were taken",)
    used = [*files, *own_files, *vae_files]
    return Opened(
        denoiser=denoiser,
        codec=codec,
        shape=shape,
        image_shape=codec.image_shape,
        sampler_hint=hint(scheduler, denoiser),
        weights_sha256=where.sha256(used),
        kind="diffusers text-to-image",
        notes=(*said, *notes, *_notes(index), *where.notes(), *remarks),
        networks=(module, autoencoder, *(reader.encoder for reader in readers.values())),
        identity={"schedule": written_down(denoiser.schedule), "pipeline": name, **adapted},
        own=own,
        text=text,
    )


def _family(index: Mapping[str, object]) -> Family:
    """The pipeline's row, after every part of the index was checked against the tables."""
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ModelError(
            f"a {short(name)} is not supported, and the code of a pipeline is never run; supported are "
            f"{some(FAMILIES, name)}. Generate images with the prompts that you will publish it for, and "
            "audit these: --samples FOLDER"
        )
    family = FAMILIES[name]
    allowed: dict[str, tuple[str, tuple[str, ...]]] = {
        family.folder: ("diffusers", (family.network,)),
        "vae": ("diffusers", (family.autoencoder,)),
        "scheduler": ("diffusers", tuple(SCHEDULERS)),
    }
    for part in family.parts:
        allowed[part.encoder] = ("transformers", part.classes)
        allowed[part.tokenizer] = ("transformers", tuple(TOKENIZERS))
    for part, value in index.items():
        entry = cast(list[object], value) if isinstance(value, list) else []
        if part.startswith("_") or part in _LEFT_OUT or len(entry) != 2 or entry == [None, None]:
            if part in allowed and not (entry == [None, None] or value is None):
                raise ModelError(f"part {short(part)} of {INDEX} must be a library and a class")
            continue
        library, kind = entry
        if part not in allowed:
            raise ModelError(
                f"part {short(part)} ({short(library)}, {short(kind)}) of the pipeline is not supported: "
                "code and networks from outside diffusers and transformers are not run"
            )
        of, classes = allowed[part]
        if library != of or kind not in classes:
            raise ModelError(
                f"part {part!r} is of class {short(kind)} from {short(library)}; supported are "
                f"{some(classes, kind)} from {of}, and no other code is run"
            )
    return family


@dataclass(frozen=True)
class _Where:
    """Where the parts of a model are: in its folder, or in the whole model that it is a checkpoint of."""

    folder: Path
    whole: Path
    lent: list[str] = field(default_factory=list[str])

    def part(self, name: str) -> Path:
        """The folder of a part."""
        own = subfolder(self.folder, name)
        if own.is_dir() or self.folder == self.whole:
            return own
        self.lent.append(name)
        return subfolder(self.whole, name)

    def sha256(self, files: Sequence[Path]) -> str:
        """Identifies these weights, wherever the folders are."""
        return files_sha256([one.resolve() for one in files], self.folder.resolve(), self.whole.resolve())

    def notes(self) -> tuple[str, ...]:
        """What was not in its own folder."""
        if not self.lent:
            return ()
        return (f"a checkpoint; {', '.join(self.lent)} are those of the model that its training began with",)


def _readers(
    where: _Where, index: Mapping[str, object], family: Family
) -> tuple[dict[str, Reader], list[Path]]:
    readers, files = dict[str, Reader](), list[Path]()
    for part in family.parts:
        kind = index.get(part.encoder)
        named = isinstance(kind, list) and kind != [None, None]
        if part.optional and not named:
            continue
        name = cast(list[str], kind)[1] if named else part.classes[0]
        encoder, found = read_encoder(where.part(part.encoder), name)
        settings = cast(Any, encoder).config
        most, known = int(getattr(settings, "max_position_embeddings", 512)), int(settings.vocab_size)
        of = index.get(part.tokenizer)
        kept = cast(list[str], of)[1] if isinstance(of, list) and of != [None, None] else ENCODERS[name][2]
        tokenizer = read_tokenizer(where.part(part.tokenizer), kept, most, known)
        readers[part.encoder] = Reader(encoder, tokenizer)
        files += found
    return readers, files


def _adapted(
    module: nn.Module, readers: Mapping[str, Reader], family: Family, asked: Asked
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Merge the LoRA that is asked for; returns (plain values that identify it, notes)."""
    if asked.lora is None:
        return {}, ()
    weight = number(asked.lora_weight, "the weight of the LoRA", -1000.0, 1000.0)
    file = lora_file(asked.lora)
    parts = {family.folder: module, **{name: reader.encoder for name, reader in readers.items()}}
    changed = add_lora(parts, family.folder, file, weight)
    note = f"a LoRA was added to {changed} of its weights, {weight:g} times"
    return {"lora_sha256": files_sha256([file], file.parent), "lora_weight": weight}, (note,)


def _shape(
    family: Family, config: Mapping[str, Any], pixels: int, asked: Asked
) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """The latents' (C, h, w): those of the training images if their size is known, as in fine-tuning."""
    channels, notes = int(config["in_channels"]) // family.packs**2, tuple[str, ...]()
    if family.autoencoder == "AutoencoderKL":
        notes += ("images are encoded as the mean of the posterior",)
    own = config.get("sample_size") or family.side
    if asked.images is None:
        if own is None:
            raise ModelError("the network's config.json must state its sample_size, the side of its latents")
        return (channels, *sides(own)), notes
    height, width = asked.images().shape[2:]
    levels = len(config["block_out_channels"]) - 1 if "block_out_channels" in config else 0
    step = pixels * (2**levels if levels else _patch(family, config))
    if height % step or width % step:
        near = max(step, round(min(height, width) / step) * step)
        raise ModelError(
            f"the images are {height} x {width} pixels, and this model makes images whose sides are "
            f"multiples of {step}: --resize {near} brings them to a size that it can "
            "make, if its training did the same"
        )
    shape = (channels, height // pixels, width // pixels)
    if own is not None and shape[1:] != sides(own):
        usual = " x ".join(str(side * pixels) for side in sides(own))
        notes += (
            f"the network's own size is {usual} pixels; it was asked for the size of the training images",
        )
    return shape, notes


def _patch(family: Family, config: Mapping[str, Any]) -> int:
    """The side of the squares of latents that are one token of a transformer."""
    return family.packs * int(config.get("patch_size", 1))


def _mu(
    scheduler: Mapping[str, Any], family: Family, shape: tuple[int, int, int], config: Mapping[str, Any]
) -> float | None:
    if scheduler.get("use_dynamic_shifting") and family.folder != "transformer":
        raise ModelError(
            "the scheduler shifts its times by the size of the image (use_dynamic_shifting), which is not"
            " supported for this pipeline"
        )
    return mu_of(scheduler, shape, _patch(family, config))


def _notes(index: Mapping[str, object]) -> tuple[str, ...]:
    there = [name for name in _LEFT_OUT if index.get(name) not in (None, [None, None])]
    return tuple(_LEFT_OUT[name] for name in there if _LEFT_OUT[name])


def _require_fit(text: Text, family: Family) -> None:
    """Refuse encoders whose output does not fit the network."""
    rows = text.rows("")
    settings = text.about.network
    names = ("caption_channels", "joint_attention_dim", "cross_attention_dim")
    wanted = next((settings[name] for name in names if settings.get(name)), None)
    width = rows["hidden"].shape[-1]
    if isinstance(wanted, int) and width != wanted:
        raise ModelError(
            f"the text encoder gives {width} numbers a token, but {family.folder}/ takes {wanted}: they are "
            "not of one model"
        )


def with_prompt(opened: Opened, prompt: str, guidance: float) -> Opened:
    """The same model under a prompt.

    Raises:
        ValueError: the model is not conditioned on text.
    """
    if opened.text is None:
        raise ValueError("this model is not conditioned on text")
    denoiser, own = opened.text.under(prompt, guidance)
    return replace(opened, denoiser=denoiser, own=own)
