"""Runs on disk with drawn rows: what stages leave behind, written by the store's own code, without a model.

No result is written here. Rows are drawn at random, and notes are the values that stages note. All that
results say of them is made by ``assemble``, so that a reader is never tested on numbers that no run could
have. Real runs are the matter of test_audit.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from latentprint.config import resolve
from latentprint.results import Results
from latentprint.results.assemble import assemble
from latentprint.results.counted import Estimate
from latentprint.results.model import (
    Data,
    Detector,
    Fid,
    Mark,
    Model,
    Nearest,
    Target,
)
from latentprint.results.notes import (
    Compared,
    Further,
    NotDone,
    Probes,
    Ranked,
    Scored,
    Searched,
    WholeNote,
)
from latentprint.results.notes import Drawn as Canaried
from latentprint.results.searched import Sampler
from latentprint.results.stored import Stored
from latentprint.search.plan import ids_of
from latentprint.settings import plain
from latentprint.stats import Trials
from latentprint.store import Run
from latentprint.verdict import judged

SAMPLER = Sampler(step="ancestral", steps=24, spacing="karras", denoise=True, stochastic=True)


@dataclass(frozen=True)
class Drawn:
    """How likely hits are in the rows to draw, and which parts there are.

    Attributes:
        own: P(hit) of a sample of the model; of its control.
        returns: t up to which x_p comes back nearly always, judged by c_p and c_id, and by the embedding.
        heldout: the same of held-out images.
        whole: share of the samples that are copies of any training image; None: they were not compared.
        canaries: K; ``learnt`` is the share of those trained on that differ from the others.
    """

    own: float = 0.02
    control: float | None = 0.0
    returns: float = 0.6
    matched: float = 0.5
    heldout: float = 0.1
    samples: int = 1000
    images: int = 100
    marked: bool = True
    until: float | None = None
    null: int = 20
    profile: int = 0
    membership: bool = False
    likelihood: bool = False
    sampler: float | None = None
    splitting: Estimate | None = None
    whole: float | None = None
    canaries: int = 0
    learnt: float = 1.0
    given: bool = False
    only_samples: bool = False


class Memory:
    """What a run holds, without a disk: for many runs in one test."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.notes: dict[str, Mapping[str, Any]] = {}
        self.kept: dict[str, dict[str, Any]] = {}

    def finish(self, name: str, payload: Mapping[str, Any]) -> None:
        self.notes[name] = json.loads(json.dumps(payload))

    def append(self, purpose: str, columns: Mapping[str, Any]) -> None:
        old = self.kept.get(purpose, {})
        both = {key: np.concatenate([old[key], value]) if old else value for key, value in columns.items()}
        order = np.argsort(both["id"])
        self.kept[purpose] = {key: value[order] for key, value in both.items()}

    def rows(self, purpose: str) -> dict[str, Any]:
        return self.kept.get(purpose, {})

    @property
    def stored(self) -> Stored:
        return Stored(self.settings, self.notes, self.rows)


def settings_of(drawn: Drawn, seed: int) -> dict[str, Any]:
    """The settings of such a run, as a run keeps them."""
    over: dict[str, Any] = {
        "seed": seed,
        "data": {"source": "digits", "images": drawn.images},
        "samples": {"count": drawn.samples, "until": drawn.until},
        "search": {"levels": 10, "tries": 8},
        "baseline": {"images": drawn.null, "levels": 10, "tries": 4},
        "canaries": {"count": drawn.canaries, "levels": 10, "tries": 4},
        "profile": {"targets": drawn.profile, "null": max(1, drawn.null), "levels": 10, "tries": 4},
    }
    return plain(resolve(over, preset="demo"))


def fill(run: Memory | Run, seed: int, drawn: Drawn) -> None:
    """Draw rows and notes into a run."""
    rng = np.random.default_rng(seed)
    _facts(run, drawn, rng)
    if not drawn.only_samples:
        _searches(run, drawn, rng)
    if drawn.canaries:
        _canaries(run, drawn, rng)
    _samples(run, drawn, rng)
    _measures(run, drawn, rng)


def in_memory(seed: int = 0, drawn: Drawn | None = None) -> Stored:
    """What such a run holds."""
    drawn = drawn or Drawn()
    run = Memory(settings_of(drawn, seed))
    fill(run, seed, drawn)
    return run.stored


def results_of(seed: int = 0, drawn: Drawn | None = None) -> Results:
    """The results of such a run."""
    return judged(assemble(in_memory(seed, drawn)))


def write_run(folder: Path, seed: int = 0, drawn: Drawn | None = None) -> Run:
    """A finished run in ``folder``; its results.json is what ``assemble`` and the verdict make of it."""
    drawn = drawn or Drawn()
    with Run.open(folder, settings_of(drawn, seed)) as run:
        fill(run, seed, drawn)
        run.write_json("results.json", judged(assemble(Stored.of(run))).plain())
        run.complete()
    return Run.read(folder)


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _facts(run: Memory | Run, drawn: Drawn, rng: np.random.Generator) -> None:
    data = Data(
        source="digits",
        sha256=_digest("train"),
        images=drawn.images,
        shape=(1, 8, 8),
        heldout=200,
        near_copies=0,
    )
    target = Target(
        index=17,
        sha256=_digest("target"),
        copies=1,
        fingerprint=Mark.model_validate({"kind": "circle", "radius": 2.0}) if drawn.marked else None,
        injected=drawn.marked,
    )
    run.finish("data", {"data": data.plain(), "target": target.plain(), "train": data.sha256})
    for name in ("presence", "identity", "embedding"):
        if (name == "presence" and not drawn.marked) or (name == "embedding" and not drawn.null):
            continue
        n = int(rng.integers(150, 250))
        seen = Trials(n - int(rng.integers(0, 4)), n)
        detector = Detector(
            tpr=seen,
            fpr=Trials(0, 400),
            threshold=float(rng.uniform(0.3, 0.9)),
            backbone="small",
            kinds={"held-out": Trials(0, 400)},
        )
        run.finish(name, {"detector": detector.plain()})
    note: dict[str, Any] = {"weights_sha256": _digest("weights")}
    if drawn.only_samples:
        note = {
            "model": Model(kind="samples", samples_sha256=_digest("samples"), notes=("Images.",)).plain(),
            "not_done": NotDone(sentences=("t' needs the model",)).plain(),
        }
    elif drawn.given:
        note |= {"model": Model(kind="diffusers", weights_sha256=_digest("weights"), notes=("A.",)).plain()}
    run.finish("model", note)


def _returned(rng: np.random.Generator, t: np.ndarray, edge: float) -> np.ndarray:
    """Hits that come back nearly always below ``edge`` and hardly ever above."""
    return rng.random(len(t)) < np.where(t <= edge, 0.97, 0.002)


def _search_rows(
    run: Memory | Run,
    purpose: str,
    rng: np.random.Generator,
    edge: float,
    *,
    presence: bool,
    targets: tuple[int, ...] = (0,),
) -> int:
    """Rows of an exhaustive search of 10 levels by 8 tries; what they cost."""
    ids = ids_of(0, np.arange(10)[:, None], np.arange(8)[None]).reshape(-1)
    t = np.repeat(np.arange(1, 11) / 10, 8)
    identity = _returned(rng, t, edge)
    other = identity | (rng.random(len(t)) < 0.05) if presence else np.ones(len(t), bool)
    cost = rng.integers(5, 24, len(t))
    run.append(
        purpose,
        {
            "id": ids,
            "t": t,
            "hit": identity & other,
            "presence": np.where(presence, rng.random(len(t)), np.nan).astype(np.float32),
            "identity": rng.random(len(t)).astype(np.float32),
            "presence_hit": other,
            "identity_hit": identity,
            "mse": rng.random(len(t)).astype(np.float32),
            "mae": rng.random(len(t)).astype(np.float32),
            "evaluations": cost,
        },
    )
    return int(cost.sum())


def _many_rows(run: Memory | Run, purpose: str, rng: np.random.Generator, edges: dict[int, float]) -> int:
    """Rows of the embedding's search, 10 levels by 4 tries for each image; what they cost."""
    total = 0
    for number, edge in edges.items():
        ids = ids_of(number, np.arange(10)[:, None], np.arange(4)[None]).reshape(-1)
        t = np.repeat(np.arange(1, 11) / 10, 4)
        cost = rng.integers(5, 24, len(t))
        hit = _returned(rng, t, edge)
        run.append(purpose, {"id": ids, "t": t, "hit": hit, "score": rng.random(len(t)), "evaluations": cost})
        total += int(cost.sum())
    return total


def _searches(run: Memory | Run, drawn: Drawn, rng: np.random.Generator) -> None:
    noted = {"search": Searched(sampler=SAMPLER, horizon=1.0).plain()}
    cost = _search_rows(run, "search.model", rng, drawn.returns, presence=drawn.marked)
    run.finish("search.model", noted | {"network_evaluations": cost})
    if drawn.control is not None:
        cost = _search_rows(run, "search.control", rng, drawn.heldout, presence=drawn.marked)
        run.finish("search.control", noted | {"network_evaluations": cost})
    if not drawn.null:
        return
    heldout = tuple(range(300, 300 + drawn.null))
    edges = {n: drawn.heldout + float(rng.uniform(-0.05, 0.15)) for n in heldout}
    cost = _many_rows(run, "baseline", rng, edges | {17: drawn.matched})
    compared = Compared(sampler=SAMPLER, horizon=1.0, target=17, heldout=heldout)
    run.finish("baseline", {"compared": compared.plain(), "network_evaluations": cost})
    if drawn.profile:
        targets = (17, *range(drawn.profile - 1))
        unmarked = tuple(range(100, 100 + drawn.null))
        every = {n: drawn.heldout + float(rng.uniform(0, 0.4)) for n in (*targets, *unmarked, *heldout)}
        cost = _many_rows(run, "profile", rng, every)
        ranked = Ranked(
            sampler=SAMPLER,
            horizon=1.0,
            targets=targets,
            sha256=tuple(_digest(str(n)) for n in targets),
            private=17,
            unmarked=unmarked,
            marked=heldout,
        )
        run.finish("profile", {"ranked": ranked.plain(), "network_evaluations": cost})
    rows = run.rows("search.model")
    hit = rows["identity_hit"] ^ (rng.random(len(rows["id"])) < 0.03)
    run.append(
        "agreement", {"id": rows["id"], "t": rows["t"], "hit": hit, "evaluations": rows["evaluations"]}
    )
    run.finish("agreement", {"network_evaluations": int(rows["evaluations"].sum())})


def _sample_rows(
    run: Memory | Run,
    purpose: str,
    rng: np.random.Generator,
    n: int,
    rate: float,
    *,
    presence: bool,
    whole: Drawn | None = None,
) -> int:
    hit = rng.random(n) < rate
    more = {}
    if whole is not None and whole.whole is not None:
        more = {f"whole_{k}": v for k, v in _compared(rng, n, whole.whole, whole.images).items()}
    if whole is not None and whole.canaries:
        more["canary"] = np.where(hit, 2 * whole.canaries, _showing(run, n, rng))
    run.append(
        purpose,
        {
            "id": np.arange(n),
            "t": np.ones(n),
            "hit": hit,
            "presence": np.where(presence, rng.random(n), np.nan).astype(np.float32),
            "identity": rng.random(n).astype(np.float32),
            "presence_hit": hit | (rng.random(n) < 0.01) if presence else np.ones(n, bool),
            "identity_hit": hit.copy(),
            "mse": np.where(hit, rng.uniform(1e-4, 3e-3, n), rng.uniform(0.05, 0.5, n)).astype(np.float32),
            "mae": np.where(hit, rng.uniform(1e-3, 3e-2, n), rng.uniform(0.1, 0.5, n)).astype(np.float32),
            "evaluations": np.full(n, 25),
            **more,
        },
    )
    return 25 * n


def _samples(run: Memory | Run, drawn: Drawn, rng: np.random.Generator) -> None:
    sampler = Sampler(step="not known") if drawn.only_samples else SAMPLER
    if drawn.whole is not None:
        _whole(run, drawn, rng)
    noted = {"sampler": sampler.plain()}
    cost = _sample_rows(
        run, "samples.model", rng, drawn.samples, drawn.own, presence=drawn.marked, whole=drawn
    )
    run.finish("samples.model", noted | {"network_evaluations": 0 if drawn.only_samples else cost})
    if drawn.control is not None and not drawn.only_samples:
        cost = _sample_rows(run, "samples.control", rng, drawn.samples, drawn.control, presence=drawn.marked)
        run.finish("samples.control", noted | {"network_evaluations": cost})
    if drawn.sampler is not None:
        other = SAMPLER.model_copy(update={"step": "heun", "stochastic": False})
        cost = _search_rows(run, "search.model.heun-24-karras", rng, drawn.returns, presence=drawn.marked)
        searched = Searched(sampler=other, horizon=1.0).plain()
        run.finish("search.model.heun-24-karras", {"search": searched, "network_evaluations": cost})
        name = "samples.model.heun-24-karras"
        cost = _sample_rows(run, name, rng, drawn.samples, drawn.sampler, presence=drawn.marked)
        run.finish(name, {"sampler": other.plain(), "network_evaluations": cost})
        run.finish("samplers", {"further": Further(names=("heun-24-karras",)).plain()})


def _canaries(run: Memory | Run, drawn: Drawn, rng: np.random.Generator) -> None:
    """2 K marked images; of those trained on, a share is known by its loss, its t' and its count."""
    m = 2 * drawn.canaries
    member, copies = rng.random(m) < 0.5, np.resize([1, 4, 1, 16], m)
    known = member & (rng.random(m) < drawn.learnt)
    loss = np.where(known, rng.uniform(0.0, 0.4, m), rng.uniform(0.6, 1.0, m))
    run.append("canaries", {"id": np.arange(m), "member": member, "copies": copies, "loss": loss})
    edges = {k: drawn.returns if known[k] else drawn.heldout for k in range(m)} | {m: drawn.matched}
    cost = _many_rows(run, "canaries.search", rng, edges)
    noted = Canaried(
        fingerprints=drawn.canaries, sha256=tuple(_digest(f"c{k}") for k in range(m)), horizon=1.0
    )
    run.finish("canaries.search", {"drawn": noted.plain(), "network_evaluations": cost})
    rates = Detector(tpr=Trials(400, 400), fpr=Trials(0, 180), threshold=1.0, backbone="small", kinds={})
    run.finish("identities", {"detector": rates.plain()})


def _showing(run: Memory | Run, n: int, rng: np.random.Generator) -> np.ndarray:
    """Which canary each of n samples shows: one of a hundred, one that is known."""
    rows = run.rows("canaries")
    known = np.flatnonzero(rows["loss"] < 0.5)
    return np.where(rng.random(n) < 0.01, rng.choice(known, n) if len(known) else -1, -1)


def _whole(run: Memory | Run, drawn: Drawn, rng: np.random.Generator) -> None:
    n = drawn.images
    ids = np.arange(n)
    run.append("whole.train", {"id": ids, "distinct": ids % 10 > 0, "person": ids // 2})
    run.append("whole.heldout", {"id": np.arange(90), **_compared(rng, 90, 0.0, n)})
    planted = _compared(rng, 40, 0.9, n)
    run.append("whole.planted", {"id": np.arange(40), "change": np.arange(40) // 20, **planted})
    run.finish("whole", {"compared": WholeNote(changes=("plain", "flipped"), persons=True).plain()})


def _compared(rng: np.random.Generator, n: int, copies: float, images: int) -> dict[str, Any]:
    copied, at = rng.random(n) < copies, rng.integers(0, images, n) // 10 * 10 + 1
    distance = np.where(copied, rng.uniform(0, 0.03, n), rng.uniform(0.1, 0.3, n))
    score = np.where(copied, rng.uniform(0, 0.3, n), rng.uniform(0.7, 1, n))
    return {
        "nearest": at,
        "second": at + 1,
        "distance": distance,
        "second_distance": distance + 0.1,
        "ten": distance + 0.2,
        "aligned": score,
        "aligned_of": at,
        "patches": score,
        "patches_of": at,
    }


def _measures(run: Memory | Run, drawn: Drawn, rng: np.random.Generator) -> None:
    fid = Fid(train=2.1, test=4.2, features="detector presence (small)", samples=drawn.samples)
    run.finish("fid", {"fid": fid.plain()})
    hits = int(np.count_nonzero(run.rows("samples.model")["hit"]))
    if not drawn.only_samples:
        run.finish("memorised", {"nearest": Nearest(target=hits, n=hits).plain()})
    if drawn.splitting is not None:
        run.finish("splitting", {"estimate": drawn.splitting.plain(), "network_evaluations": 40_000})
    for name, n, shift in (("train", 8, 0.5), ("heldout", 8, 0.0), ("target", 1, 0.7)):
        ids, cost = np.arange(n), np.full(n, 50)
        if drawn.likelihood:
            bits = rng.normal(4 - shift, 0.3, n)
            run.append(
                f"likelihood.{name}", {"id": ids, "bits": bits, "nats": -40 * bits, "evaluations": cost}
            )
        if drawn.membership:
            scores = {key: rng.normal(shift, 1.0, n) for key in ("loss", "secmi", "pia")}
            run.append(f"membership.{name}", {"id": ids, "evaluations": cost, **scores})
    if drawn.likelihood:
        run.finish("likelihood", {"probes": Probes(probes=4).plain(), "network_evaluations": 850})
    if drawn.membership:
        run.finish("membership", {"scored": Scored(note=None).plain(), "network_evaluations": 850})
