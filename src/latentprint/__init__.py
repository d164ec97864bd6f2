"""latentprint: can this image generator give back a training image, and how likely is that?

The public names below are imported on first use, so that ``import latentprint`` and ``latentprint --help`` do
not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from latentprint.audit import Where as Where
    from latentprint.audit import run_audit as run_audit
    from latentprint.config import AuditConfig as AuditConfig
    from latentprint.config import resolve as resolve
    from latentprint.contracts import InputError as InputError
    from latentprint.data import load as load
    from latentprint.fingerprint import inject as inject
    from latentprint.report import write_report as write_report
    from latentprint.stats import Trials as Trials
    from latentprint.streams import Streams as Streams

_HOMES = {
    "AuditConfig": "config",
    "InputError": "contracts",
    "Streams": "streams",
    "Trials": "stats",
    "Where": "audit",
    "run_audit": "audit",
    "inject": "fingerprint",
    "load": "data",
    "resolve": "config",
    "write_report": "report",
}

__all__ = [
    "AuditConfig",
    "InputError",
    "Streams",
    "Trials",
    "Where",
    "__version__",
    "inject",
    "load",
    "resolve",
    "run_audit",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("latentprint")
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"latentprint.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'latentprint' has no attribute {name!r}")
