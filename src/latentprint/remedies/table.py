"""The remedies, one row each, which says what is done differently. A new one is a function and a row.

A remedy changes the training recipe, or what is done with the finished model of the row "none": it samples
from another denoiser, or keeps some samples back.

Sources: Chen, Liu, Xu 2024 (anti-memorisation guidance); Abadi et al. 2016 (DP-SGD); Karras et al. 2022
(augmentation of small sets); docs/remedies.md (guided training).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latentprint.contracts import InputError, quoted
from latentprint.data import near_duplicates

if TYPE_CHECKING:  # they import torch, which takes seconds, and an unknown name is refused before
    from latentprint.attacks.filter import Filter
    from latentprint.config import ModelSettings
    from latentprint.denoiser import Denoiser
    from latentprint.detector.embedding import EmbeddingConfig
    from latentprint.fingerprint import FingerprintKind
    from latentprint.training import TrainConfig

Pixels = NDArray[np.float32]


class RemedyError(InputError):
    """A remedy that cannot be tried here, with the reason in one sentence."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a model is trained.

    Attributes:
        train: (N, C, H, W) in [-1, 1].
        heldout: (m, C, H, W), for comparison during training; nothing is measured on these.
        more: further images that may be trained on.
        model: network and training.
        embedding, kind, seed: how an embedding of these images is fitted; ``kind`` draws its masks. None: it
            is not.
        early: keep the weights with the lowest loss on ``heldout``, and end once the loss only rises.
        epsilon: train with differential privacy, to this epsilon at ``delta``.
    """

    train: Pixels
    heldout: Pixels
    more: Pixels
    model: ModelSettings
    embedding: EmbeddingConfig | None = None
    kind: FingerprintKind | None = None
    seed: int = 0
    early: bool = False
    epsilon: float | None = None

    @property
    def delta(self) -> float:
        """A tenth of 1/N. Publishing one image outright with probability delta would count as "private", so
        delta is smaller."""
        return 0.1 / len(self.train)


@dataclass(frozen=True)
class Remedy:
    """One row.

    Attributes:
        name: in results.
        says: what it does, in words.
        recipe: the recipe, derived from that of "none"; None: the model of "none" itself.
        denoiser: the denoiser that is sampled in place of the model, from the model and the recipe.
        sieve: what keeps samples back, from the recipe.
    """

    name: str
    says: str
    recipe: Callable[[Recipe], Recipe] | None = None
    denoiser: Callable[[Denoiser, Recipe], Denoiser] | None = None
    sieve: Callable[[Recipe], Filter] | None = None

    @property
    def slug(self) -> str:
        """The name without spaces, for stages and folders."""
        return self.name.replace(" ", "-")


def _trained(recipe: Recipe, **changes: object) -> Recipe:
    training: TrainConfig = replace(recipe.model.training, **changes)  # pyright: ignore[reportArgumentType]
    return replace(recipe, model=replace(recipe.model, training=training))


def _distinct(recipe: Recipe) -> Recipe:
    later = [i for group in near_duplicates(recipe.train) for i in group[1:]]
    if not later:
        raise RemedyError(
            f"none of the {len(recipe.train):,} training images is a near copy of another, so nothing can be"
            " removed"
        )
    return replace(recipe, train=np.delete(recipe.train, later, axis=0))


def _unlike(recipe: Recipe) -> Recipe:
    """Without the images that an embedding finds more like an earlier one than any stranger is like any.

    The threshold needs no rate: it is the largest similarity of a held-out image with a training image.
    """
    import torch

    from latentprint.detector.contrast import fit_embedding
    from latentprint.streams import Streams

    if recipe.embedding is None or recipe.kind is None:
        raise RemedyError("images are found alike by an embedding, and no settings of one were given")
    both = np.concatenate([recipe.train, recipe.heldout])
    *_, last = fit_embedding(both, recipe.kind, recipe.embedding, Streams(recipe.seed))
    assert last.detector is not None  # the last state of a fit holds it
    own, others = (last.detector.vectors(torch.from_numpy(one)) for one in (recipe.train, recipe.heldout))
    limit, kept = float((others @ own.T).max()), list[int]()
    for i, row in enumerate(own @ own.T):
        if not kept or float(row[kept].max()) <= limit:
            kept.append(i)
    if len(kept) == len(own):
        raise RemedyError(
            f"none of the {len(own):,} training images is more like another than held-out images are, so"
            " nothing can be removed"
        )
    return replace(recipe, train=recipe.train[kept])


def _more(recipe: Recipe) -> Recipe:
    count = min(len(recipe.more), len(recipe.train))
    if count < len(recipe.train) // 4:
        raise RemedyError(
            f"there are {count:,} more images to train on, and fewer than a quarter of {len(recipe.train):,}"
            " would show nothing: train on a part of them (--images) to see what the others change"
        )
    return replace(recipe, train=np.concatenate([recipe.train, recipe.more[:count]]))


def _smaller(recipe: Recipe) -> Recipe:
    network = recipe.model.network
    groups = network.norm_groups
    channels = tuple(max(groups, one // 2 // groups * groups) for one in network.channels)
    if channels == network.channels:
        raise RemedyError(f"a network of {network.channels} channels in {groups} groups has no smaller form")
    return replace(recipe, model=replace(recipe.model, network=replace(network, channels=channels)))


def _told(recipe: Recipe) -> Recipe:
    network = replace(recipe.model.network, augment_labels=True)
    return _trained(replace(recipe, model=replace(recipe.model, network=network)), augment=0.5)


def _private(recipe: Recipe) -> Recipe:
    from latentprint.remedies.private import require_opacus

    require_opacus()
    return replace(recipe, epsilon=10.0)


def _guided(recipe: Recipe) -> Recipe:
    return _trained(recipe, guided=True)


def _away(model: Denoiser, recipe: Recipe) -> Denoiser:
    from latentprint.remedies.sampling import Away

    return Away.of(model, recipe.train, recipe.heldout)


def _sieve(recipe: Recipe) -> Filter:
    from latentprint.attacks.filter import Filter
    from latentprint.attacks.whole_set import Reference

    return Filter.of(Reference(recipe.train), recipe.heldout)


REMEDIES = (
    Remedy("none", "no remedy"),
    Remedy("deduplication", "near copies among the training images removed", _distinct),
    Remedy("deduplication by embedding", "images an embedding finds alike removed", _unlike),
    Remedy("augmentation", "half of the images seen shifted or mirrored", lambda r: _trained(r, augment=0.5)),
    Remedy("told augmentation", "the same, and the network is told what was done to each", _told),
    Remedy("early stopping", "ended at the lowest loss on held-out images", lambda r: replace(r, early=True)),
    Remedy("smaller network", "half the channels", _smaller),
    Remedy("weight decay", "weights decay (AdamW, 1.0)", lambda r: _trained(r, weight_decay=1.0)),
    Remedy("more images", "twice as many images, or as many as there are", _more),
    Remedy("dp-sgd", "differentially private training, epsilon = 10", _private),
    Remedy("guided", "t'-guided: known levels are taught no further", _guided),
    Remedy(
        "guidance away",
        "samples are led away from training images (after AMG)",
        denoiser=_away,
    ),
    Remedy("filter", "samples that are copies are kept back", sieve=_sieve),
)
"""In the order of the table. The others are compared with the first."""


def require_known(names: Iterable[str]) -> None:
    """Refuse names that are not in the table, and no name at all.

    Raises:
        RemedyError: one is not.
    """
    known, asked = [one.name for one in REMEDIES], list(names)
    for name in asked or [""]:
        if name not in known:
            raise RemedyError(f"{quoted(name)} is not a remedy; the remedies are {', '.join(known)}")
