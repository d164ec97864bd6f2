"""The paper's claims, one by one: does what was reproduced so far bear them out?

Each answer is computed from docs/paper/results.json by a rule:

    holds            a test at 5 % speaks for the claim, or an example that the claim needs is there
    does not         a test at 5 %, or an exact interval, speaks against it
    cannot be told   neither, or the numbers that would tell were not made; the reason says which

The largest size that holds enough rows answers, and is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import Any, Literal

from latentprint.judge.rule import fisher_greater
from latentprint.stats import Trials
from tools.reproduce.plan import Size
from tools.reproduce.record import Record
from tools.reproduce.summary import Entry

Answer = Literal["holds", "does not", "cannot be told"]
ORDER: tuple[Size, ...] = ("full", "cpu", "mini")


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, in its words or near them, and how it is judged."""

    said: str
    where: str
    judge: Callable[[Record], tuple[Answer, str]]


def table(record: Record) -> Iterator[str]:
    """The lines of the page's first table."""
    yield "| the paper says | where | here | why |"
    yield "| --- | --- | --- | --- |"
    for claim in CLAIMS:
        answer, why = claim.judge(record)
        yield f"| {claim.said} | {claim.where} | **{answer}** | {why} |"


def _rows(record: Record, name: str, least: int) -> tuple[Size | None, list[Entry]]:
    """The rows of the largest size with at least ``least`` of them, by number of images."""
    for size in ORDER:
        found = [one for one in record.rows(name, size).values() if "monte_carlo" in one]
        if len(found) >= least:
            return size, sorted(found, key=lambda one: one["data"]["images"])
    return None, []


def _count(entry: Entry) -> Trials:
    return Trials(entry["monte_carlo"]["hits"], entry["monte_carlo"]["samples"])


def _average(entry: Entry) -> float:
    """The rate at which a model that repeats all its training images equally shows the private one."""
    return min(1.0, entry["copies"] / entry["data"]["images"])


def _few(entry: Entry) -> bool:
    """Whether the exact 95 % interval lies below the average rate."""
    return _count(entry).interval()[1] < _average(entry)


def turning_point(record: Record) -> tuple[Answer, str]:
    """Between two numbers of images the private one stops coming back, or else any image does.

    x_p is one image, and may be one that is rarely given back (``whole_set`` of Table 2). So where it shows
    no turn there, all images are asked, by the audit's own verdict; both turns are told. Table 2 cannot
    answer, for its sets differ in more than their numbers of images; its turn is told.
    """
    size, rows = _rows(record, "table1", 2)
    if size is None:
        return "cannot be told", "Table 1 was not run."
    turns = list[str]()
    for comes, said in ((_private, "The private image comes back"), (_any, "Training images come back")):
        if (turn := _turn(rows, comes)) is None:
            continue
        told = f"{said} with {turn[0]:,} training images and no more with {turn[1]:,} ({size})."
        if comes is _private:
            silent = [one for one in rows if one["data"]["images"] == turn[1]]
            told = " ".join([told, *_beyond(record, size, silent)])
        turns.insert(0, told)
        if turn[0] < 5000 and turn[1] > 1000:
            return "holds", " ".join(turns)
    ns = [one["data"]["images"] for one in rows]
    told = f"No turn among {ns[0]:,} to {ns[-1]:,} images ({size})."
    if turns:
        told = f"{' '.join(turns)} There is a turn, of smaller images and a smaller network, elsewhere."
    size, rows = _rows(record, "table2", 2)
    if (turn := _turn(rows, _any)) is not None:
        told += (
            f" Of the different sets of Table 2, one of {turn[0]:,} images gives training images back and one"
            f" of {turn[1]:,} does not ({size})."
        )
    return "cannot be told", told


def _beyond(record: Record, size: Size, rows: Sequence[Entry]) -> Iterator[str]:
    """What estimators of rarer events see of these rows' sets, where counting saw nothing."""
    for one in _deviating(record, size, rows):
        for name, found in one.get("estimates", {}).items():
            if found["reliable"] and not _count(one).k:
                rate = found["rate"]
                yield (
                    f"Not never: {name} finds it at {rate:.2g} ({found['low']:.2g} to {found['high']:.2g})"
                    f" by {_sampled(one)}, {rate / _average(one):.2g} of 1/N."
                )


def _deviating(record: Record, size: Size, rows: Sequence[Entry]) -> Iterator[Entry]:
    """The audits of ``deviations`` of these rows' sets and numbers of images."""
    sets = [(one["data"]["source"], one["data"]["images"]) for one in rows]
    for one in record.rows("deviations", size).values():
        if "monte_carlo" in one and (one["data"]["source"], one["data"]["images"]) in sets:
            yield one


def _sampled(one: Entry) -> str:
    sampler = one["settings"]["sampler"]
    return f"{sampler['steps']} steps of {sampler['name']}"


def _private(one: Entry) -> bool | None:
    """Whether x_p comes back; None: cannot be told from a rate of 1/N."""
    if one["monte_carlo"]["hits"]:
        return True
    return False if _few(one) else None


def _any(one: Entry) -> bool | None:
    """Whether any training image comes back, as the audit judged it; None: it could not tell, or all images
    were not compared."""
    if not one.get("whole_set"):
        return None
    return {"reproduces": True, "not found": False}.get(one["verdict"])


def _turn(rows: Sequence[Entry], comes: Callable[[Entry], bool | None]) -> tuple[int, int] | None:
    """The last two neighbouring numbers of images between which something stops coming back."""
    turns = [
        (a["data"]["images"], b["data"]["images"])
        for a, b in pairwise(rows)
        if comes(a) is True and comes(b) is False
    ]
    return turns[-1] if turns else None


SMALL = 2000
"""Images at most of a set that the paper calls small; it sees the turn at 4,708."""


def as_often(record: Record) -> tuple[Answer, str]:
    """Small sets: as often as each training image."""
    size, rows = _rows(record, "table2", 2)
    rows = [one for one in rows if one["data"]["images"] <= SMALL]
    if size is None or not rows:
        return "cannot be told", "Table 2 was not run."
    few = [one for one in rows if _few(one)]
    steps = rows[0]["settings"]["model"]["training"]["steps"]
    if few:
        sets = ", ".join(one["data"]["source"] for one in few)
        told = f"Rates below 1/N after {steps:,} training steps: {sets} ({size})."
        return "does not", " ".join([told, *_otherwise(record, size, few)])
    return "holds", f"In each of {len(rows)} sets the exact interval holds 1/N ({size})."


def _between(one: Entry) -> bool:
    """Whether x_p comes, and not as often as the average image: one hit alone may be a false alarm."""
    low, high = _count(one).interval()
    return one["monte_carlo"]["hits"] > 1 and low > 0 and high < _average(one)


def _otherwise(record: Record, size: Size, rows: Sequence[Entry]) -> Iterator[str]:
    """What a longer training or another sampler makes of these rows' sets: those of ``deviations`` in
    which x_p comes."""
    for one in _deviating(record, size, rows):
        between = _between(one)
        if (_few(one) and not between) or one["began"] in [row["began"] for row in rows]:
            continue
        data, steps, count = one["data"], one["settings"]["model"]["training"]["steps"], _count(one)
        yield (
            f"{'So too' if between else 'Not so'} for {data['source']}, {data['images']:,} images,"
            f" after {steps:,} steps, sampled by {_sampled(one)}: {count.k} of {count.n:,},"
            f" where 1/N is {_average(one) * count.n:.2g}."
        )


def falls(record: Record) -> tuple[Answer, str]:
    """t' against N: every order of the rows is equally likely if they have nothing to do with each other.

    Four rows at least are asked, for of three the best order has p = 1/6.
    """
    size, rows = _rows(record, "table1", 4)
    if size is None:
        return "cannot be told", "Fewer than four rows of Table 1 were run."
    values = [one["t_prime"]["value"] or 0.0 for one in rows]
    p = rank_p(values)
    told = f"t' by number of images: {_levels(rows)} (exact rank test, p = {p:.2g}; {size})."
    larger, few = _rows(record, "table1", 2)
    if larger not in (None, size):
        told += f" Too few rows for a test: {_levels(few)} ({larger})."
    return ("holds" if p <= 0.05 else "cannot be told"), told


def _levels(rows: Sequence[Entry]) -> str:
    return ", ".join(f"{one['data']['images']:,}: {one['t_prime']['value'] or 0:.3g}" for one in rows)


def rank_p(values: Sequence[float]) -> float:
    """P(as many falling pairs or more) when all orders are equally likely; exact."""

    def falling(order: Sequence[float]) -> int:
        return sum(a > b for i, a in enumerate(order) for b in order[i + 1 :])

    seen = falling(values)
    if len(values) > 8:
        raise ValueError(f"the exact test goes through all orders: at most 8 values, got {len(values)}")
    return sum(falling(order) >= seen for order in permutations(values)) / math.factorial(len(values))


def all_or_nothing(record: Record) -> tuple[Answer, str]:
    """A rate that is neither 0 nor the average one is a counterexample, if it is no false alarm."""
    told, seen = list[str](), 0
    for name in ("table1", "table2"):
        size, rows = _rows(record, name, 1)
        seen += len(rows)
        counter = [one for one in rows if _between(one)]
        if size is not None and counter:
            rates = [_rate(one) for one in counter]
            told += [f"Rates between nothing and 1/N: {'; '.join(rates)} ({size})."]
            told += _otherwise(record, size, counter)
    if not seen:
        return "cannot be told", "Neither table was run."
    if told:
        return "does not", " ".join(told)
    return "holds", f"In each of {seen} rows the rate can be 0 or 1/N."


def _rate(one: Entry) -> str:
    low, high = _count(one).interval()
    return f"{one['data']['source']}, {one['data']['images']:,} images: {low:.2g} to {high:.2g}"


def fid_gap(record: Record) -> tuple[Answer, str]:
    """One pair of sets whose gaps and rates are in opposite order is what the claim needs.

    The rate is x_p's; where no pair tells, it is whether any training image comes back, by the verdict.
    """
    size, rows = _rows(record, "table2", 2)
    usable = [one for one in rows if one.get("fid") and one["fid"]["test"] is not None]
    if size is None or len(usable) < 2:
        return "cannot be told", "Fewer than two sets with FID to training and test images were run."

    def gap(one: Entry) -> float:
        return one["fid"]["test"] - one["fid"]["train"]

    def share(one: Entry) -> tuple[float, float]:
        low, high = _count(one).interval()
        return low / _average(one), high / _average(one)

    pairs = [(a, b) for a in usable for b in usable if gap(a) > gap(b)]
    for a, b in pairs:
        larger, smaller = a["data"]["source"], b["data"]["source"]
        told = f"{gap(a):.2g} and {gap(b):.2g}, features of c_p; {size}"
        gaps = f"{larger} has a larger gap than {smaller} ({told})"
        if share(a)[1] < share(b)[0]:
            return "holds", f"{gaps}, and its private image comes back less often."
        if _any(a) is False and _any(b) is True:
            return "holds", f"{gaps}. Training images come back from the latter, and not from the former."
    told = "; ".join(f"{one['data']['source']} {gap(one):.2g}" for one in usable)
    return "cannot be told", f"No pair of sets contradicts the gap: {told} ({size}, features of c_p)."


def longer(record: Record) -> tuple[Answer, str]:
    """The last length shows the image more often than the first one does; where x_p tells no difference, any
    training image is asked, by one rule for all lengths, less what false alarms can explain."""
    for size in ORDER:
        for entry in record.rows("fig3", size).values():
            lengths = _lengths(entry)
            hits = {one["step"]: one["monte_carlo"]["hits"] for one in lengths}
            p = fisher_greater(_count(lengths[-1]), _count(lengths[0]))
            told = f"Hits by training steps: {_steps(hits)} (last against first: p = {p:.2g}; {size})."
            if p <= 0.05:
                return "holds", told
            compared = [whole for one in lengths if (whole := one.get("whole_set"))]
            if len(compared) < len(lengths):
                return "cannot be told", told
            copies = {step: whole["copies"]["k"] for step, whole in zip(hits, compared, strict=True)}
            begun, ended = (
                Trials(one["copies"]["k"], one["copies"]["n"]) for one in (compared[0], compared[-1])
            )
            p = fisher_greater(ended, begun)
            told += f" Copies of any training image: {_steps(copies)} (p = {p:.2g})."
            return ("holds" if p <= 0.05 and compared[-1]["at_least"] else "cannot be told"), told
    return "cannot be told", "Figure 3 was not run."


def _steps(counts: Mapping[int, int]) -> str:
    return ", ".join(f"{step:,}: {k:,}" for step, k in counts.items())


def _lengths(entry: Mapping[str, Any]) -> list[Entry]:
    return list(entry.get("lengths", ()))


CLAIMS: tuple[Claim, ...] = (
    Claim("Small sets are memorised: the private image comes back as often as each", "Table 2", as_often),
    Claim("There is a turning point between 1,000 and 5,000 images", "Table 1", turning_point),
    Claim("t' falls as the number of images grows", "Tables 1, 2", falls),
    Claim("A fingerprint is either memorised or ignored", "section 8", all_or_nothing),
    Claim("The gap of FID between training and test images does not measure it", "section 5.4", fid_gap),
    Claim("A longer training memorises, a shorter one does not", "Figure 3", longer),
)
"""A claim of the paper: its words, where they stand, and the rule that judges it."""
