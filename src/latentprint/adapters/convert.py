"""The way out for weights that exist only as a pickle: the tensors of a state dict, written as safetensors.

    latentprint convert IN OUT.safetensors --i-trust-this-file

Reading a pickle can run any code, so an audit never does it. This converter is a program of its own: it reads
IN in a separate process with ``torch.load(weights_only=True)``, which knows tensors and plain containers only
and refuses everything else, and it does so only when told to. torch's own allow-list is a second wall, not a
proof: convert what you know the origin of, and on a machine that may be lost.

The file must hold a state dict (names -> tensors), or one under "state_dict" or "model". The hashes of both
files are printed, so that a result can be traced to what was converted.
"""

from __future__ import annotations

import subprocess
import sys
from hashlib import file_digest
from pathlib import Path

from latentprint.networks import ModelError

FLAG = "--i-trust-this-file"
_TIMEOUT = 3600.0


def convert(source: Path, target: Path, *, trusted: bool) -> tuple[str, str]:
    """Write the tensors of the pickle ``source`` to ``target``; (sha256 of source, sha256 of target).

    Raises:
        ModelError: ``trusted`` is not given, a path is unsuitable, or the file is no state dict of plain
            tensors.
    """
    if not trusted:
        raise ModelError(
            f"reading {source.name!r} can run any code it holds; give {FLAG} if you know where it comes from"
        )
    if not source.is_file():
        raise ModelError(f"there is no file {str(source)!r}")
    if target.suffix.lower() != ".safetensors":
        raise ModelError(f"the file to write must end in .safetensors, got {target.name!r}")
    if target.exists():
        raise ModelError(f"{str(target)!r} is there already; it is not written over")
    # a fresh, isolated interpreter: what the file may do to it does not reach this one
    worker = Path(__file__).with_name("unpickle.py")
    call = [sys.executable, "-I", str(worker), str(source.resolve()), str(target.resolve())]
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        said = " ".join(done.stdout.split())[:400] or "the process that read it ended without a word"
    except subprocess.TimeoutExpired:
        done, said = None, "it took more than an hour"
    if done is None or done.returncode != 0:
        target.unlink(missing_ok=True)
        raise ModelError(f"{source.name!r} cannot be converted: {said}")
    return _sha256(source), _sha256(target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
