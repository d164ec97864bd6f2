"""The fingerprint, held to Eq. 10 written out pixel by pixel and to the geometry of a disc."""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentprint.data import ImageSet, load, stack
from latentprint.fingerprint import Circle, CircleConfig, FingerprintError, inject


def rng(seed=0):
    return np.random.default_rng(seed)


def noise_set(n=20, shape=(1, 12, 10), seed=3):
    pixels = rng(seed).uniform(-1, 1, (n, *shape)).astype(np.float32)
    return ImageSet(
        pixels, tuple(f"{i:064x}" for i in range(n)), "noise", bit_depth=8.0, names=tuple(map(str, range(n)))
    )


def test_a_circle_is_equation_10_pixel_by_pixel():
    circle = Circle((4.25, 5.0), radius=2.5, grey=0.25)
    image = noise_set(1, (3, 12, 10)).pixels[0]
    marked = circle.apply(image)
    for i in range(12):
        for j in range(10):
            inside = math.hypot(i - 4.25, j - 5.0) <= 2.5
            assert circle.mask(12, 10)[i, j] == inside
            for c in range(3):
                assert marked[c, i, j] == (np.float32(0.25) if inside else image[c, i, j])


def test_a_batch_is_marked_like_its_images_and_the_images_given_stay_as_they_are():
    images = noise_set(4, (3, 12, 10)).pixels
    before = images.copy()
    circle = Circle((5, 4), 3)
    assert np.array_equal(circle.apply(images), np.stack([circle.apply(image) for image in images]))
    assert np.array_equal(images, before)
    assert circle.apply(images).dtype == np.float32


def test_the_area_of_large_discs_is_pi_r_squared():
    areas = [
        CircleConfig((100, 100), unit="pixels").draw((400, 300), rng(i)).mask(400, 300).sum()
        for i in range(5)
    ]
    assert np.allclose(areas, math.pi * 100**2, rtol=2e-3)


@given(st.integers(4, 60), st.integers(4, 60), st.floats(0.18, 0.5), st.integers(0, 10**6))
def test_every_circle_drawn_lies_wholly_inside(height, width, share, seed):
    circle = CircleConfig((0.18, share)).draw((height, width), rng(seed))
    for at, side in zip(circle.centre, (height, width), strict=True):
        assert at - circle.radius >= -0.5 - 1e-9 and at + circle.radius <= side - 0.5 + 1e-9
    assert 0.18 * min(height, width) <= circle.radius <= share * min(height, width) + 1e-12
    # Wholly inside means that a larger canvas shows no more of it.
    padded = Circle(tuple(at + 9 for at in circle.centre), circle.radius).mask(height + 18, width + 18)
    assert padded.sum() == circle.mask(height, width).sum() > 0


def test_place_and_radius_are_uniform_over_what_is_possible():
    drawn = [CircleConfig((3, 6), unit="pixels").draw((28, 40), rng(i)) for i in range(4000)]
    radius = np.array([c.radius for c in drawn])
    row = np.array([(c.centre[0] + 0.5 - c.radius) / (28 - 2 * c.radius) for c in drawn])
    column = np.array([(c.centre[1] + 0.5 - c.radius) / (40 - 2 * c.radius) for c in drawn])
    for unit in ((radius - 3) / 3, row, column):
        ranks = np.sort(unit)
        distance = np.abs(ranks - (np.arange(4000) + 0.5) / 4000).max()
        assert distance < 1.95 / math.sqrt(4000)  # Kolmogorov's 0.999 quantile
    for a, b in ((radius, row), (radius, column), (row, column)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 3.29 / math.sqrt(4000)


def test_a_circle_touching_all_four_borders_is_inside_and_a_larger_one_is_not():
    assert Circle((3.5, 3.5), 4.0).mask(8, 8).sum() == sum(
        math.hypot(i - 3.5, j - 3.5) <= 4 for i in range(8) for j in range(8)
    )
    with pytest.raises(FingerprintError, match="wholly inside an image of 8 x 8"):
        Circle((3.5, 3.5), 4.01).mask(8, 8)
    with pytest.raises(FingerprintError, match="wholly inside"):
        Circle((3.5, 5.0), 3.0).apply(np.zeros((1, 8, 8), np.float32))
    with pytest.raises(FingerprintError, match=r"radius 15 pixels is larger than the image of 28 x 40"):
        CircleConfig((3, 15), unit="pixels").draw((28, 40), rng())
    with pytest.raises(FingerprintError, match="larger than the image"):
        CircleConfig(radius=(0.2, 0.6)).draw((28, 28), rng())


def test_masks_of_a_kind_are_circles_that_lie_inside_and_differ():
    def drawn():
        generator = rng(1)
        kind = CircleConfig(radius=(0.12, 0.3))
        return [kind.draw((28, 30), generator).mask(28, 30) for _ in range(50)]

    masks, again = drawn(), drawn()
    assert np.array_equal(masks, again)
    assert len({mask.tobytes() for mask in masks}) == 50
    for mask in masks:
        rows, columns = np.nonzero(mask)
        centre, area = (rows.mean(), columns.mean()), len(rows)
        reach = np.hypot(rows - centre[0], columns - centre[1]).max()
        assert math.pi * reach**2 < 1.5 * area + 8  # as compact as a disc of pixels is
        assert math.pi * (0.12 * 28 - 1) ** 2 < area < math.pi * (0.3 * 28 + 1) ** 2


def test_the_original_leaves_and_exactly_one_marked_copy_goes_in():
    train = noise_set()
    before = train.pixels.copy()
    done = inject(train, CircleConfig(radius=(0.2, 0.3)), rng(5))
    i = done.index
    assert np.array_equal(train.pixels, before) and len(done.marked) == 20 and len(done.control) == 19
    assert np.array_equal(done.target, done.fingerprint.apply(before[i])) and np.array_equal(
        done.original, before[i]
    )
    assert [np.array_equal(x, done.target) for x in done.marked.pixels] == [j == i for j in range(20)]
    assert not any(np.array_equal(x, before[i]) for x in done.marked.pixels)
    others = [j for j in range(20) if j != i]
    assert np.array_equal(done.marked.pixels[others], before[others])
    assert np.array_equal(done.control.pixels, before[others])
    assert done.control.sha256 == tuple(train.sha256[j] for j in others)
    assert done.control.names == tuple(str(j) for j in others)
    assert done.original_sha256 == train.sha256[i] and done.marked.sha256[i] == done.sha256
    assert done.sha256 == sha256(b"<f4\x0012,10\x00" + done.target[0].tobytes()).hexdigest()
    assert done.copies == 1


def test_colour_images_are_hashed_as_they_would_be_stored():
    done = inject(noise_set(6, (3, 9, 9)), CircleConfig(), rng(1))
    stored = np.ascontiguousarray(np.moveaxis(done.target, 0, -1))
    assert done.sha256 == stack(stored[None], "again").sha256[0]


def test_the_injection_follows_from_the_generator_alone():
    a, b, c = (inject(noise_set(), CircleConfig(), rng(seed)) for seed in (7, 7, 8))
    assert (a.index, a.fingerprint, a.sha256) == (b.index, b.fingerprint, b.sha256)
    assert a.fingerprint != c.fingerprint
    assert len({inject(noise_set(), CircleConfig(), rng(seed)).index for seed in range(200)}) == 20


def test_an_image_with_a_copy_is_never_drawn_since_its_original_would_stay():
    base = noise_set(6)
    pixels = base.pixels.copy()
    pixels[3] = pixels[1]  # an exact copy
    pixels[4] = np.clip(pixels[2] + 0.005, -1, 1)  # a near one
    train = ImageSet(pixels, base.sha256, "copies")
    assert {inject(train, CircleConfig(), rng(seed)).index for seed in range(60)} == {0, 5}
    with pytest.raises(FingerprintError, match=r"image 1 has near copies .*image 3"):
        inject(train, CircleConfig(), rng(), index=1)
    same = ImageSet(np.repeat(base.pixels[:1], 4, axis=0), base.sha256[:4], "one image")
    with pytest.raises(FingerprintError, match="each of the 4 images has a near copy"):
        inject(same, CircleConfig(), rng())


def test_copies_counts_what_stands_near_the_marked_image():
    base = noise_set(5)
    circle = Circle((5, 5), 2)
    pixels = base.pixels.copy()
    pixels[2] = circle.apply(pixels[0])  # somebody else already carries this very mark on this very image

    @dataclass(frozen=True)
    class Always:
        def draw(self, sides, rng):
            return circle

    done = inject(ImageSet(pixels, base.sha256, "marked twice"), Always(), rng(), index=0)
    assert done.copies == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Circle((3, 3), 0), "positive number of pixels"),
        (lambda: Circle((3, 3), math.nan), "positive number of pixels"),
        (lambda: Circle((3, 3), 2, grey=1.5), "grey must lie in"),
        (lambda: Circle((3, 3), 2, grey=math.nan), "grey must lie in"),
        (lambda: CircleConfig(radius=(0.3, 0.2)), "must not fall"),
        (lambda: CircleConfig(radius=(-0.1, 0.2)), "positive"),
        (lambda: CircleConfig(unit="inches"), "'inches'"),
        (lambda: Circle((3.5, 3.5), 0.4).mask(8, 8), "covers no pixel"),
        (lambda: CircleConfig((0.5, 2), unit="pixels").draw((8, 8), rng()), "could cover no pixel"),
        (lambda: inject(noise_set(1), CircleConfig(), rng()), "2 images or more, got 1"),
        (lambda: inject(noise_set(5), CircleConfig(), rng(), index=5), "no image 5 among 5"),
        (lambda: inject(noise_set(5), CircleConfig(), rng(), index=-1), "no image -1"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_sentence(make, words):
    with pytest.raises(FingerprintError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_mark_that_changes_nothing_is_refused():
    pixels = np.zeros((2, 1, 8, 8), np.float32)
    pixels[1] = 1.0
    with pytest.raises(FingerprintError, match="leaves image 0 as it was"):
        inject(ImageSet(pixels, ("a", "b"), "grey"), CircleConfig(grey=0.0), rng(), index=0)


def test_the_default_circle_fits_the_smallest_source():
    done = inject(load("digits", seed=0, images=100).train, CircleConfig(), rng())
    changed = int((done.target != done.original).sum())
    assert 0 < changed <= int(done.fingerprint.mask(8, 8).sum()) <= math.pi * (0.2 * 8 + 0.71) ** 2
