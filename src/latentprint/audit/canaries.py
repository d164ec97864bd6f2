"""Many marked images in one training: how typical is x_p, and how large is epsilon at least?

One recogniser knows all 2 K marked images, those that the coin left out, and x_p. It counts each of them
among the samples. Each is also searched for as x_p is (Alg. 1), and has a loss. Marked images that were
trained on and those that were not differ only by the coin, so any difference between the two groups was
learnt (`latentprint.results.canaries`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from latentprint.attacks.membership import MembershipConfig, loss_score
from latentprint.audit.context import Context, one_image
from latentprint.audit.many import search_many
from latentprint.audit.membership import within
from latentprint.audit.recognisers import recogniser
from latentprint.audit.stages import detector_value
from latentprint.contracts import InputError
from latentprint.data import Split
from latentprint.denoiser import Denoiser
from latentprint.detector import Identities, fit_identities, load_identities
from latentprint.detector.draws import units_of
from latentprint.fingerprint import Injection
from latentprint.marks import Canaries
from latentprint.probe import Compare
from latentprint.results.model import IDENTITIES
from latentprint.results.notes import CANARIES, CANARY_SEARCH, Drawn

_NOISE = 2**33
"""Added to the canaries' numbers where noise is drawn, so that they share no noise with other images."""


@dataclass(frozen=True)
class _Listed:
    """Images by number."""

    pixels: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, numbers: NDArray[np.int64], /) -> NDArray[np.float32]:
        return self.pixels[numbers]


def identities(
    context: Context, split: Split, injection: Injection, canaries: Canaries | None
) -> Identities | None:
    """Fit the recogniser of all marked images, x_p last, or read it from the run; None where only x_p is
    marked."""
    if canaries is None:
        return None
    kind = context.config.fingerprint.drawn(split.heldout.pixels)
    return recogniser(
        context,
        IDENTITIES,
        "one recogniser of all marked images",
        lambda: fit_identities(
            _targets(injection, canaries),
            canaries.without(injection.control).pixels,
            split.heldout.pixels,
            kind,
            context.config.identities,
            context.streams,
            context.device,
            context.config.speed.detectors,
            *units_of(split.heldout),
        ),
        load_identities,
        detector_value,
    )


def which_canary(known: Identities) -> Compare:
    """The column ``canary`` of samples: the marked image that each sample shows; -1: none."""
    return lambda images: {"canary": known.which(images)}


def search_canaries(
    context: Context,
    model: Denoiser,
    plain: Denoiser,
    known: Identities,
    injection: Injection,
    canaries: Canaries,
) -> None:
    """The losses and coins of the marked images as rows ``canaries``, and their search as
    ``canaries.search``.

    ``plain`` is the model in full precision, for the loss.
    """
    pixels, settings = _targets(injection, canaries), context.config.canaries
    ids = np.arange(len(pixels) - 1, dtype=np.int64)
    if not context.run.stage(CANARIES.name).done:
        with context.stage(CANARIES.name):
            config = within(context.config.membership.scores, plain.schedule)
            if not isinstance(config, MembershipConfig):
                raise InputError(f"the loss of marked images cannot be measured: {config}")
            if len(context.run.missing(CANARIES.name, ids)):
                with torch.no_grad():
                    images = one_image(pixels[:-1], context.device)
                    loss = loss_score(plain, images, context.streams, ids + _NOISE, config).numpy()
                rows = {"id": ids, "member": canaries.member, "copies": canaries.copies, "loss": -loss}
                context.run.append(CANARIES.name, rows)
            context.run.finish(CANARIES.name, {"network_evaluations": len(ids) * config.loss_times})
    start = model.schedule.start
    noted = Drawn(fingerprints=settings.count, sha256=canaries.sha256, horizon=start)
    plan, everyone = settings.plan(start, known.rates.fpr), range(len(pixels))
    search_many(context, model, known, _Listed(pixels), plan, CANARY_SEARCH, noted, everyone)


def _targets(injection: Injection, canaries: Canaries) -> NDArray[np.float32]:
    return np.concatenate([canaries.images, injection.target[None]])
