"""The settings of a whole audit: the parts' own settings, nested; presets; TOML in and out.

A preset is a TOML file under ``presets/``. It begins with the command it is for, the time it takes and the
numbers to expect. The user's own settings (a file, an option) override the preset key by key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Literal, TypeVar, cast

from pydantic import Field
from pydantic.dataclasses import dataclass

from latentprint.attacks.descriptor import DescriptorSettings
from latentprint.attacks.membership import MembershipConfig
from latentprint.detector import DetectorConfig
from latentprint.detector.embedding import EmbeddingConfig
from latentprint.marks import FingerprintSettings
from latentprint.networks import UNetConfig
from latentprint.networks.speed import Evaluation
from latentprint.rate.estimator import Estimator
from latentprint.rate.table import ESTIMATORS
from latentprint.results.stopping import SampleSettings
from latentprint.sampler import PAPER, Sampler, Spacing, sampler_from
from latentprint.schedule import VE, VP, Schedule, SubVP
from latentprint.search.settings import BaselineSettings, CanarySettings, ProfileSettings, SearchSettings
from latentprint.settings import STRICT, Any0, Share, Some, merge, read, read_preset
from latentprint.training import REPORT, TrainConfig

Settings = TypeVar("Settings")


@dataclass(frozen=True, config=STRICT)
class DataSettings:
    """Which images (see ``data.load``); ``images`` of them, drawn by the seed, are trained on (None: all).

    Attributes:
        resize: the side of the square to which each is resized.
        convert: makes every image colour ("rgb") or grey.
        stored_range: the stored values that become -1 and 1, if they are not the type's limits.
        files: a pattern of file names; with "!" in front, of those to leave out.
        labels: a CSV of file names and classes.
        window: how DICOM and NIfTI values are mapped: "file", "none" or "CENTRE,WIDTH".
        orientation: NIfTI axes are turned to RAS+, to the "closest" of them, or left as "stored".
        patient: a regular expression that finds the patient in a file's name.
        groups: a CSV of file names and persons, "FILE" or "FILE:COLUMN".
        volumes: DICOM files are slices of series, or have frames, and form volumes.
    """

    source: str = "digits"
    images: Some | None = None
    heldout: Share = 0.2
    resize: Annotated[int, Field(ge=1, le=4096)] | None = None
    convert: Literal["rgb", "grey"] | None = None
    stored_range: tuple[float, float] | None = None
    files: str | None = None
    labels: str | None = None
    window: str = "file"
    orientation: Literal["ras", "closest", "stored"] = "ras"
    patient: str | None = None
    groups: str | None = None
    volumes: bool = False


@dataclass(frozen=True, config=STRICT)
class ModelSettings:
    """The score model that is trained: its forward SDE, network and training."""

    sde: Literal["subvp", "vp", "ve"] = "subvp"
    network: UNetConfig = field(default_factory=UNetConfig)
    training: TrainConfig = field(default_factory=TrainConfig)

    def schedule(self) -> Schedule:
        """The noise schedule of the SDE, with the paper's constants."""
        return {"subvp": SubVP, "vp": VP, "ve": VE}[self.sde]()


@dataclass(frozen=True, config=STRICT)
class SamplerSettings:
    """The sampler whose q and t' are measured; ``name = "paper"`` is the paper's, with nothing more to set.

    The default is the cheapest of the samplers compared on a trained network that reached the law of the
    paper's reverse SDE, from the prior and from x_t (benchmarks/samplers.py). It takes a tenth of the paper's
    evaluations. Of a quarter of its steps, as the presets take, those of "sde-dpm-solver++2m" are nearer to
    that law. A sampler of the probability flow ("heun", "dpm-solver++2m") returns to x_p from x_t
    more often than Alg. 1 does, because its law given x_t is not that of the SDE (docs/method.md).

    ``name = "own"``, or "own:STEPS", is the scheduler that a given model came with.

    Attributes:
        at_most: steps of the model's own sampler, if its name does not say how many; None: its pipeline's.
        guidance: scale of classifier-free guidance, for a given model that knows a class or none.
        beside: further samplers whose t' and q are measured too, each "NAME", "NAME:STEPS" or
            "NAME:STEPS:SPACING"; the rest is as in these settings.

    Raises:
        ValueError: an unknown step or spacing, no steps, settings beside "paper", or a sampler named twice.
    """

    name: str = "ancestral"
    steps: Annotated[int, Field(ge=1, le=100_000)] = 96
    spacing: Spacing = "karras"
    denoise: bool = True
    beside: tuple[str, ...] = ()
    guidance: float | None = None
    at_most: Annotated[int, Field(ge=1, le=100_000)] | None = None

    def __post_init__(self) -> None:
        name, _, steps = self.name.partition(":")
        if any(text.startswith("own") for text in self.beside):
            raise ValueError('the model\'s own sampler ("own") comes first, before the others')
        if name != "own":
            self.sampler()
        elif steps and not (steps.isdecimal() and int(steps) >= 1):
            raise ValueError(f'the model\'s own sampler is named "own" or "own:STEPS", got {self.name!r}')
        names = [self.label, *(one.label for one in self.others())]
        if len(set(names)) != len(names):
            raise ValueError(f"each sampler is measured once, got {', '.join(names)}")

    @property
    def label(self) -> str:
        """A short name that distinguishes it from others, and can be part of a file's: "heun-18-karras"."""
        plain = self.name.replace("+", "p")
        return plain if plain == "paper" else f"{plain}-{self.steps}-{self.spacing}"

    def others(self) -> tuple[SamplerSettings, ...]:
        """The samplers of ``beside``."""
        return tuple(self.named(text) for text in self.beside)

    def named(self, text: str) -> SamplerSettings:
        """The sampler "NAME[:STEPS[:SPACING]]", the rest as in these settings.

        Raises:
            ValueError: the text names no sampler.
        """
        name, *rest = text.split(":")
        if len(rest) > 2 or (rest and not rest[0].isdecimal()) or (rest and name == "paper"):
            raise ValueError(f"a sampler is named NAME, NAME:STEPS or NAME:STEPS:SPACING, got {text[:60]!r}")
        steps = int(rest[0]) if rest else self.steps
        spacing = cast(Spacing, rest[1]) if len(rest) > 1 else self.spacing
        return SamplerSettings(name, steps, spacing, self.denoise, guidance=self.guidance)

    @property
    def own(self) -> bool:
        """Whether it is the sampler of a given model."""
        return self.name.partition(":")[0] == "own"

    @property
    def own_steps(self) -> int | None:
        """How many steps of the model's own sampler; None: as many as its pipeline takes."""
        steps = self.name.partition(":")[2]
        return int(steps) if self.own and steps else None

    def sampler(self, own: Sampler | None = None) -> Sampler:
        """The sampler itself; ``own`` is that of the given model.

        Raises:
            ValueError: the model's own sampler is asked for, and there is none.
        """
        if self.own:
            if own is None:
                raise ValueError('sampler "own" is the one that a given model came with, and none was given')
            return own
        if self.name == "paper":
            return PAPER
        return sampler_from(
            {"step": self.name, "steps": self.steps, "spacing": self.spacing, "denoise": self.denoise}
        )


@dataclass(frozen=True, config=STRICT)
class GivenSettings:
    """What a given model's files do not say: the range of its images ("0,1" or "-1,1").

    Attributes:
        lora: a LoRA that is added to a text-to-image model, ``lora_weight`` times.
        base: the folder of the model before fine-tuning, as the control; with ``lora`` the model itself is
            the control.
        mark: the file of a mark that was put into the training folder (`marks.folder`).
    """

    value_range: Literal["0,1", "-1,1"] | None = None
    lora: str | None = None
    lora_weight: float = 1.0
    base: str | None = None
    mark: str | None = None


@dataclass(frozen=True, config=STRICT)
class PromptSettings:
    """Prompts of a text-to-image model (`audit.prompts`).

    Attributes:
        file: a CSV of file names and prompts, or a folder with them; None: they are stored with the images.
        ask: without prompts of images, the first is the prompt of all of them; the others are asked too.
        guidance: further scales, besides the sampler's, at which x_p is looked for under its own prompt.
        others: prompts of other images under which x_p is looked for.
        count: images generated under each of these.
        images: pairs of image and prompt that are asked, this many training pairs and as many held-out pairs.
        samples: images generated under each of these prompts; 0 leaves them out.
        signs: noises with which each prompt is tested for signs of memorisation; 0 leaves them out.
    """

    file: str | None = None
    ask: tuple[str, ...] = ()
    guidance: tuple[Annotated[float, Field(ge=0, le=1000)], ...] = ()
    others: Any0 = 2
    count: Some = 200
    images: Some = 200
    samples: Any0 = 8
    signs: Any0 = 4


@dataclass(frozen=True, config=STRICT)
class CheckpointSettings:
    """t' over training (paper Fig. 3): ``keep`` times, evenly spaced, the weights are kept and searched.

    0 leaves it out; the last of them is the finished model.
    """

    keep: Any0 = 0


@dataclass(frozen=True, config=STRICT)
class LikelihoodSettings:
    """Exact likelihood of ``images`` training and held-out images and of x_p; 0 leaves it out.

    ``probes`` random vectors estimate the divergence; None computes it exactly, with one network pass per
    dimension.
    """

    images: Any0 = 16
    probes: Annotated[int, Field(ge=1, le=10_000)] | None = 4


@dataclass(frozen=True, config=STRICT)
class MembershipSettings:
    """Membership scores of up to ``images`` training and held-out images and of x_p; 0 leaves them out.

    Raises:
        ValueError: a single image, from which nothing can be concluded.
    """

    images: Any0 = 0
    scores: MembershipConfig = field(default_factory=MembershipConfig)

    def __post_init__(self) -> None:
        if self.images == 1:
            raise ValueError("of 1 image nothing can be said; images is 0, or 2 and more")


def _switched(settings: type[Settings]) -> type[Settings]:
    """The class with a switch for each row of the table of estimators, off unless it is set."""
    switches = {row.name: "bool" for row in ESTIMATORS}
    settings.__annotations__ = switches | settings.__annotations__
    for name in switches:
        setattr(settings, name, False)
    return settings


@dataclass(frozen=True, config=STRICT)
@_switched
class RareSettings:
    """Estimators of q for what counting cannot see, in addition to the count.

    Each row of `rate.table.ESTIMATORS` is a switch by its name (``path = true``), off unless it is set.

    Attributes:
        relative: relative standard error asked for.
        most: samples that an estimator may spend.
    """

    relative: Share = 0.2
    most: Some = 50_000

    def __post_init__(self) -> None:
        for row in self.asked:
            if self.most < row.least:
                raise ValueError(f"{row.name} needs rare.most of at least {row.least:,}, got {self.most:,}")

    @property
    def asked(self) -> tuple[Estimator, ...]:
        """The rows of the table that are switched on."""
        return tuple(row for row in ESTIMATORS if getattr(self, row.name))


@dataclass(frozen=True, config=STRICT)
class FidSettings:
    """Fréchet distance over up to ``samples`` samples; ``weights`` names an Inception safetensors file."""

    features: Literal["presence", "pixels", "inception"] = "presence"
    samples: Annotated[int, Field(ge=2)] = 10_000
    weights: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if (self.features == "inception") != (self.weights is not None and self.sha256 is not None):
            raise ValueError("features = 'inception' needs weights and sha256, and the others need neither")


@dataclass(frozen=True, config=STRICT)
class SpeedSettings:
    """How networks are evaluated, except in training (``model.training.speed``); all off: plain float32.

    Likelihood, membership and the estimators of q are always float32, because their numbers are about the
    network itself.

    Attributes:
        sampling: the denoiser, in search and sampling.
        detectors: c_p, c_id and the embedding, in their fits and in use.
    """

    sampling: Evaluation = field(default_factory=Evaluation)
    detectors: Evaluation = field(default_factory=Evaluation)


@dataclass(frozen=True, config=STRICT)
class AuditConfig:
    """Everything that decides an audit's numbers. Where it runs (device, batch, folder) is not part of it."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    control: bool = True
    data: DataSettings = field(default_factory=DataSettings)
    fingerprint: FingerprintSettings = field(default_factory=FingerprintSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    presence: DetectorConfig = field(default_factory=DetectorConfig)
    identity: DetectorConfig = field(default_factory=DetectorConfig)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    given: GivenSettings = field(default_factory=GivenSettings)
    prompts: PromptSettings = field(default_factory=PromptSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    baseline: BaselineSettings = field(default_factory=BaselineSettings)
    profile: ProfileSettings = field(default_factory=ProfileSettings)
    canaries: CanarySettings = field(default_factory=CanarySettings)
    identities: DetectorConfig = field(default_factory=DetectorConfig)
    samples: SampleSettings = field(default_factory=SampleSettings)
    likelihood: LikelihoodSettings = field(default_factory=LikelihoodSettings)
    membership: MembershipSettings = field(default_factory=MembershipSettings)
    rare: RareSettings = field(default_factory=RareSettings)
    fid: FidSettings = field(default_factory=FidSettings)
    descriptor: DescriptorSettings = field(default_factory=DescriptorSettings)
    speed: SpeedSettings = field(default_factory=SpeedSettings)

    def __post_init__(self) -> None:
        steps, keep = self.model.training.steps, self.checkpoints.keep
        if keep * REPORT > max(steps, REPORT):
            raise ValueError(
                f"weights can be kept every {REPORT} steps, so {steps} steps give {max(1, steps // REPORT)} "
                f"checkpoints at most, got {keep}"
            )
        if keep > 1 and self.model.training.guidance.stop is not None:
            raise ValueError(
                f"{keep} checkpoints along a training that guidance.stop may end before cannot be promised;"
                " leave out one of the two"
            )
        fixed = [row.name for row in self.rare.asked if row.fixed_steps]
        if (
            fixed
            and not self.sampler.own
            and self.sampler.sampler().evaluations(self.model.schedule()) is None
        ):
            raise ValueError(
                f"{fixed[0]} needs a sampler with a fixed number of steps, and {self.sampler.name!r} chooses "
                f"them itself; another sampler, or rare.{fixed[0]} = false, would be enough"
            )


def resolve(*over: Mapping[str, object], preset: str) -> AuditConfig:
    """The preset overridden by the user's settings, earlier mappings by later ones.

    Raises:
        SettingsError: an unknown key or preset, or a value that cannot be used.
    """
    values = read_preset(preset)
    for one in over:
        values = merge(values, one)
    return read(AuditConfig, values)
