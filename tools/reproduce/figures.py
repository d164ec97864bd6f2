"""The paper's figures from finished runs: which run each is drawn from, and what stands on its axes.

Fig. 3     hits and MSE over training steps, samples at each length        lengths
Fig. 4     queries x_t and what they became                                a table's row
Fig. 5     samples for each number of images                               Table 1
Fig. 6     q_M(p | x_t) over t, for each number of images                  Table 1
Fig. 8     samples in which one detector alone fired                       Table 1
Fig. 9     q_M(p | x_t) over t, for each set                               Table 2
Fig. 10    difference maps; of lengths also the MSE over training steps    lengths, or Table 1
passes     t' over the passes over each image, for each set                all rows of a size
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentprint.contracts import InputError
from tools.reproduce import pictures
from tools.reproduce.lengths import folder as length_folder
from tools.reproduce.passes import Point, points
from tools.reproduce.plan import Size
from tools.reproduce.record import Record
from tools.reproduce.summary import Entry

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from latentprint.stats import Trials

LEVEL = 0.95
SHOWN = 12

_MARKS = "oDs^vPX*"

OF_NUMBERS = ("fig6", "fig9", "passes")
"""Figures drawn from the numbers of rows; all others are drawn again by the models of their runs."""

Files = dict[str, bytes]
Source = Callable[[str], Path]
"""The folder of a row's run."""


def return_curves(rows: Mapping[str, Entry]) -> Figure:
    """Fig. 6 and 9: the share of tries that came back over t; as in the paper, nothing is drawn after t'."""
    figure, axes = _axes("noise level t", "came back: q_M(p | x_t)")
    for name, entry in rows.items():
        found = entry["t_prime"]
        # What never came back is a single point at zero.
        last = found["value"] if found["value"] is not None else found["grid"][0]
        kept = [(t, Trials(k, found["tries"])) for t, k in zip(found["grid"], found["hits"], strict=True)]
        kept = [(t, seen) for t, seen in kept if t <= last]
        bounds = [seen.interval(LEVEL) for _, seen in kept]
        told = "never" if found["value"] is None else f"{found['value']:.3g}"
        _points(
            axes,
            f"{name} (t' {told})",
            [t for t, _ in kept],
            [seen.rate for _, seen in kept],
            *zip(*bounds, strict=True),
        )
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper right", fontsize="small")
    return figure


def length_curves(lengths: Sequence[Mapping[str, Any]]) -> Figure:
    """Fig. 3: the share of samples that are x_p over training steps, with exact 95 % intervals; below it,
    where all training images were compared, the share that is a copy of any."""
    seen, steps = [one["monte_carlo"] for one in lengths], [one["step"] for one in lengths]
    copies = [whole["copies"] for one in lengths if (whole := one.get("whole_set"))]
    every = len(copies) == len(lengths)
    expected = seen[0]["expected"] / seen[0]["samples"]
    figure, (axes, *below) = _panels(2 if every else 1, "training steps", "share of samples")
    rates, low, high = ([one[key] for one in seen] for key in ("rate", "low", "high"))
    _points(axes, "x_p among the samples", steps, rates, low, high)
    axes.axhline(expected, color="0.4", linestyle="--", label="copies / N")
    axes.set(xlim=(0, steps[-1] * 1.02), ylim=(0, max(*high, expected) * 1.1))
    for panel in below:
        rates, low, high = ([one[key] for one in copies] for key in ("rate", "low", "high"))
        _points(panel, "copies of any training image", steps, rates, low, high)
        panel.set(ylim=(0, max(high) * 1.1))
    for panel in (axes, *below):
        panel.legend(fontsize="small")
    return figure


def error_curves(lengths: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Fig. 10, right: the MSE of detected samples to x_p over steps, median and range; None without any."""
    kept = [(one["step"], one["memorised"]["mse"]) for one in lengths if one["memorised"]["mse"]]
    if not kept:
        return None
    figure, axes = _axes("training steps", "MSE, pixels in [0, 1]")
    median, low, high = ([e[key] for _, e in kept] for key in ("median", "min", "max"))
    _points(axes, "MSE of detected samples", [step for step, _ in kept], median, low, high)
    axes.set(yscale="log", xlim=(0, lengths[-1]["step"] * 1.02))
    axes.legend(fontsize="small")
    return figure


def passes_curves(seen: Sequence[Point]) -> Figure:
    """t' over passes, a mark for each set: filled the largest t with a hit, hollow the sure one."""
    figure, axes = _axes("passes over each image", "t'")
    for number, source in enumerate(dict.fromkeys(one.source for one in seen)):
        kept = [one for one in seen if one.source == source]
        drawn: dict[str, Any] = {
            "marker": _MARKS[number % len(_MARKS)],
            "color": f"C{number}",
            "markersize": 5,
        }
        passes = [one.passes for one in kept]
        axes.plot(passes, [one.value or 0.0 for one in kept], linestyle="", label=source, **drawn)
        hollow = {"markerfacecolor": "none", "linestyle": ""}
        axes.plot(passes, [one.certain or 0.0 for one in kept], label=f"{source}, sure", **drawn, **hollow)
        for one in kept:
            at = one.passes, one.value or 0.0
            axes.annotate(
                f"{one.images:,}", at, fontsize="x-small", xytext=(4, 3), textcoords="offset points"
            )
    axes.set(xscale="log", ylim=(0, 1.05))
    axes.legend(loc="upper left", fontsize="small")
    return figure


def _axes(x: str, y: str) -> tuple[Figure, Any]:
    figure, (axes,) = _panels(1, x, y)
    return figure, axes


def _panels(count: int, x: str, y: str) -> tuple[Figure, list[Any]]:
    """A figure of ``count`` panels, one below the other over the same x."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "figures need matplotlib: `make setup` installs it, and so does the extra `examples`"
        ) from error
    figure = Figure(figsize=(7.2, 1.4 + 2.4 * count), layout="constrained")
    panels = list(figure.subplots(count, sharex=True, squeeze=False)[:, 0])
    panels[-1].set(xlabel=x)
    for axes in panels:
        axes.set(ylabel=y)
        axes.grid(alpha=0.3)
    return figure, panels


def _points(
    axes: Any, name: str, x: Sequence[float], y: Sequence[float], low: Sequence[float], high: Sequence[float]
) -> None:
    """Points with their intervals; series differ by their mark as well as by their colour."""
    mark = _MARKS[len(axes.containers) % len(_MARKS)]
    # An exact interval may end a rounding below the share that it holds.
    below, above = (
        [max(0.0, d) for d in ds]
        for ds in (
            [a - b for a, b in zip(y, low, strict=True)],
            [b - a for a, b in zip(y, high, strict=True)],
        )
    )
    axes.errorbar(x, y, yerr=[below, above], marker=mark, markersize=4, elinewidth=0.8, label=name)


def svg(figure: Figure) -> bytes:
    """A file that stands alone, and is the same bytes for the same numbers."""
    from matplotlib import rc_context

    out = BytesIO()
    with rc_context({"svg.hashsalt": "latentprint", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def draw(
    name: str, size: Size, rows: Mapping[str, Entry], record: Record, where: Source, root: Path | str | None
) -> Files:
    """The files of figure ``name``, by file name; a picture that has nothing to show is left out.

    Args:
        rows: the finished rows of the experiment it is drawn from, of that size.
        record: all experiments, for a figure that sets others beside those rows.
        where: the folder of a row's run.
        root: the folder of the MedMNIST files.
    """
    if name == "passes" and rows:
        return {"passes.svg": svg(passes_curves(points(record, next(iter(rows.values())), size)))}
    if name in OF_NUMBERS:
        return {f"{name}.svg": svg(return_curves(rows))} if rows else {}
    if name == "fig4":
        return _fig4(next(iter(rows)), where, root) if rows else {}
    if name == "fig5":
        shown = [pictures.samples(pictures.reopen(where(row), root=root), "model", SHOWN) for row in rows]
        return {"fig5.png": pictures.grid([list(one) for one in shown])} if shown else {}
    if name == "fig8":
        return _fig8(rows, where, root)
    if name == "fig10" and not any("lengths" in entry for entry in rows.values()):
        return _fig10_of_rows(rows, where, root)
    if name in ("fig3", "fig10") and rows:
        row, entry = next(iter(rows.items()))
        run = pictures.reopen(where(row), root=root)
        return (_fig3 if name == "fig3" else _fig10)(run, entry["lengths"])
    return {}


def _fig4(row: str, where: Source, root: Path | str | None) -> Files:
    begun, ended, _ = pictures.back_and_forth(pictures.reopen(where(row), root=root), SHOWN)
    return {"fig4.png": pictures.grid([list(begun), list(ended)])}


def _fig8(rows: Mapping[str, Entry], where: Source, root: Path | str | None) -> Files:
    alone: list[list[np.ndarray[Any, Any]]] = []
    for row in rows:
        by_presence, by_identity = pictures.false_positives(pictures.reopen(where(row), root=root), SHOWN)
        alone += [list(by_presence), list(by_identity)]
    return {"fig8.png": pictures.grid(alone)} if any(alone) else {}


def _fig3(run: pictures.Reopened, lengths: Sequence[Mapping[str, Any]]) -> Files:
    rows = [list(pictures.samples(run, length_folder(Path(), one["step"]).name, SHOWN)) for one in lengths]
    return {"fig3.svg": svg(length_curves(lengths)), "fig3.png": pictures.grid(rows)}


def _fig10(run: pictures.Reopened, lengths: Sequence[Mapping[str, Any]]) -> Files:
    out: Files = {}
    if (curve := error_curves(lengths)) is not None:
        out["fig10.svg"] = svg(curve)
    for one in reversed(lengths):
        name = f"at-{one['step']}"
        images, _ = pictures.came_back(run, name, f"samples.{name}", 6)
        if len(images):
            out["fig10.png"] = pictures.grid(_beside(run.injection.target, images))
            break
    return out


def _fig10_of_rows(rows: Mapping[str, Entry], where: Source, root: Path | str | None) -> Files:
    """Two rows of images for each row of a table in which x_p came."""
    shown: list[list[pictures.Pixels]] = []
    for row, entry in rows.items():
        if entry["monte_carlo"]["hits"]:
            run = pictures.reopen(where(row), root=root)
            images, _ = pictures.came_back(run, "model", "samples.model", 6)
            shown += _beside(run.injection.target, images)
    return {"fig10.png": pictures.grid(shown)} if shown else {}


def _beside(target: pictures.Pixels, images: pictures.Pixels) -> list[list[pictures.Pixels]]:
    """x_p and what came back; below each its difference to x_p, the first of which is empty."""
    maps = [pictures.difference(image, target) for image in images]
    return [[target, *images], [np.ones_like(target), *maps]]
