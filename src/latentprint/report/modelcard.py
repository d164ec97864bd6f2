"""A section for a model card in the Hugging Face Hub's format: front matter for machines, text for people.

The Hub's own library makes the front matter (``ModelCardData``, ``EvalResult``). It holds only counts, rates
and hashes.
"""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from latentprint.contracts import InputError
from latentprint.report.first import first_screen
from latentprint.report.provenance import weights
from latentprint.report.public import RunFacts, public_source, said
from latentprint.results import Results

BEGIN, END = "<!-- latentprint: begin -->", "<!-- latentprint: end -->"
"""Marks around the section, so that a later audit can replace it."""


def metadata(results: Results, run: RunFacts, name: str) -> ModelCardData:
    """The front matter. ``name`` is the model's name as its card states it."""
    count, control, searched = results.q.monte_carlo, results.q.control, results.t_prime

    def metric(kind: str, told: str, value: Any, **arguments: Any) -> EvalResult:
        return EvalResult(
            task_type="unconditional-image-generation",
            task_name="Privacy audit",
            dataset_type="latentprint-manifest",
            dataset_name=public_source(results.data.source),
            dataset_args={"images": results.data.images, "sha256": results.data.sha256},
            metric_type=kind,
            metric_name=told,
            metric_value=value,
            metric_args=arguments or None,
        )

    metrics = [
        metric(
            "reproduction_rate",
            "Rate at which generated images are the audited training image",
            count.rate,
            **count.model_dump(include={"hits", "samples", "low", "high", "level"}),
        ),
        metric("missable_rate", "Largest rate that could have been missed (5% probability)", count.missable),
        metric("verdict", "Verdict", results.verdict.state),
    ]
    if searched is not None:
        told = "Largest noise level from which the audited image came back"
        value = "never" if searched.value is None else searched.value
        metrics.append(metric("t_prime", told, value, tries=searched.tries))
    if control is not None:
        base = results.base_is_control
        told = f"The same rate for {'the base model' if base else 'a model trained without that image'}"
        counts = control.model_dump(include={"hits", "samples"})
        metrics.append(metric("control_reproduction_rate", told, control.rate, **counts))
    if results.whole_set is not None:
        shares = (
            (
                "copies_rate",
                "generated images that are copies of any training image",
                results.whole_set.copies,
            ),
            ("memorised_rate", "training images that came back at least once", results.whole_set.memorised),
        )
        for kind, what, share in shares:
            metrics.append(metric(kind, f"Share of {what}", share.rate, **share.model_dump(exclude={"rate"})))
    if results.epsilon is not None:
        told = "Lower bound of epsilon by canaries"
        epsilon = results.epsilon.model_dump(include={"delta", "level", "canaries"})
        metrics.append(metric("epsilon_lower_bound", told, results.epsilon.low, **epsilon))
    audit = {
        "schema": results.schema_,
        "weights_sha256": weights(results, run),
        "settings_sha256": run.settings_sha256,
        "finished": None if run.finished is None else run.finished.isoformat(),
    }
    return ModelCardData(
        model_name=said(name), tags=["privacy-audit", "latentprint"], eval_results=metrics, latentprint=audit
    )


def plain_text(value: str) -> str:
    """Text escaped so that Markdown and HTML show it literally."""
    value = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#|!~])", r"\\\1", value)


def section(results: Results, run: RunFacts) -> str:
    """The Markdown section between its marks."""
    first = first_screen(results)
    lines = [BEGIN, "## Privacy audit", "", f"**{plain_text(first.headline)}** {plain_text(first.sub)}", ""]
    head = [plain_text(cell) or " " for cell in first.tally.head]
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(plain_text(cell) for cell in row)} |" for row in first.tally.rows]
    for name, answer in first.answers:
        lines += ["", f"**{name}** {plain_text(answer)}"]
    hashes = [
        ("training images", results.data.sha256),
        ("audited image", results.target.sha256),
        ("weights", weights(results, run)),
    ]
    lines += ["", f"Hashes (SHA-256): {'; '.join(f'{name} `{sha}`' for name, sha in hashes if sha)}."]
    if run.authorised_by:
        lines += ["", f"Authorised by: {plain_text(said(run.authorised_by, 300))}."]
    lines += [
        "",
        "Audited with latentprint after Dombrowski and Kainz (2023). This says what was found for one image"
        " and one way of generating, and what could have been missed; it is no promise of anonymity.",
        END,
        "",
    ]
    return "\n".join(lines)


def model_card(results: Results, run: RunFacts, name: str) -> str:
    """A whole card: front matter and section, to be extended by hand."""
    front = metadata(results, run, name).to_yaml()
    return f"---\n{front}\n---\n\n# {plain_text(said(name))}\n\n{section(results, run)}"


def replace_section(card: str, new: str) -> str:
    """``card`` with its section replaced by ``new``, or with ``new`` at its end."""
    begin, end = card.count(BEGIN), card.count(END)
    if (begin, end) == (0, 0):
        return f"{card.rstrip()}\n\n{new}"
    if (begin, end) != (1, 1) or card.index(BEGIN) > card.index(END):
        raise InputError(
            f"the card needs each mark of the audit's section once, in order, got {begin} and {end}"
        )
    head, rest = card.split(BEGIN)
    return f"{head}{new.strip()}{rest.split(END)[1]}"
