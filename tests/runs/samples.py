"""Images for ``make.sh``: 30 of 200 are training images but for a little noise, 10 of these for rounding."""

import sys

import numpy as np

from latentprint.data import load

split, rng = load("digits", seed=0, images=20), np.random.default_rng(0)
images = split.heldout.pixels[rng.permutation(len(split.heldout))[:200]]
copied = split.train.pixels[np.arange(30) % 12]
noise = np.where(np.arange(30) < 10, 0, 0.05)[:, None, None, None] * rng.standard_normal(copied.shape)
images[:30] = np.clip(copied + noise, -1, 1)
np.save(sys.argv[1], images)
