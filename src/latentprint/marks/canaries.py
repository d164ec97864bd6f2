"""Many marked images in one training, each in or out by a fair coin (canaries).

    draw 2 K images without near copies, and put a separate mark on each (Eq. 10); toss a coin for each: one
    that is in replaces its original, with 1, 4 or 16 copies (repetition tiers); if one is out, the training
    set holds neither it nor its original

Canaries that are in and canaries that are out differ only by the coin. Those that are out are the perfect
comparison, and how well a score guesses the coins bounds epsilon from below (`latentprint.stats.epsilon`).

Sources: Dombrowski and Kainz 2023, Eq. 10; Carlini et al. 2019 (canaries); Steinke, Nasr, Jagielski 2023 (all
coins in one training).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from latentprint.data import ImageSet, copies_of, image_sha256
from latentprint.fingerprint import Fingerprint, FingerprintError, FingerprintKind


@dataclass(frozen=True, eq=False)
class Canaries:
    """Marked images, and which of them a model is trained on.

    Attributes:
        images: (m, *shape) in [-1, 1], marked.
        sha256: their hashes, by the rule of the manifest.
        fingerprints: the mark of each.
        origin: (m,) places of their originals in the set that they were drawn from, rising.
        member: (m,) the coins: True is in.
        copies: (m,) how many copies the training set holds of one that is in.
    """

    images: NDArray[np.float32]
    sha256: tuple[str, ...]
    fingerprints: tuple[Fingerprint, ...]
    origin: NDArray[np.int64]
    member: NDArray[np.bool_]
    copies: NDArray[np.int64]

    def places(self, count: int) -> NDArray[np.int64]:
        """For each image of ``put_into`` on a set of ``count``, its place in that set; further copies come
        last."""
        kept = np.delete(np.arange(count), self.origin[~self.member])
        return np.concatenate([kept, np.repeat(self.origin[self.member], self.copies[self.member] - 1)])

    def put_into(self, train: ImageSet) -> ImageSet:
        """The training set: the set they were drawn from, with canaries in place of their originals."""
        places = self.places(len(train))
        found = train.take(places)
        pixels, hashes = np.asarray(found.pixels), list(found.sha256)
        for k in np.flatnonzero(self.member):
            for row in np.flatnonzero(places == self.origin[k]):
                pixels[row], hashes[row] = self.images[k], self.sha256[k]
        return replace(found, sha256=tuple(hashes))

    def without(self, images: ImageSet) -> ImageSet:
        """The images of a set that are not canaries."""
        return images.share(np.flatnonzero(~np.isin(np.array(images.sha256), np.array(self.sha256))))


def draw_canaries(
    train: ImageSet,
    kind: FingerprintKind,
    count: int,
    rng: np.random.Generator,
    *,
    coin: bool = True,
    tiers: Sequence[int] = (1,),
    spare: Collection[int] = (),
) -> Canaries:
    """Mark ``2 count`` images of a training set, about half of which will be trained on.

    Args:
        train: the images that would be trained on.
        kind: of mark.
        count: K.
        rng: draws the images, marks and coins.
        coin: False marks ``count`` images that are all in, for uses that need no canaries that are out.
        tiers: copies in the training set of those that are in, in turn.
        spare: places of images that are left as they are, such as x_p.

    Raises:
        FingerprintError: too few images to draw from, no count, or a tier below 1.
    """
    if count < 1 or not tiers or min(tiers) < 1:
        raise FingerprintError(f"fingerprints and their copies are 1 or more, got {count} and {tuple(tiers)}")
    wanted, drawn = (2 * count if coin else count), dict[int, tuple[Fingerprint, NDArray[np.float32]]]()
    free = np.setdiff1d(np.arange(len(train)), np.asarray([*spare], np.int64))
    for i in rng.permutation(free).tolist() if wanted < len(free) else ():
        if len(drawn) == wanted:
            break
        if len(copies_of(train.pixels[i], train.pixels)) == 1:
            mark = kind.draw(train.shape[1:], rng)
            marked = mark.apply(train.pixels[i])
            if not np.array_equal(marked, train.pixels[i]):
                drawn[i] = mark, marked
    if len(drawn) < wanted:
        half = ", half of which a coin leaves out," if coin else ""
        there = len(drawn) if wanted < len(free) else len(free)
        raise FingerprintError(
            f"{count:,} fingerprints need {wanted:,} training images without near copies{half} and one more"
            f" to train on; there are {there:,} among {len(train):,}"
        )
    origin = sorted(drawn)
    tier = np.resize(np.asarray(tiers, np.int64), wanted)
    return Canaries(
        np.stack([drawn[i][1] for i in origin]),
        tuple(_sha256(drawn[i][1]) for i in origin),
        tuple(drawn[i][0] for i in origin),
        np.asarray(origin, np.int64),
        rng.random(wanted) < 0.5 if coin else np.ones(wanted, np.bool_),
        rng.permutation(tier),
    )


def _sha256(image: NDArray[np.float32]) -> str:
    return image_sha256(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1))
