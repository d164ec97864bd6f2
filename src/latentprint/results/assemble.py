"""What a run holds -> all that was measured. One pure function, so that no number is derived in two ways.

    rows (probes/*.parquet) + notes (run.json) + settings  ->  Measured  ->  (verdict)  ->  Results

An audit writes rows and notes, and calls this function at its end. ``verify`` calls it again and compares.
Nothing here reads an image, a model or the clock, and nothing imports torch.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentprint.results import prompts as by_prompt
from latentprint.results import rates, tprime
from latentprint.results.canaries import canaries
from latentprint.results.model import (
    DATA,
    EMBEDDING,
    FID,
    IDENTITIES,
    IDENTITY,
    MEMORISED,
    MODEL,
    PRESENCE,
    TARGET,
    Agreement,
    BySampler,
    Costs,
    Detectors,
    Likelihood,
    Mean,
    Measured,
    Membership,
    Memorised,
    Score,
    Spread,
    TargetScore,
)
from latentprint.results.notes import (
    AGREEMENT,
    CONTROL_SEARCH,
    LIKELIHOOD,
    MEMBERSHIP,
    NOT_DONE,
    POOL,
    SAMPLERS,
    SEARCH,
    SIGNS,
    WHOLE,
)
from latentprint.results.prompts import PROMPTS
from latentprint.results.searched import CONTROL_SAMPLES, SAMPLES, Sampler
from latentprint.results.stopping import FIRST_LOOK, SampleSettings
from latentprint.results.stored import Rows, Stored, require
from latentprint.results.value import LEVEL, Note
from latentprint.results.whole_set import PREFIX, WholeSet, whole_set
from latentprint.results.whole_set import Rows as Compared
from latentprint.stats.returned import LEAST, TRAIN, Returned, returned
from latentprint.stats.roc import rank_p_value, separation

NOTED = (
    "data",
    "target",
    "detectors.presence",
    "detectors.identity",
    "detectors.embedding",
    "detectors.identities",
    "model",
    "fid",
    "memorised.nearest",
)
"""Parts of the results that a stage noted, and that cannot be derived from rows."""


def assemble(stored: Stored) -> Measured:
    """Everything that a finished audit measured.

    Raises:
        RunError: a stage is not finished, or its rows or notes are not those that the settings ask for.
    """
    data, target = stored.needed(DATA), stored.needed(TARGET)
    detectors = _detectors(stored)
    expected = min(1.0, target.copies / data.among)
    searched = tprime.search(stored, SEARCH, detectors)
    if searched is not None:
        matcher = detectors.embedding
        null = None if matcher is None else tprime.baseline(stored, matcher.fpr)
        control = tprime.curve(stored, CONTROL_SEARCH, detectors)
        searched = searched.model_copy(update={"control": control, "baseline": null})
    known = detectors.identities
    marked = None if known is None else canaries(stored, known.fpr, target.copies)
    skipped = stored.note(NOT_DONE)
    return Measured(
        data=data,
        target=target,
        detectors=detectors,
        model=stored.note(MODEL),
        t_prime=searched,
        q=rates.q(stored, detectors, expected),
        returned=_returned(stored),
        whole_set=whole_set_of(stored),
        canaries=None if marked is None else marked[0],
        epsilon=None if marked is None else marked[1],
        prompts=_prompts(stored, detectors, expected),
        fid=stored.note(FID),
        likelihood=_likelihood(stored),
        membership=_membership(stored),
        memorised=_memorised(stored),
        samplers=_samplers(stored, detectors, expected),
        checkpoints=tprime.checkpoints(stored, detectors),
        profile=None if detectors.embedding is None else tprime.profile(stored, detectors.embedding.fpr),
        not_done=() if skipped is None else skipped.sentences,
        costs=_costs(stored),
    )


def _detectors(stored: Stored) -> Detectors:
    return Detectors(
        presence=stored.note(PRESENCE),
        identity=stored.needed(IDENTITY),
        embedding=stored.note(EMBEDDING),
        identities=stored.note(IDENTITIES),
        agreement=_agreement(stored),
    )


def _agreement(stored: Stored) -> Agreement | None:
    """c_id and the embedding on the trajectories of x_p's search."""
    embedding, searched = stored.rows(AGREEMENT.name), stored.rows(SEARCH.name)
    if not embedding or AGREEMENT.name not in stored.notes:
        return None
    alike = np.array_equal(embedding["id"], searched["id"])
    require(alike, AGREEMENT.name, "they are of the images of the search")
    one, other = searched["identity_hit"].astype(bool), embedding["hit"].astype(bool)
    cases = {
        "both": one & other,
        "identity_only": one & ~other,
        "embedding_only": ~one & other,
        "neither": ~one & ~other,
    }
    counts = {name: int(np.count_nonzero(found)) for name, found in cases.items()}
    same = counts["both"] + counts["neither"]
    return Agreement(
        **counts,
        images=len(one),
        sentence=(
            f"On {len(one)} images from the search for the private one, c_id and the embedding say the same"
            f" of {same}; c_id alone recognised it in {counts['identity_only']}, the embedding alone in"
            f" {counts['embedding_only']}."
        ),
        network_evaluations=int(embedding["evaluations"].sum()),
    )


def _returned(stored: Stored) -> Returned | None:
    """Which real images came back; None if there were too few for a pool.

    If sampling could stop early, only the samples before the first look count, because their number was
    fixed. If more were asked for after a look, the rule of the verdict says which request counts
    (`judge.rule`).
    """
    noted, asked = stored.note(POOL), _prompt_note(stored)
    if noted is None:
        return None
    if (
        asked is not None and not asked.alike
    ):  # an image under its own prompt is not comparable with held-out images under that prompt
        return by_prompt.returned_pairs(_prompt_rows(stored), asked.target)
    rows, pool = stored.rows(SAMPLES.name), stored.rows(POOL.name)
    fixed, request = slice(FIRST_LOOK), 1
    if stored.setting(SampleSettings, "samples").until is None:
        before = {one.count for one in stored.before(SampleSettings, "samples")}
        requests = list(pairwise(sorted({0, len(rows["id"]), *before}))) or [(0, 0)]
        request += max(range(len(requests)), key=lambda i: requests[i][1] - requests[i][0])
        fixed = slice(*requests[request - 1])
    samples = {name: rows[f"pool_{name}"][fixed] for name in ("nearest", "distance", "ten")}
    whose = pool["whose"]
    require(len(whose) >= LEAST, POOL.name, f"a pool has {LEAST} images or more")
    own = noted.target < len(whose) and whose[noted.target] == TRAIN
    require(bool(own), POOL.name, f"place {noted.target:,} is that of the private image")
    for rows_of, nearest in ((SAMPLES.name, samples["nearest"]), (POOL.name, pool["nearest"])):
        inside = bool((nearest >= 0).all() and (nearest < len(whose)).all())
        require(inside, rows_of, "the nearest image is one of the pool")
    return replace(returned(samples, pool, whose, noted.target), request=request)


def whole_set_of(stored: Stored, sampled: Note[Sampler] = SAMPLES) -> WholeSet | None:
    """What all images of ``sampled`` say about all training images; None if too few of these are distinct.

    Raises:
        RunError: the rows do not belong together.
    """
    noted = stored.note(WHOLE)
    if noted is None:
        return None
    train, planted = stored.rows(WHOLE.part("train")), stored.rows(WHOLE.part("planted"))
    model, control = sampled.name, CONTROL_SAMPLES.name
    if (asked := _prompt_note(stored)) is not None and asked.pairs:  # all images under their own prompts
        model, control = PROMPTS.part("train"), PROMPTS.part("base")
    kept = {name: column for name, column in planted.items() if name not in ("id", "change")}
    rows = Compared(
        generated=_prefixed(stored.rows(model)),
        heldout={name: column for name, column in stored.rows(WHOLE.part("heldout")).items() if name != "id"},
        distinct=int(train["distinct"].sum()),
        control=_prefixed(stored.rows(control)),
        planted={
            name: {key: column[planted["change"] == number] for key, column in kept.items()}
            for number, name in enumerate(noted.changes)
        },
        person=train["person"] if noted.persons else None,
        target=_alone(stored, train),
    )
    require(len(rows.generated.get("distance", ())) > 0, model, "each was held against the training images")
    for purpose, of in ((model, rows.generated), (control, rows.control or {}), (WHOLE.name, rows.heldout)):
        places = [column for name, column in of.items() if name == "nearest" or name.endswith("_of")]
        inside = all(bool((one >= 0).all() and (one < len(train["id"])).all()) for one in places)
        require(inside, purpose, f"the nearest image is one of {len(train['id']):,}")
    for part, of, some in (("heldout", rows.heldout, rows.heldout), ("planted", kept, noted.changes)):
        alike = not some or rows.generated.keys() <= of.keys()
        require(alike, WHOLE.part(part), "they were compared as the generated images were")
    return whole_set(rows, seed=stored.seed)


def _alone(stored: Stored, train: Rows) -> int | None:
    """The place of x_p among the training images; None where near copies of it could be taken for it."""
    target = stored.needed(TARGET)
    alone = target.copies == 1 and target.index < len(train["id"]) and bool(train["distinct"][target.index])
    return target.index if alone else None


def _prompt_note(stored: Stored) -> by_prompt.PromptNote | None:
    return stored.note(PROMPTS)


def _prompt_rows(stored: Stored) -> by_prompt.Rows:
    names = ("train", "heldout", "further", "base", "base_further")
    place = stored.rows(PROMPTS.part("places"))
    return by_prompt.Rows(
        **{name: stored.rows(PROMPTS.part(name)) for name in names},
        pool=stored.rows(POOL.name),
        signs=stored.rows(SIGNS.part("train")),
        heldout_signs=stored.rows(SIGNS.part("heldout")),
        place=place["place"] if place else np.zeros(0, np.int64),
    )


def _prompts(stored: Stored, detectors: Detectors, expected: float) -> by_prompt.Prompts | None:
    """A text-to-image model under its prompts; None for every other model."""
    noted = _prompt_note(stored)
    if noted is None:
        return None
    asked = list[by_prompt.Condition]()
    for one in noted.conditions:
        stored.needed(SEARCH.at(one.name))
        stored.needed(SAMPLES.at(one.name))
        searched = tprime.search(stored, SEARCH.at(one.name), detectors)
        count = rates.counted(stored, SAMPLES.at(one.name), detectors, expected)
        base = rates.counted(stored, CONTROL_SAMPLES.at(one.name), detectors, expected)
        assert searched is not None and count is not None  # the stage finishes after both
        asked.append(
            by_prompt.Condition(
                what=one.what,
                prompt=one.prompt,
                image=one.image,
                guidance=one.guidance,
                t_prime=searched,
                q=count,
                base=None if base is None else base.trials,
            )
        )
    return by_prompt.prompts(_prompt_rows(stored), noted, asked)


def _prefixed(rows: Rows) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(PREFIX): column for name, column in rows.items() if name.startswith(PREFIX)}


def _samplers(stored: Stored, detectors: Detectors, expected: float) -> tuple[BySampler, ...]:
    further = stored.note(SAMPLERS)
    found = list[BySampler]()
    for name in () if further is None else further.names:
        sampler = stored.needed(SAMPLES.at(name))
        stored.needed(SEARCH.at(name))
        searched = tprime.search(stored, SEARCH.at(name), detectors)
        count = rates.counted(stored, SAMPLES.at(name), detectors, expected)
        assert searched is not None and count is not None  # since both have their notes
        found.append(BySampler(sampler=sampler, t_prime=searched, q=count))
    return tuple(found)


def _likelihood(stored: Stored) -> Likelihood | None:
    """Bits per dimension from the rows of the likelihood; None if the settings do not ask for it."""
    noted = stored.note(LIKELIHOOD)
    if noted is None:
        return None
    train, heldout, target = (stored.rows(LIKELIHOOD.part(name)) for name in ("train", "heldout", "target"))
    every = [rows for rows in (train, heldout, target) if rows]
    return Likelihood(
        bits_per_dim=_mean(train["bits"]),
        heldout=_mean(heldout["bits"]) if heldout else None,
        target=float(target["bits"][0]),
        probes=noted.probes,
        network_evaluations=sum(int(rows["evaluations"].sum()) for rows in every),
    )


def _mean(values: NDArray[np.float64]) -> Mean:
    se = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return Mean(mean=float(values.mean()), se=se, n=len(values))


SCORES = ("loss", "secmi", "pia")
"""Membership scores that every row has."""


def _membership(stored: Stored) -> Membership | None:
    """Membership scores with what each is worth; None if the settings do not ask for them.

    ``low`` and ``high`` enclose the AUC of the best score. Each score has an interval at a level at which all
    hold together (Bonferroni); the outermost ends are taken.
    """
    noted = stored.note(MEMBERSHIP)
    if noted is None:
        return None
    if noted.note is not None:
        return Membership(scores=(), auc=None, low=None, high=None, level=LEVEL, note=noted.note)
    kept = [stored.rows(MEMBERSHIP.part(name)) for name in ("train", "heldout", "target")]
    require(min(len(rows["id"]) for rows in kept[:2]) >= 2, MEMBERSHIP.name, "both sides have two images")
    inside, outside, own = ({name: rows[name] for name in SCORES} for rows in kept)
    likely = [stored.rows(LIKELIHOOD.part(name)) for name in ("train", "heldout", "target")]
    if all(rows and len(rows["nats"]) >= n for rows, n in zip(likely, (2, 2, 1), strict=True)):
        inside["likelihood"], outside["likelihood"], own["likelihood"] = (rows["nats"] for rows in likely)
    found = separation(inside, outside, level=LEVEL)
    each = separation(inside, outside, level=1 - (1 - LEVEL) / len(found))
    return Membership(
        scores=tuple(
            Score(
                name=one.name,
                auc=one.auc,
                at=one.at,
                target=TargetScore(
                    score=float(own[one.name][0]),
                    p_value=rank_p_value(float(own[one.name][0]), outside[one.name]),
                ),
            )
            for one in found
        ),
        auc=max(one.auc.value for one in each),
        low=max(one.auc.low for one in each),
        high=max(one.auc.high for one in each),
        level=LEVEL,
        members=len(inside["loss"]),
        heldout=len(outside["loss"]),
        network_evaluations=sum(int(rows["evaluations"].sum()) for rows in kept),
    )


def _memorised(stored: Stored) -> Memorised | None:
    """Errors of the detected samples to x_p; None if images were given in place of a model."""
    rows = stored.rows(SAMPLES.name)
    if not rows or MEMORISED.name not in stored.notes:
        return None
    hit = rows["hit"].astype(bool)
    if not hit.any():
        return Memorised(count=0, mse=None, mae=None, nearest=None)
    return Memorised(
        count=int(np.count_nonzero(hit)),
        mse=_spread(rows, "mse", hit),
        mae=_spread(rows, "mae", hit),
        nearest=stored.needed(MEMORISED),
    )


def _spread(rows: Rows, name: str, hit: NDArray[np.bool_]) -> Spread:
    values = rows[name][hit]
    return Spread(min=float(values.min()), median=float(np.median(values)), max=float(values.max()))


def _costs(stored: Stored) -> Costs:
    stated = {name: note.get("network_evaluations") for name, note in stored.notes.items()}
    spent = {name: cost for name, cost in stated.items() if cost is not None}
    return Costs.model_validate({"network_evaluations": spent}, strict=True)
