"""The tables of ``docs/paper.md``: rows that the paper printed, and ours below them, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from latentprint.stats import Trials, binomial_test_less
from latentprint.words import of, often, percent
from tools.reproduce.passes import over_each
from tools.reproduce.plan import Experiment, Published, Row
from tools.reproduce.summary import Entry

_NONE = "–"

COLUMNS = (
    "row",
    "images",
    "passes",
    "c_p %",
    "c_id %",
    "FID train",
    "FID test",
    "samples",
    "E",
    "c_p⁺",
    "c_id⁺",
    "both",
    "q, 95 %",
    "p (q < c/N)",
    "t'",
)


def audits(source: Experiment, made: Sequence[tuple[Row, Entry]]) -> Iterator[str]:
    """The paper's table: its printed rows, and below each of them ours."""
    yield _line(COLUMNS)
    yield _line(["---", *["---:"] * (len(COLUMNS) - 1)])
    printed: set[str] = set()
    for row, entry in made:
        published = source.of(row)
        if published is not None:
            printed.add(published.name)
            yield _line(_paper(published))
        yield _line(_ours(row, entry))
    alone = [published for published in source.published if published.name not in printed]
    for published in alone:
        yield _line(_paper(published))
    yield ""
    yield from _without_ours(source, alone)


_EVERY = (
    "row",
    "copies among the samples",
    "false alarms",
    "training images that came back",
    "the one in the middle",
    "the most frequent",
    "x_p by this rule",
)


def whole_set(made: Sequence[tuple[Row, Entry]]) -> Iterator[str]:
    """All training images by one rule, x_p among them; nothing where no row compared them."""
    compared = [(row, found) for row, entry in made if (found := entry.get("whole_set"))]
    if not compared:
        return
    yield (
        "All samples were compared with all training images by one rule, calibrated on images that were not "
        "trained on. It needs no mark, so x_p and every other image are asked the same:"
    )
    yield ""
    yield _line(_EVERY)
    yield _line(["---", *["---:"] * (len(_EVERY) - 1)])
    for row, found in compared:
        target, median = found["target"], found["median"]
        yield _line(
            [
                f"**{row.name}**",
                f"{percent(found['copies']['rate'])} ({_counted(found['copies'])})",
                _counted(found["false_alarms"]),
                _counted(found["memorised"]),
                often(median) if median is not None else _NONE,
                often(found["most"]),
                _NONE if target is None else often(target["k"]),
            ]
        )
    yield ""


def estimates(made: Sequence[tuple[Row, Entry]]) -> Iterator[str]:
    """q by what sees rarer events than counting does; nothing where no row asked for it."""
    asked = [(row, entry) for row, entry in made if entry.get("estimates")]
    if not asked:
        return
    yield (
        "The same q of the same sampler, by an estimator that sees rarer events than counting does "
        "(docs/probability.md):"
    )
    yield ""
    for row, entry in asked:
        seen = entry["monte_carlo"]
        bounds = f"{seen['low']:.2g} … {seen['high']:.2g}" if seen["hits"] else f"at most {seen['high']:.2g}"
        counted = f"counted {of(seen['hits'], seen['samples'])} ({bounds})"
        for name, one in entry["estimates"].items():
            told = one["diagnostic"]
            if one["reliable"]:
                told = (
                    f"**{one['rate']:.2g}** ({100 * one['level']:g}%: {one['low']:.2g} … {one['high']:.2g})"
                )
            cost = f"{one['network_evaluations']:,} evaluations of the network"
            yield f"- {row.name}, {name}: {told}; {counted}. It took {cost}."
    yield ""


def _counted(counts: Entry | None) -> str:
    return _NONE if counts is None else of(counts["k"], counts["n"])


def _seen(count: Entry) -> list[str]:
    """Samples, E, alarms of c_p, of c_id and of both, and the interval of their rate."""
    return [
        _count(count["samples"]),
        _plain(count["expected"]),
        _count(count["presence_hits"]),
        _count(count["identity_hits"]),
        _count(count["hits"]),
        f"{count['low']:.2g} … {count['high']:.2g}",
    ]


def _without_ours(source: Experiment, alone: Sequence[Published]) -> Iterator[str]:
    """Which published rows stand alone in the table, and the commands that would set ours beside them."""
    rows = source.scales["full"].rows if "full" in source.scales else ()
    commands = {of.name: row.name for row in rows if (of := source.of(row)) is not None}
    told = [f"{one.name} (`--only {commands[one.name]}`)" for one in alone if one.name in commands]
    if told:
        yield (
            f"Published rows without one of ours here: {', '.join(told)}, to be run by "
            f"`latentprint reproduce {source.name} --scale full --device cuda --only ROW`."
        )
        yield ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _paper(one: Published) -> list[str]:
    interval = p_value = _NONE
    if one.hits is not None and one.samples is not None and one.images is not None:
        # From the counts that are printed; the paper gives no interval, and of p that it is below 5 %.
        low, high = Trials(one.hits, one.samples).interval(0.95)
        interval = f"{low:.2g} … {high:.2g}"
        p_value = f"{binomial_test_less(one.hits, one.samples, 1 / one.images):.2g}"
    return [
        f"{one.name}, paper",
        _count(one.images),
        _NONE,
        _plain(one.presence_accuracy),
        _plain(one.identity_accuracy),
        _plain(one.fid_train),
        _plain(one.fid_test),
        _count(one.samples),
        _plain(one.expected),
        _count(one.presence_hits),
        _count(one.identity_hits),
        _count(one.hits),
        interval,
        p_value,
        _plain(one.t_prime),
    ]


def _ours(row: Row, entry: Entry) -> list[str]:
    seen, fid = entry["monte_carlo"], entry["fid"]
    t_prime, certain = entry["t_prime"]["value"], entry["t_prime"]["certain"]
    told = "never" if t_prime is None else f"{t_prime:.3g}"
    sure = "" if certain == t_prime else f" (sure: {'none' if certain is None else f'{certain:.3g}'})"
    return [
        f"**{row.name}, ours**",
        _count(entry["data"]["images"]),
        _count(round(over_each(entry))),
        _share(entry["presence"]),
        _share(entry["identity"]),
        _plain(fid["train"]) if fid else _NONE,
        _plain(fid["test"]) if fid else _NONE,
        *_seen(seen),
        f"{seen['p_value']:.2g}",
        told + sure,
    ]


def lengths(entry: Entry) -> Iterator[str]:
    """One line for each length; all training images where they were compared."""
    every = any(one.get("whole_set") for one in entry["lengths"])
    names = (*_EACH, *(_ANY if every else ()))
    yield _line(names)
    yield _line(["---:"] * len(names))
    for one in entry["lengths"]:
        seen, error = one["monte_carlo"], one["memorised"]["mse"]
        value = one["t_prime"]["value"]
        yield _line(
            [
                _count(one["step"]),
                _count(round(over_each(entry, one["step"]))),
                *_seen(seen),
                _NONE if error is None else f"{error['median']:.2g}",
                "never" if value is None else f"{value:.3g}",
                *(_any(one.get("whole_set")) if every else ()),
            ]
        )
    yield ""
    if every:
        yield (
            "The last three columns hold all samples against all training images by one rule, the same at "
            "every length; its false alarms are counted on images that were not trained on."
        )
        yield ""


_EACH = ("steps", "passes", "samples", "E", "c_p⁺", "c_id⁺", "both", "q, 95 %", "median MSE of hits", "t'")
_ANY = ("copies of any training image", "false alarms", "training images that came back")


def _any(found: Entry | None) -> list[str]:
    if found is None:
        return [_NONE] * len(_ANY)
    return [_counted(found[name]) for name in ("copies", "false_alarms", "memorised")]


def _count(value: int | None) -> str:
    return _NONE if value is None else f"{value:,}"


def _plain(value: float | None) -> str:
    return _NONE if value is None else f"{value:.4g}"


def _share(counts: Entry | None) -> str:
    """Percent of correct answers, with the count."""
    return _NONE if counts is None else f"{100 * counts['k'] / counts['n']:.1f} ({counts['k']}/{counts['n']})"
