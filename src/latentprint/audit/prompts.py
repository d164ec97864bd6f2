"""A text-to-image model under prompts: x_p under other prompts and scales, and every training pair under its
own prompt.

x_p      its own prompt at further scales, the empty prompt, prompts of other images, further prompts:
         Alg. 1 and as many samples each, from the same noise
pairs    training images and held-out ones, each under its own prompt (``results.prompts``)
base     the same prompts, noise and sampler with the model before fine-tuning: the control
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from latentprint.adapters import Opened, open_model, with_prompt
from latentprint.adapters.text.attention import crosses
from latentprint.adapters.text.model import prompt_sha256
from latentprint.audit import stages
from latentprint.audit.asking import Asks, Prompts, of_numbers, read_prompts, require_none, sampled_under
from latentprint.audit.context import Context, one_image
from latentprint.audit.given import Given, asked
from latentprint.audit.many import Grouped
from latentprint.audit.pool import real_images
from latentprint.audit.signs import signs
from latentprint.audit.stages import Audited
from latentprint.audit.whole_set import joined, whole_set
from latentprint.config import AuditConfig
from latentprint.contracts import InputError
from latentprint.data import Split
from latentprint.denoiser import Denoiser
from latentprint.execute import run_probe
from latentprint.fingerprint import Injection
from latentprint.probe import Compare, ModelProbe, from_prior
from latentprint.results.notes import SEARCH
from latentprint.results.prompts import EACH, PROMPTS, ConditionNote, PromptNote, What
from latentprint.results.searched import CONTROL_SAMPLES, SAMPLES
from latentprint.streams import Streams

Pixels = NDArray[np.float32]


def under_prompts(config: AuditConfig, given: Given, split: Split, injection: Injection) -> Given:
    """The given model under the prompt of x_p, and its base model; a model that takes no prompt as it is.

    Raises:
        InputError: prompts are missing, not needed, or not those of the images; the base is of another kind.
    """
    opened = given.opened
    if opened.text is None:
        require_none(config)
        return given
    found = read_prompts(config, split)
    guidance = opened.text.guidance
    own = found.train[injection.index]
    opened.text.learn(found.every)
    for scale in config.prompts.guidance:
        opened.text.prompted(own, scale)  # refuses what its stage would refuse hours later
    passes, cut = opened.text.passes(guidance), opened.text.lost(found.train)
    found = replace(found, own=own, guidance=guidance, passes=passes, cut=cut)
    base = _base(config, given)
    identity = {**opened.identity, **found.identity()}
    if base is not None and base.text is not None:
        base.text.learn(found.every)
        base = with_prompt(base, own, guidance)
        identity["base_sha256"] = base.weights_sha256
    notes = (*opened.notes, *found.notes())
    opened = replace(with_prompt(opened, own, guidance), identity=identity, notes=notes)
    return replace(given, opened=opened, prompts=found, base=base)


def _base(config: AuditConfig, given: Given) -> Opened | None:
    """The model before fine-tuning: that of ``--base``, or with a LoRA the model without it."""
    named = config.given.base
    folder = given.folder if named is None and config.given.lora is not None else named
    if folder is None:
        return None
    opened = given.opened
    size = np.zeros((1, *opened.image_shape), np.float32)
    how = replace(asked(config, given.label), lora=None, images=lambda: size)
    base = open_model(folder, asked=how).to(next(opened.networks[0].parameters()).device)
    if base.text is None:
        raise InputError(f"the base {str(Path(folder).name)!r} is not a text-to-image model")
    if (base.shape, base.image_shape) != (opened.shape, opened.image_shape):
        raise InputError("the base works on latents or images of another shape than the model")
    if base.identity["schedule"] != opened.identity["schedule"]:
        raise InputError(
            "the base has other noise than the model, so that the two cannot be compared on the same noise; "
            "--base names the model that the fine-tuning began with"
        )
    if named is not None and base.weights_sha256 == opened.weights_sha256 and config.given.lora is None:
        raise InputError(
            "the base is the model itself; --base names the model that the fine-tuning began with"
        )
    return base


def with_prompts(context: Context, given: Given) -> Context:
    """The context of an audit under prompts."""
    if given.prompts is None:
        return context
    found, opened = given.prompts, given.opened

    def under(number: int, sampled: bool) -> Denoiser:
        (prompt,) = of_numbers(found, [number])
        own = sampled and context.config.sampler.own
        return sampled_under(opened, own, found.guidance, prompt)

    return replace(context, condition=given.condition, under=under)


def conditions(config: AuditConfig, found: Prompts, target: int) -> tuple[tuple[ConditionNote, str], ...]:
    """The conditions under which x_p is looked for besides its own prompt, in words."""
    settings, own = config.prompts, found.own
    others = list[int]()
    for i in Streams(config.seed).generator("prompts.others").permutation(len(found.train)).tolist():
        if len(others) < settings.others and found.train[i] not in {own, *(found.train[k] for k in others)}:
            others.append(i)
    every: list[tuple[What, str, int | None, float]] = [
        *(("own", own, target, scale) for scale in settings.guidance if scale != found.guidance),
        ("empty", "", None, found.guidance),
        *(("other", found.train[i], i, found.guidance) for i in others),
        *(("further", text, None, found.guidance) for text in found.further),
    ]
    return tuple(
        (
            ConditionNote(
                what=what, prompt=prompt_sha256(text), image=image, guidance=scale, name=f"prompt-{i}"
            ),
            text,
        )
        for i, (what, text, image, scale) in enumerate(every)
    )


def asks_of(config: AuditConfig, given: Given | None, split: Split, injection: Injection) -> Asks | None:
    """What ``prompts`` will ask; None: nothing."""
    if given is None or given.prompts is None:
        return None
    found, network = given.prompts, given.opened.text and given.opened.text.network
    plan = conditions(config, found, injection.index)
    paired = not found.alike and config.prompts.samples and real_images(split, injection) is not None
    named = sum(one is not None for one in found.heldout)
    most = config.prompts.images if paired else 0
    return Asks(
        conditions=len(plan),
        train=min(most, len(split.train)),
        heldout=min(most, named),
        further=len(found.further) + 1 if paired else 0,
        base=given.base is not None,
        attention=network is not None and bool(crosses(network)),
    )


def prompts(
    context: Context,
    given: Given | None,
    split: Split,
    injection: Injection,
    audited: Audited,
) -> None:
    """Run every stage that asks prompts; rows as in the module."""
    if given is None or given.prompts is None:
        return
    found, own = given.prompts, context.config.sampler.own
    plan = conditions(context.config, found, injection.index)
    for note, text in plan:
        one = replace(context, condition=found.condition(text, note.guidance))
        asks = replace(audited, model=sampled_under(given.opened, own, note.guidance, text))
        count = context.config.prompts.count
        stages.search(one, SEARCH.at(note.name), asks)
        stages.sample(one, SAMPLES.at(note.name), asks, count, None)
        if given.base is not None:
            asks = replace(audited, model=sampled_under(given.base, own, note.guidance, text))
            stages.sample(for_base(one, given), CONTROL_SAMPLES.at(note.name), asks, count, None)
    pairs = _pairs(context, given, split, injection, audited)
    if not context.run.stage(PROMPTS.name).done:
        noted = PromptNote(
            guidance=found.guidance,
            base=given.base is not None,
            conditions=tuple(note for note, _ in plan),
            target=injection.index,
            train=tuple(map(prompt_sha256, found.train)),
            cut=found.cut,
            further=tuple(map(prompt_sha256, (*found.further, ""))),
            alike=found.alike,
            pairs=pairs,
        )
        context.finish(PROMPTS, noted)


def for_base(context: Context, given: Given | None) -> Context:
    """The context in the space of the base model."""
    return context if given is None or given.base is None else replace(context, codec=given.base.codec)


def _pairs(context: Context, given: Given, split: Split, injection: Injection, audited: Audited) -> bool:
    """Generate each pair under its own prompt. Returns whether this was done.

    It is not done with one prompt for all images, nor where there are too few real images to recognise
    copies.
    """
    settings, found = context.config.prompts, given.prompts
    pool = real_images(split, injection)
    if found is None or found.alike or not settings.samples or pool is None:
        return False
    n, place = len(split.train), pool.place
    if len(context.run.missing(PROMPTS.part("places"), np.arange(n, dtype=np.int64))):
        context.run.append(PROMPTS.part("places"), {"id": np.arange(n, dtype=np.int64), "place": place[:n]})
    every = whole_set(context, split, injection)
    named = [j for j, one in enumerate(found.heldout) if one is not None]
    train = _drawn(context, "train", np.delete(np.arange(n), injection.index), settings.images - 1)
    heldout = _drawn(context, "heldout", np.array(named, np.int64), settings.images)
    further = (*found.further, "")

    def compare(images: Tensor) -> Mapping[str, NDArray[Any]]:
        return {f"pool_{name}": values for name, values in pool.held_against(images).items()}

    mine = sorted([injection.index, *train])
    signs(context, given.opened, found, "train", mine, found.train)
    signs(context, given.opened, found, "heldout", heldout, found.heldout)
    asks: list[tuple[str, str, Sequence[int], Sequence[str | None], NDArray[np.int64]]] = [
        ("train", "train", mine, found.train, place[:n]),
        ("heldout", "heldout", heldout, found.heldout, place[n:]),
        ("further", "further", range(len(further)), further, np.full(len(further), -1, np.int64)),
    ]
    if given.base is not None:
        asks += [("base", *asks[0][1:]), ("base_further", *asks[2][1:])]
    for name, noise, numbers, words, own in asks:
        of_base = name.startswith("base") and given.base is not None
        model = given.base if of_base and given.base is not None else given.opened
        probe = _probe(
            for_base(context, given) if of_base else context,
            model,
            audited,
            f"prompts.{noise}",
            joined(compare, every if name in ("train", "base") else None),
        )
        _ask(context, name, probe, model, numbers, words, own, found.guidance)
    return True


def _drawn(context: Context, name: str, of: NDArray[np.int64], count: int) -> list[int]:
    order = context.streams.generator(f"prompts.{name}").permutation(len(of))
    return sorted(of[order[: max(0, count)]].tolist())


def _probe(
    context: Context,
    model: Opened,
    audited: Audited,
    noise: str,
    compare: Compare | None,
) -> ModelProbe:
    """Samples of a model under any prompt, compared with all real images."""
    image, denoiser = one_image(audited.target, context.device), model.sampled(context.config.sampler.own)
    return ModelProbe(
        denoiser=denoiser,
        sampler=context.sampler,
        begin=from_prior(model.shape, denoiser, context.streams, noise, context.device),
        streams=context.streams,
        purpose=noise,
        target=image,
        identity=audited.detectors.identity,
        presence=audited.detectors.presence,
        codec=context.codec,
        batch=context.batch,
        compare=compare,
    )


def _ask(
    context: Context,
    name: str,
    probe: ModelProbe,
    model: Opened,
    numbers: Sequence[int],
    words: Sequence[str | None],
    own: NDArray[np.int64],
    guidance: float,
) -> None:
    """Draw the samples of these prompts; rows are kept as ``prompts.<name>``."""
    samples, purpose = context.config.prompts.samples, PROMPTS.part(name)
    ids = np.concatenate(
        [number * EACH + np.arange(samples, dtype=np.int64) for number in numbers] or [np.empty(0, np.int64)]
    )
    if not len(ids):
        return

    def of(number: int) -> ModelProbe:
        place = int(own[number])
        mine: Compare = lambda images: {"own": np.full(len(images), place, np.int64)}  # noqa: E731
        denoiser = sampled_under(model, context.config.sampler.own, guidance, words[number] or "")
        return replace(probe, denoiser=denoiser, compare=joined(probe.compare, mine))

    with context.stage(purpose):
        found = run_probe(
            Grouped(lambda ids: ids // EACH, of),
            stages.at(probe.denoiser.schedule.start, len(ids)),
            ids,
            purpose=purpose,
            unit=stages.UNIT,
            sink=context.run,
            progress=context.progress(f"asking prompts, {name.replace('_', ' ')}", "images"),
            map=context.map,
        )
        if not context.run.stage(purpose).done:
            context.run.finish(purpose, {"network_evaluations": int(found.evaluations.sum())})
