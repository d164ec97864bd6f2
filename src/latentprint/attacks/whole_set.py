"""Every generated image against every training image, and what follows for the whole training set.

For the user's own loop, in the form of torchmetrics:

    copies = Copies(train, heldout)         # (N, C, H, W) in [-1, 1]: training images and held-out images
    for images in generated:
        copies.update(images)
    found = copies.compute()                # results.whole_set.WholeSet
    print(*told(found))

An audit keeps the rows of ``Reference.columns`` instead, and computes the same value from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentprint.attacks.aligned import Aligned
from latentprint.attacks.nearest import Images, as_tensor, columns
from latentprint.attacks.planted import planted
from latentprint.contracts import InputError
from latentprint.data import NEAR, DataError, near_duplicates
from latentprint.data.images import Pixels, Selection, fits
from latentprint.execute import Sink
from latentprint.keys import generator
from latentprint.progress import Report, silent
from latentprint.results.whole_set import Rows, WholeSet, whole_set

Embed = Callable[[Tensor], Tensor]
"""Images (n, C, *size) -> vectors (n, d)."""

LEAST = 4
"""Fewest distinct training images with which nearest neighbours mean something."""

UNIT = 4096
"""Images between two writes to disk."""

_VALUES = 2**24
"""Most values of images that are compared at once (64 MiB)."""

PLANTED = 20
"""Training images of which copies are planted, in every change."""


class StraddleError(InputError):
    """Persons with images on both sides of the split."""


def require_apart(person: NDArray[np.int64], heldout: NDArray[np.int64]) -> None:
    """Refuse persons (N,), (M,) with both training and held-out images.

    Raises:
        StraddleError: with their number.
    """
    both = np.intersect1d(person, heldout)
    if len(both):
        raise StraddleError(
            f"{len(both):,} of {len(np.unique(person)):,} persons have images among the training images and"
            " among those held out as well, so these are no background; split the images by person"
        )


@dataclass(frozen=True)
class Reference:
    """Training images with which others are compared; the first of each group of near copies represents all.

    Attributes:
        pixels: (N, C, *size) in [-1, 1].
        person: (N,) numbers of the persons; None: unknown.
        embeddings: further criteria by name ("embedding", "descriptor"): images -> vectors.
        device: where images are compared.

    Raises:
        DataError: fewer than LEAST distinct images, or not one person per image.
    """

    pixels: Pixels
    person: NDArray[np.int64] | None = None
    embeddings: Mapping[str, Embed] | None = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)

    @classmethod
    def of(
        cls,
        pixels: Pixels,
        person: NDArray[np.int64] | None,
        device: torch.device,
        embeddings: Mapping[str, Embed] | None = None,
    ) -> Reference | None:
        """The reference; None if too few images are distinct."""
        try:
            return cls(pixels, person, embeddings, device)
        except DataError:
            return None

    def __post_init__(self) -> None:
        if self.person is not None and self.person.shape != (len(self.pixels),):
            raise DataError(f"{len(self.pixels)} images need one person each, got {self.person.shape}")
        if len(self.distinct) < LEAST:
            raise DataError(
                f"nearest copies need {LEAST} training images that are not copies of each other, got"
                f" {len(self.distinct)}"
            )

    @cached_property
    def distinct(self) -> NDArray[np.int64]:
        """Places of the training images, only the first of each group of near copies; rising."""
        later = [i for group in near_duplicates(self.pixels) for i in group[1:]]
        return np.setdiff1d(np.arange(len(self.pixels)), later)

    @cached_property
    def _kept(self) -> Images:
        kept = Selection.of(self.pixels).take(self.distinct)
        return kept if self.device.type == "cpu" else torch.from_numpy(kept[:]).to(self.device)

    @cached_property
    def _aligned(self) -> Aligned:
        return Aligned(self._kept, None if self.person is None else self.person[self.distinct])

    @cached_property
    def _vectors(self) -> dict[str, Tensor]:
        return {name: _embedded(embed, self._kept) for name, embed in (self.embeddings or {}).items()}

    def columns(self, images: Tensor | Pixels) -> dict[str, NDArray[Any]]:
        """Rows to keep of images (n, C, *size): the columns that ``results.criteria`` reads, (n,) each.

        Training images are identified by their places among all N. A row depends only on its own image.
        """
        given = torch.as_tensor(np.asarray(images) if not isinstance(images, Tensor) else images)
        given = given.to(self.device, torch.float32)
        rows = dict(columns(given, self._kept)) | dict(self._aligned.columns(given))
        for name, embed in (self.embeddings or {}).items():
            alike = _embedded(embed, given) @ self._vectors[name].T
            best = alike.max(1)
            rows |= {name: best.values.double().cpu().numpy(), f"{name}_of": best.indices.cpu().numpy()}
        places = {name for name in rows if name in ("nearest", "second") or name.endswith("_of")}
        return {name: self.distinct[row] if name in places else row for name, row in rows.items()}

    def stored(
        self, images: Pixels, purpose: str, sink: Sink, report: Report = silent
    ) -> Mapping[str, NDArray[Any]]:
        """``columns`` of images (n, C, *size), memory-mapped or not, kept under ``purpose`` when made.

        Images whose rows the sink holds are not compared again, so a run that was killed continues where it
        was.
        """
        held = sink.rows(purpose).get("id", np.empty(0, np.int64))
        missing = np.setdiff1d(np.arange(len(images)), held)
        said = f"held against {len(self.pixels):,} training images"
        step = fits(images.shape[1:], _VALUES, most=UNIT)
        for first in range(0, len(missing), step):
            report(said, len(images) - len(missing) + first, len(images), "images")
            ids = missing[first : first + step]
            sink.append(purpose, {"id": ids, **self.columns(images[ids])})
        report(said, len(images), len(images), "images")
        return sink.rows(purpose)

    def planted(self, seed: int, count: int = PLANTED) -> dict[str, dict[str, NDArray[Any]]]:
        """Rows of copies made of up to ``count`` training images, by how they were changed."""
        rng = generator(seed, "planted")
        chosen = rng.choice(self.distinct, min(count, len(self.distinct)), replace=False)
        return {name: self.columns(images) for name, images in planted(self.pixels[chosen], rng).items()}


def _embedded(embed: Embed, images: Images) -> Tensor:
    step = fits(images.shape[1:], _VALUES, most=256)
    parts = (images[first : first + step] for first in range(0, max(1, len(images)), step))
    with torch.no_grad():
        vectors = torch.cat([embed(as_tensor(part)).float() for part in parts])
    return torch.nn.functional.normalize(vectors, dim=1)


class Copies:
    """Count copies among generated images as they come; see the module.

    Args:
        train: images (N, C, *size) in [-1, 1] that the model was trained on.
        heldout: images (M, C, *size) that it was not trained on.
        person: (N,) numbers of the persons; several images of one person count once.
        heldout_person: (M,) the same of the held-out images.
        seed: draws the planted copies.
        device: where images are compared.

    Raises:
        DataError: images of different shapes, or fewer than LEAST distinct training images.
        StraddleError: a person has images on both sides.
    """

    def __init__(
        self,
        train: Tensor | Pixels,
        heldout: Tensor | Pixels,
        *,
        person: NDArray[np.int64] | None = None,
        heldout_person: NDArray[np.int64] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if train.shape[1:] != heldout.shape[1:]:
            raise DataError(
                f"training and held-out images must have one shape, got {tuple(train.shape[1:])} and"
                f" {tuple(heldout.shape[1:])}"
            )
        if person is not None and heldout_person is not None:
            require_apart(person, heldout_person)
        pixels = np.asarray(train.cpu() if isinstance(train, Tensor) else train, dtype=np.float32)
        self._reference = Reference(pixels, person, device=torch.device(device))
        self._heldout = self._reference.columns(heldout)
        self._planted = self._reference.planted(seed)
        self._rows = list[dict[str, NDArray[Any]]]()
        self._seed = seed

    def update(self, images: Tensor | Pixels) -> None:
        """Compare generated images (n, C, *size) in [-1, 1] with the training images.

        Raises:
            DataError: images of another shape.
        """
        if images.shape[1:] != self._reference.pixels.shape[1:]:
            ours = self._reference.pixels.shape[1:]
            raise DataError(f"generated images must be {ours}, got {tuple(images.shape[1:])}")
        self._rows.append(self._reference.columns(images))

    def compute(self) -> WholeSet:
        """The result of the images so far.

        Raises:
            ValueError: there was no image.
        """
        names = self._rows[0] if self._rows else {}
        rows = {name: np.concatenate([one[name] for one in self._rows]) for name in names}
        return whole_set(self._reference_rows(rows), seed=self._seed)

    def reset(self) -> None:
        """Forget the generated images."""
        self._rows.clear()

    def _reference_rows(self, generated: Mapping[str, NDArray[Any]]) -> Rows:
        return Rows(
            generated,
            self._heldout,
            len(self._reference.distinct),
            planted=self._planted,
            person=self._reference.person,
            near=NEAR / 2,
        )
