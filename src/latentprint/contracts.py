"""The borders between the parts that use networks and the parts that only count.

Networks, samplers and detectors end in one function type, the ``Probe``: it is asked for trajectories by
noise level and id, and answers with hits. The search for t' and the Monte Carlo count see nothing else. They
can therefore be tested with coins, split by id and resumed by missing ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ids = NDArray[np.int64]
    Times = NDArray[np.float64]
    Hits = NDArray[np.bool_]


def __getattr__(name: str) -> Any:
    """``Ids``, ``Times``, ``Hits``, made on first use: a refusal need not wait for NumPy."""
    if name not in ("Ids", "Times", "Hits"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import numpy as np

    return np.ndarray[Any, np.dtype[{"Ids": np.int64, "Times": np.float64, "Hits": np.bool_}[name]]]


class InputError(ValueError):
    """Bad input, or something the machine lacks: one clear sentence, exit code 2, no traceback.

    The base of every error that the command line answers with its message alone.
    """


def quoted(value: object, most: int = 120) -> str:
    """A name or value for a sentence: in quotes, on one line, shortened in the middle if it is long."""
    if isinstance(value, int) and abs(value) >= 10**most:
        return "a number of very many digits"  # Python itself refuses to write thousands of digits
    name = isinstance(value, str | PurePath)
    text = str(value) if name else " ".join(repr(value).split())
    text = shortened(text, most)
    return repr(text) if name else text


def shortened(text: str, most: int = 120) -> str:
    """The text, without its middle if it has more than ``most`` letters."""
    return text if len(text) <= most else f"{text[: most // 2 - 2]}...{text[-(most // 2 - 2) :]}"


def require_device(name: str) -> str:
    """The name of a device, as ``cuda:1``; whether this machine has it is not checked.

    Raises:
        InputError: no device has such a name.
    """
    if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:[0-9]{1,3})?", name):
        raise InputError(f"a device is cpu, cuda, cuda:1 (the second) or xpu, got {quoted(name)}")
    return name


In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Outcome:
    """A probe's answer, one entry per id asked for, in the order asked.

    Attributes:
        hit: shape (n,). True if the sample lies in Omega_p (both detectors positive, paper Eq. 6).
        evaluations: shape (n,). Network evaluations that each trajectory cost.
        columns: further per-sample values of shape (n,), e.g. ``presence``, ``identity``, ``mse``, ``mae``.
    """

    hit: Hits
    evaluations: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, "NDArray[Any]"])

    def __post_init__(self) -> None:
        lengths = {"evaluations": len(self.evaluations)} | {k: len(v) for k, v in self.columns.items()}
        wrong = {name: n for name, n in lengths.items() if n != len(self.hit)}
        if wrong:
            raise ValueError(f"an outcome needs one entry per id ({len(self.hit)}), got {wrong}")


class Probe(Protocol):
    """Trajectories started at noise levels ``t`` with ids ``ids`` -> their outcomes.

    ``t`` and ``ids`` have shape (n,). The outcome for an id depends on (t, id) alone: never on its
    batch-mates, their order, or earlier calls of the probe.
    """

    def __call__(self, t: Times, ids: Ids) -> Outcome: ...


class Map(Protocol):
    """Anything that maps a function over units of work: the built-in ``map``, a process pool, a Ray pool."""

    def __call__(self, function: Callable[[In], Out], units: Iterable[In], /) -> Iterator[Out]: ...
