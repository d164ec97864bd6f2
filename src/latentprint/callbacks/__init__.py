"""Watch your own training: does the model begin to memorise its images, and is the marked image among them?

    watch = Watch(from_function(network, ddpm_schedule()), train, heldout, every=100, stop=0.5)
    for k, batch in enumerate(loader, 1):
        ...                                    # your step
        watch.batch(batch)                     # looks for the mark, if there is one
        if watch.step(k):                      # audits every 100 steps, within 2 % of the time
            break

watch      quick audits within a share of the training time, curve, stop rule
canary     whether a marked image reaches the batches, with its mark
curves     destinations of the curve: CSV, TensorBoard, anything that logs numbers by step
loops      Lightning, and engines of Ignite and MONAI
"""

from latentprint.callbacks.canary import Canary, CanaryWarning
from latentprint.callbacks.curves import csv_curve, tensorboard_curve
from latentprint.callbacks.loops import attach, lightning_callback
from latentprint.callbacks.watch import Look, Watch, WatchError

__all__ = [
    "Canary",
    "CanaryWarning",
    "Look",
    "Watch",
    "WatchError",
    "attach",
    "csv_curve",
    "lightning_callback",
    "tensorboard_curve",
]
