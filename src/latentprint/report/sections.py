"""The report below its first screen: a table of sections, each a function of the results."""

from __future__ import annotations

from collections.abc import Callable

from latentprint import words
from latentprint.report.blocks import Block, Pairs, Points, Profile, Section, Table
from latentprint.report.canaries import canaries_section
from latentprint.report.copies import whole_set_section
from latentprint.report.figures import estimator, profile_figure, rates_figure
from latentprint.report.glossary import GLOSSARY, LIMITS, MARKED, UNMARKED
from latentprint.report.membership import membership_section
from latentprint.report.prompts import prompts_section
from latentprint.report.provenance import Fact, known, provenance
from latentprint.report.public import RunFacts, said
from latentprint.report.searched import growth, search_section
from latentprint.results import Results
from latentprint.results.counted import Counted
from latentprint.results.model import Detector
from latentprint.results.searched import Sampler, Search
from latentprint.stats import Trials

SHOWN = 100
"""Rows of the profile in the page itself; a script pages through the rest."""


def sections(results: Results, run: RunFacts) -> list[Section]:
    """All sections for which the results have values, in the order of reading."""
    return [part for make in SECTIONS if (part := make(results, run)) is not None]


def _not_done(results: Results, _: RunFacts) -> Section | None:
    notes = [said(note) for note in results.not_done]
    points = Points([f"{note[:1].upper()}{note[1:]}." for note in notes])
    return Section("not-done", "What could not be done", "", [points]) if notes else None


def _rate(results: Results, _: RunFacts) -> Section:
    lead = (
        "The rate at which generated images are the private image, by counting and, where they were run, by"
        " estimators that can see rarer events. The dashed line is the rate of a model that repeats all its"
        " training images equally often."
    )
    q, blocks = results.q, list[Block]([rates_figure(results)])
    rows = [
        (estimator(name), _sampler(one.sampler), _yes(one.reliable), said(one.diagnostic))
        for name, one in q.estimates.items()
    ]
    if rows:
        head = ("Estimator", "Sampler", "Reliable", "Diagnostic")
        blocks.append(Table("How far the estimators can be trusted", head, rows))
    if q.combined is not None:
        blocks.append(Points([said(q.combined.sentence)]))
    ran = [("Counting", q.monte_carlo.corrected)]
    ran += [(estimator(name), one.corrected) for name, one in q.estimates.items()]
    through = [
        (name, words.number(one.low), words.number(one.high), said(one.note))
        for name, one in ran
        if one is not None
    ]
    if through:
        head = ("Estimator", "Low", "High", "Note")
        blocks.append(Table("The same, with the recognisers' own errors counted in", head, through))
    return Section("rate", "How often it comes back", lead, blocks)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _sampler(sampler: Sampler) -> str:
    """One line: "heun, 24 steps, karras, last step denoised"."""
    ends = "last step denoised" if sampler.denoise else None
    drawn = "random" if sampler.stochastic else None
    return said(", ".join(part for part in (sampler.words, ends, drawn) if part), 200)


def _samplers(results: Results, _: RunFacts) -> Section | None:
    """t' and q by sampler; nothing if there is only one."""
    if not results.samplers:
        return None
    own = (results.q.monte_carlo.sampler, results.t_prime, results.q.monte_carlo)
    rows = [_by_sampler(*own), *(_by_sampler(one.sampler, one.t_prime, one.q) for one in results.samplers)]
    head = ("Sampler", "t′", "Seen", "Images made", "Rate, interval", "Evaluations an image")
    lead = (
        "One model, several ways of generating images. Each has its own rate: what one hardly shows another"
        " may. The first row is the one that the rest of this page is about."
    )
    table = Table("The same audit by sampler", head, rows, (False, True, True, True, True, True))
    return Section("samplers", "Other ways of generating images", lead, [table])


def _by_sampler(sampler: Sampler, found: Search | None, q: Counted) -> tuple[str, ...]:
    return (
        said(sampler.words, 120),
        words.NOTHING if found is None else words.noise(found.value),
        f"{q.hits:,}",
        f"{q.samples:,}",
        words.between(q.low, q.high),
        words.number(q.network_evaluations / q.samples) if q.samples else words.NOTHING,
    )


TESTS: tuple[Fact, ...] = (
    ("Images generated", lambda r, _: f"{r.q.monte_carlo.samples:,}"),
    (
        "Expected if every training image comes back equally often (E = n × copies / N)",
        lambda r, _: words.number(r.q.monte_carlo.expected),
    ),
    (
        "p-value of “the rate is 1/N” against “it is lower”",
        lambda r, _: words.number(r.q.monte_carlo.p_value),
    ),
    (
        "Largest rate that could have been missed",
        lambda r, _: f"{words.one_in(r.q.monte_carlo.missable)} ({words.number(r.q.monte_carlo.missable)})",
    ),
    ("Stopped", lambda r, _: None if r.q.monte_carlo.stopping is None else r.q.monte_carlo.stopping.stopped),
    ("Sampler", lambda r, _: _sampler(r.q.monte_carlo.sampler)),
)


def _counts(results: Results, run: RunFacts) -> Section:
    counted = [one for one in (results.q.monte_carlo, results.q.control) if one is not None]
    pair = results.detectors.presence is not None
    level = words.percent(counted[0].level)
    head = (
        "Generated images",
        "Count",
        f"{level} interval",
        *("Control", "Interval")[: 2 * len(counted) - 2],
    )
    numeric = (False, *[True] * (len(head) - 1))
    if pair:
        title = "Images recognised by each recogniser and by both"
        rows = [
            ("Mark recognised", *(c for one in counted for c in _cells(one.presence_hits or 0, one))),
            ("Image recognised", *(c for one in counted for c in _cells(one.identity_hits, one))),
            ("Both: the private image", *(c for one in counted for c in _cells(one.hits, one))),
        ]
    else:
        title = "Images recognised"
        rows = [("Recognised as the private image", *(c for one in counted for c in _cells(one.hits, one)))]
    blocks: list[Block] = [Table(title, head, rows, numeric)]
    if pair:
        alone = [
            ("Mark only", *(f"{(one.presence_hits or 0) - one.hits:,}" for one in counted)),
            ("Image only", *(f"{one.identity_hits - one.hits:,}" for one in counted)),
        ]
        told = "These are false alarms that the other recogniser filtered out, or partial copies."
        head = ("Recognised by one alone", "This model", "Control")[: 1 + len(counted)]
        blocks.append(Table("One recogniser alone", head, alone, (False, *[True] * len(counted)), told))
    named = (("Mark", results.detectors.presence), ("Image", results.detectors.identity))
    detectors = [(name, one) for name, one in named if one is not None]
    kinds = [
        (name, said(kind, 80), words.of(one.k, one.n), f"at most {words.percent(one.interval()[1])}")
        for name, detector in detectors
        for kind, one in detector.kinds.items()
        if one.n
    ]
    blocks.append(_errors(detectors))
    if kinds:
        head = ("Recogniser", "Images", "False alarms", "95% interval")
        blocks.append(Table("False alarms by kind of image", head, kinds, (False, False, True, True)))
    blocks.append(Pairs(known(TESTS, results, run)))
    lead = "Counts first; every rate on this page is made of them."
    return Section("counts", "Counts and how reliable they are", lead, blocks)


def _cells(k: int, one: Counted) -> tuple[str, str]:
    if k == one.hits:
        low, high = one.low, one.high
    else:
        low, high = Trials(k, one.samples).interval(one.level)
    return f"{k:,}", f"{words.number(low, 2)} – {words.number(high, 2)}"


def _errors(detectors: list[tuple[str, Detector]]) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, one in detectors:
        cells: list[str] = []
        for counts in (one.tpr, one.fpr):
            low, high = counts.interval() if counts.n else (0.0, 1.0)
            cells += [words.of(counts.k, counts.n), f"{words.percent(low)} – {words.percent(high)}"]
        rows.append((name, *cells, words.number(one.threshold), said(one.backbone, 40)))
    return Table(
        "The recognisers' own errors, counted on images that they were not fitted on",
        ("Recogniser", "Noticed", "95% interval", "False alarms", "95% interval", "Threshold", "Network"),
        rows,
        (False, True, True, True, True, True, False),
    )


def _profile(results: Results, _: RunFacts) -> Section | None:
    found = results.profile
    if found is None or not found.rows:
        return None
    data = [(row.sha256, row.value, row.p_value, int(row.discovered)) for row in found.rows]
    shown = [
        (sha, "never" if t is None else words.number(t), words.number(p, 2), _yes(bool(known_)))
        for sha, t, p, known_ in data[:SHOWN]
    ]
    lead = (
        f"{len(data):,} training images, each named by the hash of its content. The model knows"
        f" {found.discovered:,} of them better than images it was never trained on (false discoveries"
        " controlled)."
    )
    blocks = [profile_figure(found.rows), Profile(shown, len(data), data), Points([said(found.sentence)])]
    return Section("profile", "The training images one by one", lead, blocks)


def _memorised(results: Results, _: RunFacts) -> Section | None:
    found = results.memorised
    if found is None:
        return None
    by = " by both recognisers" if results.detectors.presence is not None else ""
    n, lead = found.count, f"No generated image was recognised{by}."
    if n:
        lead = f"{n:,} generated {'image was' if n == 1 else 'images were'} recognised{by}."
    if found.nearest is not None:
        of = words.of(found.nearest.target, found.nearest.n)
        lead += f" For {of} of them the private image is the nearest of all training images."
    rows = [
        (name, *(words.number(v) for v in (one.min, one.median, one.max)))
        for name, one in (("Mean squared error", found.mse), ("Mean absolute error", found.mae))
        if one is not None
    ]
    head = ("Difference to the private image", "Smallest", "Median", "Largest")
    note = "Pixel values run from −1 to 1. The images themselves are confidential and not in this file."
    table = Table("How close the copies are", head, rows, (False, True, True, True), note)
    return Section("memorised", "The copies", lead, [table] if rows else [])


def _likelihood(results: Results, _: RunFacts) -> Section | None:
    found = results.likelihood
    if found is None:
        return None
    means = (("Training images", found.bits_per_dim), ("Images never trained on", found.heldout))
    rows = [
        (name, words.number(one.mean), words.number(one.se, 2), words.integer(one.n))
        for name, one in means
        if one is not None
    ]
    rows.append(("The private image", words.number(found.target), words.NOTHING, "1"))
    head = ("Bits per dimension (lower: better known)", "Mean", "Standard error", "Images")
    lead = "How likely these exact images are under the model, pixel by pixel."
    table = Table("Likelihood", head, rows, (False, True, True, True))
    return Section("likelihood", "Likelihood", lead, [table])


def _fid(results: Results, _: RunFacts) -> Section | None:
    found = results.fid
    if found is None:
        return None
    rows = [
        ("To the training images", words.number(found.train)),
        ("To images never trained on", words.number(found.test)),
        ("Generated images used", words.integer(found.samples)),
        ("Features", said(found.features, 120)),
    ]
    lead = "The Fréchet distance of generated images to real ones; only the same features compare."
    return Section("fid", "Quality of the generated images", lead, [Pairs(rows)])


def _costs(results: Results, run: RunFacts) -> Section | None:
    costs, seconds = results.costs, run.seconds
    blocks: list[Block] = []
    if costs.network_evaluations:
        rows = [(_stage(name), f"{cost:,}") for name, cost in costs.network_evaluations.items()]
        rows.append(("Together", f"{costs.total:,}"))
        blocks.append(Table("Network evaluations", ("Part", "Evaluations"), rows, (False, True)))
    if seconds:
        times = [(_stage(name), words.duration(one)) for name, one in seconds.items()]
        times.append(("Together", words.duration(sum(seconds.values()))))
        blocks.append(Table("Time", ("Stage", "Time"), times, (False, True)))
    return Section("costs", "What it cost", "", blocks) if blocks else None


def _stage(name: str) -> str:
    return said(name, 60).replace("_", " ").replace(".", ", ")


def _limits(results: Results, _: RunFacts) -> Section:
    """What is true of every audit, with what is special about this one's image and model."""
    own = list(LIMITS)
    if not results.target.injected:
        i = own.index(MARKED)
        own[i : i + 1] = UNMARKED if results.q.control is None else UNMARKED[:1]
    notes = () if results.model is None else results.model.notes
    points = Points([*own, *(said(note) for note in notes)])
    return Section("limits", "What this does not tell you", "", [points])


def _glossary(_: Results, __: RunFacts) -> Section:
    return Section("glossary", "Words used here", "", [Pairs(GLOSSARY)])


SECTIONS: tuple[Callable[[Results, RunFacts], Section | None], ...] = (
    whole_set_section,
    prompts_section,
    search_section,
    growth,
    _not_done,
    _rate,
    _samplers,
    _counts,
    _profile,
    _memorised,
    canaries_section,
    membership_section,
    _likelihood,
    _fid,
    _costs,
    provenance,
    _limits,
    _glossary,
)
"""The sections of the page in the order of reading. A new number is a row in its section, or a section
here."""
