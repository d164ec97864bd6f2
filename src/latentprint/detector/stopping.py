"""Early stopping: fit until the validation loss has not fallen for some epochs, and keep the best weights.

(Paper section 5.2: "trained until convergence with a patience of 20 epochs".) Both kinds of detector are
fitted by this one loop; what an epoch shows and how it is judged is theirs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from latentprint.detector.model import DetectorError


@dataclass(frozen=True)
class Epoch:
    """Where a fit stands after epoch ``number``, from 1.

    Attributes:
        loss, validation_loss: of this epoch.
        best: the epoch with the lowest validation loss so far, from 1.
        last: whether the fit ends here; the network then holds the weights of ``best``, for evaluation.
    """

    number: int
    loss: float
    validation_loss: float
    best: int
    last: bool


def until_best(
    network: nn.Module,
    epochs: int,
    patience: int,
    learn: Callable[[int], float],
    judge: Callable[[], float],
    *,
    what: str,
    learning_rate: float,
) -> Iterator[Epoch]:
    """Call ``learn(epoch)`` and ``judge()`` for up to ``epochs`` epochs, both returning a mean loss.

    ``what`` and ``learning_rate`` are for the message.

    Raises:
        DetectorError: the validation loss stopped being finite.
    """
    lowest, best, weights = np.inf, 0, copy.deepcopy(network.state_dict())
    for number in range(1, epochs + 1):
        loss, found = learn(number), judge()
        if not np.isfinite(found):
            raise DetectorError(
                f"{what}'s loss became {found} in epoch {number} with learning rate {learning_rate:g}: "
                "lower the learning rate"
            )
        if found < lowest:
            lowest, best, weights = found, number, copy.deepcopy(network.state_dict())
        last = number == epochs or number - best >= patience
        if last:
            network.load_state_dict(weights)
            network.eval().requires_grad_(False)
        yield Epoch(number, loss, found, best, last)
        if last:
            return
