"""Early stopping: which weights are kept, when a fit ends, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from latentprint.detector import DetectorError
from latentprint.detector.fitting import Epoch, until_best


def fitted(losses: Sequence[float], epochs: int, patience: int) -> tuple[list[Epoch], nn.Linear]:
    """A fit whose only weight is the number of the epoch that it learnt last."""
    with torch.random.fork_rng(devices=[]):
        network = nn.Linear(1, 1, bias=False)
    left = iter(losses)

    def learn(epoch: int) -> float:
        network.train()
        with torch.no_grad():
            network.weight.fill_(float(epoch))
        return 100.0 + epoch

    def judge() -> float:
        return next(left)

    states = list(until_best(network, epochs, patience, learn, judge, what="test", learning_rate=0.5))
    return states, network


def test_the_weights_of_the_best_epoch_are_kept_and_the_fit_ends_after_its_patience():
    states, network = fitted([3.0, 1.0, 2.0, 1.0, 0.0], epochs=9, patience=2)
    assert [one.number for one in states] == [1, 2, 3, 4]  # an equal loss in epoch 4 is no better one
    assert [one.best for one in states] == [1, 2, 2, 2] and [one.last for one in states] == [0, 0, 0, 1]
    assert [one.loss for one in states] == [101, 102, 103, 104] and states[2].validation_loss == 2.0
    assert network.weight.item() == 2.0
    assert not network.training and not network.weight.requires_grad


def test_the_last_epoch_ends_it_whether_or_not_it_is_the_best():
    states, network = fitted([3.0, 2.0, 1.0], epochs=3, patience=5)
    assert states[-1].last and states[-1].best == 3 and network.weight.item() == 3.0
    states, network = fitted([1.0, 2.0, 3.0], epochs=3, patience=5)
    assert states[-1].last and states[-1].best == 1 and network.weight.item() == 1.0


def test_a_loss_that_is_not_finite_is_named():
    with pytest.raises(DetectorError, match=r"test detector became nan in epoch 2 .* 0\.5: lower"):
        fitted([1.0, float("nan")], epochs=3, patience=5)
