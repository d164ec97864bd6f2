"""A model that somebody else trained, in place of the one that an audit trains.

    DATA, model → x_p, an image as it stands → c_id → t' → samples → likelihood, FID → verdict

Nothing is injected, so there is no mark for a c_p to see: Omega_p is that of c_id alone (Eq. 6 with one
sign). No model is trained either, so there is no control, and false alarms are known from real images only.

The audit cannot check that the model was trained on these images; whoever runs it vouches for that. The model
is identified by the hash of its weights, never by a path: a run is continued with those weights alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from latentprint.adapters import (
    Asked,
    ConsistencyDenoiser,
    FunctionDenoiser,
    Opened,
    on_times,
    open_model,
    require_sound,
)
from latentprint.adapters.latent import require_spread
from latentprint.audit.asking import Prompts
from latentprint.audit.context import Context
from latentprint.audit.images import other_shape, private_image, require_unseen
from latentprint.config import AuditConfig
from latentprint.contracts import InputError
from latentprint.data import Split
from latentprint.denoiser import Denoiser, IdentityCodec, NetworkDenoiser
from latentprint.fingerprint import Injection
from latentprint.marks import as_found
from latentprint.marks.folder import Recorded, read_mark
from latentprint.results.model import MODEL, Model
from latentprint.results.searched import Sampler
from latentprint.schedule import EDM, VE
from latentprint.settings import plain

_LOOKED = 4  # how many images show the scale of the latents

_UNUSED = ("model", "control")
"""Settings of the training, which this audit does not use; those of c_p too where there is no mark."""


@dataclass(frozen=True)
class Given:
    """The model from outside, and what of it is audited.

    Attributes:
        opened: the model, on the device of the audit.
        label: the class that is audited, for a class-conditional model.
        target: the place of x_p among the training images; None: drawn by the seed.
        folder: where the model is on disk, if it is.
        prompts: what a text-to-image model is asked; ``opened`` is then under the prompt of x_p.
        base: the model that it was fine-tuned from, under the same prompt: the control.
    """

    opened: Opened
    label: int | None
    target: int | str | Path | None
    folder: Path | None = None
    prompts: Prompts | None = None
    base: Opened | None = None

    @property
    def condition(self) -> dict[str, object]:
        """What q and t' belong to besides the sampler: prompt and guidance."""
        return {} if self.prompts is None else self.prompts.condition(self.prompts.own)

    def settings(self, config: AuditConfig) -> dict[str, object]:
        """The run's settings: those that this audit uses, and the identity of the model."""
        unused = _UNUSED if config.fingerprint.kind != "none" else (*_UNUSED, "presence")
        unused = unused if self.prompts is not None else (*unused, "prompts")
        kept = {name: value for name, value in plain(config).items() if name not in unused}
        own = {
            "kind": self.opened.kind,
            "weights_sha256": self.opened.weights_sha256,
            "label": self.label,
            "target": named(self.target),
            **self.opened.identity,
        }
        return kept | {"given": own}

    @property
    def pixels(self) -> bool:
        """Whether the model works on pixels. Only then is its likelihood that of an image."""
        return isinstance(self.opened.codec, IdentityCodec)

    def entry(self, sampler: Sampler) -> Model:
        """The model's kind and hash, and what a reader must know; ``sampler`` is the audit's."""
        notes = [
            f"Trained by others and audited as it is ({self.opened.kind}).",
            "Whoever ran the audit stated that it was trained on exactly the images named here, and on none"
            " of those held out. The expected rate 1/N depends on that.",
            self._sampled(sampler),
            *(f"{note[:1].upper()}{note[1:]}." for note in self.opened.notes),
        ]
        return Model(
            kind=self.opened.kind,
            weights_sha256=self.opened.weights_sha256,
            label=self.label,
            notes=tuple(notes),
        )

    def _sampled(self, sampler: Sampler) -> str:
        own = self.opened.own
        if own is not None and sampler == Sampler.model_validate(
            {**own.sampler.describe(), **self.condition}
        ):
            stands = "" if own.exact else "; the nearest to it that latentprint has"
            said = f"Images were generated as the model's own scheduler does ({sampler.words}{stands})."
            if own.pipeline_steps is None or (sampler.steps or 0) >= own.pipeline_steps - 1:
                return said
            return (
                f"{said} Its pipeline takes {own.pipeline_steps:,} steps. Fewer were taken for time, and what"
                " comes back depends on them; --sampler own takes all."
            )
        return (
            f"Images were generated with the audit's sampler ({sampler.words}); the model's own scheduler"
            f" is nearest to {Sampler.model_validate(self.opened.sampler_hint).words}."
        )


def open_given(
    model: Path | str | Opened | None,
    label: int | None,
    target: int | str | Path | None,
    device: torch.device,
    config: AuditConfig,
    images: Callable[[], Split] | None = None,
) -> Given | None:
    """The model at a path, opened without running any of its code; None where the audit trains its own.

    A model that is open already is tried on a few inputs, because no adapter has checked it. ``images`` reads
    the training images, on which some things that the model's files leave open are measured.

    Raises:
        InputError: a label was given without a model.
        ModelError: the model is refused for safety, or cannot be read.
    """
    if model is None:
        if label is not None:
            raise InputError("--label names the class that a given model is asked for; name one (--model)")
        return None
    if isinstance(model, Opened):
        if config.sampler.own and model.own is None:
            raise InputError(
                'a model from Python comes with no sampler of its own ("own"); name one, e.g. ancestral:96'
            )
        if label is not None:
            raise InputError(
                "a label was given with a model from Python; its code says what it is conditional on"
            )
        require_sound(model.to(device), model.shape, device)
        return Given(in_unit_time(model), label, target)
    opened = open_model(model, asked=asked(config, label, images))
    return Given(in_unit_time(opened.to(device)), label, target, Path(model))


def asked(config: AuditConfig, label: int | None, images: Callable[[], Split] | None = None) -> Asked:
    """What the settings say about the model, in place of its files."""
    sampler, said = config.sampler, config.given.value_range
    pixels = None if images is None else lambda: np.asarray(images().train.pixels)
    unit = None if said is None else said == "0,1"
    lora, base = (None if one is None else Path(one) for one in (config.given.lora, config.given.base))
    steps = sampler.own_steps, sampler.at_most
    return Asked(
        label,
        sampler.guidance,
        *steps,
        pixels,
        unit,
        lora=lora,
        lora_weight=config.given.lora_weight,
        beside=base,
    )


_TOLD_SIGMA = (NetworkDenoiser, FunctionDenoiser, ConsistencyDenoiser)


def in_unit_time(opened: Opened) -> Opened:
    """A model of Karras et al. (t = sigma) with its time renamed: sigma = low (high / low)^t, to T = 1.

    Its network receives sigma and never t, so only the name of t changes. t' and its even grid are then in
    the time of the paper's variance-exploding process.
    """
    denoiser = opened.denoiser
    if not isinstance(denoiser, _TOLD_SIGMA) or not isinstance(denoiser.schedule, EDM):
        return opened
    if isinstance(denoiser, NetworkDenoiser) and denoiser.parametrisation != "edm":
        return opened  # such a network receives t itself
    low, high = denoiser.schedule.sigma_min, denoiser.schedule.sigma_max
    note = f"noise level t stands for noise of standard deviation {low:g} x {high / low:g}^t"
    unit = VE(low, high)
    if isinstance(denoiser, FunctionDenoiser):
        renamed = replace(denoiser, schedule=unit, time=_by_sigma(denoiser, unit))
    else:
        renamed = replace(denoiser, schedule=unit)
    own = opened.own and on_times(opened.own, renamed, unit.time)
    return replace(opened, denoiser=renamed, own=own, notes=(*opened.notes, note))


def _by_sigma(denoiser: FunctionDenoiser, unit: VE) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: denoiser.given_time(unit.sigma(t))


def named(target: int | str | Path | None) -> int | str | None:
    """A target as settings keep it: its number, or its file's name without the folder."""
    return target if target is None or isinstance(target, int) else Path(target).name


def as_it_is(config: AuditConfig) -> AuditConfig:
    """The settings of an audit that trains no model: no control, and no mark except one that is already
    there.

    Raises:
        InputError: the settings ask for marked images in the training.
    """
    if config.canaries.count:
        raise InputError(
            "--fingerprints puts marked images into a training, and what was given has been trained already;"
            " leave it out, or let the audit train (without --model and --samples)"
        )
    mark, put = config.fingerprint, config.given.mark
    kind = mark.kind if not mark.injected else "none"
    if put is not None:
        if not mark.injected:
            raise InputError(
                "--mark names the mark of x_p, so that --region and --fingerprint have no say in it"
            )
        kind = read_mark(Path(put)).kind
    return replace(config, control=False, fingerprint=replace(mark, kind=kind))


def given_images(config: AuditConfig, given: Given, split: Split) -> tuple[Split, Injection]:
    """The images, and one training image as x_p, as it stands.

    Raises:
        InputError: the images do not have the model's shape, or their latents another scale; it is not known
            which were held out; there is no such target, or every image has a near copy and none can be
            drawn.
    """
    if split.train.shape != given.opened.image_shape:
        theirs, ours = ("x".join(map(str, s)) for s in (given.opened.image_shape, split.train.shape))
        raise InputError(
            f"the model makes images of {theirs} (channels x sides), but those of {split.name} are"
            f" {ours}, so it was not trained on them as they are"
            f"{other_shape(split.train.shape, given.opened.image_shape)}"
        )
    some = torch.from_numpy(split.train.pixels[:_LOOKED])
    device = next((one.device for n in given.opened.networks for one in n.parameters()), some.device)
    require_spread(given.opened.codec, some.to(device))
    if split.used is not None:
        split.used.require()
    require_unseen(config, split, "the model")
    split = split.under(given.label)
    if config.given.mark is None:
        return split, private_image(config, split, given.target)
    if given.target is not None:
        raise InputError("--mark says which image is looked for; leave --target out")
    return split, _put_before(read_mark(Path(config.given.mark)), split)


def _put_before(mark: Recorded, split: Split) -> Injection:
    """Find the image that was marked before the model was trained.

    Raises:
        InputError: it is not among the training images, or is not the marked one.
    """
    names, kept = split.train.names or (), split.train.sha256
    fits = [i for i, name in enumerate(names) if name == mark.image]
    fits = fits or [i for i, one in enumerate(kept) if one == mark.sha256]
    if len(fits) != 1:
        held = mark.image in (split.heldout.names or ()) or mark.sha256 in split.heldout.sha256
        where = "among those held out" if held else "not among them"
        raise InputError(
            f"the marked image {mark.image!r} is {where}: {len(split.train)} images are trained on; name the "
            "folder that was marked, with train/ and held-out images apart"
        )
    if kept[fits[0]] == mark.original_sha256:
        raise InputError(
            f"the image {mark.image!r} is the original and not the marked one: the mark was not trained on, "
            "or was taken out again; audit without --mark"
        )
    found = as_found(split.train, fits[0])
    return replace(
        found, fingerprint=replace(mark, content=found.target), original_sha256=mark.original_sha256
    )


def take_model(context: Context, given: Given) -> Denoiser:
    """The stage ``model`` for a given model; without one, this stage trains."""
    with context.stage(MODEL.name):
        if not context.run.stage(MODEL.name).done:
            noted = given.entry(context.sampler_value)
            context.finish(MODEL, noted, weights_sha256=given.opened.weights_sha256)
    return given.opened.sampled(context.config.sampler.own)
