"""results.json, schema ``latentprint/2``: every number of an audit as a frozen, validated value.

A count is a ``Trials`` from the stored row to the page. A number that is compared carries what it may be
compared with: a t' its ``Question`` (recogniser, tries, sampler), an estimate of q its sampler. Answers to
different questions are never compared; ``require_alike`` refuses them.

Nothing here depends on the clock, the machine or the folder: the same settings give the same file, even after
a restart. ``Results.model_json_schema()`` is the published schema; ``results.assemble`` makes the values from
stored rows, and no reader derives a number a second time.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from latentprint.results.canaries import Canaries, Epsilon
from latentprint.results.counted import Counted, Q
from latentprint.results.prompts import Prompts
from latentprint.results.searched import Checkpoints, Profile, Recogniser, Sampler, Search
from latentprint.results.value import Chance, Count, Level, Note, Sha256, Spread, Value
from latentprint.results.whole_set import WholeSet
from latentprint.stats import Trials
from latentprint.stats.returned import Returned
from latentprint.stats.roc import AtFalsePositives, Auc

SCHEMA = "latentprint/2"

State = Literal["reproduces", "not found", "inconclusive"]


class LeftOut(Value):
    """Held-out images that are copies of training images, and so cannot show what happens by chance.

    Attributes:
        images: how many of ``of`` were left out; ``within_near`` differ by no more than storing again may.
        tolerance: root mean squared difference up to which an image counts as a copy.
    """

    images: Count
    of: Count
    within_near: Count
    tolerance: float
    sentence: str


class Data(Value):
    """The images that were trained on.

    Attributes:
        sha256: hash of the manifest.
        near_copies: training images with a near copy among the others; null: too many images to compare.
        left_out: copies of training images among those held out; null if nobody looked, or there are none.
        identities, heldout_identities: persons, if known.
        resized: the side to which images were resized.
        range_in_use: the share of the range of stored values that occurs; null: a window mapped the values.
        of_class: training images of the class that is audited, among which x_p is one; null: any class.
        remarks: what else must be known about the images, in sentences.
    """

    source: str
    sha256: Sha256
    images: Annotated[int, Field(ge=1)]
    shape: tuple[int, ...]
    heldout: Count
    near_copies: Count | None = None
    left_out: LeftOut | None = None
    resized: int | None = None
    range_in_use: Chance | None = None
    of_class: Annotated[int, Field(ge=1)] | None = None
    remarks: tuple[str, ...] = ()
    identities: Count | None = None
    heldout_identities: Count | None = None

    @property
    def among(self) -> int:
        """N of 1/N: the training images of the class that is audited, or all."""
        return self.of_class or self.images


DATA = Note("data", "data", Data)


class Mark(Value, extra="allow"):
    """A fingerprint: its kind, and the numbers from which it is drawn."""

    kind: str


class Target(Value):
    """The private image x_p, by hash; ``copies`` counts its near copies in training, itself included.

    ``fingerprint`` is null if it carries none; ``injected`` says whether a mark was put on it for the audit.
    """

    index: Count
    sha256: Sha256
    copies: Annotated[int, Field(ge=1)]
    fingerprint: Mark | None
    injected: bool


TARGET = Note("data", "target", Target)


class Detector(Value):
    """A recogniser's threshold and its errors, as counts.

    Attributes:
        tpr: on images that show what it looks for.
        fpr: on images that do not: the false alarms that decide.
        kinds: the same false alarms by kind of image, and further kinds that do not decide.
        false_positive_rate, pairs: of the embedding: the rate asked for, and its errors on pairs of images
            that it was not fitted on.
    """

    tpr: Trials
    fpr: Trials
    threshold: float
    backbone: str
    kinds: dict[str, Trials]
    false_positive_rate: Chance | None = None
    pairs: Trials | None = None

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if not self.fpr.n:
            raise ValueError("the rate of false alarms was measured on no image at all")
        return self


PRESENCE = Note("presence", "detector", Detector)
IDENTITY = Note("identity", "detector", Detector)
EMBEDDING = Note("embedding", "detector", Detector)
IDENTITIES = Note("identities", "detector", Detector)


class Agreement(Value):
    """c_id and the embedding on the images of one search."""

    both: Count
    identity_only: Count
    embedding_only: Count
    neither: Count
    images: Count
    sentence: str
    network_evaluations: Count


class Detectors(Value):
    """c_p (null if x_p carries no mark), c_id, and the embedding if there is one.

    ``identities`` knows the private image and all canaries.
    """

    presence: Detector | None
    identity: Detector
    embedding: Detector | None = None
    identities: Detector | None = None
    agreement: Agreement | None = None

    @property
    def fitted(self) -> tuple[Detector, ...]:
        """The detectors that must agree for a hit."""
        return tuple(one for one in (self.presence, self.identity) if one is not None)

    @property
    def recogniser(self) -> Recogniser:
        """Which recogniser says that a generated image is the private one."""
        return "c_id" if self.presence is None else "c_p and c_id"


class Fid(Value):
    """Fréchet distance of ``samples`` samples to training and to held-out images, in the named features."""

    train: float
    test: float | None
    features: str
    samples: Count


FID = Note("fid", "fid", Fid)


class Mean(Value):
    """Mean of n values, with the standard error of the mean; null for one value."""

    mean: float
    se: float | None
    n: Count


class Likelihood(Value):
    """Bits per dimension under the probability flow (Eq. 5); ``probes`` null: the exact divergence."""

    bits_per_dim: Mean
    heldout: Mean | None
    target: float
    probes: int | None
    network_evaluations: Count


class TargetScore(Value):
    """x_p's own score, and its rank among held-out images as a p-value."""

    score: float
    p_value: Chance


class Score(Value):
    """One membership score."""

    name: str
    auc: Auc
    at: tuple[AtFalsePositives, ...]
    target: TargetScore


class Membership(Value):
    """Membership scores; ``auc`` is the best one's, and ``low`` and ``high`` hold for all (Bonferroni)."""

    scores: tuple[Score, ...]
    auc: Chance | None
    low: Chance | None
    high: Chance | None
    level: Level
    members: Count | None = None
    heldout: Count | None = None
    note: str | None = None
    network_evaluations: Count = 0

    @model_validator(mode="after")
    def _at_the_same_shares(self) -> Self:
        if len({tuple(at.wanted for at in one.at) for one in self.scores}) > 1:
            raise ValueError("all membership scores are stated at the same shares of false positives")
        return self


class Nearest(Value):
    """Of ``n`` detected samples, how many have x_p as the nearest of all training images."""

    target: Count
    n: Count


MEMORISED = Note("memorised", "nearest", Nearest)


class Memorised(Value):
    """The detected samples compared with x_p: errors, and whose image they are nearest to."""

    count: Count
    mse: Spread | None
    mae: Spread | None
    nearest: Nearest | None


class BySampler(Value):
    """The same questions for a further sampler."""

    sampler: Sampler
    t_prime: Search
    q: Counted


class Model(Value):
    """The audited model, if the audit trained none; ``label`` is the class that was asked for."""

    kind: str
    weights_sha256: Sha256 | None = None
    samples_sha256: Sha256 | None = None
    label: int | None = None
    notes: tuple[str, ...] = ()


MODEL = Note("model", "model", Model)


class Costs(Value):
    """Network evaluations by stage, of every stage that was begun."""

    network_evaluations: dict[str, Count]

    @property
    def total(self) -> int:
        """All stages together."""
        return sum(self.network_evaluations.values())


class Rule(Value):
    """The three words of the verdict as numbers.

    Attributes:
        level: confidence of every bound and test.
        share: "not found" needs every rate above this share of copies/N to be excluded.
        least_sensitivity: below this joint sensitivity the detectors are too weak to judge by.
    """

    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    share: Annotated[float, Field(gt=0)] = 1.0
    least_sensitivity: Annotated[float, Field(gt=0, lt=1)] = 0.5


class Tested(Value):
    """One test of the verdict's rule: at which share of 1 - level it rejects, and whether it does.

    ``p_value`` is null if the test is an interval, for a count that stopped early.
    """

    name: Literal["target", "whole set", "control"]
    p_value: Chance | None
    alpha: Chance
    rejects: bool


class Verdict(Value):
    """The finding in one of three words, with its reasons in sentences (docs/verdict.md).

    Attributes:
        tests: the tests that could be run; the state is "reproduces" if one of them rejects.
    """

    state: State
    reasons: tuple[str, ...]
    tests: tuple[Tested, ...] = ()
    rule: Rule


class Measured(Value):
    """Everything that an audit measured. null: not asked for, or impossible (``not_done`` says why)."""

    data: Data
    target: Target
    detectors: Detectors
    model: Model | None = None
    t_prime: Search | None
    q: Q
    returned: Returned | None = None
    whole_set: WholeSet | None = None
    canaries: Canaries | None = None
    epsilon: Epsilon | None = None
    prompts: Prompts | None = None
    fid: Fid | None
    likelihood: Likelihood | None
    membership: Membership | None = None
    memorised: Memorised | None
    samplers: tuple[BySampler, ...] = ()
    checkpoints: Checkpoints | None = None
    profile: Profile | None = None
    not_done: tuple[str, ...] = ()
    costs: Costs

    @property
    def base_is_control(self) -> bool:
        """Whether the control is the model before fine-tuning, asked under the same prompt."""
        return self.prompts is not None and self.q.control is not None

    @property
    def expected_rate(self) -> float:
        """copies / N: the rate of a model that repeats every training image equally often."""
        return min(1.0, self.target.copies / self.data.among)


class Results(Measured):
    """results.json."""

    schema_: Literal["latentprint/2"] = Field(default=SCHEMA, alias="schema", serialization_alias="schema")
    verdict: Verdict
