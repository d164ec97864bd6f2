"""Counter-based random numbers: a pure function of (seed, purpose, sample id, step, draw, element).

    words = Philox4x32-10(counter = (block, step * 256 + draw, id mod 2**32, id // 2**32),
                          key = key(seed, purpose))

Element ``e`` of a row is word ``e mod 4`` of block ``e // 4``. No state is kept between calls, so a result
does not depend on batch size, order, sharding or a restart, and a longer row begins with the shorter one.

The integers are those of the cipher's published test vectors on every device. Normals follow from them by Box
and Muller, z = sqrt(-2 ln u) (cos a, sin a), with logarithm, sine and cosine written out in additions,
multiplications, one division and one root. IEEE 754 arithmetic rounds each of these correctly, so a row has
the same bits alone or in a batch, on CPU or GPU. The ``log`` and ``cos`` of a vendor's library can differ
between the middle and the tail of an array.

Sources: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"; Box and Muller 1958.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentprint import keys

Ids = Sequence[int] | NDArray[np.integer] | Tensor
Steps = int | NDArray[np.integer] | Tensor
Array = TypeVar("Array", NDArray[Any], Tensor)

STEPS = 2**24
"""Steps lie in [0, STEPS)."""

DRAWS = 2**8
"""Draws within one step lie in [0, DRAWS)."""

_MASK = 2**32 - 1
_ROUNDS = 10
_MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
# Counters worked on at once: keeps the temporaries of a CPU inside its cache, those of a GPU under 1 GiB.
_CHUNK = {"cpu": 2**16, "cuda": 2**22}


@dataclass(frozen=True)
class Streams:
    """All random numbers of one seed.

    Arguments common to the methods:
        purpose: what the numbers are for; two purposes are independent.
        ids: (n,) integers in [0, 2**63), one per row: a sequence, an array or a tensor.
        step: an integer in [0, 2**24), or one per row as integers of shape (n,).
        draw: an integer in [0, 2**8), for a step that needs noise more than once.
        device, dtype: of the result; they change its value only by rounding.
    """

    seed: int

    def integers(
        self,
        purpose: str,
        ids: Ids,
        step: Steps,
        count: int,
        device: torch.device | str = "cpu",
        *,
        draw: int = 0,
    ) -> Tensor:
        """Uniform integers in [0, 2**32): shape (n, count), int64.

        Raises:
            ValueError: a negative or overflowing id, step, draw or count, or steps that do not match the ids.
        """
        out = torch.empty((len(ids), -(-count // 4), 4), dtype=torch.int64, device=device)
        for rows, words in self._words(purpose, ids, step, draw, count, out.device):
            for position, word in enumerate(words):
                out[rows, :, position] = torch.as_tensor(word)
        return out.flatten(1)[:, :count].contiguous()

    def uniform(
        self,
        purpose: str,
        ids: Ids,
        step: Steps,
        shape: tuple[int, ...],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        draw: int = 0,
    ) -> Tensor:
        """Uniform numbers in the open interval (0, 1): shape (n, *shape), symmetric about 1/2.

        float64 keeps all 32 bits of a word, float32 its upper 23 (so that neither end rounds to 0 or 1).

        Raises:
            ValueError: as for `integers`; ``dtype`` is neither float32 nor float64.
        """
        _check_dtype(dtype)
        bits = 23 if dtype == torch.float32 else 32
        words = self.integers(purpose, ids, step, _count(shape), device, draw=draw)
        return ((words >> (32 - bits)).to(dtype) + 0.5).mul_(2.0**-bits).reshape(len(ids), *shape)

    def noise(
        self,
        purpose: str,
        ids: Ids,
        step: Steps,
        shape: tuple[int, ...],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        draw: int = 0,
    ) -> Tensor:
        """Independent N(0, 1): shape (n, *shape). float32 and float64 agree to 5e-6, and to 3e-4
        where the radius is below 0.03 (float32 rounds u near 1).

        The largest value that can occur is sqrt(66 ln 2) = 6.76 (32-bit words).

        Raises:
            ValueError: as for `integers`; ``dtype`` is neither float32 nor float64.
        """
        _check_dtype(dtype)
        count = _count(shape)
        out = torch.empty((len(ids), -(-count // 4), 2, 2), dtype=dtype, device=device)
        for rows, words in self._words(purpose, ids, step, draw, count, out.device):
            part = out[rows]
            target = part.numpy() if part.device.type == "cpu" else part
            for pair in (0, 1):
                radius = _radius(words[2 * pair], dtype)
                cosine, sine = _circle(words[2 * pair + 1], dtype)
                target[:, :, pair, 0] = cosine.__imul__(radius)
                target[:, :, pair, 1] = sine.__imul__(radius)
        return out.flatten(1)[:, :count].contiguous().view(len(ids), *shape)

    def generator(self, purpose: str, id: int = 0) -> np.random.Generator:  # noqa: A002
        """`latentprint.keys.generator` under this seed."""
        return keys.generator(self.seed, purpose, id)

    def _words(
        self, purpose: str, ids: Ids, step: Steps, draw: int, count: int, device: torch.device
    ) -> Iterator[tuple[slice, list[Any]]]:
        """The cipher's four words, each (rows, blocks), for slices of the rows."""
        if not 0 <= count <= 4 * 2**32:
            raise ValueError(f"a row may hold between 0 and 2**34 numbers, got {count}")
        low, high, steps = _counter(ids, step, draw, device)
        blocks = torch.arange(-(-count // 4), device=device)[None]
        on_cpu = device.type == "cpu"
        if on_cpu:
            _keep_freed_memory()
        name = keys.key(self.seed, purpose)
        key = name & _MASK, name >> 32
        size = max(1, _CHUNK.get(device.type, _CHUNK["cuda"]) // max(1, blocks.shape[1]))
        for first in range(0, len(low), size):
            rows = slice(first, first + size)
            counter = [blocks, steps[rows], low[rows], high[rows]]
            # On a CPU NumPy multiplies 64-bit integers some three times faster than torch does.
            yield rows, philox([c.numpy() for c in counter], key) if on_cpu else philox(counter, key)


def philox(counter: Sequence[Array], key: tuple[int, int]) -> list[Array]:
    """Philox4x32-10 of Salmon et al. 2011, in 64-bit integers of NumPy or of torch: both wrap modulo 2**64.

    Args:
        counter: four int64 arrays with values in [0, 2**32), broadcastable against each other.
        key: two integers in [0, 2**32).

    Returns:
        Four int64 arrays of the common shape, with values in [0, 2**32).
    """
    c0, c1, c2, c3 = (c * 1 for c in counter)  # copies, to be overwritten
    k0, k1 = key
    for _ in range(_ROUNDS):
        c0 *= _MULTIPLIER[0]
        c2 *= _MULTIPLIER[1]
        c0, c1, c2, c3 = _mix(c2, c1, k0), c2, _mix(c0, c3, k1), c0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    c1 &= _MASK
    c3 &= _MASK
    return [c0, c1, c2, c3]


def _mix(product: Array, word: Array, key: int) -> Array:
    """Upper half of a product, XOR a word, XOR a key; only the lower 32 bits of ``word`` count."""
    high = product >> 32
    if high.shape == word.shape:
        high ^= word
    else:  # The words of a counter differ along one axis each; the first rounds spread them over both.
        high = high ^ word
    high ^= key
    high &= _MASK  # the wrapped product may be negative, and its shift then extended the sign
    return high


@cache
def _keep_freed_memory() -> None:
    """Once per process: make the C library keep the blocks that NumPy frees.

    glibc returns freed blocks above a threshold to the system, and a new block then costs page faults, which
    take longer than the arithmetic. The threshold rises to the largest block freed so far, up to 32 MiB
    (mallopt(3), "dynamic mmap threshold"), so one such block is allocated and freed untouched. Any network
    evaluation has the same effect.
    """
    np.empty(2**24, np.uint8)


def _counter(ids: Ids, step: Steps, draw: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(id mod 2**32, id // 2**32, step * 2**8 + draw), each int64 of shape (n, 1) or (1, 1), checked."""
    rows, steps = _whole("ids", ids), _whole("step", step)
    if rows.ndim != 1:
        raise ValueError(f"ids must have shape (n,), got {tuple(rows.shape)}")
    if steps.ndim and steps.shape != rows.shape:
        raise ValueError(
            f"step must be one integer or one per id {tuple(rows.shape)}, got {tuple(steps.shape)}"
        )
    if not 0 <= draw < DRAWS:
        raise ValueError(f"draw must lie in [0, {DRAWS}), got {draw}")
    if len(rows) and (least := int(rows.min())) < 0:
        raise ValueError(f"ids must be 0 or more, got {least}")
    if steps.numel() and not 0 <= int(steps.min()) <= int(steps.max()) < STEPS:
        raise ValueError(f"step must lie in [0, {STEPS}), got {int(steps.min())} to {int(steps.max())}")
    rows = rows.to(device, torch.int64)[:, None]
    return rows & _MASK, rows >> 32, (steps.to(device, torch.int64) * DRAWS + draw).expand(len(rows))[:, None]


def _whole(name: str, value: Ids | Steps) -> Tensor:
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.size == 0:
            array = array.astype(np.int64)
        if array.dtype.kind not in "iu" or array.dtype == np.uint64:
            raise ValueError(f"{name} must be integers that fit into int64, got {array.dtype} {value!r}")
        return torch.from_numpy(array.astype(np.int64))
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, got {value.dtype}")
    return value


def _count(shape: tuple[int, ...]) -> int:
    if any(side < 0 for side in shape):
        raise ValueError(f"a shape needs sides of 0 or more, got {shape}")
    return math.prod(shape)


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in _TERMS:
        raise ValueError(f"noise and uniform numbers come as float32 or float64, not {dtype}")


# Terms of the series for (logarithm, sine, cosine): the first one left out is below the dtype's eps.
_TERMS = {torch.float32: (4, 5, 5), torch.float64: (11, 9, 10)}
# Integer twin of a float, width of its mantissa, and the bits of sqrt(1/2).
_BITS = {
    torch.float32: (torch.int32, 23, 0x3F3504F3),
    torch.float64: (torch.int64, 52, 0x3FE6A09E667F3BCD),
}
_NUMPY = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.int32: np.int32,
    torch.int64: np.int64,
}


def _radius(word: Array, dtype: torch.dtype) -> Array:
    """sqrt(-2 ln u) with u = (word + 1/2) / 2**32.

    u = m 2**k with m in [sqrt(1/2), sqrt(2)), and ln m = 2 artanh(s) = 2 (s + s**3 / 3 + s**5 / 5 + ...),
    s = (m - 1) / (m + 1), |s| < 0.172.
    """
    integer, mantissa, root_half = _BITS[dtype]
    u = _cast(word, dtype)
    u += 0.5
    u *= 2.0**-32
    bits = _view(u, integer)
    exponent = bits - root_half
    exponent >>= mantissa
    bits -= exponent << mantissa
    s = u - 1.0  # by now u holds m
    u += 1.0
    s /= u
    out = _polynomial(s * s, [-4.0 / (2 * k + 1) for k in range(_TERMS[dtype][0])])
    out *= s
    shift = _cast(exponent, dtype)
    shift *= -2.0 * math.log(2.0)
    out += shift
    return out.sqrt_() if isinstance(out, Tensor) else np.sqrt(out, out=out)


def _circle(word: Array, dtype: torch.dtype) -> tuple[Array, Array]:
    """(cos a, sin a) with a = 2 pi (word - 2**31 + 1/2) / 2**32.

    The Taylor series at a / 4, within pi / 4 of zero, then twice
    cos 2b = 1 - 2 sin**2 b and sin 2b = 2 sin b cos b.
    """
    quarter = _cast(word, dtype)
    quarter += 0.5 - 2.0**31
    quarter *= math.pi / 2.0**33
    square = quarter * quarter
    _, terms_sine, terms_cosine = _TERMS[dtype]
    sine = _polynomial(square, [(-1.0) ** k / math.factorial(2 * k + 1) for k in range(terms_sine)])
    sine *= quarter
    cosine = _polynomial(square, [(-1.0) ** k / math.factorial(2 * k) for k in range(terms_cosine)])
    for _ in range(2):
        twice = sine * -2.0
        sine *= twice
        sine += 1.0
        twice *= cosine
        cosine, sine = sine, twice  # the sine of the half angle changes its sign ...
    return cosine, sine  # ... twice


def _polynomial(x: Array, coefficients: list[float]) -> Array:
    """Sum of coefficients[k] x**k by Horner's rule, without fused multiply-add, whose rounding varies."""
    *rest, last = coefficients
    out = x * last
    for c in reversed(rest[1:]):
        out += c
        out *= x
    out += rest[0]
    return out


def _cast(x: Array, dtype: torch.dtype) -> Array:
    return x.to(dtype) if isinstance(x, Tensor) else x.astype(_NUMPY[dtype])


def _view(x: Array, dtype: torch.dtype) -> Array:
    return x.view(dtype) if isinstance(x, Tensor) else x.view(_NUMPY[dtype])
