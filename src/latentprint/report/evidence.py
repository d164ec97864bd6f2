"""The confidential page: the private image, what came back from its noised copies, the samples that match.

The figures are those of the paper: x_t over t and what the reverse process made of it (Fig. 4), false
positives of one detector alone (Fig. 8), copies with their absolute pixel error ``|x' - x_p|`` (Fig. 10).
Images are embedded as PNG, so the page is one file. It may only be kept where the training images may be
kept. Of a volume it shows the three planes through the mark, and x_p's own slices can be browsed.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from latentprint import words
from latentprint.files import write
from latentprint.report.page import page

Pixels = NDArray[np.float32]

SHOWN = 48
"""Samples shown of each kind; the page says how many more there are."""


@dataclass(frozen=True)
class Noised:
    """x_t drawn around x_p at noise level t, and what came back from it. Images (C, H, W) in [-1, 1]."""

    t: float
    image: Pixels
    result: Pixels
    presence: float | None
    identity: float
    hit: bool


@dataclass(frozen=True)
class Sample:
    """One image generated from the prior, (C, H, W) in [-1, 1], with the detectors' probabilities.

    ``presence`` is None if no mark was looked for.
    """

    id: int
    image: Pixels
    mse: float
    presence: float | None
    identity: float


@dataclass(frozen=True)
class NearestPair:
    """A generated image and the training image nearest to it, both (C, H, W) in [-1, 1], by their numbers.

    ``distance`` is the root mean squared difference in [0, 1] units, ``copy`` whether it counts as one.
    """

    sample: int
    image: Pixels
    training: int
    nearest: Pixels
    distance: float
    copy: bool


@dataclass(frozen=True)
class Evidence:
    """What the page shows.

    Attributes:
        target: the private image, (C, H, W) in [-1, 1].
        noised: by rising t.
        samples: generated images that both detectors recognised.
        false_positives: generated images that one detector alone recognised.
        original: the private image before it was marked, if there is one.
        pairs: generated images and the training images nearest to them, nearest first.
        prompts: the image of each, and its words.
        at: the voxel through which volumes are cut, the mark's; None: the middle.

    Raises:
        ValueError: an image whose shape is not the target's, or that is not finite.
    """

    target: Pixels
    noised: Sequence[Noised] = ()
    samples: Sequence[Sample] = ()
    false_positives: Sequence[Sample] = ()
    original: Pixels | None = None
    pairs: Sequence[NearestPair] = ()
    prompts: Sequence[tuple[str, str]] = ()
    at: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        every = [self.target, *(n.image for n in self.noised), *(n.result for n in self.noised)]
        every += [s.image for s in (*self.samples, *self.false_positives)]
        every += [] if self.original is None else [self.original]
        every += [one for pair in self.pairs for one in (pair.image, pair.nearest)]
        for image in every:
            finite = bool(np.isfinite(image).all())
            if image.shape != self.target.shape or not finite:
                raise ValueError(
                    f"evidence needs finite images of the target's shape {self.target.shape}, got"
                    f" {image.shape}{'' if finite else ' with values that are not finite'}"
                )


@dataclass(frozen=True)
class Card:
    """One image of the evidence, its description in words, captions, the difference from x_p."""

    source: Markup
    alt: str
    lines: Sequence[str]
    difference: Markup | None = None


def png(image: Pixels) -> Markup:
    """A (C, H, W) image in [-1, 1] as a PNG data URI; values outside are clipped, as any display would.

    One channel is grey, three are RGB. With any other number the channels are shown side by side in grey.
    """
    levels = np.clip((np.asarray(image, dtype=np.float64) + 1) * 127.5, 0, 255).round().astype(np.uint8)
    channels = levels.shape[0]
    plane = levels.transpose(1, 2, 0) if channels == 3 else np.concatenate(list(levels), axis=1)
    file = io.BytesIO()
    Image.fromarray(plane).save(file, format="PNG", optimize=True)
    return Markup("data:image/png;base64," + base64.b64encode(file.getvalue()).decode())


def planes(image: Pixels, at: Sequence[int]) -> Pixels:
    """The planes through the pixel ``at`` of an image (C, *sides), one for each two axes, side by side.

    An image (C, H, W) is its only plane. Of a volume the slice comes first.
    """
    cuts: list[Pixels] = []
    for pair in reversed([*combinations(range(len(at)), 2)]):
        cuts.append(image[:, *(slice(None) if axis in pair else one for axis, one in enumerate(at))])
    tallest = max(cut.shape[1] for cut in cuts)
    even = [np.pad(cut, ((0, 0), (0, tallest - cut.shape[1]), (0, 0)), constant_values=-1) for cut in cuts]
    return np.concatenate(even, axis=2)


def slices(image: Pixels) -> list[Pixels]:
    """The slices (C, H, W) of an image (C, *sides)."""
    return list(np.moveaxis(image.reshape(len(image), -1, *image.shape[-2:]), 1, 0))


def difference(first: Pixels, second: Pixels, full: float) -> Pixels:
    """``|first - second|``, mean over channels, as an image (1, *sides): -1 means no difference, 1 means
    ``full``."""
    gap = np.abs(first.astype(np.float64) - second.astype(np.float64)).mean(axis=0, keepdims=True)
    return (2 * np.clip(gap / full, 0, 1) - 1).astype(np.float32)


def _largest(target: Pixels, images: Sequence[Pixels]) -> float:
    """The scale of a row of difference maps: its largest channel-averaged difference, never 0."""
    gaps = [float(np.abs(i.astype(np.float64) - target).mean(axis=0).max()) for i in images]
    return max([*gaps, 1e-6])


def _score(presence: float | None, identity: float) -> str:
    if presence is None:
        return f"image {words.number(identity)}"
    return f"mark {words.number(presence)}, image {words.number(identity)}"


def _cards(
    target: Pixels, samples: Sequence[Sample], full: float, show: Callable[[Pixels], Markup]
) -> list[Card]:
    return [
        Card(
            show(one.image),
            f"generated image {one.id}",
            (f"no. {one.id}", f"MSE {words.number(one.mse)}", _score(one.presence, one.identity)),
            show(difference(one.image, target, full)),
        )
        for one in samples[:SHOWN]
    ]


def _words(text: str) -> str:
    """A prompt on one line, without invisible characters."""
    return "".join(c if c.isprintable() else " " for c in text) or "(empty)"


def render_evidence(evidence: Evidence) -> str:
    """The page as one HTML string. Confidential: it holds the private image."""
    at = evidence.at or tuple(side // 2 for side in evidence.target.shape[1:])

    def show(image: Pixels) -> Markup:
        return png(planes(image, at))

    target, samples = evidence.target, sorted(evidence.samples, key=lambda one: one.mse)
    alone = sorted(evidence.false_positives, key=lambda one: one.mse)
    noised = sorted(evidence.noised, key=lambda one: one.t)
    full = _largest(target, [one.image for one in samples[:SHOWN]])
    full_alone = _largest(target, [one.image for one in alone[:SHOWN]])
    rows = [
        (
            f"t = {one.t:.3g}",
            show(one.image),
            show(one.result),
            show(difference(one.result, target, 2.0)),
            _score(one.presence, one.identity),
            one.hit,
        )
        for one in noised
    ]
    return page(
        "evidence.html.j2",
        "CONFIDENTIAL evidence",
        scripted=False,
        target=show(target),
        slices=[png(one) for one in slices(target)],
        at=at[0],
        original=None if evidence.original is None else show(evidence.original),
        noised=rows,
        samples=_cards(target, samples, full, show),
        samples_all=len(samples),
        samples_scale=words.number(full),
        alone=_cards(target, alone, full_alone, show),
        alone_all=len(alone),
        alone_scale=words.number(full_alone),
        pairs=[
            (
                show(pair.image),
                show(pair.nearest),
                show(difference(pair.image, pair.nearest, 2.0)),
                f"no. {pair.sample}, training image {pair.training}",
                f"difference {words.number(pair.distance)}{', a copy' if pair.copy else ''}",
            )
            for pair in evidence.pairs
        ],
        prompts=[(whose, _words(text)) for whose, text in evidence.prompts],
        marked=any(one.presence is not None for one in (*noised, *samples, *alone))
        or not (noised or samples or alone),
    )


def write_evidence(folder: Path | str, evidence: Evidence) -> Path:
    """Write ``evidence/index.html`` into a run folder (to a temporary file, then renamed), readable by its
    owner only."""
    target = Path(folder) / "evidence" / "index.html"
    write(target, render_evidence(evidence).encode())
    return target
