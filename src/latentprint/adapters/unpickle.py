"""The other process of `latentprint.adapters.convert`: IN, a pickle -> OUT, its tensors as safetensors.

Run by its path, isolated (``python -I``), so that nothing of latentprint, of the working directory or of the
environment is in reach; it imports torch and safetensors alone. Says nothing when it is done, else the
reason.
"""

from __future__ import annotations

import sys
from typing import Any, cast


def main(source: str, target: str) -> str:
    """The reason why not, or nothing."""
    import safetensors.torch
    import torch

    try:
        found = torch.load(source, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            if isinstance(found, dict) and isinstance(cast(dict[str, Any], found).get(key), dict):
                found = cast(dict[str, Any], found)[key]
        if not isinstance(found, dict) or not found:
            return "it holds no state dict"
        tensors = dict[str, torch.Tensor]()
        for name, value in cast(dict[object, object], found).items():
            dense = isinstance(value, torch.Tensor) and value.layout == torch.strided
            if not isinstance(name, str) or not dense:
                return "its state dict holds something other than named, dense tensors"
            tensors[name] = cast(torch.Tensor, value).contiguous().clone()
        safetensors.torch.save_file(tensors, target)
    except Exception as error:  # whatever it is, it is said and not raised across processes
        return " ".join(str(error).split())[:300] or type(error).__name__
    return ""


if __name__ == "__main__":
    reason = main(sys.argv[1], sys.argv[2])
    print(reason)
    raise SystemExit(1 if reason else 0)
