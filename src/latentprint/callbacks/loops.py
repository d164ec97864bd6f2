"""A watch in existing training loops: Lightning's Trainer, and engines of Ignite and MONAI."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor

from latentprint.callbacks.watch import Watch, WatchError

ImagesOf = Callable[[Any], Tensor]
"""A batch as the loader returns it -> its images."""


def first_of(batch: Any) -> Tensor:
    """The images of a batch that is a tensor, or a tuple or list whose first entry is a tensor."""
    return batch[0] if isinstance(batch, tuple | list) else batch


def lightning_callback(watch: Watch, images: ImagesOf = first_of) -> Any:
    """A ``Callback`` for Lightning's Trainer; audits go to the trainer's own loggers too.

    Raises:
        WatchError: neither lightning nor pytorch_lightning is installed.
    """
    base = None
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            base = import_module(name).Callback
            break
        except ImportError:
            continue
    if base is None:
        raise WatchError("this callback is for Lightning, which is not installed: pip install lightning")

    class Watching(base):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if not trainer.is_global_zero:
                return
            watch.batch(images(batch))
            before = len(watch.curve)
            stop = watch.step(trainer.global_step)
            if len(watch.curve) > before:
                for logger in trainer.loggers:
                    logger.log_metrics(watch.curve[-1].values, step=trainer.global_step)
            trainer.should_stop = trainer.should_stop or stop

    return Watching()


def attach(watch: Watch, engine: Any, images: ImagesOf = first_of) -> None:
    """Watch an engine of Ignite or MONAI; for MONAI's pass ``images=lambda batch: batch["image"]``.

    Raises:
        WatchError: pytorch-ignite is not installed.
    """
    try:
        completed = import_module("ignite.engine").Events.ITERATION_COMPLETED
    except ImportError as error:
        raise WatchError(
            "engines are Ignite's, which is not installed: pip install pytorch-ignite"
        ) from error

    def look(engine: Any) -> None:
        watch.batch(images(engine.state.batch))
        if watch.step(engine.state.iteration):
            engine.terminate()

    engine.add_event_handler(completed, look)
