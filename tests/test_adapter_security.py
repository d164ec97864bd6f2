"""Model files that mean harm: refused with a sentence, before memory is set aside and without being run."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentprint.adapters import ModelError, open_model, recognise
from latentprint.adapters.convert import convert
from latentprint.adapters.discrete import alphas_cumprod, discrete_schedule
from latentprint.adapters.files import MAX_JSON, read_header, read_json, weight_files
from latentprint.cli import answer
from latentprint.networks import UNetConfig, build_unet
from latentprint.streams import Streams

TINY = UNetConfig((8, 8), layers_per_block=1, middle_attention=False, norm_groups=4)
SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 100, "clip_sample": False}


class Bomb:
    """What a hostile pickle holds: reading it creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A good pipeline's folder, for a test to spoil."""
    folder = tmp_path / "model"
    network = build_unet(TINY, 1, 8, Streams(0))
    (folder / "scheduler").mkdir(parents=True)
    network.save_pretrained(folder / "unet")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    index = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", **index}))
    open_model(folder)
    return folder


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def weights(model: Path) -> Path:
    return model / "unet" / "diffusion_pytorch_model.safetensors"


# --- pickles and code


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"])
def test_pickles_are_refused_unread_with_the_way_out(model: Path, tmp_path: Path, suffix: str) -> None:
    mark = tmp_path / "it ran"
    weights(model).unlink()
    bad = model / "unet" / f"diffusion_pytorch_model{suffix}"
    bad.write_bytes(pickle.dumps(Bomb(mark)))
    for path in (model, bad):
        with pytest.raises(ModelError, match=r"(a pickle|their own code can read).*latentprint convert"):
            open_model(path)
    assert not mark.exists()


def test_a_pickle_named_safetensors_is_no_safetensors(model: Path, tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    weights(model).write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ModelError, match="not a safetensors file"):
        open_model(model)
    assert not mark.exists()


def test_a_pickle_among_the_shards_is_refused(model: Path) -> None:
    index = {"weight_map": {"conv_in.weight": "diffusion_pytorch_model-00001.bin"}}
    weights(model).with_name(f"{weights(model).name}.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="pickle"):
        open_model(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": "MyPipeline"},
        {"_class_name": ["pipeline", "MyPipeline"]},
        {"_class_name": None},
        {"unet": ["my_module", "UNet2DModel"]},
        {"unet": ["diffusers", "MyUNet"]},
        {"unet": "UNet2DModel"},
        {"scheduler": ["diffusers", "os.system"]},
        {"text_encoder": ["transformers", "CLIPTextModel"]},
        {"feature_extractor": ["diffusers", "Anything"]},
    ],
)
def test_custom_pipelines_are_refused_and_never_imported(model: Path, changes: dict[str, Any]) -> None:
    for name in ("pipeline", "my_module"):
        (model / f"{name}.py").write_text("raise SystemExit('it ran')")
    before = set(sys.modules)
    edit(model / "model_index.json", **changes)
    with pytest.raises(ModelError):
        open_model(model)
    assert not {"pipeline", "my_module"} & (set(sys.modules) - before)


@pytest.mark.parametrize("name", ["MyUNet", "os.system", "UNet2DConditionModel", ["UNet2DModel"], None])
def test_classes_come_from_the_table_alone(model: Path, name: Any) -> None:
    edit(model / "unet" / "config.json", _class_name=name)
    conditioned = name == "UNet2DConditionModel"  # known, but what it looks at is not in the folder
    with pytest.raises(ModelError, match="cross-attention" if conditioned else "is not supported"):
        open_model(model)


@pytest.mark.parametrize("name", ["MyScheduler", "FlowMatchHeunDiscreteScheduler", None, {"a": 1}])
def test_schedulers_come_from_the_table_alone(model: Path, name: Any) -> None:
    edit(model / "scheduler" / "scheduler_config.json", _class_name=name)
    with pytest.raises(ModelError, match="noise is not known here"):
        open_model(model)


def test_notes_in_a_configuration_are_never_followed(model: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    os.mkfifo(secret)  # whoever opens it waits for ever
    edit(model / "unet" / "config.json", _name_or_path=str(secret), _diffusers_version="../../secret")
    edit(model / "model_index.json", _name_or_path="../secret")
    open_model(model)


# --- paths


@pytest.mark.parametrize(
    "name", ["../../secret.safetensors", "/etc/passwd.safetensors", "a/../../x.safetensors", "\0"]
)
def test_an_index_cannot_name_files_outside(model: Path, tmp_path: Path, name: str) -> None:
    safetensors.torch.save_file({"conv_in.weight": torch.zeros(1)}, tmp_path / "secret.safetensors")
    index = {"weight_map": {"conv_in.weight": name}}
    weights(model).with_name(f"{weights(model).name}.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"own folder|no safetensors|not a safetensors"):
        open_model(model)


@pytest.mark.parametrize("link", ["unet", "unet/config.json", "scheduler", "model_index.json"])
def test_links_that_lead_out_are_refused(model: Path, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    (model / link).rename(outside)
    (model / link).symlink_to(outside)
    with pytest.raises(ModelError, match="leads out of the model's folder"):
        open_model(model)


def test_links_of_weights_that_lead_out_or_in_circles_are_refused(model: Path, tmp_path: Path) -> None:
    file = weights(model)
    file.rename(tmp_path / "outside.safetensors")
    file.symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(ModelError, match="leads out"):
        open_model(model)
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(ModelError):
        open_model(model)


def test_links_within_the_folder_are_followed(model: Path) -> None:
    file = weights(model)
    file.rename(model / "blob")
    file.symlink_to("../blob")
    with pytest.raises(ModelError):  # out of unet/, though not out of the model: shards may not wander either
        open_model(model)
    file.unlink()
    (model / "blob").rename(model / "unet" / "blob")
    file.symlink_to("blob")
    open_model(model)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(model: Path) -> None:
    for file in (weights(model), model / "unet" / "config.json", model / "model_index.json"):
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(ModelError):
            open_model(model)


# --- sizes


def safetensors_file(path: Path, header: Any, body: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + body)
    return path


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "body", "length"),
    [
        ({"a": entry()}, b"1234", 2**63),  # a header longer than any memory
        ({"a": entry()}, b"1234", 2**20),  # longer than the file
        ({"a": entry()}, b"1234", 0),
        ({"a": entry(shape=(10**9, 10**9))}, b"1234", None),  # absurd shapes
        ({"a": entry(shape=(10**18,), offsets=(0, 4 * 10**18))}, b"1234", None),
        ({"a": entry(shape=(-1,))}, b"1234", None),
        ({"a": entry(shape=(1.5,))}, b"1234", None),
        ({"a": entry(shape=(True,))}, b"1234", None),
        ({"a": entry(shape=(1,) * 9)}, b"1234", None),
        ({"a": entry(shape=(10**4000,))}, b"1234", None),
        ({"a": entry(dtype="F128")}, b"1234", None),
        ({"a": entry(dtype=["F32"])}, b"1234", None),
        ({"a": entry(offsets=(4, 0))}, b"1234", None),
        ({"a": entry(offsets=(4, 8))}, b"12345678", None),  # a gap
        ({"a": entry(), "b": entry()}, b"1234", None),  # an overlap
        ({"a": entry()}, b"12345", None),  # more bytes than stated
        ({"a": entry()}, b"123", None),  # fewer
        ({"a": [1]}, b"", None),
        ({"a": {}}, b"", None),
        ([1, 2], b"", None),
        (b'{"a": ' + b"[" * 100_000, b"", None),  # deep
        (b'{"__metadata__": {}, "a": {}, "a": {}}', b"", None),  # twice
        (b"\xff\xfe{}", b"", None),
        (b'{"a": NaN}', b"", None),
    ],
)
def test_headers_are_checked_before_anything_is_read(
    tmp_path: Path, header: Any, body: bytes, length: int | None
) -> None:
    with pytest.raises(ModelError):
        read_header(safetensors_file(tmp_path / "x.safetensors", header, body, length))


def test_a_good_header_is_read(tmp_path: Path) -> None:
    header = {"b": entry("F16", (2, 3), (4, 16)), "a": entry(), "__metadata__": {"format": "pt"}}
    found = read_header(safetensors_file(tmp_path / "x.safetensors", header, bytes(16)))
    assert {name: (s.dtype, s.shape) for name, s in found.items()} == {
        "a": ("F32", (1,)),
        "b": ("F16", (2, 3)),
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"layers_per_block": 10**9},
        {"sample_size": 10**6},
        {"sample_size": [8, 10**6]},
        {"sample_size": -8},
        {"sample_size": None},
        {"in_channels": 10**9, "out_channels": 10**9},
        {"block_out_channels": [8] * 10_000},
        {"block_out_channels": [8192, 8192]},  # within bounds, but not what the files hold
        {"block_out_channels": "88"},
        {"block_out_channels": [8, 9]},
        {"num_class_embeds": 10**12},
        {"norm_num_groups": 0},
        {"norm_num_groups": 3},
        {"norm_eps": float("nan")},
        {"dropout": "0"},
        {"down_block_types": ["DownBlock2D", "__import__('os').system('x')"]},
        {"down_block_types": ["DownBlock2D"]},
        {"act_fn": "os.system"},
        {"time_embedding_type": "fourier"},
        {"time_embedding_type": "learned"},
        {"class_embed_type": "identity"},
        {"center_input_sample": 1},
        {"an_unknown_setting": True},
        {"time_embedding_dim": 8192},
    ],
)
def test_absurd_settings_are_refused_before_they_cost_anything(model: Path, changes: dict[str, Any]) -> None:
    edit(model / "unet" / "config.json", **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with pytest.raises(ModelError):
        open_model(model)
    assert time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


@pytest.mark.parametrize(
    "changes",
    [
        {"num_train_timesteps": 10**9},
        {"beta_start": "0.1"},
        {"trained_betas": [0.1] * 10**5 + [0.2]},
        {"prediction_type": "flow_prediction"},
        {"prediction_type": ["epsilon"]},
        {"use_flow_sigmas": True},
        {"clip_sample": True, "clip_sample_range": float("inf")},
        {"variance_type": "learned"},
    ],
)
def test_absurd_schedulers_are_refused(model: Path, changes: dict[str, Any]) -> None:
    edit(model / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(ModelError):
        open_model(model)


def test_a_configuration_too_long_to_be_one_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with file.open("wb") as out:
        out.truncate(MAX_JSON + 1)
    with pytest.raises(ModelError, match="more than"):
        read_json(file)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"[" * 10**6, b"{" * 10**5, b"\xff", b'{"a": 1' + b"0" * 5000 + b"}"]
)
def test_what_is_no_configuration_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError):
        read_json(tmp_path / "config.json")


def test_weights_of_another_network_or_with_nan_are_refused(model: Path) -> None:
    good = safetensors.torch.load_file(weights(model))
    name = "conv_in.weight"
    for wrong, said in (
        ({k: v for k, v in good.items() if k != name}, "lack 1"),
        (good | {"more": torch.zeros(1)}, "has not"),
        (good | {name: good[name][:1]}, "must have shape"),
        (good | {name: good[name] * float("nan")}, "NaN"),
    ):
        safetensors.torch.save_file(wrong, weights(model))
        with pytest.raises(ModelError, match=said):
            open_model(model)
    safetensors.torch.save_file(good, weights(model))
    open_model(model)


def test_a_truncated_file_is_refused(model: Path) -> None:
    raw = weights(model).read_bytes()
    for length in (0, 7, 8, 100, len(raw) // 2, len(raw) - 1):
        weights(model).write_bytes(raw[:length])
        with pytest.raises(ModelError):
            open_model(model)


def test_two_files_of_weights_are_not_chosen_between(model: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        weights(model).with_name(name).write_bytes(weights(model).read_bytes())
    weights(model).unlink()
    with pytest.raises(ModelError, match=r"holds 2 files of weights \('a.safetensors', 'b.safetensors'\)"):
        weight_files(model / "unet")


# --- the converter


def test_the_converter_writes_tensors_and_never_runs_code(tmp_path: Path) -> None:
    good, bad, mark = tmp_path / "good.bin", tmp_path / "bad.bin", tmp_path / "it ran"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(3)}
    torch.save({"state_dict": tensors}, good)
    bad.write_bytes(pickle.dumps(Bomb(mark)))
    out = tmp_path / "out.safetensors"
    with pytest.raises(ModelError, match="--i-trust-this-file"):
        convert(good, out, trusted=False)
    convert(good, out, trusted=True)
    found = safetensors.torch.load_file(out)
    assert set(found) == {"a", "b"} and all(torch.equal(found[k], tensors[k]) for k in tensors)
    with pytest.raises(ModelError, match="exists already"):
        convert(good, out, trusted=True)
    with pytest.raises(ModelError, match="cannot be converted"):
        convert(bad, tmp_path / "other.safetensors", trusted=True)
    assert not mark.exists() and not (tmp_path / "other.safetensors").exists()


def test_the_converter_as_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in.pt", tmp_path / "out.safetensors"
    torch.save({"a": torch.zeros(2)}, source)
    assert answer(["convert", str(source), str(target)]) == 2
    assert "--i-trust-this-file" in capsys.readouterr().err and not target.exists()
    assert answer(["convert", str(source), str(target), "--i-trust-this-file"]) == 0
    said = capsys.readouterr().out.splitlines()[-2:]
    assert [line[:64] for line in said] == [sha256(f.read_bytes()).hexdigest() for f in (source, target)]


# --- fuzzing: whatever the bytes, only ModelError comes out

FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.integers(-2, 70), st.sampled_from([10**9, 10**400, -1, 0, 1e308])
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=12)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)


def only_model_error(call: Callable[[], Any]) -> None:
    try:
        call()
    except ModelError as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 1000


@FUZZ
@given(st.binary(max_size=300))
def test_fuzz_any_bytes_as_json_or_safetensors(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(raw)
    only_model_error(lambda: read_json(file))
    only_model_error(lambda: read_header(file))


@FUZZ
@given(
    st.dictionaries(
        st.text(max_size=5),
        st.one_of(
            VALUES,
            st.fixed_dictionaries(
                {
                    "dtype": st.one_of(VALUES, st.sampled_from(["F32", "F16", "I64"])),
                    "shape": VALUES,
                    "data_offsets": VALUES,
                }
            ),
        ),
        max_size=3,
    ),
    st.binary(max_size=40),
)
def test_fuzz_safetensors_headers(tmp_path: Path, header: dict[str, Any], body: bytes) -> None:
    raw = json.dumps(header).encode("utf-8", "surrogatepass")
    file = safetensors_file(tmp_path / "x.safetensors", raw, body)
    only_model_error(lambda: read_header(file))


CONFIGS = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")


@FUZZ
@given(st.data())
def test_fuzz_every_configuration_of_a_pipeline(model: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(CONFIGS))
    file = model / name
    good = file.read_text()
    config = json.loads(good)
    keys = st.one_of(
        st.sampled_from(sorted(config)), st.sampled_from(["beta_start", "trained_betas", "clip_sample_range"])
    )
    changes = data.draw(st.dictionaries(st.one_of(keys, st.text(max_size=5)), VALUES, min_size=1, max_size=2))
    try:
        file.write_text(json.dumps(config | changes))
        only_model_error(lambda: open_model(model, label=data.draw(st.sampled_from([None, 0, -1]))))
    finally:
        file.write_text(good)


@FUZZ
@given(
    st.dictionaries(
        st.sampled_from(["format", "network", "sigma_data", "sigma_min", "sigma_max", "x"]), VALUES
    )
)
def test_fuzz_edm_and_own_configurations(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = tmp_path / "edm"
    folder.mkdir(exist_ok=True)
    (folder / "edm.json").write_text(json.dumps({"format": "latentprint-edm/1", "network": {}} | changes))
    only_model_error(lambda: open_model(folder))


@FUZZ
@given(
    st.dictionaries(st.sampled_from(["schema", "schedule", "sigma_data", "label", "parametrisation"]), VALUES)
)
def test_fuzz_our_own_description(model: Path, changes: dict[str, Any]) -> None:
    good = {
        "schema": "latentprint-model/1",
        "schedule": {"name": "vp"},
        "parametrisation": "v",
        "label": None,
    }
    (model / "unet" / "latentprint.json").write_text(json.dumps(good | changes))
    only_model_error(lambda: open_model(model / "unet"))


@FUZZ
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "num_train_timesteps",
                "beta_start",
                "beta_end",
                "beta_schedule",
                "trained_betas",
                "rescale_betas_zero_snr",
            ]
        ),
        st.one_of(VALUES, st.lists(st.floats(0, 1), max_size=5)),
    )
)
def test_fuzz_schedules(config: dict[str, Any]) -> None:
    def build() -> None:
        found = discrete_schedule(alphas_cumprod(config), "v")
        grid = torch.linspace(0, 1, 7, dtype=torch.float64)
        assert bool(found.ratio(grid).isfinite().all()) and np.isfinite(found.diffusion2(grid).numpy()).all()

    only_model_error(build)


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ModelError, match="single file"):
        recognise(tmp_path / "a.txt")
