"""The report: right numbers in plain words, nothing private, nothing injected, nothing fetched, readable."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import small_runs

from latentprint import words
from latentprint.contracts import InputError
from latentprint.report import RunFacts, palette, render, write_report
from latentprint.report.first import first_screen
from latentprint.report.sections import SECTIONS, sections
from latentprint.results import Results
from latentprint.results.model import Rule
from latentprint.results.read import read_results
from latentprint.results.searched import Sampler
from latentprint.stats import Trials
from latentprint.verdict import judge

CASES = {
    "leak": small_runs.leak,
    "clean": small_runs.clean,
    "undecided": small_runs.undecided,
    "unmarked": small_runs.unmarked,
    "samples": small_runs.given_samples,
}
RUN = {"unmarked": "given", "samples": "samples"}
"""Whose run.json belongs to a case, where it is not that of the marked run."""


def page_of(name: str) -> str:
    return render(CASES[name]().results, small_runs.facts(RUN.get(name, "marked")))


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


def test_the_first_screen_answers_in_the_order_of_what_matters() -> None:
    asked = [name for name, _ in first_screen(small_runs.leak().results).answers]
    assert asked == [
        "Does it give back any training image?",
        "Would we have noticed?",
        "How sure is this?",
        "What could have been missed?",
        "What to do next",
    ]


def test_the_first_screen_of_a_leak_says_what_a_steward_needs() -> None:
    results = small_runs.leak().counts(39, 4000).counts(0, 4000, "samples.control").results
    first = first_screen(results)
    answers, count = dict(first.answers), results.q.monte_carlo
    assert first.state == "leak"
    noticed = answers["Would we have noticed?"]
    assert "39 of 4,000 images" in noticed and "none in 4,000" in noticed
    assert f"1 in 103 (between 1 in {1 / count.low:.0f} and 1 in {1 / count.high:.0f})" in noticed
    assert "Do not release" in answers["What to do next"]
    # 19 times in 20 a copy shows among n images where 1 - (1 - q)^n >= 0.95; shown with two digits
    needed = math.ceil(math.log(0.05) / math.log(1 - 39 / 4000))
    assert f"{float(f'{needed:.1e}'):,.0f} images" in answers["What to do next"]


def first_answer(results: Results) -> str:
    return dict(first_screen(results).answers)["Does it give back any training image?"]


def test_the_whole_set_is_the_first_answer_and_the_large_number() -> None:
    results = small_runs.leak().results
    first, every = first_screen(results), results.whole_set
    assert first.headline == "This model gives back training images."
    assert first.big == f"{every.copies.k} of {every.copies.n}"
    said = first_answer(results)
    assert said.startswith("Yes. ") and f"{every.memorised.n} training images" in said
    assert f"{every.false_alarms.n:,} real images that it never saw" in said
    before, found = small_runs.leak().without("whole").results, results.returned
    assert first_screen(before).big == f"{found.train.k} of {found.train.n}"
    said = first_answer(before)
    assert said.startswith(f"Yes: {found.train.k} of {found.train.n} training images came back.")
    assert f"{found.copies.k} of {found.copies.n} are copies" in said and found.heldout.k == 0
    assert f"Of {found.heldout.n:,} images never trained on, none came back." in said
    assert first_answer(small_runs.clean().results).startswith("None was found.")
    alone = small_runs.leak().without("pool", "whole").results
    assert "The other 19 training images were not compared" in first_answer(alone)
    assert first_screen(alone).big == "1 in 20" and "Yes: the private image" in first_answer(alone)
    given = small_runs.given_samples().results
    assert first_screen(given).headline == "These generated images hold copies of training images."


def test_copies_that_only_the_wider_rule_sees_are_never_none() -> None:
    """Volumes that came back flipped, say: nothing pixel by pixel, 211 of 400 by the rule that sees them."""
    results = read_results(Path(__file__).parents[1] / "docs" / "results" / "adrenalmnist3d")
    blind, count = results.returned, results.q.monte_carlo
    assert blind is not None and results.whole_set is not None and results.whole_set.copies.k == 211
    nothing = Trials(0, count.samples)
    returned = replace(
        blind,
        copies=nothing,
        train=Trials(0, blind.train.n),
        heldout=Trials(0, blind.heldout.n),
        target=0,
        mock=Trials(blind.mock.n, blind.mock.n),
    )
    low, high = nothing.interval()
    seen = count.model_copy(update={"hits": 0, "rate": 0.0, "low": low, "high": high})
    update = {
        "returned": returned,
        "q": results.q.model_copy(update={"monte_carlo": seen}),
        "memorised": None,
    }
    unseen = results.model_copy(update=update)
    alone = judge(unseen.model_copy(update={"whole_set": None}), Rule())
    assert alone.state == "not found"
    found = unseen.model_copy(update={"verdict": judge(unseen, Rule())})
    assert found.verdict.state == "inconclusive"
    assert "211 of 400 generated images are copies" in " ".join(found.verdict.reasons)
    told = first_answer(found)
    assert told.startswith("It cannot be told.") and "211 of 400" in told and "None was found" not in told


def test_very_sure_is_said_only_of_a_test_that_rejects() -> None:
    """Hits far above the control's, none of them nearest to x_p: p is tiny, and it decides nothing."""
    run = small_runs.leak().counts(40, 4000).counts(0, 4000, "samples.control").without("pool")
    results = run.results
    memorised = results.memorised
    assert memorised is not None and memorised.nearest is not None
    strange = memorised.nearest.model_copy(update={"target": 0})
    other = results.model_copy(update={"memorised": memorised.model_copy(update={"nearest": strange})})
    other = other.model_copy(update={"verdict": judge(other, Rule())})
    (test,) = [one for one in other.verdict.tests if one.name == "control"]
    assert test.p_value is not None and test.p_value < 1e-9 and not test.rejects
    answers = dict(first_screen(other).answers)
    assert answers["How sure is this?"].startswith("Not sure.")


def test_without_a_mark_everything_speaks_of_one_recogniser() -> None:
    results = small_runs.unmarked().results
    answers = dict(first_screen(results).answers)
    noticed = answers["Would we have noticed?"]
    assert "left as it was" in noticed and "One recogniser" in noticed and "second model" not in noticed
    tpr = results.detectors.identity.tpr
    assert f"{words.of(tpr.k, tpr.n)} appearances" in noticed
    text = Parsed(page_of("unmarked")).text
    for two in ("ecognisers had to agree", "both recognisers", "Mark recognised", "Mark only", "Mark (pres"):
        assert two not in text
    assert "A marked image is an outlier" not in text and "carries no added mark" in text
    assert f"given ({results.model.kind})" in text
    for note in results.model.notes:
        assert note in text
    assert "A marked image is an outlier" in Parsed(page_of("leak")).text


def test_the_first_screen_of_a_clean_model_says_what_could_have_been_missed() -> None:
    results = small_runs.clean().results
    first, count = first_screen(results), results.q.monte_carlo
    assert first.state == "clean" and first.big == "0 of 4,000"
    # 1 - 0.05^(1/n) for zero hits, widened by what the detectors may overlook (Frechet, Bonferroni)
    tpr = [one.tpr.lower(0.975) for one in results.detectors.fitted]
    upper = (1 - 0.05 ** (1 / count.samples)) / (sum(tpr) - 1)
    assert words.one_in(upper) in dict(first.answers)["What could have been missed?"]
    assert "no promise of anonymity" in dict(first.answers)["What to do next"]


def test_what_few_steps_of_a_sampler_hide_could_have_been_missed() -> None:
    """Said where it was measured: of few ancestral steps, and not of a leak, which was seen all the same."""

    def missed(results: Results, **sampler: object) -> str:
        count = results.q.monte_carlo
        changed = count.model_copy(update={"sampler": Sampler.model_validate(sampler)})
        q = results.q.model_copy(update={"monte_carlo": changed})
        screen = first_screen(results.model_copy(update={"q": q}))
        return dict(screen.answers)["What could have been missed?"]

    clean, leak = small_runs.clean().results, small_runs.leak().results
    assert "in 24 steps, and few steps leave noise" in missed(clean, step="ancestral", steps=24)
    for fine in ({"steps": 96}, {"step": "sde-dpm-solver++2m"}, {"steps": None}):
        assert "few steps" not in missed(clean, **({"step": "ancestral", "steps": 24} | fine))
    assert "few steps" not in missed(leak, step="ancestral", steps=24)


def test_an_undecided_run_says_how_many_images_would_decide() -> None:
    run = small_runs.undecided()
    first = first_screen(run.results)
    needed = re.findall(r"at least ([\d,]+) images", dict(first.answers)["What to do next"])[0]
    needed = int(needed.replace(",", ""))
    assert first.state == "unsure"
    assert run.counts(0, needed).results.verdict.state == "not found"
    assert run.counts(0, needed - 2).results.verdict.state == "inconclusive"


def test_hits_that_false_alarms_explain_are_not_called_the_private_image() -> None:
    """60 of 60 images may be taken for the private one by a recogniser that takes most others for it too."""
    run = small_runs.undecided()
    alarms = max(one.fpr.upper(0.975) for one in run.results.detectors.fitted)
    n = 60
    few = first_screen(run.counts(math.floor(alarms * n), n).results)
    assert (
        few.big_text
        == "generated images were taken for the private image; false alarms alone could be as many"
    )
    assert "a copy would not stand out" in dict(few.answers)["What could have been missed?"]
    # a control of the same sampler bounds the same alarms closer: none in 4,000 cannot be 5 in 4,000
    assert 1 - 0.05 ** (1 / 4000) < 5 / 4000
    beside = small_runs.clean().counts(5, 4000).results
    assert beside.verdict.state == "inconclusive"
    told = first_screen(beside).big_text
    assert (
        told.startswith("generated images were taken for the private image; up to ") and "alarms" not in told
    )


def test_the_first_screen_tells_the_rate_that_counting_could_not_see() -> None:
    """The estimator that the run asked for answers where counting saw nothing, and only where they agree."""
    missed, row = "What could have been missed?", "This model, estimated beyond what was counted"

    def shown(small: small_runs.SmallRun) -> tuple[str, list[str]]:
        screen = first_screen(small.results)
        return dict(screen.answers)[missed], [line[-1] for line in screen.tally.rows if line[0] == row]

    silent = small_runs.leak().counts(0, 30)
    q = silent.results.q
    one = q.estimates["splitting"]
    assert q.combined is not None and q.combined.answer == "splitting"
    told, rates = shown(silent)
    span = words.between(one.low, one.high)
    assert f"take for the private image in {words.one_in(one.rate)} images ({span})." in told
    assert rates == [words.one_in(one.rate)]
    assert one.corrected is not None
    assert ("false alarms alone could be as many" in told) == (one.corrected.low == 0)
    for other in (
        silent.without("splitting"),
        small_runs.leak(),  # counting saw it
        small_runs.leak().counts(0, 4000),  # and here the two contradict each other
    ):
        told, rates = shown(other)
        assert "An estimator" not in told and not rates


@pytest.mark.parametrize("name", CASES)
def test_every_stated_count_stands_in_the_page(name: str) -> None:
    results, text = CASES[name]().results, Parsed(page_of(name)).text
    for source in (results.q.monte_carlo, results.q.control):
        for key in ("samples", "hits") if source is not None else ():
            assert f"{getattr(source, key):,}" in text
    for estimate in results.q.estimates.values():
        assert estimate.diagnostic in text and estimate.sampler.step in text
        assert estimate.rate is None or words.one_in(estimate.rate) in text
    assert results.target.sha256 in text


def test_the_picture_beside_the_null_law_is_of_the_same_question() -> None:
    """Fault 1 of the issue: one recogniser and as many tries for the image as for held-out ones."""
    results = small_runs.leak().results
    law = results.t_prime.baseline
    page = page_of("leak")
    strip = page[page.index('id="strip"') :]
    strip = strip[: strip.index("</figure>")]
    own = f"This image: came back from t = {law.target.value:.3g}"
    assert own in strip and f"t = {results.t_prime.value:.3g}<" not in strip
    assert "judged by the embedding, with 4 tries" in strip
    text = Parsed(page).text
    assert f"came back from t′ = {law.target.value:.3g}, {law.excess:+.2g} against their median" in text
    assert f"still came back from t′ = {results.t_prime.value:.3g}." in text
    curve = page[page.index('id="curve"') : page.index('id="beside"')]
    assert "Never trained on" not in curve


def test_the_cost_of_every_stage_stands_in_the_table_and_in_its_sum() -> None:
    results = small_runs.leak().results
    costs = results.costs.network_evaluations
    assert any("." in name for name in costs)
    (section,) = [one for one in sections(results, small_runs.facts()) if one.name == "costs"]
    rows = section.blocks[0].rows
    assert [row[1] for row in rows[:-1]] == [f"{cost:,}" for cost in costs.values()]
    assert rows[-1] == ("Together", f"{sum(costs.values()):,}")


HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'{{7*7}}<svg onload=alert(1)>"


def poisoned(value: Any) -> Any:
    """The same tree with every text replaced that its type lets be one."""
    if isinstance(value, dict):
        return {key: poisoned(one) for key, one in value.items()}
    if isinstance(value, list):
        return [poisoned(one) for one in value]
    return HOSTILE if isinstance(value, str) else value


def poisoned_results(results: Results) -> Results:
    """Hostile text wherever the types take it: each leaf tried by itself, kept where it validates."""
    plain = results.plain()
    held = json.loads(json.dumps(plain))

    def spoil(place: Any, key: Any) -> None:
        before = place[key]
        place[key] = poisoned(before)
        if isinstance(before, str):
            try:
                Results.model_validate(held)
            except ValueError:
                place[key] = before
        else:
            place[key] = before
            inside = before.keys() if isinstance(before, dict) else range(min(len(before), 3))
            for one in inside:
                if isinstance(before[one], (dict, list, str)):
                    spoil(before, one)

    for key in plain:
        if isinstance(held[key], (dict, list)):
            spoil(held, key)
    return Results.model_validate(held)


def test_hostile_text_cannot_become_markup() -> None:
    results, run = small_runs.leak().results, small_runs.facts()
    plain = Parsed(render(results, run))
    hostile = poisoned_results(results)
    assert hostile.data.source == HOSTILE and HOSTILE in hostile.verdict.reasons
    facts = run.model_copy(update={"authorised_by": HOSTILE, "versions": {HOSTILE: HOSTILE}})
    page = render(hostile, facts)
    attacked = Parsed(page)
    assert attacked.tags["script"] == plain.tags["script"] == 2
    assert attacked.tags["img"] == 0 and "<svg onload" not in page
    assert not [a for a in attacked.attributes if a[1].startswith("on")]
    assert "{{7*7}}" in attacked.text


def test_private_things_in_the_run_folder_do_not_reach_the_page() -> None:
    secrets = ["/home/anna/patients", "mueller_42.png", "scanner-7.clinic.example", "C:\\Users\\anna", "anna"]
    results = small_runs.leak().results
    reason = "see /home/anna/patients/log.txt, mueller_42.png and ~/anna/x (C:\\Users\\anna)"
    results = results.model_copy(
        update={
            "data": results.data.model_copy(update={"source": "/home/anna/patients"}),
            "verdict": results.verdict.model_copy(update={"reasons": (reason,)}),
        }
    )
    record = json.loads((small_runs.RUNS / "marked" / "run.json").read_text())
    record |= {
        "host": "scanner-7.clinic.example",
        "user": "anna",
        "argv": ["latentprint", "audit", "/home/anna/patients"],
        "authorised_by": "the data protection officer",
    }
    record["settings"]["data"]["source"] = "/home/anna/patients"
    record["device"]["host"] = "scanner-7.clinic.example"
    page = render(results, RunFacts.model_validate(record))
    assert [one for one in secrets if one in page] == []
    assert "the data protection officer" in page and "a private set of images" in page


def test_nothing_is_fetched_and_nothing_but_its_own_script_may_run() -> None:
    parsed = Parsed(page_of("leak"))
    fetched = [
        a for a in parsed.attributes if a[1] in ("src", "href", "xlink:href", "action", "srcset", "data")
    ]
    assert [a for a in fetched if not a[2].startswith("#")] == []
    assert parsed.tags["link"] == parsed.tags["iframe"] == parsed.tags["object"] == 0
    policy = next(a[2] for a in parsed.attributes if a[0] == "meta" and "default-src" in a[2])
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_figures_have_text_alternatives_and_their_numbers_as_tables() -> None:
    page = page_of("leak")
    charts = re.findall(r'<svg [^>]*class="chart"[^>]*>', page)
    figures = page.count("<figure")
    assert figures == page.count("The numbers as a table") >= 5
    assert len(charts) == 2 * figures  # each drawn wide and narrow
    assert all(
        'role="img"' in chart and len(re.findall(r'aria-label="([^"]+)"', chart)[0]) > 60 for chart in charts
    )


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
    text = Parsed(render(small_runs.undecided().without("likelihood", "membership").results, RunFacts())).text
    assert "Bits per dimension (lower" not in text and "Membership scores, " not in text
    assert "Counts and how reliable they are" in text and "What this does not tell you" in text


def test_a_number_is_a_row_in_a_table_of_sections() -> None:
    results, run = small_runs.leak().results, small_runs.facts()
    names = [one.name for one in sections(results, run)]
    assert len(names) == len(set(names)) and len(names) >= len(SECTIONS) - 3
    assert names[-3:] == ["provenance", "limits", "glossary"]


def test_a_report_is_written_beside_its_results(tmp_path: Path) -> None:
    small = small_runs.leak()
    small_runs.written(small, tmp_path)
    (tmp_path / "run.json").rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"run\.json"):
        write_report(tmp_path)
    (tmp_path / "away").rename(tmp_path / "run.json")
    assert write_report(tmp_path).read_text() == render(small.results, small_runs.facts())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "results.json", "run.json"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "latentprint/1"}, "older version"),
        ({"schema": "latentprint/9"}, "latentprint/9.*read them with the version that wrote them"),
        ({"verdict": {"state": "ok"}}, "verdict"),
        ({"q": {}}, "monte_carlo"),
        ({"more": 1}, "more"),
    ],
)
def test_results_that_cannot_be_reported_are_refused_in_one_sentence(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    folder = small_runs.written(small_runs.clean(), tmp_path)
    written = json.loads((folder / "results.json").read_text()) | change
    (folder / "results.json").write_text(json.dumps(written))
    with pytest.raises(InputError, match=said) as refused:
        write_report(folder)
    assert len(str(refused.value).splitlines()) == 1 and not (folder / "report.html").exists()


def test_a_record_that_is_none_is_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = small_runs.written(small_runs.clean(), tmp_path)
    (folder / "run.json").write_text('{"stages": 3}')
    with pytest.raises(InputError, match=r"run\.json is not the record of a run: stages.* put a copy of it"):
        write_report(folder)


def test_ten_thousand_rows_stay_small_and_the_best_known_images_stand_in_the_page() -> None:
    results = small_runs.many_rows(10_000)
    page = render(results, small_runs.facts())
    assert len(page.encode()) < 3_000_000
    top = re.findall(r'<td class="hash" title="([0-9a-f]{64})"', page)
    assert top == [row.sha256 for row in results.profile.rows[:100]]
