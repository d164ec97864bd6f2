"""Marks other than the circle, held to counts of pixels and to Eq. 10."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from latentprint.data import stack
from latentprint.fingerprint import (
    Circle,
    CircleConfig,
    Fingerprint,
    FingerprintError,
    FingerprintKind,
    inject,
)
from latentprint.marks import (
    GLYPHS,
    Box,
    Cross,
    CrossConfig,
    FingerprintSettings,
    Lead,
    LeadConfig,
    Natural,
    Patch,
    PatchConfig,
    Text,
    TextConfig,
    Unmarked,
    as_found,
    box,
    locate,
)
from latentprint.marks.settings import DRAWN


def images(count: int = 12, side: int = 28, channels: int = 1, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    shape = (count, side, side) if channels == 1 else (count, side, side, channels)
    return stack(rng.integers(0, 256, shape, dtype=np.uint8), "random")


def drawing(mask: np.ndarray) -> list[str]:
    return ["".join("#" if v else "." for v in row) for row in mask]


def test_a_cross_pixel_by_pixel() -> None:
    assert drawing(Cross((2, 3), 2, 0).mask(6, 7)) == [
        "...#...",
        "...#...",
        ".#####.",
        "...#...",
        "...#...",
        ".......",
    ]
    # two bars of length 2r + 1 and width 2h + 1, less the square they share
    assert Cross((10, 10), 6, 2).mask(28, 28).sum() == 2 * 13 * 5 - 25


def test_text_pixel_by_pixel() -> None:
    assert drawing(Text("T1").mask(5, 7)) == ["###..#.", ".#..##.", ".#...#.", ".#...#.", ".#..###"]
    large = Text("T", 1, 2, scale=2).mask(12, 9)
    assert large.sum() == 4 * 7 and large[1:3, 2:8].all() and not large[:1].any() and not large[:, :2].any()
    assert len(set(GLYPHS.values())) == len(GLYPHS) and all(len(rows) == 5 for rows in GLYPHS.values())


def test_a_straight_lead_is_a_band() -> None:
    # equally spaced control points on a line give the line
    points = ((5.0, 2.0), (5.0, 8.0), (5.0, 14.0), (5.0, 20.0))
    mask = Lead(points, 3.0).mask(11, 28)
    rows, columns = np.nonzero(mask)
    assert rows.min() == 4 and rows.max() == 6  # centres within 1.5
    assert columns.min() == 1 and columns.max() == 21  # round ends
    assert mask[4:7, 3:20].all() and mask.sum() == 3 * 19 + 2 * 3


def test_a_bent_lead_is_the_curve() -> None:
    lead = Lead(((0.0, 3.0), (20.0, 1.0), (2.0, 26.0), (25.0, 22.0)), 2.0)
    s = np.linspace(0, 1, 20_001)[:, None]
    a, b, c, d = (np.array(p) for p in lead.points)
    curve = (1 - s) ** 3 * a + 3 * s * (1 - s) ** 2 * b + 3 * s**2 * (1 - s) * c + s**3 * d
    at = np.stack(np.meshgrid(np.arange(28), np.arange(28), indexing="ij"), -1).reshape(-1, 2)
    distance = np.sqrt(((at[:, None] - curve) ** 2).sum(-1).min(1)).reshape(28, 28)
    mask = lead.mask(28, 28)
    assert mask[distance < 0.97].all() and not mask[distance > 1.03].any() and 40 < mask.sum() < 120


def test_a_patch_is_blended() -> None:
    content = np.linspace(-1, 1, 2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    x = np.random.default_rng(0).uniform(-1, 1, (5, 2, 9, 9)).astype(np.float32)
    out = Patch(content, (2, 4), 0.75).apply(x)
    assert np.allclose(out[:, :, 2:5, 4:8], 0.25 * x[:, :, 2:5, 4:8] + 0.75 * content, atol=1e-6)
    outside = ~box((2, 4), (3, 4), (9, 9))
    assert np.array_equal(out[:, :, outside], x[:, :, outside])
    with pytest.raises(FingerprintError, match="channels"):
        Patch(content, (0, 0)).apply(x[:, :1])


GREY: list[Fingerprint] = [
    Cross((9, 9), 4, 1, 0.5),
    Text("AB-9", 3, 2, 1, -1.0),
    Lead(((0.0, 3.0), (9.0, 1.0), (2.0, 20.0), (25.0, 22.0)), 1.5, 1.0),
]


@pytest.mark.parametrize("mark", GREY, ids=lambda m: type(m).__name__)
def test_marks_of_constant_grey_follow_equation_10(mark: Any) -> None:
    x = images(3, channels=3).pixels
    before = x.copy()
    inside = mark.mask(28, 28)
    out = mark.apply(x)
    assert np.array_equal(out, x * ~inside + np.float32(mark.grey) * inside) and np.array_equal(x, before)
    assert out.dtype == np.float32 and np.array_equal(mark.apply(out), out)
    assert mark.describe()["grey"] == mark.grey


def kinds() -> list[FingerprintKind]:
    sources = images(5, seed=9).pixels
    return [
        *(FingerprintSettings(kind=kind).drawn(sources) for kind in DRAWN),
        TextConfig("PAT-7", grey=-1.0),
        Natural(box((3, 4), (6, 7), (28, 28)), images(1, seed=5).pixels[0]),
    ]


@pytest.mark.parametrize("kind", kinds(), ids=lambda k: type(k).__name__)
def test_every_kind_can_be_injected_and_drawn_anywhere(kind: FingerprintKind) -> None:
    train, rng = images(), np.random.default_rng(3)
    injection = inject(train, kind, rng)
    mask = injection.fingerprint.mask(28, 28)
    changed = (injection.target != injection.original).any(0)
    assert mask.any() and not changed[~mask].any() and changed[mask].mean() > 0.9
    assert len(injection.control) == 11 and injection.copies == 1
    assert {"kind"} <= set(injection.fingerprint.describe())
    if not isinstance(kind, Natural):  # which is where it is
        masks = np.stack([kind.draw((28, 28), rng).mask(28, 28) for _ in range(400)])
        assert masks.any((1, 2)).all() and masks.any(0)[4:-4, 4:-4].all()  # nowhere inside is out of reach
        assert len({mask.tobytes() for mask in masks}) > 100


def volumes(count: int = 6, sides: tuple[int, ...] = (9, 12, 10), seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return stack(rng.integers(0, 256, (count, *sides), dtype=np.uint8), "random volumes")


def test_a_ball_is_equation_10_voxel_by_voxel() -> None:
    ball, x = Circle((4.25, 5.0, 3.5), 2.5, 0.25), volumes(1).pixels[0]
    out = ball.apply(x)
    for at in np.ndindex(9, 12, 10):
        inside = math.dist(at, (4.25, 5.0, 3.5)) <= 2.5
        assert out[0][at] == (np.float32(0.25) if inside else x[0][at])
    assert ball.describe() == {"kind": "circle", "slice": 4.25, "row": 5.0, "column": 3.5} | {
        "radius": 2.5,
        "grey": 0.25,
    }
    with pytest.raises(FingerprintError, match="wholly inside an image of 9 x 12 x 10"):
        Circle((1.9, 5.0, 5.0), 2.5).mask(9, 12, 10)


def test_volumes_of_balls_rods_and_boxes() -> None:
    ball = CircleConfig((20, 20), "pixels").draw((50, 60, 50), np.random.default_rng(1))
    assert np.isclose(ball.mask(50, 60, 50).sum(), 4 / 3 * math.pi * 20**3, rtol=3e-3)
    straight = Lead(((12.0, 12.0, 10.0), (12.0, 12.0, 20.0), (12.0, 12.0, 30.0), (12.0, 12.0, 40.0)), 9.0)
    z, y, x = np.ogrid[:25, :25, :51]
    rod = (z - 12) ** 2 + (y - 12) ** 2 + (x - x.clip(10, 40)) ** 2 <= 4.5**2  # a cylinder with round ends
    assert np.array_equal(straight.mask(25, 25, 51), rod)
    assert Box((1, 2, 3), (4, 5, 6)).mask(9, 9, 9).sum() == 4 * 5 * 6
    assert Cross((4, 4, 4), 3, 1).mask(9, 9, 9).sum() == 3 * 7 * 9 - 2 * 27  # three bars share a cube


@pytest.mark.parametrize(
    "kind",
    [
        *(
            FingerprintSettings(kind=kind).drawn(volumes(5, seed=9).pixels)
            for kind in DRAWN
            if kind != "text"
        ),
        TextConfig(letters=2),
        Natural(box((2, 3, 4), (3, 4, 5), (9, 12, 10)), volumes(1, seed=5).pixels[0]),
    ],
    ids=lambda k: type(k).__name__,
)
def test_every_kind_marks_volumes(kind: FingerprintKind) -> None:
    train, rng = volumes(), np.random.default_rng(3)
    done = inject(train, kind, rng)
    mask, changed = done.fingerprint.mask(9, 12, 10), (done.target != done.original).any(0)
    assert mask.any() and not mask.all() and not changed[~mask].any() and changed[mask].mean() > 0.7
    assert done.copies == 1 and done.marked.shape == (1, 9, 12, 10)
    assert {"slice", "column"} & set(done.fingerprint.describe()) or isinstance(kind, TextConfig)
    again = done.fingerprint.apply(train.pixels)
    assert np.array_equal(again[:, :, ~mask], train.pixels[:, :, ~mask])
    if not isinstance(kind, Natural):
        masks = [kind.draw((9, 12, 10), rng).mask(9, 12, 10) for _ in range(400)]
        assert np.any(masks, axis=0)[3:-3, 3:-3, 3:-3].mean() > 0.9


def test_regions_of_volumes(tmp_path: Any) -> None:
    sides = (9, 12, 10)
    found = FingerprintSettings(kind="natural", region="1,2,3,4,5,6").mask(*sides)
    assert found is not None and np.array_equal(found, box((1, 2, 3), (4, 5, 6), sides))
    np.save(tmp_path / "mask.npy", found.astype(np.uint8) * 255)
    region = str(tmp_path / "mask.npy")
    assert np.array_equal(FingerprintSettings(kind="natural", region=region).mask(*sides), found)
    for wrong, words in (("1,2,3,4", "slice,row,column,depth,height,width"), (region, "9 x 12 x 10")):
        with pytest.raises(FingerprintError, match=words):
            FingerprintSettings(kind="natural", region=wrong).mask(9, 12, 11)


@pytest.mark.parametrize(("make", "size"), [(CrossConfig, 3), (TextConfig, 8), (LeadConfig, 2)])
def test_drawn_marks_lie_wholly_inside_and_reach_every_edge(make: Any, size: int) -> None:
    rng = np.random.default_rng(4)
    found = [make().draw((12, 16), rng).mask(12, 16) for _ in range(600)]
    union = np.any(found, axis=0)
    assert all(mask.sum() >= size for mask in found)
    assert union[0].any() and union[:, 0].any() and union[:, -1].any()
    assert make is LeadConfig or union[-1].any()


def test_the_place_of_a_cross_is_uniform() -> None:
    rng = np.random.default_rng(5)
    rows = [CrossConfig((0.25, 0.25)).draw((12, 12), rng).centre[0] for _ in range(6000)]
    counts = np.bincount(rows, minlength=12)
    assert counts[:3].sum() == counts[9:].sum() == 0  # reach 3
    assert (np.abs(counts[3:9] - 1000) < 3.3 * np.sqrt(1000 * 5 / 6)).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Cross((1, 5), 2).mask(9, 9),
        lambda: Cross((5, 5), 2, 2),
        lambda: Cross((5, 5), 2, grey=1.5),
        lambda: Text("abc"),
        lambda: Text("  "),
        lambda: Text("A", scale=0),
        lambda: Text("AAA").mask(28, 10),
        lambda: Lead(((0, 0), (1, 1), (2, 2), (30, 3)), 1.5).mask(28, 28),
        lambda: Lead(((0, 0), (1, 1), (2, 2), (3, 3)), 0.5),
        lambda: Patch(np.full((1, 2, 2), 2, dtype=np.float32), (0, 0)),
        lambda: Patch(np.full((1, 2, 2), np.nan, dtype=np.float32), (0, 0)),
        lambda: Patch(np.zeros((1, 2, 2), dtype=np.float32), (0, 0), 0.0),
        lambda: Patch(np.zeros((1, 2, 2), dtype=np.float32), (8, 0)).mask(9, 9),
        lambda: Natural(np.zeros((9, 9), dtype=np.bool_), np.zeros((1, 9, 9), dtype=np.float32)),
        lambda: Natural(np.ones((9, 9), dtype=np.bool_), np.zeros((1, 9, 9), dtype=np.float32)),
        lambda: Natural(np.ones((9, 8), dtype=np.bool_), np.zeros((1, 9, 9), dtype=np.float32)),
        lambda: Box((0, 0), (3, 3), 2.0),
        lambda: box((0, 0), (0, 3), (9, 9)),
        lambda: box((-1, 0), (3, 3), (9, 9)),
        lambda: TextConfig(letters=0),
        lambda: CrossConfig((0.3, 0.2)),
        lambda: TextConfig("LONG NAME").draw((28, 28), np.random.default_rng(0)),
        lambda: PatchConfig(np.zeros((1, 1, 4, 4), dtype=np.float32)).draw(
            (28, 28), np.random.default_rng(0)
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(make: Any) -> None:
    with pytest.raises(FingerprintError):
        make()


def test_a_natural_mark_is_pasted_elsewhere_and_changes_nothing_at_home() -> None:
    train = images(channels=3)
    region = np.zeros((28, 28), dtype=np.bool_)
    region[5:9, 20:24] = True
    region[6, 21] = False
    found = as_found(train, 4, region)
    mark = found.fingerprint
    assert np.array_equal(mark.apply(found.target), train.pixels[4])
    out = mark.apply(train.pixels)
    assert np.array_equal(out[:, :, ~region], train.pixels[:, :, ~region])
    assert (out[:, :, region] == train.pixels[4][:, region]).all()
    box_of = {k: mark.describe()[k] for k in ("row", "column", "height", "width", "pixels")}
    assert box_of == {"row": 5, "column": 20, "height": 4, "width": 4, "pixels": 15}


def test_nothing_is_injected_and_copies_leave_the_control() -> None:
    train = images()
    pixels = train.pixels.copy()
    pixels[7] = np.clip(pixels[2] + 0.01, -1, 1)
    from dataclasses import replace

    doubled = replace(train, pixels=pixels)
    found = as_found(doubled, 2)
    assert found.marked is doubled and found.copies == 2 and isinstance(found.fingerprint, Unmarked)
    assert len(found.control) == 10 and not np.isin([2, 7], _kept(doubled, found.control)).any()
    assert found.sha256 == found.original_sha256 == train.sha256[2]
    assert np.array_equal(found.fingerprint.apply(found.target), found.target)
    assert locate(doubled, found.target) == (2, 7)
    assert locate(doubled, pixels[7]) == (7, 2)
    assert locate(doubled, -found.target) == ()
    with pytest.raises(FingerprintError, match="no image 12"):
        as_found(train, 12)
    with pytest.raises(FingerprintError, match="no control"):
        as_found(train.take([3, 3]), 0)


def _kept(train: Any, control: Any) -> list[int]:
    return [train.sha256.index(h) for h in control.sha256]
