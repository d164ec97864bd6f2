"""The report below its first screen, section by section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentprint import words
from latentprint.report.blocks import Block, Note, Pairs, Points, Profile, Section, Table
from latentprint.report.copies import copies_section, not_done_section
from latentprint.report.figures import curve_figure, profile_figure, rates_figure, strip_figure
from latentprint.report.glossary import GLOSSARY, LIMITS, MARKED, UNMARKED
from latentprint.report.growth import growth, method
from latentprint.report.membership import membership_section
from latentprint.report.provenance import model_notes, provenance, stage_rows
from latentprint.report.reading import (
    at,
    confidence,
    count,
    digest,
    items,
    mapping,
    number,
    rate,
    trials,
    two_recognisers,
)
from latentprint.report.reading import words as text
from latentprint.report.samplers import samplers_section

SHOWN = 100
"""Rows of the profile that stand in the page itself; a script pages through the rest."""


def sections(results: Mapping[str, Any], run: Mapping[str, Any]) -> list[Section]:
    """All sections that the results hold something for, in the order of reading."""

    parts = [
        _search(results),
        growth(results),
        copies_section(results),
        not_done_section(results),
        _rate(results),
        samplers_section(results),
        _counts(results),
        _profile(results),
        _memorised(results),
        membership_section(results),
        _likelihood(results),
        _fid(results),
        _costs(results, run),
        provenance(results, run),
        Section("limits", "What this does not tell you", "", [Points(_limits(results))]),
        Section("glossary", "Words used here", "", [Pairs(GLOSSARY)]),
    ]
    return [part for part in parts if part is not None]


def _limits(results: Mapping[str, Any]) -> tuple[str, ...]:
    """What holds of every audit, with what this one's image and model add."""
    own = list(LIMITS)
    if at(results, "target.injected") is False:
        i = own.index(MARKED)
        own[i : i + 1] = UNMARKED if not mapping(results, "q.control") else UNMARKED[:1]
    return (*own, *model_notes(results))


def _search(results: Mapping[str, Any]) -> Section | None:
    curve, strip = curve_figure(results), strip_figure(results)
    figures: list[Block] = [one for one in (curve, strip) if one is not None]
    if not figures:
        return None
    tries = count(results, "t_prime.tries")
    lead = (
        "Noise was laid over the private image, little by little more, and the model was asked to restore an"
        f" image from it{f', {tries} times at each level' if tries else ''}. A model that has learned the"
        " image by heart brings it back even from much noise."
    )
    said = [text(results, f"t_prime.{key}") for key in ("statement", "falling.sentence")]
    said += [method(results), text(results, "detectors.agreement.sentence")]
    found, control = number(results, "t_prime.value"), mapping(results, "t_prime.control")
    plain = "It never came back." if found is None else f"It still came back from t′\u00a0=\u00a0{found:.3g}."
    if control:
        value = number(control, "value")
        plain += (
            " The control, which never saw it, never brought it back."
            if value is None
            else f" The control, which never saw it, brought it back up to t′\u00a0=\u00a0{value:.3g}."
        )
    p_value, images = rate(results, "t_prime.baseline.p_value"), count(results, "t_prime.baseline.images")
    if p_value is not None and images:
        plain += (
            f" Among {images} images never trained on, a value as high or higher is expected with probability"
            f" p\u00a0=\u00a0{words.number(p_value, 2)}."
        )
    notes: list[Block] = [Note(plain)]
    notes += [Note(one) for one in said if one]
    return Section("search", "How well the model remembers it", lead, [*notes, *figures])


def _rate(results: Mapping[str, Any]) -> Section | None:
    figure = rates_figure(results)
    if figure is None:
        return None
    lead = (
        "The rate at which generated images are the private image, by counting and, where they were run, by"
        " estimators that can see rarer events. The dashed line is the rate of a model that repeats all its"
        " training images equally often."
    )
    rows = [
        (name, _sampler(mapping(results, f"q.{key}.sampler")), _yes(at(results, f"q.{key}.reliable")), said)
        for key, name in (("bridge", "Bridge"), ("splitting", "Splitting"))
        if mapping(results, f"q.{key}")
        for said in (text(results, f"q.{key}.diagnostic") or words.NOTHING,)
    ]
    blocks: list[Block] = [figure]
    if rows:
        head = ("Estimator", "Sampler", "Reliable", "Diagnostic")
        blocks.append(Table("How far the estimators can be trusted", head, rows))
    if through := _through(results):
        head = ("Estimator", "Low", "High", "Note")
        blocks.append(Table("The same, with the recognisers' own errors counted in", head, through))
    return Section("rate", "How often it comes back", lead, blocks)


def _through(results: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Each estimate's interval through the errors of c_p and c_id (``audit.counting``)."""
    named = (("monte_carlo", "Counting"), ("bridge", "Bridge"), ("splitting", "Splitting"))
    found = [(name, mapping(results, f"q.{key}.corrected")) for key, name in named]
    return [
        (
            name,
            words.number(number(entry, "low")),
            words.number(number(entry, "high")),
            text(entry, "note") or words.NOTHING,
        )
        for name, entry in found
        if entry
    ]


def _yes(value: Any) -> str:
    return "yes" if value is True else "no" if value is False else words.NOTHING


def _sampler(sampler: Mapping[str, Any]) -> str:
    """One line: "heun, 24 steps, karras, last step denoised"."""
    steps = count(sampler, "steps")
    parts = [
        text(sampler, "step", 40),
        f"{steps} steps" if steps else None,
        text(sampler, "spacing", 40),
        "last step denoised" if at(sampler, "denoise") is True else None,
        "random" if at(sampler, "stochastic") is True else None,
    ]
    return ", ".join(part for part in parts if part) or words.NOTHING


def _counts(results: Mapping[str, Any]) -> Section:
    source = mapping(results, "q.monte_carlo")
    control = mapping(results, "q.control")
    pair = two_recognisers(results)
    told = [
        ("Mark recognised", "presence_hits"),
        ("Image recognised", "identity_hits"),
        ("Both: the private image", "hits"),
    ]
    if not pair:
        told = [("Recognised as the private image", "hits")]
    rows = [
        (name, *_count_cells(source, key), *(_count_cells(control, key) if control else ()))
        for name, key in told
    ]
    alone = [
        (name, words.whole(_alone(source, key)), *((words.whole(_alone(control, key)),) if control else ()))
        for name, key in (("Mark only", "presence_hits"), ("Image only", "identity_hits"))
    ]
    head = ("Generated images", "Count", "95% interval") + (("Control", "Interval") if control else ())
    level = confidence(source, "level")
    head = tuple(part.replace("95%", words.percent(level)) for part in head)
    tests = [
        ("Images generated", words.whole(count(source, "samples"))),
        ("Expected if every training image comes back equally often (E = n × copies / N)",
         words.number(number(source, "expected"))),
        ("p-value of “the rate is 1/N” against “it is lower”", words.number(rate(source, "p_value"))),
        ("Largest rate that could have been missed", _rate_words(rate(source, "missable"))),
        ("Sampler", _sampler(mapping(source, "sampler"))),
    ]  # fmt: skip
    alone_head = ("Recognised by one alone", "This model") + (("Control",) if control else ())
    counted = "Images recognised by each recogniser and by both" if pair else "Images recognised"
    apart: list[Block] = [
        Table(
            "One recogniser alone",
            alone_head,
            alone,
            (False, *[True] * (len(alone_head) - 1)),
            "These are false alarms that the other recogniser filtered out, or partial copies.",
        ),
    ]
    kinds = _kinds(results)
    blocks: list[Block] = [
        Table(counted, head, rows, (False, *[True] * (len(head) - 1))),
        *(apart if pair else []),
        _errors(results),
        *([] if kinds is None else [kinds]),
        Pairs(tests),
    ]
    lead = "Counts first; every rate on this page is made of them."
    return Section("counts", "Counts and how reliable they are", lead, blocks)


def _rate_words(value: float | None) -> str:
    return words.NOTHING if value is None else f"{words.one_in(value)} ({words.number(value)})"


def _count_cells(source: Mapping[str, Any], key: str) -> tuple[str, str]:
    one = trials({"x": {"k": at(source, key), "n": at(source, "samples")}}, "x")
    if one is None:
        return words.NOTHING, words.NOTHING
    low, high = one.interval(confidence(source, "level"))
    return f"{one.k:,}", f"{words.number(low, 2)} – {words.number(high, 2)}"


def _alone(source: Mapping[str, Any], key: str) -> int | None:
    one, both = count(source, key), count(source, "hits")
    return one - both if one is not None and both is not None and one >= both else None


def _errors(results: Mapping[str, Any]) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, key in (("Mark (presence)", "presence"), ("Image (identity)", "identity")):
        if key == "presence" and not two_recognisers(results):
            continue
        source = mapping(results, f"detectors.{key}")
        cells: list[str] = []
        for kind in ("tpr", "fpr"):
            one = trials(source, kind)
            low, high = one.interval() if one else (0.0, 0.0)
            span = f"{words.percent(low)} – {words.percent(high)}" if one else words.NOTHING
            cells += [f"{one.k:,} of {one.n:,}" if one else words.NOTHING, span]
        backbone = text(source, "backbone", 40) or words.NOTHING
        rows.append((name, *cells, words.number(number(source, "threshold")), backbone))
    return Table(
        "The recognisers' own errors, counted on images they were not made with",
        ("Recogniser", "Noticed", "95% interval", "False alarms", "95% interval", "Threshold", "Network"),
        rows,
        (False, True, True, True, True, True, False),
    )


def _kinds(results: Mapping[str, Any]) -> Table | None:
    """The false alarms by kind of image, where the detectors say so."""
    rows: list[tuple[str, ...]] = []
    for name, key in (("Mark", "presence"), ("Image", "identity")):
        for kind, counts in mapping(results, f"detectors.{key}.kinds").items():
            one, said = trials({"x": counts}, "x"), text({"x": kind}, "x", 80)
            if one is not None and said is not None:
                upper = words.percent(one.interval()[1])
                rows.append((name, said, f"{one.k:,} of {one.n:,}", f"at most {upper}"))
    head = ("Recogniser", "Images", "False alarms", "95% interval")
    return Table("False alarms by kind of image", head, rows, (False, False, True, True)) if rows else None


def _profile(results: Mapping[str, Any]) -> Section | None:
    rows = [
        (
            digest(row, "sha256") or words.NOTHING,
            rate(row, "value"),
            rate(row, "p_value"),
            at(row, "discovered"),
        )
        for row in items(results, "profile")
        if isinstance(row, Mapping)
    ]
    if not rows:
        return None
    order = sorted(rows, key=lambda row: (-(row[1] if row[1] is not None else -1.0), row[0]))
    data = [(sha, value, p, int(found is True)) for sha, value, p, found in order]
    shown = [
        (sha, words.number(value) if value is not None else "never", words.number(p, 2), _yes(found))
        for sha, value, p, found in order[:SHOWN]
    ]
    known = sum(found for *_, found in data)
    lead = (
        f"{len(data):,} training images, each named by the hash of its content. The model knows {known:,} of"
        " them better than images it was never trained on (false discoveries controlled)."
    )
    figure = profile_figure([(value, found is True) for _, value, _, found in order])
    return Section(
        "profile", "The training images one by one", lead, [figure, Profile(shown, len(data), data)]
    )


def _memorised(results: Mapping[str, Any]) -> Section | None:
    source = mapping(results, "memorised")
    if not source:
        return None
    rows = [
        (name, *(words.number(number(source, f"{key}.{part}")) for part in ("min", "median", "max")))
        for name, key in (("Mean squared error", "mse"), ("Mean absolute error", "mae"))
        if mapping(source, key)
    ]
    n, nearest, of = count(source, "count"), count(source, "nearest.target"), count(source, "nearest.n")
    by = " by both recognisers" if two_recognisers(results) else ""
    lead = f"No generated image was recognised{by}."
    if n:
        lead = f"{n:,} generated {'image was' if n == 1 else 'images were'} recognised{by}."
    if nearest is not None and of:
        lead += f" For {nearest:,} of {of:,} of them the private image is the nearest of all training images."
    head = ("Difference to the private image", "Smallest", "Median", "Largest")
    note = "Pixel values run from −1 to 1. The images themselves are confidential and not in this file."
    blocks: list[Block] = (
        [Table("How close the copies are", head, rows, (False, True, True, True), note)] if rows else []
    )
    return Section("memorised", "The copies", lead, blocks)


def _likelihood(results: Mapping[str, Any]) -> Section | None:
    source = mapping(results, "likelihood")
    if not source:
        return None
    rows = [
        (name, words.number(number(source, f"{key}.mean")), words.number(number(source, f"{key}.se"), 2),
         words.whole(count(source, f"{key}.n")))
        for name, key in (("Training images", "bits_per_dim"), ("Images never trained on", "heldout"))
        if mapping(source, key)
    ]  # fmt: skip
    target = number(source, "target")
    if target is not None:
        rows.append(("The private image", words.number(target), words.NOTHING, "1"))
    head = ("Bits per dimension (lower: better known)", "Mean", "Standard error", "Images")
    lead = "How likely the model holds these very images to be, pixel for pixel."
    table = Table("Likelihood", head, rows, (False, True, True, True))
    return Section("likelihood", "Likelihood", lead, [table])


def _fid(results: Mapping[str, Any]) -> Section | None:
    source = mapping(results, "fid")
    if not source:
        return None
    rows = [
        ("To the training images", words.number(number(source, "train"))),
        ("To images never trained on", words.number(number(source, "test"))),
        ("Generated images used", words.whole(count(source, "samples"))),
        ("Features", text(source, "features", 120) or words.NOTHING),
    ]
    lead = "The Fréchet distance of generated images to real ones; only the same features compare."
    return Section("fid", "Quality of the generated images", lead, [Pairs(rows)])


def _costs(results: Mapping[str, Any], run: Mapping[str, Any]) -> Section | None:
    source = mapping(results, "costs.network_evaluations")
    rows = [
        (text({"k": name}, "k", 60) or words.NOTHING, words.whole(count(source, name)))
        for name in source
        if "." not in name and count(source, name) is not None
    ]
    total = sum(count(source, name) or 0 for name in source if "." not in name and name != "total")
    blocks: list[Block] = []
    if rows:
        rows = [row for row in rows if row[0] != "total"] + [("Together", f"{total:,}")]
        blocks.append(Table("Network evaluations", ("Part", "Evaluations"), rows, (False, True)))

    stages = stage_rows(run)
    if stages:
        blocks.append(Table("Time", ("Stage", "Time"), stages, (False, True)))
    return Section("costs", "What it cost", "", blocks) if blocks else None
