"""A section for a model card in the Hugging Face Hub's format: front matter for machines, text for people.

The front matter is a ``model-index`` entry (task, dataset, metrics), which ``huggingface_hub.ModelCard``
reads. It is written as JSON values inside YAML, of which JSON is a subset. Only counts, rates
and hashes go in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from latentprint import words
from latentprint.contracts import InputError
from latentprint.report.first import first_screen
from latentprint.report.reading import check, count, digest, mapping, number, public_source, rate
from latentprint.report.reading import words as text

BEGIN, END = "<!-- latentprint: begin -->", "<!-- latentprint: end -->"
"""Marks around the section, so that a later audit can replace it."""


def metadata(results: Mapping[str, Any], run: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The front matter as plain values. ``name``: the model's name as its card states it.

    Raises:
        InputError: the results are of another schema, or lack counts or verdict.
    """
    check(results)
    source = mapping(results, "q.monte_carlo")
    interval = {"low": rate(source, "low"), "high": rate(source, "high"), "level": rate(source, "level")}
    metrics: list[dict[str, Any]] = [
        {
            "type": "reproduction_rate",
            "name": "Rate at which generated images are the audited training image",
            "value": rate(source, "rate"),
            "args": {"hits": count(source, "hits"), "samples": count(source, "samples"), **interval},
        },
        {
            "type": "missable_rate",
            "name": "Largest rate that could have been missed (5% probability)",
            "value": rate(source, "missable"),
        },
        {"type": "verdict", "name": "Verdict", "value": results["verdict"]["state"]},
    ]
    if mapping(results, "t_prime"):
        found = number(results, "t_prime.value")
        metrics.append(
            {
                "type": "t_prime",
                "name": "Largest noise level from which the audited image came back",
                "value": "never" if found is None else found,
                "args": {"tries": count(results, "t_prime.tries")},
            }
        )
    control = mapping(results, "q.control")
    if control:
        metrics.append(
            {
                "type": "control_reproduction_rate",
                "name": "The same rate for a model trained without that image",
                "value": rate(control, "rate"),
                "args": {"hits": count(control, "hits"), "samples": count(control, "samples")},
            }
        )
    entry = {
        "task": {"type": "unconditional-image-generation", "name": "Privacy audit"},
        "dataset": {
            "type": "latentprint-manifest",
            "name": public_source(results),
            "args": {"images": count(results, "data.images"), "sha256": digest(results, "data.sha256")},
        },
        "metrics": metrics,
    }
    index = {"name": name, "results": [entry]}
    audit = {
        "schema": text(results, "schema", 40),
        "weights_sha256": digest(run, "stages.model.payload.weights_sha256") or digest(run, "weights_sha256"),
        "settings_sha256": digest(run, "settings_sha256"),
        "finished": _time(run),
    }
    return {"tags": ["privacy-audit", "latentprint"], "model-index": [index], "latentprint": audit}


def _time(run: Mapping[str, Any]) -> str | None:
    value = run.get("finished")
    fits = isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]{8,15}(Z|[+-]\d\d:\d\d)", value)
    return value if fits else None


def front_matter(values: Mapping[str, Any]) -> str:
    """YAML front matter, one line for each key, its value as JSON."""
    lines = [
        f"{key}: {json.dumps(value, ensure_ascii=True, allow_nan=False)}" for key, value in values.items()
    ]
    return "\n".join(["---", *lines, "---", ""])


def plain_text(value: str) -> str:
    """Text that Markdown and HTML take literally."""
    value = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#|!~])", r"\\\1", value)


def section(results: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """The Markdown section between its marks.

    Raises:
        InputError: the results are of another schema, or lack counts or verdict.
    """
    check(results)
    first = first_screen(results)
    lines = [BEGIN, "## Privacy audit", "", f"**{plain_text(first.headline)}** {plain_text(first.sub)}", ""]
    head = [plain_text(cell) or " " for cell in first.tally.head]
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(plain_text(cell) for cell in row)} |" for row in first.tally.rows]
    for name, answer in first.answers:
        lines += ["", f"**{name}.** {plain_text(answer)}"]
    hashes = [
        ("training images", digest(results, "data.sha256")),
        ("audited image", digest(results, "target.sha256")),
        ("weights", digest(run, "stages.model.payload.weights_sha256") or digest(run, "weights_sha256")),
    ]
    said = "; ".join(f"{name} `{sha}`" for name, sha in hashes if sha)
    authority = text(run, "authorised_by", 300)
    lines += ["", f"Hashes (SHA-256): {said or words.NOTHING}."]
    if authority:
        lines += ["", f"Authorised by: {plain_text(authority)}."]
    lines += [
        "",
        "Audited with latentprint after Dombrowski and Kainz (2023). This says what was found for one image"
        " and one way of generating, and what could have been missed; it is no promise of anonymity.",
        END,
        "",
    ]
    return "\n".join(lines)


def model_card(results: Mapping[str, Any], run: Mapping[str, Any], name: str) -> str:
    """A whole card: front matter and section, to be extended by hand.

    Raises:
        InputError: the results are of another schema, or lack counts or verdict.
    """
    return f"{front_matter(metadata(results, run, name))}\n# {plain_text(name)}\n\n{section(results, run)}"


def replace_section(card: str, new: str) -> str:
    """``card`` with its section replaced by ``new``, or with ``new`` at its end.

    Raises:
        InputError: the card holds one mark without the other, or a mark twice.
    """
    begin, end = card.count(BEGIN), card.count(END)
    if (begin, end) == (0, 0):
        return f"{card.rstrip()}\n\n{new}"
    if (begin, end) != (1, 1) or card.index(BEGIN) > card.index(END):
        raise InputError(
            f"the card needs each mark of the audit's section once, in order, got {begin} and {end}"
        )
    head, rest = card.split(BEGIN)
    return f"{head}{new.strip()}{rest.split(END)[1]}"
