"""The keys of all randomness: (seed, purpose) -> a 64-bit key.

    key = the first 8 bytes, little-endian, of BLAKE2b(decimal digits of seed, 0x00, purpose in UTF-8)

Every random number is drawn under such a key: counter-based in torch by `latentprint.streams`, and by
`generator` below for the parts that never import torch (splits, fingerprints). Two purposes under one seed,
or one purpose under two seeds, give unrelated numbers. There is no global generator.

Source: BLAKE2 (Saarinen and Aumasson, RFC 7693).
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import numpy as np


@lru_cache(maxsize=1024)
def key(seed: int, purpose: str) -> int:
    """The key of one purpose under one seed, an integer in [0, 2**64).

    Raises:
        ValueError: ``seed`` is negative, or ``purpose`` is empty.
    """
    if seed < 0:
        raise ValueError(f"a seed must be an integer of 0 or more, got {seed}")
    if not purpose:
        raise ValueError("a purpose must be a non-empty name, got ''")
    name = b"%d\x00" % seed + purpose.encode()
    return int.from_bytes(blake2b(name, digest_size=8, person=b"latentprint").digest(), "little")


def generator(seed: int, purpose: str, id: int = 0) -> np.random.Generator:  # noqa: A002
    """A NumPy generator that belongs to (seed, purpose, id) alone.

    It is NumPy's Philox4x64-10 under the 128-bit key (key(seed, purpose), id): its cipher is not the one of
    `latentprint.streams`, so their numbers are unrelated even under one purpose.

    Raises:
        ValueError: ``seed`` is negative, ``purpose`` is empty, or ``id`` is outside [0, 2**64).
    """
    if not 0 <= id < 2**64:
        raise ValueError(f"an id must lie in [0, 2**64), got {id}")
    return np.random.Generator(np.random.Philox(key=np.array([key(seed, purpose), id], dtype=np.uint64)))
