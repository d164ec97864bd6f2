"""Held to the cipher's published test vectors (kat_vectors of Random123), then to the laws of large samples.

Statistical bounds are set at a probability of about 1e-3 over all comparisons of a test; seeds are fixed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from latentprint.keys import generator, key
from latentprint.streams import DRAWS, STEPS, Streams, philox

ONES = 2**32 - 1
# (counter, key) -> words, from kat_vectors of Random123 ("philox4x32 10").
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize(("counter", "cipher_key", "words"), KNOWN)
def test_the_cipher_gives_its_published_vectors_in_numpy_and_torch(counter, cipher_key, words):
    in_numpy = philox([np.array([[c]]) for c in counter], cipher_key)
    assert tuple(int(w[0, 0]) for w in in_numpy) == words
    for device in DEVICES:
        in_torch = philox([torch.tensor([[c]], device=device) for c in counter], cipher_key)
        assert tuple(int(w[0, 0]) for w in in_torch) == words


def philox_one(counter: tuple[int, ...], cipher_key: tuple[int, int]) -> list[int]:
    """The cipher in plain Python integers, one counter at a time, from the formula."""
    c0, c1, c2, c3 = counter
    k0, k1 = cipher_key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


@pytest.mark.parametrize("device", DEVICES)
def test_integers_are_the_cipher_at_the_documented_counter(device):
    seed, ids, step, draw, count = (
        3,
        [0, 7, 2**32 + 5, 2**63 - 1],
        torch.tensor([0, 9, STEPS - 1, 70000]),
        11,
        10,
    )
    name = key(seed, "walk")
    got = Streams(seed).integers("walk", ids, step, count, device, draw=draw).cpu()
    for row, (i, s) in enumerate(zip(ids, step.tolist(), strict=True)):
        counters = [(block, s * 256 + draw, i % 2**32, i >> 32) for block in range(3)]
        want = [w for c in counters for w in philox_one(c, (name % 2**32, name >> 32))]
        assert got[row].tolist() == want[:count]


def test_the_key_is_fixed_for_all_time():
    # The 8-byte BLAKE2b digest of b"0\\0probe", personalised; another key would silently change every result.
    digest = hashlib.blake2b(b"0\x00probe", digest_size=8, person=b"latentprint").digest()
    assert key(0, "probe") == int.from_bytes(digest, "little") == 1025190200616995628
    assert key(1, "2x") != key(12, "x")
    assert len({key(seed, purpose) for seed in (0, 1) for purpose in ("probe", "probes")}) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_box_muller_of_the_integers(dtype):
    streams, ids, shape = Streams(1), range(50), (3, 28, 28)
    words = streams.integers("x", ids, 4, 2352).numpy().astype(np.float64)
    radius = np.sqrt(-2 * np.log((words[:, 0::2] + 0.5) / 2**32))
    angle = 2 * np.pi * (words[:, 1::2] - 2**31 + 0.5) / 2**32
    want = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(50, *shape)
    got = streams.noise("x", ids, 4, shape, dtype=dtype)
    assert got.dtype == dtype
    assert got.shape == (50, *shape)
    # u is rounded near 1, which the root of a small logarithm magnifies by 1 / radius.
    allowed = torch.finfo(dtype).eps * (40 + 1 / radius.repeat(2, axis=1)).reshape(want.shape)
    assert (np.abs(got.numpy() - want) < allowed).all()


@pytest.mark.parametrize("word", [0, 1, 2, 2**23, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1])
def test_the_ends_of_the_word_range_stay_finite(word):
    from latentprint.streams import _circle, _radius

    for dtype, atol in ((torch.float32, 2e-3), (torch.float64, 1e-12)):
        radius = float(_radius(np.array([[word]]), dtype)[0, 0])
        # Near u = 1 the root turns float32's rounding of u, 3e-8, into sqrt(2 * 6e-8) of a radius near zero.
        assert radius == pytest.approx(np.sqrt(-2 * np.log((word + 0.5) / 2**32)), abs=atol)
        cosine, sine = _circle(np.array([[word]]), dtype)
        assert float(cosine[0, 0]) ** 2 + float(sine[0, 0]) ** 2 == pytest.approx(1, abs=2e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1,), (3,), (7,), (1, 5, 5), (3, 28, 28)])
def test_a_row_has_the_same_bits_alone_in_a_batch_and_on_any_device(shape, dtype, device):
    streams, ids = Streams(5), [3, 1, 4, 1, 5, 9, 2, 6]
    together = streams.noise("x", ids, 2, shape, dtype=dtype)
    for row, i in enumerate(ids):
        alone = streams.noise("x", [i], 2, shape, dtype=dtype, device=device).cpu()
        assert torch.equal(alone[0], together[row])
    assert torch.equal(together[1], together[3])
    uniform = streams.uniform("x", ids, 2, shape, dtype=dtype)
    assert torch.equal(
        streams.uniform("x", ids[2:3], 2, shape, dtype=dtype, device=device).cpu()[0], uniform[2]
    )


def test_many_rows_worked_on_in_parts_are_the_rows_alone(monkeypatch):
    whole = Streams(5).noise("x", range(40), 2, (9,))
    monkeypatch.setitem(__import__("latentprint.streams", fromlist=["_CHUNK"])._CHUNK, "cpu", 7)
    assert torch.equal(Streams(5).noise("x", range(40), 2, (9,)), whole)


def test_a_longer_row_begins_with_the_shorter_one():
    streams = Streams(5)
    long = streams.noise("x", [8], 0, (4, 7, 7)).flatten()
    assert torch.equal(streams.noise("x", [8], 0, (13,))[0], long[:13])


def test_steps_per_row_are_the_steps_one_by_one():
    streams, ids, steps = Streams(5), [10, 11, 12], [5, 0, 900]
    together = streams.noise("x", ids, torch.tensor(steps), (6,))
    for row in range(3):
        assert torch.equal(streams.noise("x", ids[row : row + 1], steps[row], (6,))[0], together[row])
    assert torch.equal(streams.noise("x", torch.tensor(ids), np.array(steps), (6,)), together)
    assert torch.equal(streams.noise("x", np.array(ids, dtype=np.int32), torch.tensor(steps), (6,)), together)


def test_seed_purpose_id_step_draw_and_element_all_matter():
    base = Streams(1).integers("a", [1], 1, 64, draw=1)[0]
    others = [
        Streams(2).integers("a", [1], 1, 64, draw=1)[0],
        Streams(1).integers("b", [1], 1, 64, draw=1)[0],
        Streams(1).integers("a", [2], 1, 64, draw=1)[0],
        Streams(1).integers("a", [1 + 2**32], 1, 64, draw=1)[0],
        Streams(1).integers("a", [1], 2, 64, draw=1)[0],
        Streams(1).integers("a", [1], 1, 64, draw=2)[0],
        Streams(1).integers("a", [1], 1, 65, draw=1)[0, 1:],
    ]
    for other in others:
        assert not (base == other).any()
    assert len(set(base.tolist())) == 64


def test_no_two_of_id_step_draw_share_a_number():
    ids = [0, 1, 2, 255, 256, 2**32, 2**32 + 1, 2**40]
    steps, draws = [0, 1, 2, 255, 256, 65536, STEPS - 1], [0, 1, 255]
    # Two words make 64 bits: a chance collision among 168 rows has probability below 1e-15.
    rows = [
        Streams(0).integers("a", ids, step, 2, draw=draw).numpy().astype(np.uint64)
        for step in steps
        for draw in draws
    ]
    words = np.concatenate(rows)
    assert len(np.unique((words[:, 0] << np.uint64(32)) | words[:, 1])) == len(ids) * len(steps) * len(draws)


def test_the_normals_have_the_moments_of_a_normal():
    z = Streams(7).noise("moments", range(1000), 0, (1000,)).double().flatten()
    n = z.numel()
    # Standard errors of the first four moments and of the mean log |z| for N(0, 1).
    for value, expected, spread in [
        (z.mean(), 0.0, 1.0),
        ((z**2).mean(), 1.0, 2.0**0.5),
        ((z**3).mean(), 0.0, 15.0**0.5),
        ((z**4).mean(), 3.0, 96.0**0.5),
        ((z.abs() > 3).double().mean(), 2 * stats.norm.sf(3), stats.norm.sf(3) ** 0.5 * 2**0.5),
    ]:
        assert abs(float(value) - expected) < 3.8 * spread / n**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_and_uniforms_pass_kolmogorov_smirnov(dtype):
    streams = Streams(11)
    z = streams.noise("ks", range(200), 3, (1000,), dtype=dtype).flatten().numpy()
    assert stats.kstest(z, "norm").pvalue > 1e-3
    u = streams.uniform("ks", range(200), 3, (1000,), dtype=dtype).flatten().numpy()
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert 0 < u.min() < u.max() < 1
    counts = np.bincount(streams.integers("ks", range(200), 3, 1000).flatten().numpy() >> 24, minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_the_ends_of_the_open_interval_cannot_occur():
    for bits, dtype in ((23, torch.float32), (32, torch.float64)):
        top = (torch.tensor(2**bits - 1).to(dtype) + 0.5) * 2.0**-bits
        assert 0 < float((torch.tensor(0).to(dtype) + 0.5) * 2.0**-bits) < float(top) < 1
    u32 = Streams(3).uniform("u", range(2000), 0, (500,))
    u64 = Streams(3).uniform("u", range(2000), 0, (500,), dtype=torch.float64)
    assert float((u32 - u64).abs().max()) <= 2.0**-23


def test_rows_of_other_purposes_seeds_ids_steps_draws_and_elements_are_uncorrelated():
    n = 40_000
    base = {"purpose": "a", "ids": range(200), "step": 0, "draw": 0, "seed": 1}
    variants = [{}, {"purpose": "b"}, {"ids": range(1, 201)}, {"step": 1}, {"draw": 1}, {"seed": 2}]
    columns = []
    for variant in variants:
        c = base | variant
        columns.append(
            Streams(c["seed"]).noise(c["purpose"], c["ids"], c["step"], (200,), draw=c["draw"]).flatten()
        )
    columns += [columns[0].view(200, 200).roll(shift, 1).flatten() for shift in (1, 2, 3, 4, 8)]
    z = torch.stack(columns).double().numpy()
    for values in (z, z**2, np.abs(z)):  # pairs of Box and Muller share a radius: squares would show a fault
        off = np.corrcoef(values)[np.triu_indices(len(z), 1)]
        assert np.abs(off).max() < 4.6 / n**0.5  # 165 comparisons at 4.6 standard errors: 7e-4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ids": [-1]}, "ids must be 0 or more, got -1"),
        ({"ids": [2**63]}, "fit into int64"),
        ({"ids": [0.5]}, "ids must be integers"),
        ({"ids": torch.tensor([1.0])}, "ids must be integers"),
        ({"ids": [[1, 2]]}, r"shape \(n,\)"),
        ({"step": -1}, r"step must lie in \[0, 16777216\), got -1"),
        ({"step": STEPS}, "step must lie in"),
        ({"step": torch.tensor([0, STEPS])}, "step must lie in"),
        ({"step": torch.tensor([0, 1, 2])}, "one per id"),
        ({"step": 0.5}, "step must be integers"),
        ({"draw": -1}, r"draw must lie in \[0, 256\), got -1"),
        ({"draw": DRAWS}, "draw must lie in"),
        ({"shape": (-1,)}, "sides of 0 or more"),
        ({"dtype": torch.float16}, "float32 or float64, not torch.float16"),
        ({"purpose": ""}, "non-empty"),
    ],
)
def test_what_the_counter_cannot_hold_is_refused(wrong, message):
    good = {"purpose": "a", "ids": [0, 1], "step": 0, "shape": (2,), "draw": 0, "dtype": torch.float32}
    c = good | wrong
    with pytest.raises(ValueError, match=message):
        Streams(0).noise(c["purpose"], c["ids"], c["step"], c["shape"], draw=c["draw"], dtype=c["dtype"])


def test_negative_seeds_and_ids_of_generators_are_refused():
    with pytest.raises(ValueError, match="seed"):
        Streams(-1).noise("a", [0], 0, (1,))
    with pytest.raises(ValueError, match="id must lie"):
        generator(0, "a", -1)


def test_no_ids_give_no_rows():
    assert Streams(0).noise("a", [], 0, (3, 4)).shape == (0, 3, 4)
    assert Streams(0).noise("a", [5, 6], 0, ()).shape == (2,)


def test_numpy_generators_belong_to_seed_purpose_and_id():
    first = generator(1, "split").integers(0, 2**63, 8)
    assert (Streams(1).generator("split").integers(0, 2**63, 8) == first).all()
    for other in (generator(2, "split"), generator(1, "splits"), generator(1, "split", 1)):
        assert not (other.integers(0, 2**63, 8) == first).any()


def test_keys_need_no_torch():
    code = "import sys; import latentprint.keys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
