"""Models of other people's codes: converted checkpoints of openai and CompVis, and a pipeline with text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import test_published as published
from documents import of_document, of_files
from inputs import of_bytes
from models import given
from mutations import Case

from latentprint.adapters.convert import convert

IMAGES: dict[str, dict[str, Any]] = {
    "openai": {},
    "compvis": {"convert": "rgb", "resize": 32},
    "text": {"convert": "rgb", "resize": 16},
}
"""The models, and how the digits become images that theirs are compared with."""

_TOKENIZER = "text/tokenizer"
_SPOILED = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
_ENTRIES = 40
"""So many values of each document are changed; a vocabulary has thousands, all alike."""


def prepared(folder: Path) -> None:
    """Each in a folder of its own."""
    flags = {"rescale_timesteps": False} | published.make.SHAPE | {"num_heads": 2, "image_size": 8}
    one = published.checkpoint(folder / "ema_1.pt", in_channels=1, out_channels=1, sample_size=8)
    latent, project = published.latent_checkpoint(folder / "last.ckpt", "kl"), folder / "project.json"
    project.write_text(json.dumps(published.PROJECT))
    convert(one, folder / "openai", trusted=True, flags=flags)
    convert(latent, folder / "compvis", trusted=True, flags=published.flags_of(str(project)))
    for file in (one, latent, project):
        file.unlink()
    if find_spec("transformers") is not None:
        import text_pipelines

        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            text_pipelines.saved(text_pipelines.sd(), folder / "text")


def cases(folder: Path) -> Iterator[Case]:
    """Every value of their configurations, every file, and the files of the tokeniser spoiled."""
    for name, images in IMAGES.items():
        if not (folder / name).is_dir():
            continue
        read = given(name, images)
        for file in sorted((folder / name).rglob("*.json")):
            document = json.loads(file.read_text())
            yield from of_document(
                name, str(file.relative_to(folder / name)), document, {"given": read}, most=_ENTRIES
            )
        yield from of_files(folder, name, {"given": read})
    for name in _SPOILED:
        if (folder / _TOKENIZER / name).is_file():
            read = given("text", IMAGES["text"])
            yield from of_bytes(folder, f"{_TOKENIZER}/{name}", "tokeniser", ("text",), read)
