"""Units of work on many processes or machines, in the form of ``map``.

    local   the built-in map, in this process
    ray     tasks of Ray: on this machine, or on the cluster that RAY_ADDRESS names (docs/scale.md)

A unit's result follows from the unit alone (``execute``), so it does not matter where it runs, in which
order, and how often it was started before it finished. If a worker dies, its unit is started again elsewhere;
results of other units are passed on meanwhile.

Source: Moritz et al. 2018, "Ray", OSDI.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from latentprint.contracts import InputError, Map

if TYPE_CHECKING:
    from types import ModuleType

Executor = Literal["local", "ray"]
EXECUTORS: tuple[Executor, ...] = ("local", "ray")

RETRIES = 3
"""How often a unit is started again after its worker died, before it is given up."""

_AHEAD = 2  # units in flight per worker: enough that none waits, few enough that a kill loses little

In = TypeVar("In")
Out = TypeVar("Out")


class SpreadError(InputError):
    """Work cannot be distributed as asked, with the reason in one sentence."""


@contextmanager
def executor(name: str, *, device: str = "cpu", workers: int | None = None) -> Generator[Map]:
    """The map of that name, inside a with statement.

    Args:
        device: "cuda" gives each worker its own GPU.
        workers: processes on this machine; None: one per core. A cluster decides itself.

    Raises:
        SpreadError: there is no such executor, Ray is not installed, or its cluster does not answer.
    """
    if name == "local":
        yield map
    elif name == "ray":
        with _ray(workers) as ray:
            slots = int(ray.cluster_resources().get("GPU" if device.startswith("cuda") else "CPU", 0))
            if slots < 1:
                raise SpreadError(f"Ray sees nothing here that could run on {device!r}")
            yield _RayMap(ray, slots, 1.0 if device.startswith("cuda") else 0.0)
    else:
        raise SpreadError(f"{name!r} is not an executor; there are {', '.join(EXECUTORS)}")


@contextmanager
def _ray(workers: int | None) -> Generator[ModuleType]:
    try:
        import ray
    except ImportError as error:
        raise SpreadError(
            "the executor ray needs the package ray: pip install 'latentprint[ray]', or leave --executor out"
        ) from error
    address = os.environ.get("RAY_ADDRESS")
    ours = not ray.is_initialized()
    if ours:
        try:
            # Ray's workers look for modules in the folder where it is started, which must not be a
            # stranger's.
            with chdir(Path(sys.executable).parent):
                if address is None:
                    ray.init(
                        num_cpus=workers,
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        # Ray gives its workers a lower priority than everything else on the machine; here
                        # they are the work itself.
                        _system_config={"worker_niceness": 0},
                    )
                else:
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises errors of any type, down to Exception itself
            raise SpreadError(f"Ray could not be started: {str(error).splitlines()[0]}") from error
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


@dataclass(frozen=True)
class _RayMap:
    """Units on Ray's workers. Results come as they are finished, with a bounded number of units in flight."""

    ray: Any
    slots: int
    gpus: float

    def __call__(self, function: Callable[[In], Out], units: Iterable[In], /) -> Iterator[Out]:
        ray = self.ray
        # The function is put into the store once; otherwise the model would be sent with every unit.
        shared = ray.put(function)
        task = ray.remote(num_cpus=1, num_gpus=self.gpus, max_retries=RETRIES)(_call)
        waiting, flying = iter(units), list[Any]()
        try:
            while True:
                flying += [
                    task.remote(shared, unit) for unit in islice(waiting, self.slots * _AHEAD - len(flying))
                ]
                if not flying:
                    return
                done, flying = ray.wait(flying, num_returns=1)
                yield self._result(done[0])
        finally:
            for one in flying:
                ray.cancel(one, force=True)

    def _result(self, reference: Any) -> Any:
        ray = self.ray
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, InputError):
                raise cause from None  # the error of the unit itself, in its own words
            raise
        except (
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.NodeDiedError,
            ray.exceptions.OutOfMemoryError,
        ) as error:
            raise SpreadError(
                "a worker died again and again on the same unit, most likely because memory ran out; what"
                " the others finished is kept, and the same command continues"
            ) from error


def _call(function: Callable[[Any], Any], unit: Any) -> Any:
    return function(unit)
