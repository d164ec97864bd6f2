"""The paper's figures from finished runs: which run each is drawn from, and what stands on its axes.

Fig. 3     hits and MSE over training steps, samples at each length        lengths
Fig. 4     queries x_t and what they became                                a table's row
Fig. 5     samples for each number of images                               Table 1
Fig. 6     q_M(p | x_t) over t, for each number of images                  Table 1
Fig. 8     samples in which one detector alone fired                       Table 1
Fig. 9     q_M(p | x_t) over t, for each set                               Table 2
Fig. 10    difference maps, MSE over training steps                        lengths
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentprint.reproduce import pictures
from latentprint.reproduce.drawing import Axis, Line, chart
from latentprint.reproduce.lengths import folder as length_folder
from latentprint.reproduce.summary import Entry
from latentprint.stats import Trials

LEVEL = 0.95
SHOWN = 12

Files = dict[str, bytes]
Source = Callable[[str], Path]
"""The folder of a row's run."""


def return_curves(rows: Mapping[str, Entry]) -> bytes:
    """Fig. 6 and 9: the share of tries that came back over t; as in the paper, nothing is drawn after t'."""
    lines: list[Line] = []
    for name, entry in rows.items():
        found = entry["t_prime"]
        # What never came back is a single point at zero.
        last = found["value"] if found["value"] is not None else found["grid"][0]
        kept = [(t, Trials(k, found["tries"])) for t, k in zip(found["grid"], found["hits"], strict=True)]
        kept = [(t, seen) for t, seen in kept if t <= last]
        bounds = [seen.interval(LEVEL) for _, seen in kept]
        lines.append(
            Line(
                f"{name} (t' {found['value'] if found['value'] is not None else 'never'})",
                [t for t, _ in kept],
                [seen.rate for _, seen in kept],
                [low for low, _ in bounds],
                [high for _, high in bounds],
            )
        )
    label = "Share of tries that came back over the noise level t, one line a model, drawn up to its t'."
    return chart(
        lines, Axis("noise level t", 0.0, 1.0), Axis("came back: q_M(p | x_t)", 0.0, 1.0), label
    ).encode()


def length_curves(lengths: Sequence[Mapping[str, Any]]) -> bytes:
    """Fig. 3: the share of samples that are x_p over training steps, with exact 95 % intervals."""
    seen = [one["monte_carlo"] for one in lengths]
    steps = [one["step"] for one in lengths]
    top = max(max(one["high"] for one in seen), seen[0]["expected"] / seen[0]["samples"]) * 1.1
    expected = seen[0]["expected"] / seen[0]["samples"]
    rates = [one["rate"] for one in seen]
    lines = [
        Line("x_p among the samples", steps, rates, [x["low"] for x in seen], [x["high"] for x in seen]),
        Line("copies / N", [steps[0], steps[-1]], [expected, expected]),
    ]
    label = "Share of samples that are the private image over training steps, with copies / N beside it."
    return chart(
        lines, Axis("training steps", 0.0, float(steps[-1])), Axis("share of samples", 0.0, top), label
    ).encode()


def error_curves(lengths: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Fig. 10, right: the MSE of detected samples to x_p over steps, median and range; None without any."""
    kept = [(one["step"], one["memorised"]["mse"]) for one in lengths if one["memorised"]["mse"]]
    if not kept:
        return None
    low, high = min(e["min"] for _, e in kept) / 1.5, max(e["max"] for _, e in kept) * 1.5
    line = Line(
        "MSE of detected samples",
        [step for step, _ in kept],
        [e["median"] for _, e in kept],
        [e["min"] for _, e in kept],
        [e["max"] for _, e in kept],
    )
    label = (
        "Median and range of the error between detected samples and the private image over training steps."
    )
    end = float(lengths[-1]["step"])
    return chart(
        [line],
        Axis("training steps", 0.0, end),
        Axis("MSE, pixels in [0, 1]", max(low, 1e-9), high, log=True),
        label,
    ).encode()


def draw(name: str, rows: Mapping[str, Entry], where: Source, root: Path | None) -> Files:
    """The files of figure ``name``, by file name; a picture that has nothing to show is left out.

    Args:
        rows: the finished rows of the experiment it is drawn from.
        where: the folder of a row's run.
        root: the folder of the MedMNIST files.
    """
    if name in ("fig6", "fig9"):
        return {f"{name}.svg": return_curves(rows)} if rows else {}
    if name == "fig4":
        return _fig4(next(iter(rows)), where, root) if rows else {}
    if name == "fig5":
        shown = [pictures.samples(pictures.reopen(where(row), root=root), "model", SHOWN) for row in rows]
        return {"fig5.png": pictures.grid([list(one) for one in shown])} if shown else {}
    if name == "fig8":
        return _fig8(rows, where, root)
    if name in ("fig3", "fig10") and rows:
        row, entry = next(iter(rows.items()))
        run = pictures.reopen(where(row), root=root)
        return (_fig3 if name == "fig3" else _fig10)(run, entry["lengths"])
    return {}


def _fig4(row: str, where: Source, root: Path | None) -> Files:
    begun, ended, _ = pictures.back_and_forth(pictures.reopen(where(row), root=root), SHOWN)
    return {"fig4.png": pictures.grid([list(begun), list(ended)])}


def _fig8(rows: Mapping[str, Entry], where: Source, root: Path | None) -> Files:
    alone: list[list[np.ndarray[Any, Any]]] = []
    for row in rows:
        by_presence, by_identity = pictures.false_positives(pictures.reopen(where(row), root=root), SHOWN)
        alone += [list(by_presence), list(by_identity)]
    return {"fig8.png": pictures.grid(alone)} if any(alone) else {}


def _fig3(run: pictures.Reopened, lengths: Sequence[Mapping[str, Any]]) -> Files:
    rows = [list(pictures.samples(run, length_folder(Path(), one["step"]).name, SHOWN)) for one in lengths]
    return {"fig3.svg": length_curves(lengths), "fig3.png": pictures.grid(rows)}


def _fig10(run: pictures.Reopened, lengths: Sequence[Mapping[str, Any]]) -> Files:
    out: Files = {}
    if (curve := error_curves(lengths)) is not None:
        out["fig10.svg"] = curve
    for one in reversed(lengths):
        name = f"at-{one['step']}"
        images, _ = pictures.came_back(run, name, f"samples.{name}", 6)
        if len(images):
            target = run.injection.target
            maps = [pictures.difference(image, target) for image in images]
            # x_p first in the upper row, its own (empty) difference below it.
            upper, lower = [target, *images], [np.ones_like(target), *maps]
            out["fig10.png"] = pictures.grid([upper, lower])
            break
    return out
