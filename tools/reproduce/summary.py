"""What a finished audit says, in the few numbers that the paper prints, and on which machine it said so.

Read from the run's own files; nothing here is computed anew, so a page can be made on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentprint.config import AuditConfig
from latentprint.files import read_json
from latentprint.settings import SettingsError, plain, read
from latentprint.store import Run

Entry = dict[str, Any]

_COUNT = [
    *("sampler", "samples", "presence_hits", "identity_hits", "hits", "rate", "low", "high", "level"),
    *("expected", "p_value", "missable"),
]
_TPRIME = ["value", "certain", "tries", "grid", "hits", "sentence", "network_evaluations"]


def holds(folder: Path, config: AuditConfig) -> bool:
    """Whether ``folder`` is a finished run of these very settings.

    Settings that did not exist yet when it ran count with their defaults, which leave results as they were.
    """
    if not (folder / "run.json").is_file() or not (folder / "results.json").is_file():
        return False
    run = Run.read(folder)
    if "finished" not in run.record:
        return False
    try:
        return read(AuditConfig, run.settings) == config
    except SettingsError:
        return False


def accuracy(detector: Mapping[str, Any] | None) -> Entry | None:
    """Correct answers of a detector on its test images, as a count: seen marks and silent alarms together."""
    if detector is None:
        return None
    tpr, fpr = detector["tpr"], detector["fpr"]
    return {"k": tpr["k"] + fpr["n"] - fpr["k"], "n": tpr["n"] + fpr["n"], "tpr": tpr, "fpr": fpr}


def summary(folder: Path) -> Entry:
    """The entry of a finished audit.

    Raises:
        ValueError: the folder holds no results.
    """
    results, run = read_json(folder / "results.json"), Run.read(folder)
    return {
        "data": {key: results["data"][key] for key in ("source", "images", "shape", "heldout")},
        "copies": results["target"]["copies"],
        "presence": accuracy(results["detectors"]["presence"]),
        "identity": accuracy(results["detectors"]["identity"]),
        "fid": results["fid"],
        "monte_carlo": part(results["q"]["monte_carlo"], _COUNT),
        "t_prime": part(results["t_prime"], _TPRIME),
        "control": {
            "hits": results["q"]["control"] and part(results["q"]["control"], ["hits", "samples"]),
            "t_prime": results["t_prime"]["control"] and results["t_prime"]["control"]["value"],
        },
        "memorised": results["memorised"],
        "verdict": results["verdict"]["state"],
        **circumstances(run),
    }


def circumstances(run: Run) -> Entry:
    """Where, when and how long: device, versions, seconds by stage, settings."""
    record = run.record
    seconds = {name: stage.get("seconds") for name, stage in record["stages"].items()}
    return {
        "device": record.get("device"),
        "began": record["began"],
        "finished": record.get("finished"),
        "seconds": {name: value for name, value in seconds.items() if value is not None},
        "versions": record["sessions"][-1]["versions"] if record["sessions"] else {},
        "settings": plain(read(AuditConfig, settings_of(run))),
    }


def part(values: Mapping[str, Any], keys: list[str]) -> Entry:
    """Some of a mapping's values."""
    return {key: values[key] for key in keys if key in values}


def settings_of(run: Run) -> Entry:
    """The audit's settings of a run, without what ``lengths`` adds to them."""
    return {key: value for key, value in run.settings.items() if key != "lengths"}
