"""A sample of the mutations (all: make edges), and ends of a command that no document brings about."""

from __future__ import annotations

import json
import os
import shutil
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
        (["audit", "digits", "--executor", "x" * 5000], "x..."),
        (["audit", "digits", "--preset", "demo", "--value-range", "0,1"], "--model"),
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


QUICK = """
--help
--version
audit --help
audit nosuch
audit medmnist:nosuch
audit phantom:nosuch
audit digits --preset nosuch
audit digits --device meta
audit digits --model nosuch
audit digits --target nosuch.png
audit digits --images 0
audit digits --tries 0
audit digits --search nosuch
audit digits --samples 0
audit digits --samples nosuch
audit digits --samples . --tries 3
audit digits --sampler heun:x
audit digits --sampler paper:3
audit digits --checkpoints 9999999999999999999
audit digits --seed -1
audit digits --guidance x
audit digits --value-range 3
audit digits --resize 0
audit digits --convert nosuch
audit digits --stored-range x
audit digits --orientation nosuch
audit digits --fingerprint nosuch
audit digits --label -1
audit digits --i-trust-this-code
audit digits --executor nosuch
audit digits --processes 0
audit digits --config nosuch.toml
audit digits --quick
check digits --labels nosuch.csv
check digits --tries 0
demo --device nosuch
gate nosuch --policy nosuch
compare nosuch nosuch
verify nosuch
report nosuch
card nosuch
dossier nosuch
inject nosuch --fingerprint nosuch
calibrate --seed -1
filter nosuch --train digits
filter . --train digits --share 2
remedies nosuch
remedies digits --only nosuch
remedies digits --only ,
remedies digits --images 0
forecast nosuch
forecast digits --until 0
convert nosuch nosuch
"""


def test_what_needs_no_torch_is_said_without_it(tmp_path: Path) -> None:
    """Imports of torch take seconds; the rest is said in under half of one."""
    program = (
        "import sys; from latentprint.cli import answer\n"
        "for line in sys.argv[1].strip().splitlines():\n"
        "    code = answer(line.split())\n"
        "    heavy = {'torch', 'scipy', 'sklearn', 'diffusers', 'torchvision'} & set(sys.modules)\n"
        "    print(f'{line}: {code} {sorted(heavy)}', file=sys.stderr)\n"
    )
    line = [sys.executable, "-P", "-c", program, QUICK]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    said = [one for one in done.stderr.splitlines() if not one.startswith("latentprint: ")]
    wanted = {
        one: 0 if one.endswith("--help") or one == "--version" else 2 for one in QUICK.split("\n") if one
    }
    assert said == [f"{one}: {code} []" for one, code in wanted.items()]


def test_a_run_that_is_killed_ends_in_the_same_bytes() -> None:
    """Three kills at random moments, every stage on; fifty: python tests/edges/kills.py --kills 50."""
    program = [sys.executable, str(Path(__file__).with_name("kills.py")), "--kills", "3", "--seed", "0"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("3 kills, every run ended in the same bytes")


@pytest.mark.parametrize("kind", ["disk", "file"])
def test_an_audit_on_a_full_disk_ends_in_a_sentence_and_goes_on(tmp_path: Path, kind: str) -> None:
    """A file system that grows by half each time, or files that may: exit 2 until there is room."""
    import full

    (tmp_path / "settings.toml").write_text(full.SETTINGS)
    code, said = full.audited(tmp_path / "expected", tmp_path / "settings.toml")
    assert code == 0, said
    program = [sys.executable, full.__file__, str(tmp_path), kind]
    if kind == "disk":
        may = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$1"', "sh", str(tmp_path)]
        if shutil.which("unshare") is None or subprocess.run(may, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        program = ["unshare", "-m", *program]
    done = subprocess.run(program, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(json.loads(done.stdout)) >= 2
