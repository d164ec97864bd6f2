"""A sample of the mutations (all: make edges), and ends of a command that no document brings about."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import harness

COMMAND = [sys.executable, "-P", "-m", "latentprint"]


def test_a_sample_of_the_mutations() -> None:
    """As many as a minute and a half holds, always the same ones; in a process of its own, which forks."""
    program = [sys.executable, str(Path(harness.__file__)), "--count", "1000", "--seconds", "90"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert int(done.stdout.partition(" inputs")[0].replace(",", "")) >= 100


def test_the_harness_finds_what_it_looks_for(tmp_path: Path) -> None:
    """Faults that were planted: a traceback, an exit code, a wordy refusal, a change unnoticed."""

    def raising(_: Path) -> int:
        raise KeyError("planted")

    def wordy(_: Path) -> int:
        print("latentprint: one\nlatentprint: two", file=sys.stderr)
        return 2

    for read, noticed, words in [
        (raising, False, "traceback"),
        (lambda _: 70, False, "exit 70"),
        (wordy, False, "refusal of"),
        (lambda _: 0, True, "not noticed"),
    ]:
        wrong = harness.fault(harness.Case("", "planted", (), lambda _: None, read, noticed), tmp_path)
        assert wrong is not None and words in wrong
    assert harness.fault(harness.Case("", "fine", (), lambda _: None, lambda _: 1, True), tmp_path) is None


def ended(*given: str, **how: object) -> tuple[int, list[str]]:
    done = subprocess.run([*COMMAND, *given], stderr=subprocess.PIPE, text=True, timeout=300, **how)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip().splitlines()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["nosuch"], "No such command"),
        (["audit", "digits", "--nope"], "No such option"),
        (["gate"], "--policy"),
        (["gate", "absent", "--policy", "absent"], "does not exist"),
        (["report", "/dev"], "results.json"),
        (["audit", "digits", "--config", "/dev/zero"], "not a plain file"),
        (["audit", "digits", "--config", ""], "a file is needed"),
        (["audit", "digits", "--sampler", "paper:3"], "paper"),
        (["audit", "digits", "--samples", "9" * 5000], "18 digits"),
        (["audit", "digits", "--seed", "9" * 5000], "seed"),
        (["card", "x" * 300], "x"),
    ],
)
def test_a_refusal_is_one_line_and_exit_2(given: list[str], words: str) -> None:
    code, lines = ended(*given)
    assert code == 2 and len(lines) == 1 and words in lines[0] and len(lines[0]) <= 400


def test_output_that_nobody_reads_or_that_has_no_room() -> None:
    with Path("/dev/full").open("w") as full:
        code, (line,) = ended("gate", "--starter", stdout=full)
    assert code == 2 and "disk is full" in line
    read, write = os.pipe()
    os.close(read)
    code, (line,) = ended("gate", "--starter", stdout=write)
    assert code == 2 and "has ended" in line


def test_streams_that_the_caller_closed() -> None:
    """Exit 1 would mean that a model fails the gate."""
    line = f"{sys.executable} -P -m latentprint gate --starter >&- 2>&- <&-"
    assert subprocess.run(["sh", "-c", line], timeout=300).returncode == 0


def test_references_in_yaml_that_stand_for_billions(tmp_path: Path) -> None:
    from latentprint.adapters.flags import flags_of
    from latentprint.networks import ModelError

    pytest.importorskip("yaml")
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    for name, text in (("laughs", "\n".join(lines)), ("circle", "a: &a [*a]")):
        (tmp_path / f"{name}.yaml").write_text(text)
        with pytest.raises(ModelError, match="more than"):
            flags_of(str(tmp_path / f"{name}.yaml"))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_modules_are_imported(name: str) -> None:
    number = signal.Signals[name]
    process = subprocess.Popen(
        [*COMMAND, "audit", "digits", "--preset", "demo"], stderr=subprocess.PIPE, text=True
    )
    time.sleep(1.0)  # torch takes longer, and nothing has been written yet
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + number and "Traceback" not in said
    assert said.strip().splitlines()[-1].strip() == "latentprint audit digits --preset demo"


def test_a_strangers_folder_runs_nothing(tmp_path: Path) -> None:
    """The converter where the folder holds modules of its own."""
    import torch

    for name in ("numpy", "torch", "safetensors", "site", "json"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close(); raise SystemExit(9)")
    torch.save({"a": torch.zeros(2)}, tmp_path / "in.pt")
    code, _ = ended("convert", "in.pt", "out.safetensors", "--i-trust-this-file", cwd=tmp_path)
    assert code == 0 and (tmp_path / "out.safetensors").exists() and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "given",
    [
        ["--help"],
        ["audit", "--help"],
        ["audit", "nosuch"],
        ["audit", "digits", "--preset", "nosuch"],
        ["audit", "digits", "--device", "meta"],
        ["audit", "digits", "--model", "nosuch"],
        ["audit", "digits", "--target", "nosuch.png"],
        ["check", "digits", "--labels", "nosuch.csv"],
        ["gate", "nosuch", "--policy", "nosuch"],
        ["compare", "nosuch", "nosuch"],
        ["audit", "digits", "--config", ""],
        ["filter", "nosuch", "--train", "digits"],
        ["remedies", "nosuch"],
        ["forecast", "nosuch"],
        ["convert", "nosuch", "nosuch"],
    ],
)
def test_what_needs_no_torch_is_said_without_it(given: list[str]) -> None:
    """Imports of torch take seconds; the rest is said in under half of one."""
    program = (
        "import sys; from latentprint.cli import answer; code = answer(sys.argv[1:]);"
        "print(sorted({'torch', 'scipy', 'sklearn', 'diffusers'} & set(sys.modules)), file=sys.stderr);"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, *given], capture_output=True, text=True)
    assert done.returncode == (0 if "--help" in given else 2)
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_a_run_that_is_killed_ends_in_the_same_bytes() -> None:
    """Three kills at random moments, every stage on; fifty: python tests/edges/kills.py --kills 50."""
    program = [sys.executable, str(Path(__file__).with_name("kills.py")), "--kills", "3", "--seed", "0"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("3 kills, every run ended in the same bytes")
