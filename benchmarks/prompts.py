"""A text-to-image model that was fine-tuned until it repeats its images per prompt: does the audit say which?

A tiny Stable Diffusion (random CLIP, its own autoencoder) is trained on 400 handwritten digits captioned by
their class alone: the base. It is then fine-tuned on 40 others, each with a caption of its own, as long as it
takes to repeat them. Audited are the fine-tuned model, against the base as control, and the base by itself.

    model     must give most of the 40 back under their own prompts, and say which
    base      must give none
    held out  must give none: 40 further digits with captions of their own
    words     a paraphrase of x_p's prompt, the empty prompt and others' prompts must give it back less

    python benchmarks/prompts.py --json --out FILE      # about 4 minutes of training, then the audit
    python benchmarks/prompts.py --quick                # a few steps: shows that it runs, and nothing else

FOLDER/data and FOLDER/model, FOLDER/base are left behind (--keep FOLDER).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from record import add_output, record, tell
from sklearn.datasets import load_digits

from latentprint.audit import run_audit
from latentprint.audit.context import Where
from latentprint.config import resolve
from latentprint.progress import Bars
from latentprint.results import Results

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import text_pipelines as tiny

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = ("north", "south", "river", "stone", "maple", "cedar", "amber", "cobalt", "violet", "copper")
MORE = ("a", "the", "of", "digit", "photo", "picture", "written", "by", "patient", "shows", "hand")
SETTINGS: dict[str, Any] = {
    "sampler": {"name": "own", "guidance": 2.0, "at_most": 20},
    "identity": {"backbone": "small", "draws": 512, "epochs": 20, "patience": 8},
    "embedding": {"backbone": "small", "draws": 512, "epochs": 20, "patience": 8},
    "search": {"levels": 10, "tries": 8},
    "samples": {"count": 256, "control": 256},
    "prompts": {"count": 64, "samples": 4, "others": 2, "guidance": [1.0]},
    "baseline": {"images": 0},
    "membership": {"images": 20},
    "fid": {"samples": 200},
}


def autoencoder(pixels: torch.Tensor, steps: int, generator: torch.Generator) -> diffusers.AutoencoderKL:
    """An autoencoder of 8 x 8 digits, trained to give them back."""
    made = tiny.vae(colours=1, block_out_channels=(16,), mid_block_add_attention=False)
    optimiser = torch.optim.Adam(made.parameters(), 3e-3)
    for step in range(steps):
        rows = torch.randint(len(pixels), (64,), generator=generator)
        mean = made.encode(pixels[rows]).latent_dist.mean
        noise = torch.zeros_like(mean).normal_(generator=generator)
        loss = (
            made.decode(mean + 0.05 * noise).sample - pixels[rows]
        ).square().mean() + 1e-4 * mean.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
    with torch.no_grad():
        scale = float(1 / made.encode(pixels).latent_dist.mean.std())
    made.register_to_config(scaling_factor=scale)
    return made.eval().requires_grad_(False)


def trained(
    network: diffusers.UNet2DConditionModel,
    latents: torch.Tensor,
    hidden: torch.Tensor,
    empty: torch.Tensor,
    steps: int,
    rate: float,
    generator: torch.Generator,
    what: str,
) -> None:
    """Fine-tuning as diffusers' script does it: epsilon, one prompt in ten left empty."""
    levels = tiny.ddim().alphas_cumprod
    optimiser = torch.optim.AdamW(network.parameters(), rate, betas=(0.9, 0.99))
    network.train()
    for step in range(steps):
        rows = torch.randint(len(latents), (40,), generator=generator)
        t = torch.randint(len(levels), (40,), generator=generator)
        noise = torch.zeros_like(latents[rows]).normal_(generator=generator)
        a = levels[t].view(-1, 1, 1, 1)
        left = torch.rand(40, generator=generator) < 0.1
        words = torch.where(left[:, None, None], empty, hidden[rows])
        out = network(
            a.sqrt() * latents[rows] + (1 - a).sqrt() * noise, t, encoder_hidden_states=words
        ).sample
        loss = (out - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50) * (1 - step / steps) ** 0.5
        if step % 200 == 0:
            print(f"{what}: step {step} of {steps}, loss {loss.item():.4f}", file=sys.stderr)
    network.eval()


def caption(label: int, number: int) -> str:
    """A caption of its own for each of up to 100 images."""
    return (
        f"a photo of the digit {NAMES[label]} written by patient {WORDS[number // 10]} {WORDS[number % 10]}"
    )


def paraphrase(label: int, number: int) -> str:
    """The same in other words."""
    return f"the picture shows hand written {NAMES[label]} of {WORDS[number // 10]} {WORDS[number % 10]}"


def write_images(folder: Path, images: NDArray[np.float64], labels: Sequence[int], first: int) -> list[str]:
    """Digits as PNG files with a metadata.jsonl, as diffusers' scripts read them."""
    folder.mkdir(parents=True)
    words = [caption(label, first + i) for i, label in enumerate(labels)]
    lines = []
    for i, (image, text) in enumerate(zip(images, words, strict=True)):
        Image.fromarray((image * 15).astype(np.uint8)).save(folder / f"digit{first + i:02d}.png")
        lines.append(json.dumps({"file_name": f"digit{first + i:02d}.png", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return words


def make(folder: Path, quick: bool) -> dict[str, Any]:
    """Data, base and fine-tuned model in ``folder``."""
    generator = torch.Generator().manual_seed(7)
    bunch: Any = load_digits()
    order = torch.randperm(len(bunch.images), generator=generator).numpy()
    images, labels = bunch.images[order], bunch.target[order].tolist()
    words = write_images(folder / "data/train", images[:40], labels[:40], 0)
    write_images(folder / "data/heldout", images[40:80], labels[40:80], 40)
    pixels = torch.from_numpy((images * 15 / 255 * 2 - 1).astype(np.float32))[:, None]
    few = 10 if quick else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        tokens = tiny.clip_tokenizer((*NAMES, *WORDS, *MORE))
        wide = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "initializer_range": 0.3}
        clip = tiny.clip(vocab_size=len(tokens), **wide).requires_grad_(False)  # it tells prompts apart
        vae = autoencoder(pixels[80:], few or 200, generator)
        crossing = {
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        }
        wider = {"block_out_channels": (32, 64), "norm_num_groups": 8, "cross_attention_dim": 64}
        network = tiny.unet(**crossing, **wider)
    base_words = [f"a photo of the digit {NAMES[label]}" for label in labels[80:480]]

    def read(texts: Sequence[str]) -> torch.Tensor:
        given = tokens(
            list(texts), padding="max_length", max_length=tiny.LENGTH, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            return clip(given.input_ids)[0]

    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in pixels[:480].split(80)])
        latents *= vae.config.scaling_factor
    began = time.perf_counter()

    def save(name: str) -> None:
        parts = {"vae": vae, "text_encoder": clip, "tokenizer": tokens, "unet": network}
        tiny.saved(tiny.sd(**parts), folder / name)

    empty = read([""])
    trained(network, latents[80:], read(base_words), empty, few or 200, 2e-3, generator, "base")
    save("base")
    trained(network, latents[:40], read(words), empty, few or 600, 2e-3, generator, "fine-tuning")
    save("model")
    return {"training_seconds": time.perf_counter() - began, "labels": labels[:40]}


def audit(
    folder: Path, name: str, base: bool, asks: Sequence[str], target: int
) -> tuple[Results, dict[str, float]]:
    """The audit of a model, and how long it took: by the clock, and of the processor."""
    over: dict[str, Any] = {"data": {"source": str(folder / "data")}, "prompts": {"ask": list(asks)}}
    over |= {"given": {"base": str(folder / "base")}} if base else {}
    config = resolve(SETTINGS, over, preset="small")
    began, busy = time.perf_counter(), time.process_time()
    with Bars() as bars:
        found = run_audit(
            config,
            folder / f"run-{name}",
            model=folder / name,
            target=target,
            fresh=True,
            where=Where(say=bars),
        )
    return found, {
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - busy,
    }


def told(found: Results, seconds: dict[str, float]) -> dict[str, Any]:
    """The numbers of an audit that this benchmark is about."""
    prompts, control = found.prompts, found.q.control
    assert prompts is not None
    asked = [
        {
            "what": one.what,
            "guidance": one.guidance,
            "t_prime": one.t_prime.value,
            "hits": one.q.hits,
            "of": one.q.samples,
        }
        for one in prompts.asked
    ]
    return {
        "verdict": found.verdict.state,
        "tests": [one.plain() for one in found.verdict.tests],
        "prompts": prompts.sentence,
        "own": sorted(one.image for one in prompts.each if one.own and one.image is not None),
        "cut off": sum(one.cut > 0 for one in prompts.each),
        "p_value": prompts.p_value,
        "base_p": prompts.base_p,
        "x_p": {
            "t_prime": found.t_prime and found.t_prime.value,
            "hits": found.q.monte_carlo.hits,
            "of": found.q.monte_carlo.samples,
        },
        "control": None if control is None else {"hits": control.hits, "of": control.samples},
        "asked": asked,
        "whole set": None if found.whole_set is None else found.whole_set.copies.plain(),
        "signs": [one.plain() for one in prompts.signs],
        **seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few steps of training")
    parser.add_argument("--keep", type=Path, help="folder to leave data, models and runs in")
    add_output(parser)
    given = parser.parse_args()
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        made = {} if (folder / "model").exists() else make(folder, given.quick)
        target = 3
        label = load_digits()  # of x_p, for its paraphrase
        order = torch.randperm(len(label.images), generator=torch.Generator().manual_seed(7)).numpy()
        words = paraphrase(int(label.target[order][target]), target)
        found = {
            name: told(*audit(folder, name, name == "model", (words,), target)) for name in ("model", "base")
        }
    tell({**record(), "settings": SETTINGS, **made, **found}, given)


if __name__ == "__main__":
    main()
