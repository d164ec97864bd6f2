"""Models of MONAI: a bundle's folder, or a folder of safetensors with JSON or YAML that names their classes.

    configs/*.json, *.yaml (or beside the weights)    DiffusionModelUNet; DDPM, DDIM, PNDM or RFlow scheduler;
                                                      AutoencoderKL or VQVAE, for a latent model
    *.safetensors, models/*.safetensors               weights, matched to the networks by names and shapes

Configurations are read as literals. A section is identified by its ``_target_``, which is looked up in a
table and never imported. ``@name`` is followed to a literal. A value that begins with ``$`` or ``%`` is code
or a macro, and is refused by name if a network or a scheduler needs it. The rest of a bundle (transforms,
trainers, scripts) is ignored.

    latents    z = scale (encode(image)), the mean of an AutoencoderKL, the quantised of a VQVAE
    scale      from the folder ("scale_factor"), otherwise 1 / (standard deviation of the training latents)
    images     in [0, 1] or [-1, 1]: from its ScaleIntensity transforms, otherwise as --value-range says

Sources: MONAI 1.5, networks.schedulers, LatentDiffusionInferer; Rombach et al. 2022, appendix G (the scale).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latentprint.adapters.bundle import Found, Section, Sections
from latentprint.adapters.discrete import DiscreteSchedule, discrete_schedule
from latentprint.adapters.fields import (
    read_fields,
    short,
)
from latentprint.adapters.files import (
    FLAG,
    PICKLES,
    files_sha256,
    inside,
    load_into,
    read_header,
    read_metadata,
    read_tensors,
)
from latentprint.adapters.monai_fields import NETWORKS, SCHEDULERS
from latentprint.adapters.opened import Asked, Opened, written_down
from latentprint.adapters.own import FLOW_TOP, Own
from latentprint.adapters.timesteps import DiscreteDenoiser, Predicts, require_label
from latentprint.denoiser import Codec, IdentityCodec
from latentprint.networks import ModelError
from latentprint.sampler import DDIM, Ancestral, Sampler, Step, sampler_from
from latentprint.schedule import Flow

_RFLOW_STEPS = 30
_MEASURED = 64  # training images on which a missing scale is measured


def open_monai(folder: Path, asked: Asked) -> Opened:
    """The model in ``folder``.

    Raises:
        ModelError: MONAI is not installed, a class or setting is not supported, a needed value is code, the
            weights are missing, pickled or those of other networks, or the user must state a value that no
            file has.
    """
    sections = Sections.of(folder)
    module, settings, files = _load(folder, sections.one("DiffusionModelUNet"))
    _require_plain(settings, sections)
    images = images_of(asked, int(settings["spatial_dims"]))
    codec, shape, more, notes = _space(folder, sections, images, asked.unit, (settings, files[0]))
    scheduler = sections.scheduler(tuple(SCHEDULERS))
    label = require_label(settings.get("num_class_embeds"), asked.label)
    denoiser, predicted = _denoiser(module, settings, scheduler, label)
    own, hint = _own(scheduler, denoiser, shape, sections.steps(), asked)
    autoencoder = () if more is None else (more[0],)
    every = [*files, *(() if more is None else more[1])]
    identity = {
        "schedule": written_down(denoiser.schedule),
        "predicts": denoiser.predicts,
        "scale": getattr(codec, "scale", 1.0),
        "unit": getattr(codec, "unit", False),
    }
    return Opened(
        denoiser=denoiser,
        codec=codec,
        shape=shape,
        image_shape=tuple(images.shape[1:]),
        sampler_hint=hint,
        weights_sha256=files_sha256(every, folder.resolve()),
        kind="monai" if more is None else "monai latent",
        notes=(*notes, *predicted),
        networks=(module, *autoencoder),
        identity=identity,
        own=own,
    )


def images_of(asked: Asked, axes: int) -> NDArray[np.float32]:
    """The training images, for a network of MONAI with so many spatial axes.

    Raises:
        ModelError: there are none, or they have another number of axes.
    """
    if asked.images is None:
        raise ModelError(
            "a network of MONAI does not state the size of its images: open it with some of them"
        )
    images = asked.images()
    if images.ndim != axes + 2:
        names = {2: "images (two axes)", 3: "volumes (three axes)"}
        raise ModelError(
            f"the network was made for {names[axes]}, and these are {names[images.ndim - 2]}: name the data"
            " that it was trained on"
        )
    return images


def _require_plain(settings: Section, sections: Sections) -> None:
    if settings.get("with_conditioning"):
        raise ModelError(
            "the network is conditioned by cross-attention (with_conditioning), on something that is not "
            "part of "
            "its files; generate images as you would publish them and audit these: --samples FOLDER"
        )
    if sections.maybe("ControlNet") is not None:
        raise ModelError(
            "a ControlNet steers this model by images; audit what it generates: --samples FOLDER"
        )


def _class(name: str, package: str) -> Any:
    try:
        return getattr(import_module(f"monai.networks.{package}"), name)
    except ImportError as error:
        raise ModelError(
            f"the folder holds a {name} of MONAI: pip install 'latentprint[monai]' lets it be audited"
        ) from error


def _load(folder: Path, found: Found) -> tuple[nn.Module, Section, list[Path]]:
    """A network with its weights: the only safetensors file whose tensors are exactly its own."""
    values = read_fields(found.values, NETWORKS[found.name], found.name)
    kind = _class(found.name, "nets")
    try:
        with torch.device("meta"):
            blank = cast(nn.Module, kind(**values))
    except Exception as error:  # MONAI's constructors raise errors of any type
        raise ModelError(f"the settings of {found.name} do not fit together: {short(error)}") from error
    expected = {key: tuple(value.shape) for key, value in blank.state_dict().items()}
    files = weights_of(folder)
    fits = {file: _distance(file, expected) for file in files}
    exact = [file for file, apart in fits.items() if apart == (0, 0)]
    if len(exact) != 1:
        told = "; ".join(
            f"{file.name} lacks {missing} of its {len(expected)} tensors and holds {extra} others"
            for file, (missing, extra) in fits.items()
        )
        rest = [one for one in _pickles(folder) if one.with_suffix(".safetensors") not in files]
        more = f"; others may be in {str(rest[0].name)!r}, a pickle: {_converted(rest[0])}" if rest else ""
        raise ModelError(
            f"{len(exact)} of the folder's {len(files)} safetensors files hold the weights of the "
            f"{found.name}: {told}{more}"
        )
    with torch.random.fork_rng(devices=[]):  # it draws weights, which are replaced at once
        network = cast(nn.Module, kind(**values))
    network = load_into(network, read_tensors(exact, expected, new_name))
    return network, values, [exact[0].resolve()]


def weights_of(folder: Path) -> list[Path]:
    """The safetensors files of a folder and of its ``models/``.

    Raises:
        ModelError: there are none, or only pickles.
    """
    found = [inside(folder, str(one.relative_to(folder))) for one in _files(folder, (".safetensors",))]
    if not found:
        if pickles := _pickles(folder):
            raise ModelError(
                f"the weights of the bundle are a pickle ({str(pickles[0].relative_to(folder))!r}), which can"
                f" run any code while it is read, so they are refused; {_converted(pickles[0])}"
            )
        raise ModelError(
            f"{str(folder)!r} describes a model of MONAI, but holds no safetensors of its weights"
        )
    return found


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    places = [place for place in (folder, folder / "models") if place.is_dir()]
    return [one for place in places for one in sorted(place.iterdir()) if one.suffix in suffixes]


def _pickles(folder: Path) -> list[Path]:
    return _files(folder, tuple(PICKLES))


def _converted(pickle: Path) -> str:
    beside = shlex.quote(str(pickle.with_suffix(".safetensors")))
    return (
        f"if you know where they come from, `latentprint convert {shlex.quote(str(pickle))} {beside} {FLAG}`"
        " writes its tensors beside it, and this command then reads those"
    )


def _distance(file: Path, expected: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """(tensors that are missing or of another shape, tensors that are left over)."""
    stated = {new_name(name, expected): one.shape for name, one in read_header(file).items()}
    missing = [name for name, shape in expected.items() if stated.get(name) != shape]
    return len(missing), len(set(stated) - set(expected))


def new_name(name: str, expected: Mapping[str, tuple[int, ...]]) -> str:
    """MONAI's name for a tensor of MONAI Generative; other names as they are."""
    if name in expected:
        return name
    *path, part, kind = name.split(".") if name.count(".") >= 2 else ["", name, ""]
    block = ".".join(path)
    tries = (
        f"{block}.attn.{part}.{kind}",
        f"{block}.attn.out_proj.{kind}" if part == "proj_attn" else "",
        f"{block.removesuffix('.to_out')}.out_proj.{kind}" if part == "0" else "",
        f"{block.removesuffix('.conv')}.postconv.{part}.{kind}",
    )
    return next((one for one in tries if one in expected), name)


@dataclass(frozen=True, eq=False)
class MonaiCodec:
    """From images in [-1, 1] to the input of a network of MONAI.

    Attributes:
        autoencoder: an AutoencoderKL or a VQVAE; None for a model of pixels.
        scale: latents = scale (encoded image).
        unit: whether its images lie in [0, 1].
    """

    autoencoder: nn.Module | None
    scale: float
    unit: bool

    def encode(self, images: Tensor, /) -> Tensor:
        """Images (n, C, H, W) -> the network's input."""
        given = (images + 1) / 2 if self.unit else images
        if self.autoencoder is None:
            return given
        inner = cast(Any, self.autoencoder)
        if hasattr(inner, "quantize"):
            return inner.encode_stage_2_inputs(given) * self.scale
        return inner.encode(given)[0] * self.scale

    def decode(self, latents: Tensor, /) -> Tensor:
        """The network's output -> images, not clipped."""
        out = latents
        if self.autoencoder is not None:
            out = cast(Tensor, cast(Any, self.autoencoder).decode_stage_2_outputs(latents / self.scale))
        return out * 2 - 1 if self.unit else out


def _space(
    folder: Path,
    sections: Sections,
    pixels: NDArray[np.float32],
    unit: bool | None,
    network: tuple[Section, Path],
) -> tuple[Codec, tuple[int, ...], tuple[nn.Module, list[Path]] | None, tuple[str, ...]]:
    """(codec, shape of the network's input, the autoencoder with its files, notes)."""
    settings, file = network
    unit = sections.unit_range() if unit is None else unit
    if unit is None:
        raise ModelError(
            "the folder does not say whether the model's images lie in [0, 1] or in [-1, 1]: say it with "
            "--value-range 0,1 or --value-range=-1,1, as its training brought them there"
        )
    said = f"the model's images lie in {'[0, 1]' if unit else '[-1, 1]'}"
    found = sections.maybe("AutoencoderKL", "VQVAE")
    images = torch.from_numpy(np.ascontiguousarray(pixels[:_MEASURED]))
    if found is None:
        codec = MonaiCodec(None, 1.0, True) if unit else IdentityCodec()
        return codec, tuple(images.shape[1:]), None, (said,)
    module, own, files = _load(folder, found)
    if own.get("in_channels", 1) != images.shape[1]:
        raise ModelError(
            f"the autoencoder takes images of {own.get('in_channels', 1)} channels, the training images have "
            f"{images.shape[1]}"
        )
    plain = MonaiCodec(module, 1.0, unit)
    with torch.no_grad():
        latents = plain.encode(images)
    if latents.shape[1] != settings.get("in_channels"):
        raise ModelError(
            f"the autoencoder's latents have {latents.shape[1]} channels, the network takes "
            f"{settings.get('in_channels')}"
        )
    deviation = float(latents.std())
    stated = _stated(sections, file)
    scale = 1 / deviation if stated is None else _scale(stated)
    how = f"measured on {len(images)} training images" if stated is None else "as the folder states"
    notes = (
        said,
        f"latents are multiplied by {scale:.4g} ({how}); those of training images then spread by "
        f"{scale * deviation:.3g}",
        "the model works on latents: images are encoded as the mean of the posterior",
    )
    return replace(plain, scale=scale), tuple(latents.shape[1:]), (module, files), notes


def _stated(sections: Sections, file: Path) -> object:
    """The factor of the latents, if a configuration or (as in MAISI) the weights' file states it.

    Raises:
        ModelError: both state it, and they differ.
    """
    written, kept = sections.literal("scale_factor"), read_metadata(file).get("scale_factor")
    if kept is None:
        return written
    try:
        found = float(kept)
    except ValueError as error:
        raise ModelError(f"scale_factor of {file.name!r} is no number, got {short(kept)}") from error
    if written is not None and written != found:
        raise ModelError(
            f"a configuration says scale_factor {short(written)} and {file.name!r} says {found:g}; leave "
            "the right one"
        )
    return found


def _scale(stated: object) -> float:
    if isinstance(stated, bool) or not isinstance(stated, int | float) or not 1e-6 <= stated <= 1e6:
        raise ModelError(f"scale_factor must be a number from 1e-6 to 1e6, got {short(stated)}")
    return float(stated)


def _denoiser(
    module: nn.Module, settings: Section, scheduler: Found, label: int | None
) -> tuple[DiscreteDenoiser, tuple[str, ...]]:
    given, gives = settings.get("in_channels"), settings.get("out_channels")
    if given != gives:
        raise ModelError(
            f"the network takes {given} channels and gives {gives}: it is conditioned on an image that "
            "comes with "
            "its input, and that is not part of its files; audit what it generates: --samples FOLDER"
        )
    values = read_fields(scheduler.values, SCHEDULERS[scheduler.name], scheduler.name)
    if scheduler.name == "RFlowScheduler":
        scale = float(values.get("num_train_timesteps", 1000))
        return DiscreteDenoiser(module, Flow(), "reverse flow", label, scale=scale), ()
    made = _scheduler(scheduler.name, values)
    names: dict[str, Predicts] = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v"}
    predicts = names[values.get("prediction_type", "epsilon")]
    schedule = discrete_schedule(cast(Tensor, made.alphas_cumprod), predicts)
    clips = scheduler.name != "PNDMScheduler" and values.get("clip_sample", True)
    low, high = values.get("clip_sample_min", -1.0), values.get("clip_sample_max", 1.0)
    if clips and low != -high:
        raise ModelError(f"clip_sample_min must be -clip_sample_max, got {low:g} and {high:g}")
    notes = (f"the denoised image is clipped to [{low:g}, {high:g}], as the scheduler does",) if clips else ()
    return DiscreteDenoiser(module, schedule, predicts, label, float(high) if clips else None), notes


def _scheduler(name: str, values: Mapping[str, Any]) -> Any:
    try:
        return _class(name, "schedulers")(**values)
    except ModelError:
        raise
    except Exception as error:  # MONAI's constructors raise errors of any type
        raise ModelError(f"the settings of {name} do not fit together: {short(error)}") from error


def _own(
    found: Found, denoiser: DiscreteDenoiser, shape: tuple[int, ...], stated: int | None, asked: Asked
) -> tuple[Own, Section]:
    """(the scheduler's own sampler, our nearest sampler); the bundle has ``stated`` its steps, or not."""
    values = read_fields(found.values, SCHEDULERS[found.name], found.name)
    made, schedule = _scheduler(found.name, values), denoiser.schedule
    train = int(values.get("num_train_timesteps", 1000))
    known = stated or (_RFLOW_STEPS if isinstance(schedule, Flow) else train)
    count = asked.steps or min(known, asked.most or known)
    size = {"input_img_size_numel": int(np.prod(shape[1:]))} if isinstance(schedule, Flow) else {}
    try:
        made.set_timesteps(count, **size)
    except Exception as error:
        raise ModelError(f"{found.name} cannot be set to {count} steps: {short(error)}") from error
    ddpm = found.name == "DDPMScheduler"
    step: Step = Ancestral(large=values.get("variance_type") == "fixed_large") if ddpm else DDIM()
    hint = {"step": step.name, "steps": max(1, min(count, train - 1)), "spacing": "uniform"}
    timesteps = cast(Tensor, made.timesteps).double()
    if isinstance(schedule, Flow):
        times = (timesteps / train).clamp(max=FLOW_TOP)
        seen: Any = replace(denoiser, schedule=replace(schedule, start=float(times[0])))
        exact = True
    else:
        times = cast(DiscreteSchedule, schedule).time_of(timesteps)
        seen = replace(denoiser, schedule=replace(schedule, top=float(times[0])))
        # these schedulers step to the timestep that all N would have, whichever they call next
        exact = count == train and found.name != "PNDMScheduler" and not values.get("steps_offset")
        exact = exact and not str(values.get("variance_type", "")).startswith("learned")
        # then the last step leaves x at the first timestep, where ours gives the image
        exact = exact and values.get("set_alpha_to_one") is not False
    if isinstance(step, DDIM) and denoiser.clip is not None:
        step, seen = DDIM(clip=denoiser.clip), replace(seen, clip=None)
    if not bool((times[:-1] > times[1:]).all()) or float(times[-1]) <= 0:
        return Own(replace(sampler_from(hint), of=f"nearest to {found.name}"), denoiser, False, known), hint
    name = found.name if exact else f"nearest to {found.name}"
    return Own(Sampler(step, len(times) - 1, at=tuple(times.tolist()), of=name), seen, exact, known), hint
