"""From results and a release policy to one of three answers: yes, no, or could not judge.

A policy is a TOML file of rules (`gate.rules`); every limit in it is its author's. The answer is 1 (no) if
any rule fails; otherwise 2 (could not judge) if any is unknown or there is no rule at all; otherwise 0 (yes).
"Nothing found" in too small a sample is therefore never a yes.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import cast

from latentprint import settings
from latentprint.files import MAX_TOML, parse_toml, read, read_text
from latentprint.gate.rules import RULES, Answer
from latentprint.results import Results
from latentprint.settings import SettingsError

__all__ = ["Decision", "Outcome", "Policy", "judge", "judge_file", "read_policy", "starter"]


@dataclass(frozen=True)
class Policy:
    """The limits of a policy, by table."""

    limits: Mapping[str, object]
    name: str = ""


@dataclass(frozen=True)
class Outcome:
    """The answer of one rule, with its reason in one sentence."""

    rule: str
    answer: Answer
    reason: str


@dataclass(frozen=True)
class Decision:
    """The answer of all rules together.

    Attributes:
        exit_code: 0 pass, 1 fail, 2 could not judge.
        policy_sha256: hash of the policy's text, for the audit trail.
    """

    outcomes: tuple[Outcome, ...]
    policy_name: str = ""
    policy_sha256: str | None = None

    @property
    def exit_code(self) -> int:
        """0 if every rule passed, 1 if one failed, 2 if one (or all) could not be judged."""
        answers = {outcome.answer for outcome in self.outcomes}
        return 1 if "fail" in answers else 2 if "unknown" in answers or not answers else 0

    @property
    def sentence(self) -> str:
        """The answer in words."""
        count = {a: sum(o.answer == a for o in self.outcomes) for a in ("pass", "fail", "unknown")}
        if not self.outcomes:
            return "Could not judge: the policy holds no rule."
        word = {0: "Passes", 1: "Fails", 2: "Could not judge"}[self.exit_code]
        return (
            f"{word}: {count['pass']} passed, {count['fail']} failed, {count['unknown']} could not be judged."
        )

    def to_dict(self) -> dict[str, object]:
        """Plain values for ``--json``."""
        return {
            "name": self.policy_name,
            "sha256": self.policy_sha256,
            "exit_code": self.exit_code,
            "sentence": self.sentence,
            "rules": [{"rule": o.rule, "answer": o.answer, "reason": o.reason} for o in self.outcomes],
        }


def judge_file(results: Results, policy: Path) -> Decision:
    """Judge results by a policy file; its hash goes into the decision.

    Raises:
        SettingsError: the policy cannot be read.
    """
    decision = judge(results, read_policy(read_text(policy, MAX_TOML), name=policy.name))
    return replace(decision, policy_sha256=sha256(read(policy, MAX_TOML)).hexdigest())


def judge(results: Results, policy: Policy) -> Decision:
    """Judge results by every rule of a policy; a pure function."""
    outcomes = [
        Outcome(name, answer, reason)
        for rule in RULES
        if rule.table in policy.limits
        for name, (answer, reason) in rule.answers(results, policy.limits[rule.table]).items()
    ]
    return Decision(tuple(outcomes), policy.name)


def read_policy(text: str, *, name: str = "the policy") -> Policy:
    """A policy from its TOML text.

    Raises:
        SettingsError: not TOML, an unknown key, a wrong type or a number outside its range.
    """
    tables, limits = parse_toml(text, name), dict[str, object]()
    called, rules = tables.pop("name", ""), {rule.table: rule.limits for rule in RULES}
    if not isinstance(called, str):
        raise SettingsError(f"name = {called!r} cannot be used: it should be text")
    for table, values in tables.items():
        if table not in rules:
            near = difflib.get_close_matches(table, rules, n=1)
            hint = f"did you mean [{near[0]}]?" if near else f"known: {', '.join(rules)}"
            raise SettingsError(f"[{table}] is not a rule; {hint}")
        try:
            limits[table] = settings.read(rules[table], cast("Mapping[str, object]", values))
        except SettingsError as error:
            raise SettingsError(f"[{table}] {error}") from error
    return Policy(limits, called)


def starter() -> str:
    """A policy to start from, with comments: every rule that exists, each with an example of a limit."""
    return resources.files("latentprint.gate").joinpath("starter.toml").read_text(encoding="utf-8")
