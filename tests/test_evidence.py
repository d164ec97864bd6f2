"""The confidential page holds the very pixels; the public one holds none."""

from __future__ import annotations

import base64
import io
import re
import stat
from pathlib import Path

import numpy as np
import pytest
import small_runs
from PIL import Image

from latentprint.report import Evidence, Noised, Sample, render, render_evidence, write_evidence
from latentprint.report.evidence import difference, png


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


def pictures(channels: int = 1) -> Evidence:
    rng = np.random.default_rng(0)

    def one() -> np.ndarray:
        return rng.uniform(-1, 1, (channels, 8, 8)).astype(np.float32)

    target = one()
    noised = [Noised(t, one(), target if t < 0.5 else one(), 0.9, 0.8, t < 0.5) for t in (0.8, 0.2)]
    return Evidence(
        target,
        noised,
        [Sample(i, one(), i / 10, 0.9, 0.9) for i in range(60)],
        [Sample(99, one(), 1, 0.9, 0.1)],
    )


def test_pixels_survive_exactly() -> None:
    levels = np.arange(256, dtype=np.float32).reshape(1, 16, 16) / 127.5 - 1
    assert (decoded(png(levels)) == np.arange(256).reshape(16, 16)).all()
    colour = np.stack([levels[0], -levels[0], levels[0].T])
    assert (decoded(png(colour))[..., 1] == 255 - np.arange(256).reshape(16, 16)).all()
    assert decoded(png(np.concatenate([levels] * 4))).shape == (16, 64)
    assert decoded(png(np.full((1, 1, 1), 7.0, np.float32))).item() == 255


def test_the_difference_map_is_the_absolute_error_on_the_stated_scale() -> None:
    first, second = np.zeros((3, 2, 2), np.float32), np.zeros((3, 2, 2), np.float32)
    second[:, 0, 0], second[0, 1, 1] = 0.5, -0.3
    gap = (difference(first, second, 0.5) + 1) / 2 * 0.5
    assert gap[0] == pytest.approx(np.array([[0.5, 0], [0, 0.1]]), abs=1e-6)


def test_the_page_shows_the_private_image_by_rising_noise_under_a_banner() -> None:
    given = pictures()
    page = render_evidence(given)
    sources = re.findall(r'src="(data:[^"]+)"', page)
    assert "CONFIDENTIAL" in page and sources[0] == png(given.target)
    assert page.index("t = 0.2") < page.index("t = 0.8")
    assert page.count(">recognised as the private image:<") == 1 and "48 of 60 shown" in page
    assert len(sources) == 1 + 3 * 2 + 2 * 48 + 2 * 1
    assert page.index("no. 0<") < page.index("no. 47<") and "no. 48<" not in page


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    path = write_evidence(tmp_path, pictures(3))
    assert path == tmp_path / "evidence" / "index.html"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and len(list(path.parent.iterdir())) == 1


def test_the_public_report_holds_no_image_at_all() -> None:
    page = render(small_runs.many_rows(200), small_runs.facts())
    assert "data:image" not in page and "<img" not in page and "<canvas" not in page


def test_images_that_do_not_belong_are_refused() -> None:
    target = np.zeros((1, 8, 8), np.float32)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\)"):
        Evidence(target, samples=[Sample(0, np.zeros((3, 8, 8), np.float32), 0, 0, 0)])
    with pytest.raises(ValueError, match="not finite"):
        Evidence(target * np.nan)
