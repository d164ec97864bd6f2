"""The options of a text-to-image model: prompts, guidance, fine-tuned weights, and the base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from latentprint.contracts import InputError, quoted


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """Prompts and weights of a text-to-image model; None: the preset decides."""

    guidance: Annotated[
        list[str] | None,
        typer.Option(
            help="With --model: scale of classifier-free guidance; it changes what is given back. For a"
            " text-to-image model also several, such as 7.5,1,3: the first is the audit's, the others"
            " are measured too.",
            metavar="SCALE[,SCALE...]",
        ),
    ] = None
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            help="With a text-to-image model: CSV of file names and prompts, or a folder with"
            " metadata.jsonl or .txt files; default: files beside the images.",
            metavar="FILE|FOLDER",
        ),
    ] = None
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            help="A further prompt to ask, such as a paraphrase; without --prompts the first is that of every"
            " image. Repeatable.",
            metavar="TEXT",
        ),
    ] = None
    lora: Annotated[
        str | None,
        typer.Option(
            "--lora",
            help="Add this LoRA (.safetensors, or its folder) to the model; the model without it"
            " is the control.",
            metavar="FILE|FOLDER",
        ),
    ] = None
    lora_weight: Annotated[
        float | None, typer.Option("--lora-weight", help="Factor of the LoRA; default 1.")
    ] = None
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            help="The model that a text-to-image model was fine-tuned from: the control. A checkpoint takes"
            " the parts that it lacks from there.",
            metavar="FOLDER",
        ),
    ] = None

    mark: Annotated[
        str | None,
        typer.Option(
            "--mark",
            help="With --model: the file that `latentprint inject` wrote before training. The audit looks"
            " for the marked image.",
            metavar="FILE",
        ),
    ] = None

    @property
    def scales(self) -> tuple[float, ...]:
        """The scales of guidance, in the order given."""
        texts = [one for text in self.guidance or [] for one in text.replace(",", " ").split()]
        try:
            return tuple(map(float, texts))
        except ValueError as error:
            raise InputError(
                f"--guidance takes numbers, as 7.5,1,3, got {quoted(' '.join(texts))}"
            ) from error

    @property
    def asked(self) -> dict[str, object]:
        """The table ``prompts`` of the settings."""
        return {"file": self.prompts, "ask": self.prompt, "guidance": list(self.scales[1:]) or None}

    @property
    def tuned(self) -> dict[str, object]:
        """The table ``given`` of the settings, for the weights."""
        return {
            "lora": self.lora,
            "lora_weight": self.lora_weight,
            "base": self.base,
            "mark": self.mark,
        }
