"""Features of samples, kept by id while they are drawn, so that a Fréchet distance needs no image twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentprint.audit.context import Context
from latentprint.contracts import Ids
from latentprint.metrics.frechet import Extractor

Kept = list[tuple[Ids, NDArray[np.float32]]]


@dataclass(frozen=True)
class Features:
    """Features of the samples that pass by, held in memory until their unit is done.

    A unit may run in another process, which cannot write to the run; its features travel with its rows.

    Attributes:
        limit: samples with a smaller id are kept.
        extract: images (n, C, H, W) -> features (n, d).
        held: ids (n,) and features (n, d) of each batch.
    """

    limit: int
    extract: Extractor
    held: Kept = field(default_factory=Kept)

    def __call__(self, ids: Ids, images: Tensor) -> None:
        keep = ids < self.limit
        if keep.any():
            values = self.extract(images[torch.as_tensor(keep, device=images.device)])
            self.held.append((ids[keep], values.float().cpu().numpy()))


@dataclass(frozen=True)
class _WithFeatures:
    """A unit of samples -> (its rows, its features)."""

    ask: Callable[[Any], Any]
    features: Features

    def __call__(self, unit: Any) -> tuple[Any, Kept]:
        self.features.held.clear()
        rows = self.ask(unit)
        return rows, list(self.features.held)


@dataclass(frozen=True)
class Keeping:
    """A map that writes each unit's features before its rows, so that no rows exist without features.

    Attributes:
        work: the map that executes the units, and the run that keeps their features.
        purpose: the name under which they are kept.
        features: what watches the samples.
    """

    context: Context
    purpose: str
    features: Features

    def __call__(self, function: Callable[[Any], Any], units: Iterable[Any], /) -> Iterator[Any]:
        for rows, kept in self.context.map(_WithFeatures(function, self.features), units):
            for ids, values in kept:
                # After a kill between features and rows, and with another batch size, some features are
                # already there.
                new = np.isin(ids, self.context.run.missing_array(self.purpose, ids))
                self.context.run.append_array(self.purpose, ids[new], values[new])
            yield rows
