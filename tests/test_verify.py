"""An honest run verifies; one changed number anywhere is found and named."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pytest

from latentprint.search import Plan, conclude
from latentprint.stats import Trials
from latentprint.store import Run
from latentprint.verdict import verdict
from latentprint.verify import alike, from_counts, from_rows, verify, verify_results

# Paths that no stored count or row can say again, with what they are.
ON_TRUST = {
    "data.sha256", "data.images", "data.shape", "data.heldout", "target.index", "target.copies",
    "target.fingerprint.row", "target.fingerprint.column", "target.fingerprint.radius",
    "target.fingerprint.grey", "fid.train", "fid.test", "fid.samples",
    "memorised.nearest.target", "memorised.nearest.n", "t_prime.threshold",
}  # fmt: skip


def sample_rows(entry: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    n, both = entry["samples"], entry["hits"]
    presence, identity = np.zeros(n, bool), np.zeros(n, bool)
    alone_p, alone_i = entry["presence_hits"] - both, entry["identity_hits"] - both
    places = rng.permutation(n)[: both + alone_p + alone_i]
    presence[places[: both + alone_p]] = True
    identity[places[:both]] = identity[places[both + alone_p :]] = True
    return {
        "id": np.arange(n),
        "t": np.ones(n),
        "hit": presence & identity,
        "presence_hit": presence,
        "identity_hit": identity,
        "evaluations": np.full(n, 48),
        "mse": rng.uniform(size=n),
        "mae": rng.uniform(size=n),
    }


def search_rows(entry: dict[str, Any]) -> dict[str, np.ndarray]:
    tries = entry["tries"]
    ids = np.arange(len(entry["grid"]) * tries)
    level, attempt = ids // tries, ids % tries
    hit = attempt < np.array(entry["hits"])[level]
    presence = attempt < np.array(entry.get("presence_hits", entry["hits"]))[level]
    evaluations = np.full(len(ids), 48)
    t = np.array(entry["grid"])[level]
    return {
        "id": ids,
        "t": t,
        "hit": hit,
        "presence_hit": presence,
        "identity_hit": hit,
        "evaluations": evaluations,
    }


def honest() -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """Results made of rows, and the rows."""
    results, rng = made_up.leak(), np.random.default_rng(0)
    found = results["t_prime"]
    rows = {
        "samples.model": sample_rows(results["q"]["monte_carlo"], rng),
        "samples.control": sample_rows(results["q"]["control"], rng),
        "search.model": search_rows(found),
        "search.control": search_rows(found["control"]),
        "likelihood.train": {
            "id": np.arange(100),
            "bits": rng.normal(1.2, 0.2, 100),
            "evaluations": np.full(100, 96),
        },
        "likelihood.heldout": {
            "id": np.arange(90),
            "bits": rng.normal(3.4, 0.5, 90),
            "evaluations": np.full(90, 96),
        },
    }
    rows["likelihood.target"] = {"id": np.arange(1), "bits": np.array([1.19]), "evaluations": np.array([96])}
    results["likelihood"]["network_evaluations"] = 96 * 191
    found["threshold"] = 0.05
    plan = Plan(tuple(found["grid"]), 16, threshold=0.05, false_positives=Trials(1, 1697))
    again = conclude(plan, [Trials(k, 16) for k in found["hits"]], 15360, "exhaustive", range(20))
    found |= {"low": again.interval.low, "high": again.interval.high, "statement": again.interval.sentence}
    found |= {
        "sentence": again.sentence,
        "certain": again.certain,
        "falling": {"p_value": again.falling.p_value},
    }
    found["control"]["network_evaluations"] = 20 * 16 * 48
    hit = rows["samples.model"]["hit"]
    for error in ("mse", "mae"):
        values = rows["samples.model"][error][hit]
        results["memorised"][error] = {
            "min": values.min(),
            "median": float(np.median(values)),
            "max": values.max(),
        }
    for key, purpose in (("bits_per_dim", "likelihood.train"), ("heldout", "likelihood.heldout")):
        bits = rows[purpose]["bits"]
        results["likelihood"][key] = {
            "mean": bits.mean(),
            "se": bits.std(ddof=1) / len(bits) ** 0.5,
            "n": len(bits),
        }
    results["costs"]["network_evaluations"] = {p: int(r["evaluations"].sum()) for p, r in rows.items()}
    results["verdict"] = verdict(results)
    return json.loads(json.dumps(results)), rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run"
    results, rows = honest()
    with Run.open(path, {"seed": 0}) as run:
        for purpose, columns in rows.items():
            run.append(purpose, columns)
        run.write_json("results.json", results)
    return path


def numbers(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], float]]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from numbers(one, (*way, key))
    elif isinstance(value, list):
        for i, one in enumerate(value[:3]):
            yield from numbers(one, (*way, i))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield way, value


def altered(results: dict[str, Any], way: tuple[Any, ...], value: Any) -> dict[str, Any]:
    whole = copy.deepcopy(results)
    place = whole
    for key in way[:-1]:
        place = place[key]
    place[way[-1]] = value
    return whole


def write(folder: Path, results: dict[str, Any]) -> None:
    (folder / "results.json").write_text(json.dumps(results))


def test_an_honest_run_verifies(folder: Path) -> None:
    results, _ = honest()
    write(folder, results)
    found = verify(folder)
    assert found.altered == () and found.exit_code == 0 and found.notes == ()
    assert sum(check.source == "rows" for check in found.checks) > 30
    assert "All" in found.sentences[0]


def test_every_number_that_rows_or_counts_can_say_is_guarded(folder: Path) -> None:
    results, rows = honest()
    write(folder, results)
    free = set(verify(folder).unchecked)
    estimators = {path for path in free if path.startswith(("q.bridge", "q.splitting"))}
    fixed = {
        path
        for path in free
        if ".sampler." in path or path.endswith(".level") or path.startswith("verdict.rule")
    }
    detectors = {path for path in free if path.startswith("detectors.")}
    baseline = {path for path in free if path.startswith("t_prime.baseline")}
    assert free - estimators - fixed - detectors - baseline <= ON_TRUST
    for way, value in numbers(results):
        path = ".".join(str(key) for key in way if not isinstance(key, int))
        if path in free or any(path.startswith(f"{one}.") for one in free):
            continue
        wrong = altered(results, way, value + 1 if isinstance(value, int) else value * 1.01 + 1e-6)
        try:
            checks = [*from_counts(wrong), *from_rows(wrong, rows)]
        except ValueError:  # so wrong that it is no count at all: refused in a sentence
            assert isinstance(value, int), path
        else:
            assert not all(check.agrees for check in checks), path


def test_a_flattered_run_is_found_and_the_sentence_says_where(folder: Path) -> None:
    # somebody sets the hits to 0 and makes everything that follows from them agree
    results, _ = honest()
    results["q"]["monte_carlo"] = made_up.monte_carlo(0, 4000, 0.01, 2, 5)
    results["memorised"] = None
    results["verdict"] = verdict(results)
    assert verify_results(results).exit_code == 0  # the file alone agrees with itself
    write(folder, results)
    found = verify(folder)
    assert found.exit_code == 1
    assert "q.monte_carlo.hits says 0, but the rows say 39." in found.sentences


def test_a_verdict_that_does_not_follow_is_found() -> None:
    results, _ = honest()
    results["verdict"]["state"] = "not found"
    found = verify_results(results)
    assert [check.path for check in found.altered] == ["verdict.state"]


def test_changed_rows_are_found(folder: Path, tmp_path: Path) -> None:
    results, rows = honest()
    rows["samples.model"]["presence_hit"][:] = False  # the hits stay: the conjunction no longer holds
    with Run.open(tmp_path / "run", {"seed": 0}) as run:
        for purpose, columns in rows.items():
            run.append(purpose, columns)
        run.write_json("results.json", results)
    paths = {check.path for check in verify(tmp_path / "run").altered}
    assert {"q.monte_carlo.presence_hits", "q.monte_carlo.hits"} <= paths


def test_changed_settings_weights_and_detectors_are_found(tmp_path: Path) -> None:
    results, _ = honest()
    with Run.open(tmp_path / "run", {"seed": 0, "sampler": {"steps": 48}, "steps": 2000}) as run:
        run.write_json("results.json", results)
        (tmp_path / "run" / "model").mkdir()
        (tmp_path / "run" / "model" / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
        run.finish("model", {"weights_sha256": "0" * 64})
        (tmp_path / "run" / "detectors" / "presence").mkdir(parents=True)
        note = {"note": {"tpr": {"k": 400, "n": 500}, "fpr": {"k": 0, "n": 1697}, "threshold": 0.91}}
        (tmp_path / "run" / "detectors" / "presence" / "set.json").write_text(json.dumps(note))
    record = tmp_path / "run" / "run.json"
    record.write_text(record.read_text().replace("2000", "3000"))
    found = verify(tmp_path / "run")
    assert [c.path for c in found.altered] == [
        "run.json settings",
        "q.monte_carlo.sampler.steps",
        "q.control.sampler.steps",
        "run.json model weights",
        "detectors.presence.tpr",
    ]
    assert len(found.notes) == 4  # no rows at all


def test_agreement_is_to_rounding_and_no_further() -> None:
    assert alike(0.1 + 0.2, 0.3) and alike([1, 2.0], [1.0, 2]) and alike(None, None)
    assert (
        not alike(0.3000001, 0.3) and not alike(None, 0.0) and not alike(0, False) and not alike([1], [1, 1])
    )
    assert not alike(1e-30, 1.0001e-30)


def test_what_is_no_run_or_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run"):
        verify(tmp_path)
    with pytest.raises(ValueError, match="schema"):
        verify_results({"q": {"monte_carlo": {"hits": 1}}})
