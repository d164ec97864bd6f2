"""The card as the Hub's own library reads it, and as Markdown that takes no orders from the results."""

from __future__ import annotations

import pytest
import small_runs
import yaml
from huggingface_hub import ModelCard

from latentprint.report import RunFacts
from latentprint.report.modelcard import BEGIN, END, model_card, plain_text, replace_section, section


def leak() -> small_runs.SmallRun:
    return small_runs.leak().counts(39, 4000).counts(0, 4000, "samples.control")


def test_the_hub_s_library_reads_the_metadata() -> None:
    card = ModelCard(model_card(leak().results, small_runs.facts(), "digits-100"))
    found = {one.metric_type: one for one in card.data.eval_results}
    assert card.data.model_name == "digits-100" and "privacy-audit" in card.data.tags
    rate = found["reproduction_rate"]
    assert rate.metric_value == 39 / 4000
    assert rate.metric_args["hits"] == 39 and rate.metric_args["level"] == 0.95
    assert found["verdict"].metric_value == "reproduces"
    assert found["control_reproduction_rate"].metric_args == {"hits": 0, "samples": 4000}
    assert rate.task_type == "unconditional-image-generation"
    assert card.data.latentprint["weights_sha256"] == small_runs.facts().weights_sha256


def test_the_section_says_what_the_report_says() -> None:
    run = small_runs.facts().model_copy(update={"authorised_by": "the data protection officer"})
    said = section(leak().results, run)
    assert "**This model gives back training images.**" in said
    assert "| This model | 39 | 4,000 | 1 in 103 |" in said
    assert leak().results.target.sha256 in said and run.weights_sha256 in said
    assert "data protection officer" in said


def test_never_is_told_from_zero() -> None:
    rows = dict(leak().stored.rows("search.model"))
    never = leak().rows("search.model", rows | {"hit": rows["hit"] & False}).results
    card = ModelCard(model_card(never, RunFacts(), "x"))
    found = {one.metric_type: one for one in card.data.eval_results}
    assert found["t_prime"].metric_value == "never"


def test_text_in_the_results_stays_text() -> None:
    hostile = "<script>alert(1)</script> [x](http://a.example) | **b** /home/anna/x"
    run = small_runs.facts().model_copy(update={"authorised_by": hostile})
    said = section(leak().results, run)
    assert "<script" not in said and "/home/anna" not in said and "http" not in said
    assert plain_text("a_b [c](d) <e>") == "a\\_b \\[c\\]\\(d\\) &lt;e&gt;"
    card = model_card(leak().results, RunFacts(), "x\n---\nevil: true")
    assert "evil" not in yaml.safe_load(card.split("---\n")[1])
    assert ModelCard(card).data.model_name == "x --- evil: true"


def test_a_later_audit_replaces_the_section_and_nothing_else() -> None:
    old, new = (section(one.results, RunFacts()) for one in (leak(), leak().counts(0, 5000)))
    card = f"# Mine\n\nBefore.\n\n{old}\nAfter.\n"
    replaced = replace_section(card, new)
    assert replaced.startswith("# Mine\n\nBefore.\n\n") and replaced.endswith("\nAfter.\n")
    assert "5,000" in replaced and "39 of 4,000" not in replaced and replaced.count(BEGIN) == 1
    assert replace_section("# Mine\n", new).count(END) == 1
    with pytest.raises(ValueError, match="each mark"):
        replace_section(card + BEGIN, new)
