"""``latentprint reproduce``: the paper's tables and figures, from a checkout; the wheel does not contain
them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import typer

from latentprint.contracts import InputError


def reproduce(context: typer.Context) -> None:
    """Run the paper's tables and figures, from a checkout of the repository."""
    checkout = Path(__file__).parents[3]
    if not (checkout / "tools" / "reproduce").is_dir():
        raise InputError(
            "the paper's tables are evidence of this project and not part of the installed package: "
            "clone the repository, run `make setup` there, and give this command again"
        )
    # Appended, so that nothing of the checkout hides an installed package.
    sys.path.append(str(checkout))
    importlib.import_module("tools.reproduce.command").app(context.args, "latentprint reproduce")


ANYTHING = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Arguments are passed on unchanged, ``--help`` too."""
