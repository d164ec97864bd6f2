"""The report: right numbers in plain words, nothing private, nothing injected, nothing fetched, readable."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from importlib import resources
from typing import Any

import jsonschema
import made_up
import pytest

from latentprint import words
from latentprint.contracts import InputError
from latentprint.report import palette, reading, render, write_report
from latentprint.report.first import first_screen
from latentprint.report.sections import sections

CASES = {
    "leak": made_up.leak,
    "clean": made_up.clean,
    "undecided": made_up.undecided,
    "unmarked": made_up.unmarked,
}


class Parsed(HTMLParser):
    """Tags, attributes and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.said: list[str] = []
        self._silent = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._silent += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.said.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.said))


def schema() -> dict[str, Any]:
    return json.loads(resources.files("latentprint.report").joinpath("schema.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("value", "said"),
    [(1 / 98, "1 in 98"), (0.44, "44 in 100"), (1 / 12345, "1 in 12,300"), (4e-7, "1 in 2.5 million"),
     (1 / 999.6e6, "1 in 1 billion"), (1e-40, "1 in 10^40"), (0, "0"), (1, "all"),
     (0.998, "more than 99 in 100")],
)  # fmt: skip
def test_rates_read_as_people_say_them(value: float, said: str) -> None:
    assert words.one_in(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0123456, "0.0123"), (1234.5, "1,230"), (-0.5, "−0.5"), (2.13e-7, "2.13 × 10⁻⁷"), (0, "0"),
     (40.0, "40"), (None, "—")],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value: float | None, said: str) -> None:
    assert words.number(value) == said


def test_shares_keep_the_digits_that_matter_near_both_ends() -> None:
    shares = [0, 0.0025, 0.043, 0.44, 0.998, 0.9996, 1]
    assert [words.percent(s) for s in shares] == ["0%", "0.25%", "4.3%", "44%", "99.80%", "99.96%", "100%"]


def test_durations() -> None:
    assert [words.duration(s) for s in (3.21, 48, 200, 7500)] == ["3.2 s", "48 s", "3 min 20 s", "2 h 5 min"]


def test_the_first_screen_of_a_leak_says_what_a_steward_needs() -> None:
    results = made_up.leak()
    first = first_screen(results)
    answers = dict(first.answers)
    low, high = results["q"]["monte_carlo"]["low"], results["q"]["monte_carlo"]["high"]
    assert (first.state, first.big) == ("leak", "1 in 103")
    assert f"between 1 in {1 / low:.0f} and 1 in {1 / high:.0f}" in first.big_text
    assert "39 of 4,000" in answers["What we found"] and "none in 4,000" in answers["What we found"]
    assert "Do not release" in answers["What to do next"]
    # 19 times in 20 a copy shows among n images where 1 - (1 - q)^n >= 0.95; shown with two digits
    needed = math.ceil(math.log(0.05) / math.log(1 - 39 / 4000))
    assert f"{float(f'{needed:.1e}'):,.0f} images" in answers["What to do next"]


def test_without_a_mark_everything_speaks_of_one_recogniser() -> None:
    results = made_up.unmarked()
    answers = dict(first_screen(results).answers)
    assert "left as it was" in answers["What we looked for"]
    assert "One recogniser" in answers["What we found"] and "second model" not in answers["What we found"]
    assert "497 of 500 appearances" in answers["How sure this is"]
    text = Parsed(render(results, made_up.run())).text
    for two in (
        "ecognisers had to agree",
        "both recognisers",
        "Mark recognised",
        "Mark only",
        "Mark (presence)",
    ):
        assert two not in text
    assert "A marked image is an outlier" not in text and "carries no added mark" in text
    assert "given (diffusers)" in text
    for note in results["model"]["notes"]:
        assert note in text
    assert "A marked image is an outlier" in Parsed(render(made_up.leak(), made_up.run())).text


def test_the_first_screen_of_a_clean_model_says_what_could_have_been_missed() -> None:
    first = first_screen(made_up.clean())
    assert first.state == "clean" and first.big == "0 of 150,000"
    # 3 / n for zero hits, widened by what detectors that noticed 499 and 497 of 500 may overlook
    missed = dict(first.answers)["What could have been missed"]
    inverse = int(re.findall(r"1 in ([\d,]+)", missed)[0].replace(",", ""))
    assert 0.94 * 150_000 / 3 < inverse < 150_000 / 3
    assert "no promise of anonymity" in dict(first.answers)["What to do next"]


def test_an_undecided_run_says_how_many_images_would_decide() -> None:
    results = made_up.undecided()
    first = first_screen(results)
    needed = int(
        re.findall(r"at least ([\d,]+) images", dict(first.answers)["What to do next"])[0].replace(",", "")
    )
    more = made_up.changed(results, "q.monte_carlo", made_up.monte_carlo(0, needed, 1 / 546, 0, 1))
    fewer = made_up.changed(results, "q.monte_carlo", made_up.monte_carlo(0, needed - 2, 1 / 546, 0, 1))
    assert first.state == "unsure"
    assert made_up.verdict(more)["state"] == "not found"
    assert made_up.verdict(fewer)["state"] == "inconclusive"


@pytest.mark.parametrize("name", CASES)
def test_every_stated_count_stands_in_the_page(name: str) -> None:
    results = CASES[name]()
    text = Parsed(render(results, made_up.run())).text
    for source in (results["q"]["monte_carlo"], results["q"]["control"] or {}):
        for key in ("samples", "hits", "presence_hits", "identity_hits"):
            if source.get(key) is not None:
                assert f"{source[key]:,}" in text
    for estimate in (results["q"]["bridge"], results["q"]["splitting"]):
        if estimate:
            assert words.one_in(estimate["rate"]) in text and estimate["diagnostic"] in text
    assert results["target"]["sha256"] in text


@pytest.mark.parametrize("name", CASES)
def test_results_match_the_published_schema(name: str) -> None:
    results = CASES[name]() | {"profile": made_up.profile(3)}
    validator = jsonschema.Draft202012Validator(schema())
    jsonschema.Draft202012Validator.check_schema(schema())
    assert list(validator.iter_errors(results)) == []
    for path, wrong in [("verdict.state", "fine"), ("q.monte_carlo.hits", -1), ("q.monte_carlo.rate", 1.1),
                        ("data.sha256", "../x"), ("t_prime.value", -1), ("schema", "latentprint/2"),
                        ("detectors.identity.tpr", 0.99)]:  # fmt: skip
        assert not validator.is_valid(made_up.changed(results, path, wrong)), path


HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'{{7*7}}<svg onload=alert(1)>"


def poisoned(value: Any, keep: tuple[str, ...], path: str = "") -> Any:
    """The same tree with every string replaced, except at ``keep``; keys are poisoned in free-form maps."""
    if isinstance(value, dict):
        entries = {key: poisoned(one, keep, f"{path}.{key}") for key, one in value.items()}
        return entries | {HOSTILE: 1, f"{HOSTILE} ": HOSTILE}
    if isinstance(value, list):
        return [poisoned(one, keep, path) for one in value]
    return HOSTILE if isinstance(value, str) and path not in keep else value


def test_hostile_text_cannot_become_markup() -> None:
    results = made_up.leak() | {"profile": made_up.profile(5)}
    plain = Parsed(render(results, made_up.run()))
    page = render(poisoned(results, (".schema", ".verdict.state")), poisoned(made_up.run(), ()))
    attacked = Parsed(page)
    assert attacked.tags["script"] == plain.tags["script"] == 2
    assert attacked.tags["img"] == 0 and "<svg onload" not in page
    assert not [a for a in attacked.attributes if a[1].startswith("on")]
    assert "{{7*7}}" in attacked.text and "49" not in first_screen(made_up.clean()).big


def test_private_things_in_the_run_folder_do_not_reach_the_page() -> None:
    secrets = ["/home/anna/patients", "mueller_42.png", "scanner-7.clinic.example", "C:\\Users\\anna", "anna"]
    results = made_up.leak()
    results["data"]["source"] = "/home/anna/patients"
    results["data"]["files"] = ["mueller_42.png"]
    results["q"]["bridge"]["diagnostic"] = (
        "see /home/anna/patients/log.txt, mueller_42.png and ~/anna/x (C:\\Users\\anna)"
    )
    results["memorised"]["path"] = "/home/anna/patients"
    run = made_up.run() | {
        "host": "scanner-7.clinic.example",
        "user": "anna",
        "argv": ["latentprint", "audit", "/home/anna/patients"],
        "settings": {"out": "/home/anna/patients/run"},
        "authorised_by": "the data protection officer",
    }
    run["device"]["host"] = "scanner-7.clinic.example"
    page = render(results, run)
    assert [one for one in secrets if one in page] == []
    assert "the data protection officer" in page and "a private set of images" in page


def test_nothing_is_fetched_and_nothing_but_its_own_script_may_run() -> None:
    parsed = Parsed(render(made_up.leak(), made_up.run()))
    fetched = [
        a for a in parsed.attributes if a[1] in ("src", "href", "xlink:href", "action", "srcset", "data")
    ]
    assert [a for a in fetched if not a[2].startswith("#")] == []
    assert parsed.tags["link"] == parsed.tags["iframe"] == parsed.tags["object"] == 0
    policy = next(a[2] for a in parsed.attributes if a[0] == "meta" and "default-src" in a[2])
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_figures_have_text_alternatives_and_their_numbers_as_tables() -> None:
    page = render(made_up.leak(), made_up.run())
    charts = re.findall(r'<svg [^>]*class="chart"[^>]*>', page)
    assert len(charts) == 6  # three figures, drawn wide and narrow
    assert all(
        'role="img"' in chart and len(re.findall(r'aria-label="([^"]+)"', chart)[0]) > 60 for chart in charts
    )
    assert page.count("<figure") == page.count("The numbers as a table") == 3


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_contrast_holds_wcag_aa(mode: str) -> None:
    colours = palette.PALETTE[mode]
    low = [(f, b) for f, b in palette.TEXT_PAIRS if palette.contrast(colours[f], colours[b]) < 4.5]
    low += [(f, b) for f, b in palette.GRAPHIC_PAIRS if palette.contrast(colours[f], colours[b]) < 3]
    assert low == []


def test_the_contrast_formula_against_known_values() -> None:
    assert palette.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert palette.contrast("#777777", "#ffffff") == pytest.approx(
        4.48, abs=0.005
    )  # the well-known near miss


def test_missing_parts_leave_their_sections_out_and_the_rest_stands() -> None:
    results = made_up.undecided()
    text = Parsed(render(results, {})).text
    assert "Likelihood" not in text and "The copies" not in text
    assert "Counts and how reliable they are" in text and "What this does not tell you" in text


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [("schema", "latentprint/9", "schema"), ("verdict.state", "ok", "state"),
     ("data.images", 0, "data.images"), ("q.monte_carlo.hits", 5000, "monte_carlo")],
)  # fmt: skip
def test_results_that_cannot_be_reported_are_refused_in_one_sentence(
    path: str, value: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        render(made_up.changed(made_up.leak(), path, value), {})


def test_nan_and_infinity_read_as_not_known() -> None:
    assert reading.number({"x": float("nan")}, "x") is None and reading.number({"x": math.inf}, "x") is None
    page = render(
        made_up.changed(made_up.leak(), "fid", {"train": math.nan, "test": 2.0, "features": "pixels"}), {}
    )
    assert "nan" not in Parsed(page).text.lower().replace("nano", "")


def test_a_report_is_written_beside_its_results(tmp_path: Any) -> None:
    (tmp_path / "results.json").write_text(json.dumps(made_up.leak()))
    with pytest.raises(ValueError, match=r"run\.json is missing"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(made_up.run()))
    assert write_report(tmp_path).read_text() == render(made_up.leak(), made_up.run())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "results.json", "run.json"]


def test_ten_thousand_rows_stay_small_and_the_best_known_images_stand_in_the_page() -> None:
    results = made_up.leak() | {"profile": made_up.profile(10_000)}
    page = render(results, made_up.run())
    assert len(page.encode()) < 3_000_000
    best = max(results["profile"], key=lambda row: (row["value"] or 0, row["sha256"]))
    top = re.findall(r'<td class="hash" title="([0-9a-f]{64})"', page)
    values = {row["sha256"]: row["value"] or 0 for row in results["profile"]}
    assert len(top) == 100 and values[top[0]] == best["value"]
    assert min(values[sha] for sha in top) >= sorted(values.values())[-100]


def leaves(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in the tree, branches included; of long lists the first entry."""
    inside = (
        value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    )
    return [way] * bool(way) + [path for key, one in inside for path in leaves(one, (*way, key))]


WRONG: tuple[Any, ...] = (None, "text", -1, 1e308, math.nan, True, [], {}, [[]], {"k": 1}, 0, 1)


def test_a_damaged_field_is_left_out_or_refused_in_a_sentence_never_a_traceback() -> None:
    results = made_up.leak() | {"profile": made_up.profile(2)}
    for i, way in enumerate(leaves(results)):
        damaged = copy.deepcopy(results)
        place: Any = damaged
        for key in way[:-1]:
            place = place[key]
        place[way[-1]] = WRONG[i % len(WRONG)]
        with contextlib.suppress(InputError):
            first_screen_and_sections(damaged)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("q.monte_carlo.level", 1),
        ("t_prime.band.level", 0),
        ("t_prime.tries", 0.5),
        ("q.monte_carlo.expected", -1),
    ],
)
def test_numbers_out_of_their_range_do_not_stop_the_report(path: str, wrong: float) -> None:
    first_screen_and_sections(made_up.changed(made_up.leak(), path, wrong))


@pytest.mark.parametrize("path", ["q.monte_carlo.samples", "q.control.samples", "detectors.presence.tpr.n"])
def test_a_count_beyond_what_json_keeps_is_refused(path: str) -> None:
    with pytest.raises(InputError, match="count"):
        first_screen_and_sections(made_up.changed(made_up.leak(), path, 1e308))


def test_a_verdict_against_the_counts_is_refused() -> None:
    with pytest.raises(InputError, match="no generated image was recognised"):
        render(made_up.changed(made_up.leak(), "q.monte_carlo.hits", 0), {})


def first_screen_and_sections(results: dict[str, Any]) -> None:
    """What ``render`` does before the template, which is the slow part and reads no results."""
    reading.check(results)
    first_screen(results)
    sections(results, made_up.run())
