"""The dossier: every number is the run's, every file is hashed, a signature holds for these bytes only."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import small_runs
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from typer.testing import CliRunner

from latentprint import words
from latentprint.cli import app
from latentprint.gate import starter
from latentprint.report.dossier import measured, render_dossier
from latentprint.report.frameworks import FRAMEWORKS
from latentprint.report.measures import LEAST, MEASURES
from latentprint.report.seal import NAME
from latentprint.stats import Trials
from latentprint.verify import verify

CASES = {
    "leak": small_runs.leak,
    "clean": small_runs.clean,
    "undecided": small_runs.undecided,
    "unmarked": small_runs.unmarked,
    "samples": small_runs.given_samples,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run as an audit leaves it, with its results."""
    folder = tmp_path / "run"
    shutil.copytree(small_runs.RUNS / "marked", folder)
    return small_runs.written(small_runs.run("marked"), folder)


def key(tmp_path: Path, made: object, encryption: object = None) -> Path:
    path = tmp_path / "key.pem"
    how = encryption or NoEncryption()
    path.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))  # type: ignore[attr-defined]
    return path


def ask(*given: str) -> tuple[int, str]:
    answer = CliRunner().invoke(app, ["dossier", *given])
    return answer.exit_code, answer.output + answer.stderr


@pytest.mark.parametrize("case", CASES)
def test_each_number_is_the_one_in_the_results(case: str) -> None:
    results = CASES[case]().results
    found = measured(results, small_runs.facts())
    count = results.q.monte_carlo
    assert found["count"].value == words.of(count.hits, count.samples)
    low, high = count.trials.interval(count.level)
    assert words.percent(low) in found["count"].interval and words.percent(high) in found["count"].interval
    assert ("t_prime" in found) == (results.t_prime is not None)
    assert ("control" in found) == (results.q.control is not None)
    if results.whole_set is not None:
        every = results.whole_set
        assert found["memorised"].value == words.of(every.memorised.k, every.memorised.n)
    page = render_dossier(results, small_runs.facts(), None, {"results.json": "a" * 64})
    for one in found.values():
        assert one.value.replace("’", "'")[:20].split("&")[0] in page


def test_every_clause_names_numbers_that_exist() -> None:
    named = {key for one in FRAMEWORKS for clause in one.clauses for key in clause.measures}
    assert named <= set(MEASURES)
    assert all(clause.beyond for one in FRAMEWORKS for clause in one.clauses)


def test_too_small_is_stamped_by_the_binomial_law() -> None:
    """(1 - 1/N)^n > 0.05 of the very image: no count of zero could have told."""
    few = small_runs.clean().counts(0, 30, alone=0).results
    enough = small_runs.clean().counts(0, 4000, alone=0).results
    assert (1 - few.expected_rate) ** 30 > 0.05 > (1 - enough.expected_rate) ** 4000
    assert measured(few, small_runs.facts())["count"].weak
    assert not measured(enough, small_runs.facts())["count"].weak
    assert 0.95**LEAST < 0.05 < 0.95 ** (LEAST - 1)


def test_a_sealed_run_verifies_and_an_altered_page_does_not(run: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(starter())
    made = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    code, said = ask(str(run), "--policy", str(policy), "--key", str(key(tmp_path, made)))
    assert code == 0, said
    sealed = json.loads((run / NAME).read_text())
    assert sealed["policy_sha256"] == sha256(policy.read_bytes()).hexdigest()
    assert sealed["files"]["dossier.html"] == sha256((run / "dossier.html").read_bytes()).hexdigest()
    found = verify(run)
    public = made.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    assert not found.altered and found.signer == sha256(public).hexdigest()
    page = run / "dossier.html"
    page.write_text(page.read_text().replace("underpowered", "ample"))
    assert [one.path for one in verify(run).altered] == ["dossier.json dossier.html"]
    sealed["files"]["dossier.html"] = sha256(page.read_bytes()).hexdigest()
    (run / NAME).write_text(json.dumps(sealed))
    assert [one.path for one in verify(run).altered] == ["dossier.json signature"]


def test_without_a_key_hashes_alone_are_sealed(run: Path) -> None:
    assert ask(str(run))[0] == 0
    assert json.loads((run / NAME).read_text())["signature"] is None
    assert verify(run).signer is None and not verify(run).altered
    (run / "results.json").write_text((run / "results.json").read_text() + " ")
    assert [one.path for one in verify(run).altered] == ["dossier.json results.json"]


def test_keys_and_seals_that_cannot_be_used_are_named(run: Path, tmp_path: Path) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    locked = ed25519.Ed25519PrivateKey.generate()
    text = tmp_path / "text.pem"
    text.write_text("no key")
    for path, words_ in (
        (key(tmp_path, other), "another kind than Ed25519"),
        (text, "no private key in PEM form"),
    ):
        code, said = ask(str(run), "--key", str(path))
        assert code == 2 and words_ in said and "Traceback" not in said
    assert ask(str(run), "--key", str(tmp_path / "none.pem"))[0] == 2
    code, said = ask(str(run), "--key", str(key(tmp_path, locked, BestAvailableEncryption(b"x"))))
    assert code == 2 and "passphrase" in said
    assert not (run / NAME).exists() and not (run / "dossier.html").exists()
    (run / NAME).write_text('{"schema": "latentprint/dossier/1", "files": {"dossier.html": 3}}')
    answer = CliRunner().invoke(app, ["verify", str(run)])
    assert answer.exit_code == 2 and "not a seal of a dossier" in answer.stderr


def test_the_page_takes_no_orders_and_names_no_path() -> None:
    hostile = "<script>alert(1)</script> /home/anna/x.png"
    facts = small_runs.facts().model_copy(update={"authorised_by": hostile})
    page = render_dossier(small_runs.leak().results, facts, None, {})
    assert "<script" not in page and "/home/anna" not in page
    assert "default-src 'none'" in page


def test_estimates_that_contradict_each_other_give_no_number() -> None:
    results = small_runs.leak().results
    estimate = results.q.splitting
    assert estimate is not None and MEASURES["estimates"](results, small_runs.facts()) is not None
    sentence = "Estimates of the same rate contradict each other, so none is offered."
    assert results.q.combined is not None
    apart = results.q.combined.model_copy(update={"agree": False, "answer": None, "sentence": sentence})
    q = results.q.model_copy(update={"combined": apart})
    found = MEASURES["estimates"](results.model_copy(update={"q": q}), small_runs.facts())
    assert found is not None and found.value == "none: they contradict each other"
    assert found.beside == sentence and found.weak


def test_the_bound_of_false_alarms_is_the_one_that_the_audit_uses() -> None:
    """The recogniser that errs most has 200 test images here, the other one 60 and no false alarm."""
    run = small_runs.leak().note("presence", "detector", fpr={"k": 0, "n": 60})
    results = run.note("identity", "detector", fpr={"k": 60, "n": 200}).results
    found = MEASURES["alarms"](results, small_runs.facts())
    assert found is not None
    bound = Trials(60, 200).upper(0.975)  # each of two at half of 5 %
    assert bound > 0.3 and words.percent(bound) in found.interval
