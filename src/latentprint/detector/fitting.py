"""The one fit of every recogniser: AdamW, early stopping, the best weights kept.

(Paper section 5.2: "trained until convergence with a patience of 20 epochs".) Each recogniser has its own
images per epoch, validation loss and test of the finished network.

The backbone's arithmetic is ``networks.speed.Evaluation``; the layer after it, and the loss, are always
float32: a threshold lies between logits, and seven bits of mantissa would round them onto it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latentprint.detector.backbone import Headed
from latentprint.detector.draws import Seen
from latentprint.detector.model import DetectorConfig, DetectorError, Fitted, at_once, three_channels
from latentprint.networks.speed import Evaluation, arithmetic, laid_out, launched, layout, new_step, rounding

Step = tuple[Tensor, Callable[[Tensor], Tensor]]
"""Images of one step, and the loss of the network's answers to them."""

Recogniser = TypeVar("Recogniser", bound=Fitted[Any, Any])
Network = TypeVar("Network", bound=Headed)


@dataclass(frozen=True)
class FitState(Generic[Recogniser]):
    """The state of a fit after ``epoch`` of at most ``epochs`` epochs.

    Attributes:
        name: of the recogniser.
        loss, validation_loss: of the epoch, and of the validation split.
        best_epoch: the one with the lowest validation loss so far, from 1.
        detector: the fitted recogniser, in the last state; None before.
    """

    name: str
    epoch: int
    epochs: int
    loss: float
    validation_loss: float
    best_epoch: int
    detector: Recogniser | None


@dataclass(frozen=True)
class Epoch:
    """The state of a fit after epoch ``number``, from 1.

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


def fitted(
    name: str,
    network: Network,
    config: DetectorConfig,
    how: Evaluation,
    epoch: Callable[[int], Iterable[Step]],
    whole: int,
    validation: Callable[[Callable[[Seen], Tensor]], Tensor],
    done: Callable[[Network, int], Recogniser],
) -> Iterator[FitState[Recogniser]]:
    """Fit ``network``, which is on its device.

    Args:
        epoch: the steps of an epoch, by its number from 1.
        whole: images of a full step, the only batch size of a compiled network or a graph.
        validation: the loss of the validation split, given the function that answers images, without
            gradients.
        done: the recogniser, from the network with its best weights and their epoch.

    Raises:
        DetectorError: the validation loss stopped being finite, or what ``done`` refuses.
    """
    fast, place = learning(network, how), network.head.weight.device
    optimiser = torch.optim.AdamW(
        network.parameters(),
        config.learning_rate,
        weight_decay=config.weight_decay,
        fused=place.type == "cuda",
    )

    def learn(number: int) -> float:
        network.train()
        losses: list[Tensor] = []
        for images, loss_of in epoch(number):
            body = fast if len(images) == whole else network.backbone
            loss = loss_of(network.ending(seen_by(body, images, how)))
            optimiser.zero_grad(set_to_none=True)
            with rounding(how, place):
                loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        return float(np.mean(torch.stack(losses).cpu().numpy().astype(np.float64)))

    def judge() -> float:
        network.eval()
        with torch.no_grad():
            return float(validation(lambda images: answer(network, images, place, how)))

    rate = config.learning_rate
    for seen in until_best(
        network, config.epochs, config.patience, learn, judge, what=name, learning_rate=rate
    ):
        detector = done(network, seen.best) if seen.last else None
        yield FitState(name, seen.number, config.epochs, seen.loss, seen.validation_loss, seen.best, detector)


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
    """
    lowest, best, weights = np.inf, 0, copy.deepcopy(network.state_dict())
    for number in range(1, epochs + 1):
        loss, found = learn(number), judge()
        if not np.isfinite(found):
            raise DetectorError(
                f"the loss of the {what} detector became {found} in epoch {number} with learning rate"
                f" {learning_rate:g}: lower the learning rate"
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


def answer(network: Headed, images: Seen, place: torch.device, how: Evaluation) -> Tensor:
    """The network's answers to n images, some at a time: (n, ...), float64."""
    parts = (on(place, part) for part in images.together(at_once(images.shape)))
    return torch.cat([network.ending(seen_by(network.backbone, part, how)) for part in parts]).double()


def learning(network: Headed, how: Evaluation) -> Callable[[Tensor], Tensor]:
    """The backbone of ``network`` (laid out so from now on) as it learns, launched as ``how`` says."""
    if how.channels_last:
        network.to(memory_format=layout(network, how))  # pyright: ignore[reportCallIssue]
    return launched(network.backbone, how)


def seen_by(body: Callable[[Tensor], Tensor], images: Tensor, how: Evaluation) -> Tensor:
    """Features (B, d) float32 of images (B, C, H, W), by a backbone or what ``learning`` made of it."""
    with arithmetic(how, images.device):
        new_step(how)
        return body(laid_out(three_channels(images), how)).float()


def on(place: torch.device, pixels: NDArray[Any]) -> Tensor:
    """Pixels (n, C, H, W) or labels (n,) as a tensor on the device."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(place)
