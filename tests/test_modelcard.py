"""The card as the Hub's own library reads it, and as Markdown that takes no orders from the results."""

from __future__ import annotations

import json

import made_up
import pytest
import yaml
from huggingface_hub import ModelCard

from latentprint.report.modelcard import (
    BEGIN,
    END,
    metadata,
    model_card,
    plain_text,
    replace_section,
    section,
)


def test_the_hub_s_library_reads_the_metadata() -> None:
    card = ModelCard(model_card(made_up.leak(), made_up.run(), "digits-100"))
    found = {one.metric_type: one for one in card.data.eval_results}
    assert card.data.model_name == "digits-100" and "privacy-audit" in card.data.tags
    rate = found["reproduction_rate"]
    assert (
        rate.metric_value == 39 / 4000
        and rate.metric_args["hits"] == 39
        and rate.metric_args["level"] == 0.95
    )
    assert found["verdict"].metric_value == "reproduces"
    assert found["control_reproduction_rate"].metric_args == {"hits": 0, "samples": 4000}
    assert rate.task_type == "unconditional-image-generation"


@pytest.mark.parametrize("make", [made_up.leak, made_up.clean, made_up.undecided, made_up.unmarked])
def test_the_front_matter_is_yaml_of_the_very_values(make: object) -> None:
    results = make()  # type: ignore[operator]
    card = model_card(results, made_up.run(), 'a "name": with # signs')
    head = card.split("---\n")[1]
    assert yaml.safe_load(head) == json.loads(
        json.dumps(metadata(results, made_up.run(), 'a "name": with # signs'))
    )


def test_the_section_says_what_the_report_says() -> None:
    said = section(made_up.leak(), made_up.run() | {"authorised_by": "the data protection officer"})
    assert "**This model gives back the private image.**" in said
    assert "| This model | 39 | 4,000 | 1 in 103 |" in said
    assert (
        made_up.sha("target") in said and made_up.sha("weights") in said and "data protection officer" in said
    )


def test_never_is_told_from_zero() -> None:
    results = made_up.changed(made_up.clean(), "t_prime.value", None)
    entry = metadata(results, {}, "x")["model-index"][0]["results"][0]
    t_prime = next(one for one in entry["metrics"] if one["type"] == "t_prime")
    assert t_prime["value"] == "never"


def test_text_in_the_results_stays_text() -> None:
    run = made_up.run() | {
        "authorised_by": "<script>alert(1)</script> [x](http://a.example) | **b** /home/anna/x"
    }
    said = section(made_up.leak(), run)
    assert "<script" not in said and "/home/anna" not in said and "http" not in said
    assert plain_text("a_b [c](d) <e>") == "a\\_b \\[c\\]\\(d\\) &lt;e&gt;"
    card = model_card(made_up.leak(), {}, "x\n---\nevil: true")
    assert "evil" not in yaml.safe_load(card.split("---\n")[1])


def test_a_later_audit_replaces_the_section_and_nothing_else() -> None:
    old, new = section(made_up.leak(), {}), section(made_up.clean(), {})
    card = f"# Mine\n\nBefore.\n\n{old}\nAfter.\n"
    replaced = replace_section(card, new)
    assert replaced.startswith("# Mine\n\nBefore.\n\n") and replaced.endswith("\nAfter.\n")
    assert "150,000" in replaced and "39 of 4,000" not in replaced and replaced.count(BEGIN) == 1
    assert replace_section("# Mine\n", new).count(END) == 1
    with pytest.raises(ValueError, match="each mark"):
        replace_section(card + BEGIN, new)
