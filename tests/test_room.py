"""The memory that a model takes for each image, and the batch that fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import text_pipelines as tiny
import torch
from diffusers.models.attention_processor import AttnProcessor

from latentprint.adapters import Asked, ModelError, Opened, open_model
from latentprint.adapters.room import SHARE, MemoryLack, Room, held, room_for
from latentprint.contracts import InputError

CPU = torch.device("cpu")


def test_bytes_held_at_once_are_counted() -> None:
    weight = torch.ones(1000, 250)  # 1 MB, there before

    def work() -> torch.Tensor:
        a = weight.t() * 2  # 1 MB
        b = a + 1  # 2 MB at once
        del a
        c = b[:10].contiguous()  # 40 kB more
        b.add_(c.sum())  # in place; the sum is 4 bytes
        return c

    assert held(work) == 2 * weight.numel() * 4
    assert held(lambda: weight.view(500, 500)[0]) == 0


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    folder = tmp_path_factory.mktemp("sd")
    return open_model(tiny.saved(tiny.sd(), folder / "pipeline"), asked=Asked(steps=4))


def test_a_batch_is_what_half_of_the_free_memory_holds(opened: Opened) -> None:
    whole = room_for(opened, CPU, 256)
    assert whole.batch == 256 and not whole.sliced
    weights = sum(one.numel() * 4 for network in opened.networks for one in network.parameters())
    assert whole.weights == weights
    x = torch.zeros(64, *opened.shape)
    with torch.no_grad():
        spent = max(
            held(lambda: opened.denoiser(x, torch.full((64,), opened.denoiser.schedule.start))),
            held(lambda: opened.codec.decode(x)),
        )
    assert 64 * whole.each == pytest.approx(spent, rel=0.1)  # linear in the number of images
    room = room_for(opened, CPU, 256, free=round(10.5 * whole.each / SHARE))
    assert room.batch in (9, 10)
    assert f"batches of {room.batch}" in room.words
    with pytest.raises(MemoryLack, match="to make one image"):
        room_for(opened, CPU, 256, free=whole.each)


def test_parts_that_do_not_fit_together_are_named_before_anything_is_measured(tmp_path: Path) -> None:
    folder = tiny.saved(tiny.flux(), tmp_path)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"axes_dims_rope": [4, 4, 4]}))
    with pytest.raises(ModelError, match="does not answer for an image of its own shape"):
        room_for(open_model(folder), CPU, 256)


def test_attention_is_sliced_where_one_image_does_not_fit_otherwise(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        pipeline = tiny.sd(unet=tiny.unet(sample_size=32))

    def with_plain_attention() -> Opened:
        opened = open_model(folder, asked=Asked(steps=4))
        opened.networks[0].set_attn_processor(AttnProcessor())  # that of torch before 2.0
        return opened

    folder = tiny.saved(pipeline, tmp_path)
    opened = with_plain_attention()
    whole = room_for(opened, CPU, 256)
    x, t = torch.ones(1, *opened.shape), torch.full((1,), opened.denoiser.schedule.start)
    with torch.no_grad():
        before = opened.denoiser(x, t)
    need = int(whole.each * 0.9 / SHARE)
    room = room_for(opened, CPU, 256, free=need)
    assert room == Room(whole.weights, room.each, need, room.batch, sliced=True)
    assert room.batch > 1 and room.each < whole.each / 2
    with torch.no_grad():
        assert float((opened.denoiser(x, t) - before).abs().max()) < 1e-4
    # torch's own attention needs less than slices do, and stays
    own = open_model(folder, asked=Asked(steps=4))
    kept = {name: type(one) for name, one in own.networks[0].attn_processors.items()}
    with pytest.raises(InputError):
        room_for(own, CPU, 256, free=1000)
    assert {name: type(one) for name, one in own.networks[0].attn_processors.items()} == kept
