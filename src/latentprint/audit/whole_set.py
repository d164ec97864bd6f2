"""Every generated image against every training image: the columns that ``results.whole_set`` is computed
from.

Three sets of real images have rows as well: ``whole.train`` (which images are distinct, and whose they are),
``whole.heldout`` (the background) and ``whole.planted`` (copies made on purpose).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from latentprint.attacks.descriptor import descriptor
from latentprint.attacks.planted import CHANGES
from latentprint.attacks.whole_set import Reference
from latentprint.audit.context import Context
from latentprint.data import Split
from latentprint.data.images import ImageSet
from latentprint.detector import EmbeddingDetector
from latentprint.fingerprint import Injection
from latentprint.probe import Compare
from latentprint.results.notes import WHOLE, WholeNote
from latentprint.results.whole_set import PREFIX


def whole_set(
    context: Context, split: Split, injection: Injection, matcher: EmbeddingDetector | None = None
) -> Compare | None:
    """Keep the rows of held-out and planted images, and return what compares generated ones.

    None where too few training images are distinct (``attacks.whole_set.LEAST``). ``matcher`` adds the
    criterion of its embedding, and the settings' descriptor adds its own.
    """
    person = persons(split.train)
    embeddings = {} if matcher is None else {"embedding": matcher.vectors}
    if (described := descriptor(context.config.descriptor, context.device)) is not None:
        embeddings["descriptor"] = described
    found = Reference.of(injection.marked.pixels, person, context.device, embeddings)
    if found is None:
        return None
    if not context.run.stage(WHOLE.name).done:
        with context.stage(WHOLE.name):
            n = len(split.train)
            ids = np.arange(n, dtype=np.int64)
            numbers = ids if person is None else person
            if len(context.run.missing(WHOLE.part("train"), ids)):
                distinct = np.isin(ids, found.distinct)
                context.run.append(WHOLE.part("train"), {"id": ids, "distinct": distinct, "person": numbers})
            found.stored(split.heldout.pixels, WHOLE.part("heldout"), context.run, context.say)
            _planted(context, found)
            noted = WholeNote(changes=tuple(CHANGES), persons=person is not None)
            context.finish(WHOLE, noted)
    return lambda images: _named(found, images)


def _named(reference: Reference, images: Tensor) -> Mapping[str, NDArray[Any]]:
    return {f"{PREFIX}{name}": column for name, column in reference.columns(images).items()}


def _planted(context: Context, reference: Reference) -> None:
    rows = reference.planted(context.config.seed)
    each = len(next(iter(rows.values()))["distance"])
    names = list(next(iter(rows.values())))
    columns = {name: np.concatenate([rows[change][name] for change in CHANGES]) for name in names}
    ids = np.arange(each * len(CHANGES), dtype=np.int64)
    if len(context.run.missing(WHOLE.part("planted"), ids)):
        change = np.repeat(np.arange(len(CHANGES), dtype=np.int64), each)
        context.run.append(WHOLE.part("planted"), {"id": ids, "change": change, **columns})


def persons(images: ImageSet) -> NDArray[np.int64] | None:
    """(n,) numbers of the persons; None: unknown."""
    if images.identities is None:
        return None
    return np.unique(np.array(images.identities), return_inverse=True)[1].astype(np.int64)


def joined(*compares: Compare | None) -> Compare | None:
    """A comparison that returns the columns of all of them."""
    asked = [one for one in compares if one is not None]
    if not asked:
        return None
    return lambda images: {name: column for one in asked for name, column in one(images).items()}
