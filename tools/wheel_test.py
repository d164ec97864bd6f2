"""Build wheel and sdist, install each into a fresh environment outside the tree, and run it there.

    make wheel-test                      # with python3
    make wheel-test PYTHON=python3.13    # with another one

The light install (no extra) must answer the commands that only read a run, and refuse the others with a
sentence. The full one (extra ``torch``) must run the demo. The environments are deleted afterwards.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
READING = ("verify", "report", "card", "dossier")


def main() -> int:
    """0 where everything ran; else 1, with what did not on stderr."""
    options = argparse.ArgumentParser(description="Build, install and run the wheel and the sdist.")
    options.add_argument("--python", default=sys.executable, help="interpreter of the fresh environments")
    options.add_argument("--no-demo", action="store_true", help="leave the demo out (minutes)")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="latentprint-wheel-") as made:
        place = Path(made)
        _uv("build", "--quiet", "--out-dir", str(place / "dist"), str(ROOT))
        wheel, sdist = next((place / "dist").glob("*.whl")), next((place / "dist").glob("*.tar.gz"))
        light = _environment(place / "light", asked.python, str(sdist))
        full = _environment(place / "full", asked.python, f"{wheel}[torch]")
        failed = [*_light(light, place), *_full(full, place, demo=not asked.no_demo)]
    for line in failed:
        print(line, file=sys.stderr)
    print("the wheel does not hold" if failed else "wheel and sdist install and run")
    return 1 if failed else 0


def _uv(*arguments: str, environment: Path | None = None) -> None:
    variables = dict(os.environ)
    if environment is not None:
        variables["VIRTUAL_ENV"] = str(environment)
    subprocess.run([str(Path(sys.executable).parent / "uv"), *arguments], check=True, env=variables)


def _environment(folder: Path, python: str, package: str) -> Path:
    """The command of a new environment that holds ``package`` and what it needs."""
    begun = time.monotonic()
    subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True)
    _uv("pip", "install", "--quiet", package, environment=folder)
    print(f"{Path(package).name} installed in {time.monotonic() - begun:.0f} s")
    return folder / "bin" / "latentprint"


def _ran(command: Path, place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    line = [str(command), *arguments]
    return subprocess.run(line, cwd=place, env=variables, capture_output=True, text=True)


def _light(command: Path, place: Path) -> list[str]:
    """What of the light install does not hold."""
    failed = list[str]()
    refused = _ran(command, place, "audit", "digits", "--out", "run")
    if refused.returncode != 2 or "latentprint[torch]" not in refused.stderr:
        failed.append(f"light: audit should name the extra torch, got {refused.returncode}: {refused.stderr}")
    run = _run_of_the_tests(place / "kept")
    shutil.copytree(run, place / "again")
    (place / "policy.toml").write_text('[verdict]\nallowed = ["reproduces"]\n')
    reading = [(name, str(run)) for name in READING]
    reading += [("compare", str(run), str(place / "again")), ("glossary", "copy")]
    reading += [("gate", str(run), "--policy", str(place / "policy.toml"))]
    for line in reading:
        found = _ran(command, place, *line)
        if found.returncode != 0:
            failed.append(f"light: {line[0]} ended with {found.returncode}: {found.stderr}")
    return failed


def _run_of_the_tests(folder: Path) -> Path:
    """A finished run: the rows that the tests keep, with the results that follow from them."""
    script = (
        "import shutil, sys; from pathlib import Path; import small_runs;"
        "folder = Path(sys.argv[1]); shutil.copytree(small_runs.RUNS / 'marked', folder);"
        "small_runs.written(small_runs.run('marked'), folder)"
    )
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, cwd=ROOT / "tests")
    return folder


def _full(command: Path, place: Path, *, demo: bool) -> list[str]:
    """What of the full install does not hold."""
    failed = list[str]()
    checked = _ran(command, place, "check", "digits", "--preset", "demo")
    if checked.returncode != 0:
        failed.append(f"full: check ended with {checked.returncode}: {checked.stderr}")
    if demo:
        begun = time.monotonic()
        found = _ran(command, place, "demo")
        print(f"demo: {time.monotonic() - begun:.0f} s")
        if found.returncode != 0 or not (place / "demo" / "report.html").is_file():
            failed.append(f"full: demo ended with {found.returncode}: {found.stderr[-2000:]}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
