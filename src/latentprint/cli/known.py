"""``latentprint calibrate``: are the estimates right on this machine?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from latentprint.cli.shared import Json, Seed, print_json
from latentprint.signals import interruptible

if TYPE_CHECKING:
    from latentprint.calibrate import Row


def calibrate(
    quick: Annotated[bool, typer.Option("--quick", help="Under a minute instead of six.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Estimate q of models whose q is known, by every estimator; exit 1 if too many intervals miss it."""
    from latentprint.calibrate import calibrate as calibrated

    interruptible()
    report = calibrated(quick, seed, _say)
    if as_json:
        print_json(report.to_json())
    else:
        for name, share in report.coverage().items():
            print(f"{name}: {share:.1%} of its reliable intervals hold the truth")
        for failure in report.failures():
            print(f"FAILED: {failure}")
        print("The instrument passes." if report.passed else "Do not trust this instrument here.")
    raise typer.Exit(0 if report.passed else 1)


def _say(row: Row) -> None:
    """One case as it ends, on stderr: truth, estimate, interval, cost, inside or not."""
    if row.rate is None or row.low is None or row.high is None:
        found = "no number offered"
    else:
        found = f"{row.rate:.3g} [{row.low:.3g}, {row.high:.3g}] {'inside' if row.inside else 'OUTSIDE'}"
    print(
        f"{row.estimator:<12}{row.name:<28} q = {row.truth:.3g}: {found}, "
        f"{row.network_evaluations:,} evaluations",
        file=sys.stderr,
        flush=True,
    )
