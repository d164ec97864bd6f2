"""All real images as one pool, with which every generated image is compared (`stats.returned`)."""

from __future__ import annotations

import numpy as np

from latentprint.attacks.pool import Pool as RealImages
from latentprint.audit.context import Context
from latentprint.data import Split
from latentprint.fingerprint import Injection
from latentprint.probe import Compare
from latentprint.results.notes import POOL, Pooled
from latentprint.stats.returned import LEAST


def real_images(split: Split, injection: Injection) -> RealImages | None:
    """Training and held-out images as one pool; None where there are too few."""
    mixed = [] if split.overlap is None else [train for _, train, _ in split.overlap.pairs]
    known = split.train.identities, split.heldout.identities
    persons = None if known[0] is None or known[1] is None else (*known[0], *known[1])
    images = RealImages.of(injection.marked.pixels, split.heldout.pixels, injection.index, mixed, persons)
    return images if len(images.whose) >= LEAST else None


def pool(context: Context, split: Split, injection: Injection) -> Compare | None:
    """Keep the pool's own rows as ``pool``, and return what compares samples with it.

    None where there are too few images for a pool: then nothing can be said about which of them come back.
    """
    images = real_images(split, injection)
    if images is None:
        return None
    if not context.run.stage(POOL.name).done:
        with context.stage(POOL.name):
            context.say("comparing real images", 0, 1, "sets")
            ids = np.arange(len(images.whose), dtype=np.int64)
            context.run.append(POOL.name, {"id": ids, "whose": images.whose, **images.rows})
            context.finish(POOL, Pooled(target=images.target))
            context.say("comparing real images", 1, 1, "sets")
    return lambda found: {f"pool_{name}": values for name, values in images.held_against(found).items()}
