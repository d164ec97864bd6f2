"""What a log says about the pace of long work, with a clock that the test sets."""

from collections.abc import Callable

import pytest

from latentprint import progress
from latentprint.audit.estimates import AtWork


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock, in seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_the_rate_is_that_of_this_process_and_of_the_last_minute(
    at: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    bars = progress.Bars()
    bars("sampling", 500, 2000, "images")  # resumed: 500 were there
    for second in range(1, 301):  # one image a second for two minutes, then five
        at(second)
        bars("sampling", 500 + second + 4 * max(0, second - 120), 2000, "images")
    said = lines(capsys)
    assert said[0] == "sampling: 500 of 2,000 images"
    assert said[4] == "sampling: 560 of 2,000 images, 1 images/s, 24 min 00 s left"
    assert said[-2] == "sampling: 1,445 of 2,000 images, 5 images/s, 1 min 51 s left"
    assert len(said) == 21


def test_a_finished_stage_tells_its_whole_time(
    at: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    bars = progress.Bars()
    for second in range(0, 101):
        at(second)
        bars("sampling", 2 * second, 200, "images")
    assert lines(capsys)[-1] == "sampling: 200 of 200 images, 2 images/s, 1 min 40 s"


def test_the_parts_of_an_interrupted_estimate_that_are_read_are_no_speed(
    at: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    bars = progress.Bars()
    said = AtWork(lambda done, total: bars("estimating q by path", done, total, "samples"))
    said(0, 256)
    for done in range(256, 8193, 256):  # read, in no time
        said(done, 9472)
    said.begin()
    for round_ in range(1, 6):
        at(25.6 * round_)
        said(8192 + 256 * round_, 9472)
        said.begin()
    assert lines(capsys) == [
        "estimating q by path: 8,192 of 9,472 samples",
        "estimating q by path: 8,448 of 9,472 samples, 10 samples/s, 1 min 42 s left",
        "estimating q by path: 8,704 of 9,472 samples, 10 samples/s, 77 s left",
        "estimating q by path: 8,960 of 9,472 samples, 10 samples/s, 51 s left",
        "estimating q by path: 9,216 of 9,472 samples, 10 samples/s, 26 s left",
        "estimating q by path: 9,472 of 9,472 samples, 10 samples/s, 2 min 08 s",
    ]
