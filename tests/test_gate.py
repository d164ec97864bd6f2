"""Policies that must pass, fail and be undecidable, and text that is no policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made_up
import pytest

from latentprint.contracts import InputError
from latentprint.gate import Decision, Outcome, judge, judge_file, read_policy, starter
from latentprint.stats import Trials


def answers(results: dict[str, Any], text: str) -> dict[str, str]:
    return {outcome.rule: outcome.answer for outcome in judge(results, read_policy(text)).outcomes}


def q(limit: float, estimators: str = '"monte_carlo"', level: float = 0.95) -> str:
    return f"[q]\nat_most = {limit}\nlevel = {level}\nestimators = [{estimators}]\n"


def test_the_starter_is_a_policy_that_passes_fails_and_cannot_judge() -> None:
    policy = read_policy(starter())
    clean, leak, small = (judge(one(), policy) for one in (made_up.clean, made_up.leak, made_up.undecided))
    assert (clean.exit_code, leak.exit_code, small.exit_code) == (0, 1, 2)
    assert all(outcome.reason.endswith(".") for one in (clean, leak, small) for outcome in one.outcomes)
    assert {o.rule for o in clean.outcomes} >= {"q.at_most", "missable.at_most", "control.rate_at_most"}


def test_the_rate_rule_holds_both_bounds_against_the_limit() -> None:
    # 39 of 4,000: one-sided 97.5 % bounds 0.0069 and 0.0133; the control's zero takes 1e-3 off the first,
    # the detectors' misses raise the second by a few per cent
    leak = made_up.leak()
    assert answers(leak, q(0.02)) == {"q.at_most": "pass"}
    assert answers(leak, q(0.01)) == {"q.at_most": "unknown"}
    assert answers(leak, q(0.004)) == {"q.at_most": "fail"}


def test_nothing_found_in_too_few_images_is_no_yes_and_says_how_many_would_do() -> None:
    results = made_up.undecided()
    decision = judge(results, read_policy(q(1e-3)))
    assert decision.exit_code == 2
    needed = int(decision.outcomes[0].reason.split("possible. ")[1].split()[0].replace(",", ""))
    enough = made_up.changed(results, "q.monte_carlo", made_up.monte_carlo(0, needed, 1 / 546, 0, 0))
    fewer = made_up.changed(results, "q.monte_carlo", made_up.monte_carlo(0, needed - 1, 1 / 546, 0, 0))
    assert judge(enough, read_policy(q(1e-3))).exit_code == 0
    assert judge(fewer, read_policy(q(1e-3))).exit_code == 2


def test_an_estimator_must_be_run_reliable_and_as_confident_as_asked() -> None:
    clean = made_up.clean()
    assert answers(clean, q(1e-8, '"splitting"')) == {"q.at_most": "pass"}
    assert answers(clean, q(1e-9, '"splitting"')) == {"q.at_most": "fail"}
    assert answers(clean, q(1e-8, '"splitting"', 0.99)) == {"q.at_most": "unknown"}
    assert answers(clean, q(1e-8, '"bridge"')) == {"q.at_most": "unknown"}
    shaky = made_up.changed(clean, "q.splitting.reliable", False)
    assert answers(shaky, q(1e-8, '"splitting"')) == {"q.at_most": "unknown"}
    # one that pins it down is enough, unless another contradicts
    assert answers(clean, q(1e-8, '"monte_carlo", "splitting"')) == {"q.at_most": "pass"}
    assert answers(clean, q(1e-9, '"monte_carlo", "splitting"')) == {"q.at_most": "fail"}


def test_the_missable_rule_never_fails_it_only_cannot_judge() -> None:
    rule = "[missable]\nat_most = {}\nlevel = 0.95"
    assert answers(made_up.clean(), rule.format(3e-5)) == {"missable.at_most": "pass"}
    assert answers(made_up.clean(), rule.format(1e-5)) == {"missable.at_most": "unknown"}
    assert answers(made_up.leak(), rule.format(1e-3)) == {"missable.at_most": "unknown"}


def test_t_prime_is_judged_against_images_never_trained_on() -> None:
    leak = made_up.leak()  # t' = 0.8, the median of the others is 0.1, none reaches it: p = 1/21
    rule = "[t_prime]\nbaseline_images_at_least = {}\nexcess_at_most = {}\np_value_at_least = {}"
    names = ("t_prime.excess_at_most", "t_prime.p_value_at_least")
    assert answers(leak, rule.format(20, 0.71, 0.04)) == dict.fromkeys(names, "pass")
    assert answers(leak, rule.format(20, 0.69, 0.05)) == dict.fromkeys(names, "fail")
    assert answers(leak, rule.format(21, 0.9, 0.01)) == dict.fromkeys(names, "unknown")
    never = made_up.changed(leak, "t_prime.value", None)
    assert answers(never, rule.format(20, 0.0, 0.04))[names[0]] == "pass"
    no_distance = made_up.changed(leak, "t_prime.baseline.values", [None] * 11 + [0.1] * 9)
    assert answers(no_distance, rule.format(20, 0.9, 0.04))[names[0]] == "unknown"


def test_membership_needs_an_interval() -> None:
    rule = "[membership]\nauc_at_most = 0.6"
    results = made_up.leak()
    assert answers(results, rule) == {"membership.auc_at_most": "unknown"}
    for low, high, answer in [(0.48, 0.58, "pass"), (0.55, 0.65, "unknown"), (0.7, 0.8, "fail")]:
        assert answers(results | {"membership": {"low": low, "high": high}}, rule) == {
            "membership.auc_at_most": answer
        }


def test_a_control_must_have_been_made_and_be_quiet() -> None:
    rule = "[control]\nrate_at_most = 1e-3\nlevel = 0.95"
    assert answers(made_up.leak(), rule) == {"control.rate_at_most": "pass"}
    assert answers(made_up.undecided(), rule) == {"control.rate_at_most": "unknown"}
    loud = made_up.changed(made_up.leak(), "q.control", made_up.monte_carlo(40, 4000, 0.01, 40, 40))
    assert answers(loud, rule) == {"control.rate_at_most": "fail"}


def test_weak_detectors_cannot_judge_anything() -> None:
    rule = "[detectors]\nsensitivity_at_least = 0.9\nfalse_alarms_at_most = 0.01\nlevel = 0.95"
    assert set(answers(made_up.clean(), rule).values()) == {"pass"}
    weak = made_up.changed(made_up.clean(), "detectors.identity.tpr", {"k": 80, "n": 100})
    assert answers(weak, rule)["detectors.sensitivity_at_least"] == "unknown"
    eager = made_up.changed(made_up.clean(), "detectors.presence.fpr", {"k": 30, "n": 1697})
    assert answers(eager, rule)["detectors.false_alarms_at_most"] == "unknown"


def test_one_detector_is_judged_by_its_own_rates() -> None:
    rule = "[detectors]\nsensitivity_at_least = {}\nfalse_alarms_at_most = 0.01\nlevel = 0.95"
    lower = Trials(497, 500).lower(0.95)
    below, above = rule.format(round(lower - 1e-4, 5)), rule.format(round(lower + 1e-4, 5))
    name = "detectors.sensitivity_at_least"
    assert answers(made_up.unmarked(), below)[name] == "pass"
    assert answers(made_up.unmarked(), above)[name] == "unknown"


def test_verdicts_that_may_be_released() -> None:
    rule = '[verdict]\nallowed = ["not found"]'
    said = [
        answers(one(), rule)["verdict.allowed"] for one in (made_up.clean, made_up.leak, made_up.undecided)
    ]
    assert said == ["pass", "fail", "unknown"]


def test_a_policy_without_rules_is_no_permission() -> None:
    decision = judge(made_up.clean(), read_policy('name = "empty"'))
    assert decision.exit_code == 2 and "no rule" in decision.sentence


def test_one_failure_outweighs_what_is_unknown() -> None:
    outcomes = [Outcome("a", answer, ".") for answer in ("pass", "unknown", "fail")]
    assert [Decision(tuple(outcomes[:n])).exit_code for n in (1, 2, 3)] == [0, 2, 1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[q]\nat_moast = 1", "at_moast"),
        ("[qq]\n", "qq"),
        (q(1.5), "at_most"),
        (q(1e-3, level=1), "level"),
        (q(1e-3, '"guess"'), "guess"),
        ("[t_prime]\nbaseline_images_at_least = 20", "needed"),
        ('[verdict]\nallowed = ["fine"]', "fine"),
        ("[q]\nat_most = 'little'\nlevel = 0.95\nestimators = []", "at_most"),
        ("[q", "TOML"),
        ("[missable]\nat_most = 1e-3", "level"),
    ],
)
def test_what_is_no_policy_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_policy(text)


def test_the_policy_s_hash_goes_into_the_decision(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "policy.toml"
    path.write_text(starter())
    decision = judge_file(made_up.clean(), path).to_dict()
    assert decision["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert decision["name"] == "starter" and decision["exit_code"] == 0
    with pytest.raises(InputError, match=r"absent\.toml"):
        judge_file(made_up.clean(), tmp_path / "absent.toml")
