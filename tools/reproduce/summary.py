"""What a finished audit says, in the few numbers that the paper prints, and on which machine it said so.

Derived from the rows that the run keeps, so that runs of earlier versions have the numbers of this one too.
No model is asked, so a page can be made on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from latentprint.config import AuditConfig
from latentprint.files import read_json
from latentprint.results.assemble import assemble
from latentprint.results.counted import Counted, Q
from latentprint.results.model import Detector
from latentprint.results.searched import Search
from latentprint.results.stored import Stored
from latentprint.results.whole_set import WholeSet
from latentprint.settings import SettingsError, plain, read
from latentprint.store import Run, RunError
from latentprint.verdict import judged

Entry = dict[str, Any]


def tuning_of(runs: Path, size: str) -> Path:
    """Where it is noted how this machine runs the rows of a size; not there where that was not measured."""
    return runs / f"{size}.tuning.json"


def holds(folder: Path, config: AuditConfig, target: int | None = None) -> bool:
    """Whether ``folder`` is a finished run of these very settings, and of the x_p in that place if one is
    named.

    Settings that did not exist yet when it ran count with their defaults, which leave results as they were.
    """
    if not (folder / "run.json").is_file() or not (folder / "results.json").is_file():
        return False
    run = Run.read(folder)
    if run.record.get("finished") is None:
        return False
    if run.settings.get("target") != target:
        return False
    try:
        return read(AuditConfig, settings_of(run)) == config
    except SettingsError:
        return False


def accuracy(detector: Detector | None) -> Entry | None:
    """Correct answers of a detector on its test images, as a count: seen marks and silent alarms together."""
    if detector is None:
        return None
    tpr, fpr = detector.tpr, detector.fpr
    counts = {"tpr": {"k": tpr.k, "n": tpr.n}, "fpr": {"k": fpr.k, "n": fpr.n}}
    return {"k": tpr.k + fpr.n - fpr.k, "n": tpr.n + fpr.n, **counts}


def summary(folder: Path) -> Entry:
    """The entry of a finished audit.

    Raises:
        InputError: the folder holds no results.
        ValueError: they are of an audit without a search.
    """
    if not (folder / "results.json").is_file():
        raise RunError(f"{str(folder)!r} holds no results: the audit in it did not end")
    run = Run.read(folder)
    results = judged(assemble(Stored.of(run)))
    control, search = results.q.control, results.t_prime
    if search is None:
        raise ValueError(f"{folder} is an audit without a search, which the tables need")
    return {
        "data": results.data.model_dump(mode="json", include={"source", "images", "shape", "heldout"}),
        "copies": results.target.copies,
        "presence": accuracy(results.detectors.presence),
        "identity": accuracy(results.detectors.identity),
        "fid": None if results.fid is None else results.fid.plain(),
        "monte_carlo": count_entry(results.q.monte_carlo),
        "t_prime": search_entry(search),
        "control": {
            "hits": None if control is None else {"hits": control.hits, "samples": control.samples},
            "t_prime": None if search.control is None else search.control.value,
        },
        "whole_set": None if results.whole_set is None else whole_entry(results.whole_set),
        "memorised": None if results.memorised is None else results.memorised.plain(),
        **({"estimates": found} if (found := _estimates(results.q)) else {}),
        "verdict": results.verdict.state,
        **circumstances(run),
    }


def _estimates(q: Q) -> Entry:
    """q by each estimator that ran, by its name."""
    kept = {"rate", "low", "high", "level", "reliable", "diagnostic", "network_evaluations"}
    return {name: one.model_dump(mode="json", include=kept) for name, one in q.estimates.items()}


def whole_entry(found: WholeSet) -> Entry:
    """All training images together, by one criterion, and x_p among them by the same."""
    counts = {"copies", "memorised", "false_alarms", "target"}
    plain = found.model_dump(mode="json", include={"criterion", "at_least", "median", *counts})
    return plain | {"most": len(found.times)}


def count_entry(counted: Counted) -> Entry:
    """A count, less what follows from the detectors' errors."""
    return counted.model_dump(mode="json", exclude={"corrected", "stopping", "network_evaluations"})


def search_entry(search: Search) -> Entry:
    """A search, level by level."""
    kept = {"value", "certain", "grid", "hits", "sentence", "network_evaluations"}
    return {**search.model_dump(mode="json", include=kept), "tries": search.tries}


def circumstances(run: Run) -> Entry:
    """Where, when and how long: device, versions, seconds by stage, settings."""
    record = cast(Mapping[str, Any], run.record)
    of_size = run.path.resolve().parent  # RUNS/NAME/SIZE
    tuning = tuning_of(of_size.parents[1], of_size.name)
    seconds = {name: stage.get("seconds") for name, stage in record["stages"].items()}
    return {
        "device": record.get("device"),
        "began": record["began"],
        "finished": record.get("finished"),
        "seconds": {name: value for name, value in seconds.items() if value is not None},
        "versions": record["sessions"][-1]["versions"] if record["sessions"] else {},
        "tuning": read_json(tuning) if tuning.is_file() else None,
        "settings": plain(read(AuditConfig, settings_of(run))),
        **{what: record[what] for what in ("recognisers", "continues") if what in record},
    }


def settings_of(run: Run) -> Entry:
    """The audit's settings of a run, without the place of x_p and what ``lengths`` adds to them."""
    return {key: value for key, value in run.settings.items() if key not in ("lengths", "target")}
