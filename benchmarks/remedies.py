"""Remedies side by side on 100 digits, and on BreastMNIST: the tables of docs/remedies.md.

Compared are the remedies with the same images, marks, seed and measures; what is asked is whether guided
training lowers the hits of marked images tenfold at a Frechet distance no more than 10 % above no remedy's.

    python benchmarks/remedies.py --work runs/remedies [--seed 0] [--only guided,filter]
    python benchmarks/remedies.py --set breastmnist-64 --root MEDMNIST --work runs/breast
    python benchmarks/remedies.py --work runs/a runs/b        # folders of finished tables become one
    python benchmarks/remedies.py --quick                     # 20 steps, two rows: that it runs

The settings are the smallest found at which a U-Net learns 100 digits by heart: 500 steps, 40 ms of a core
each. About 12 minutes on one core that does little else. With 546 images of BreastMNIST training takes so
many steps that they are 14 x 14; resized images have no bit depth, so no bits per dimension either.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from record import add_output, record, tell

from latentprint.config import resolve
from latentprint.progress import Bars
from latentprint.remedies import RemediesConfig, compare_remedies

SETTINGS: dict[str, Any] = {
    "data": {"source": "digits", "images": 100},
    "model": {"network": {"channels": [16, 32]}, "training": {"steps": 500}},
    "samples": {"count": 700},
    "likelihood": {"images": 12},
}


def _breast(images: int, side: int, training: dict[str, Any]) -> dict[str, Any]:
    data = {"source": "medmnist:breastmnist", "images": images} | ({} if side == 28 else {"resize": side})
    return SETTINGS | {"data": data, "model": {"network": {"channels": [16, 32]}, "training": training}}


SETS = {
    "digits": SETTINGS,
    "breastmnist-64": _breast(64, 28, {"steps": 3000, "batch": 32}),
    "breastmnist-546": _breast(546, 14, {"steps": 4000}),
}
"""By name: 100 digits, and BreastMNIST with 64 images and with all 546."""


def judged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Each remedy against none: how many times fewer hits and copies, and how much worse the distance."""
    none = next(row for row in rows if row["name"] == "none")
    found = dict[str, Any]()
    for row in rows:
        if row.get("skipped") is not None or row["name"] == "none" or not row["samples"]:
            continue
        share = row["marked"] / row["samples"], none["marked"] / none["samples"]
        copied = row["copies"] / row["samples"], none["copies"] / none["samples"]
        found[row["name"]] = {
            "hits_fewer": share[1] / share[0] if share[0] else None,
            "copies_fewer": copied[1] / copied[0] if copied[0] else None,
            "fid_worse": row["fid"] / none["fid"] - 1,
            "bits_worse": None
            if row["bits_per_dim"] is None
            else row["bits_per_dim"] / none["bits_per_dim"] - 1,
            "tenfold_at_10_percent": share[0] <= share[1] / 10 and row["fid"] <= 1.1 * none["fid"],
        }
    return found


def joined(folders: list[Path]) -> dict[str, Any]:
    """The tables of several folders as one; a row that two have is that of the first.

    Raises:
        ValueError: they are not of the same images and seed.
    """
    tables = [json.loads((one / "remedies.json").read_text(encoding="utf-8")) for one in folders]
    if len({(one["data"], one["images"], one["seed"]) for one in tables}) > 1:
        raise ValueError("tables of other images or seeds cannot be joined")
    rows: dict[str, dict[str, Any]] = {}
    for table in tables:
        for row in table["rows"]:
            rows.setdefault(row["name"], row)
    return tables[0] | {"rows": list(rows.values())}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the page."""
    lines = [
        "| remedy | marked images | copies | of images | t' marked / left out | FID | bits/dim | training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.get("skipped") is not None:
            lines.append(f"| {row['name']} | not tried: {row['skipped']} | | | | | | |")
            continue
        bits = "" if row["bits_per_dim"] is None else f"{row['bits_per_dim']:.2f}"
        lines.append(
            f"| {row['name']} | {row['marked']} | {row['copies']} of {row['samples']} | {row['memorised']} |"
            f" {row['t_prime']:.2f} / {row['t_prime_strangers']:.2f} | {row['fid']:.2f}"
            f" ({row['fid_low']:.2f} to {row['fid_high']:.2f}) | {bits} | {row['cpu_seconds']:.0f} s |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only")
    parser.add_argument("--set", choices=SETS, default="digits")
    parser.add_argument("--root", type=Path, help="folder of the MedMNIST files")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    add_output(parser)
    asked = parser.parse_args()
    table: dict[str, Any]
    settings, only = SETS[asked.set], tuple(asked.only.split(",")) if asked.only else None
    if asked.quick:
        training = {"steps": 20, "batch": 16}
        settings = SETTINGS | {"model": {"network": {"channels": [8]}, "training": training}}
        settings |= {"samples": {"count": 30}, "likelihood": {"images": 0}, "sampler": {"steps": 4}}
        only = ("early stopping",)
    if asked.work and len(asked.work) > 1:
        table = joined(asked.work)
    else:
        with tempfile.TemporaryDirectory() as aside, Bars() as bars:
            config = RemediesConfig(resolve(settings, {"seed": asked.seed}, preset="demo"), names=only)
            folder = asked.work[0] if asked.work else Path(aside) / "run"
            table = compare_remedies(config, folder, root=asked.root, progress=bars).plain()
    if asked.markdown:
        print(markdown(table["rows"]))
        return
    tell(record() | table | {"against_none": judged(table["rows"])}, asked)


if __name__ == "__main__":
    main()
