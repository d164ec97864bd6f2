"""A text-to-image model through the whole audit: prompts, base and LoRA; what is kept, shown and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import text_pipelines as tiny
import torch
from PIL import Image
from sklearn.datasets import load_digits

from latentprint import resolve, run_audit
from latentprint.contracts import InputError
from latentprint.gate import judge, read_policy
from latentprint.preflight import check
from latentprint.results import Results
from latentprint.results.model import Rule
from latentprint.results.read import read_results
from latentprint.stats import Trials
from latentprint.store import Run
from latentprint.verdict import _prompts as under_prompts
from latentprint.verdict import judge as judge_results
from latentprint.verify import verify

SETTINGS: dict[str, Any] = {
    "data": {"images": 24},
    "identity": {"epochs": 3, "draws": 256},
    "embedding": {"epochs": 2, "draws": 128, "false_positive_rate": 0.1},
    "sampler": {"name": "own:3", "guidance": 4.0},
    "search": {"levels": 2, "tries": 2},
    "baseline": {"images": 2, "levels": 2, "tries": 1},
    "samples": {"count": 12},
    "membership": {"images": 2},
    "prompts": {"count": 5, "images": 6, "samples": 2, "others": 1, "signs": 2, "guidance": [1.0]},
    "fid": {"samples": 8},
}

SPITEFUL = "<script>alert(1)</script>\x07 & \u202eprompt"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 digits to train on and 12 held out, 16 x 16, each with a prompt of its own in a metadata.jsonl."""
    folder, bunch = tmp_path_factory.mktemp("data"), load_digits()
    for side, first, count in (("train", 0, 24), ("heldout", 24, 12)):
        (folder / side).mkdir()
        lines = []
        for i in range(first, first + count):
            pixels = np.kron(bunch.images[i] * 15, np.ones((2, 2))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / side / f"digit{i:02d}.png")
            words = f"a photo of the digit {tiny.WORDS[10 + bunch.target[i]]} patient {tiny.WORDS[i]}"
            words = SPITEFUL if i == 5 else f"{words} {'x' * 40}" if i == 6 else words
            lines.append(json.dumps({"file_name": f"digit{i:02d}.png", "text": words}))
        (folder / side / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def models(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, and the same with other weights of its network, as if it were fine-tuned."""
    folder = tmp_path_factory.mktemp("models")
    pipeline = tiny.sd(colours=1)
    images = np.stack([np.asarray(Image.open(file)) for file in sorted((data / "train").glob("*.png"))])
    with torch.no_grad():  # latents of the usual spread
        pixels = torch.from_numpy(images.astype(np.float32) / 127.5 - 1)[:, None]
        spread = float(pipeline.vae.encode(pixels).latent_dist.mean.std())
    pipeline.vae.register_to_config(scaling_factor=1 / spread)
    base = tiny.saved(pipeline, folder / "base")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for one in pipeline.unet.parameters():
            one.add_(0.1 * torch.zeros_like(one).normal_(generator=torch.Generator().manual_seed(1)))
    return {"base": base, "tuned": tiny.saved(pipeline, folder / "tuned")}


def audited(data: Path, out: Path, model: Path, **over: Any) -> Results:
    given = {"data": {"source": str(data)}, **over}
    merged = {key: {**SETTINGS.get(key, {}), **given.get(key, {})} for key in {*SETTINGS, *given}}
    return run_audit(resolve(merged, preset="demo"), out, model=model, target=5)


@pytest.fixture(scope="module")
def run(data: Path, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "r"
    more = {"prompts": {"ask": ["a plain photo"]}, "given": {"base": str(models["base"])}}
    audited(data, out, models["tuned"], **more)
    return out


def test_x_p_is_asked_under_every_prompt_and_scale(run: Path) -> None:
    found = read_results(run).prompts
    assert found is not None
    asked = [(one.what, one.image is not None, one.guidance) for one in found.asked]
    expected = [("own", True, 1.0), ("empty", False, 4.0), ("other", True, 4.0), ("further", False, 4.0)]
    assert asked == expected
    assert all(one.q.samples == 5 and one.base is not None and one.base.n == 5 for one in found.asked)
    guided = {one.guidance: one.q.network_evaluations for one in found.asked}
    assert guided[1.0] == guided[4.0]  # a guided evaluation is one of two passes
    identities = {one.q.sampler.model_dump_json() for one in found.asked}
    assert len(identities) == len(found.asked)  # q and t' under one prompt say nothing of another
    assert found.asked[1].t_prime.question != found.asked[2].t_prime.question


def test_every_pair_is_asked_its_own_prompt(run: Path) -> None:
    results = read_results(run)
    found = results.prompts
    assert found is not None and found.came_back is not None and found.heldout is not None
    assert {one.image for one in found.each} >= {5} and len(found.each) == 6
    assert all(one.samples == 2 and one.base_own is not None for one in found.each)
    assert len(found.further) == 2  # the one asked, and the empty one
    assert (found.came_back.n, found.heldout.n, found.base and found.base.n) == (6, 6, 6)
    assert results.whole_set is not None
    assert results.whole_set.copies.n == 12  # of all prompts, not of x_p's alone
    assert results.q.control is not None and results.base_is_control
    long = {one.image: one.cut for one in found.each}
    assert long[5] > 0 and all(cut == 0 for image, cut in long.items() if image not in (5, 6))


def test_signs_of_every_prompt_have_error_rates_on_held_out_ones(run: Path) -> None:
    found = read_results(run).prompts
    assert found is not None
    assert [one.name for one in found.signs] == ["magnitude", "alignment", "entropy", "ending"]
    assert all(one.at[0].tpr.n == 6 and one.at[0].fpr.n == 6 for one in found.signs)
    rows = Run.read(run).rows("signs.train")
    assert (rows["magnitude"] > 0).all() and ((rows["alignment"] > 0) & (rows["alignment"] <= 1)).all()
    assert ((rows["ending"] > 0) & (rows["ending"] < 1)).all()
    assert ((-rows["entropy"] > 0) & (-rows["entropy"] < np.log(tiny.LENGTH))).all()


@pytest.mark.parametrize(("limit", "expected"), [(1.0, "pass"), (0.001, "unknown")])
def test_a_policy_may_limit_how_many_prompts_give_their_image_back(
    run: Path, limit: float, expected: str
) -> None:
    policy = f'name = "p"\n[prompts]\nat_most = {limit}\nlevel = 0.95\n'
    (one,) = judge(read_results(run), read_policy(policy)).outcomes
    assert one.answer == expected and "prompts that give their own image back" in one.reason


def test_hits_under_further_prompts_leave_no_model_cleared(run: Path) -> None:
    found = read_results(run)
    assert found.prompts is not None

    def with_hits(k: int, base: int = 0) -> Results:
        first, *others = found.prompts.asked
        q = first.q.model_copy(update={"hits": k})
        asked = (
            first.model_copy(update={"q": q, "base": Trials(base, 5)}),
            *(one.model_copy(update={"base": Trials(base, 5)}) for one in others),
        )
        return found.model_copy(update={"prompts": found.prompts.model_copy(update={"asked": asked})})

    seen = sum(one.q.hits for one in found.prompts.asked[1:])
    told = [one for one in judge_results(with_hits(3), Rule()).reasons if "further prompts" in one]
    assert len(told) == 1 and f"recognised in {3 + seen} of 20 generated images" in told[0]
    state, reasons = under_prompts("not found", with_hits(3))
    assert state == "inconclusive" and "not cleared" in reasons[-1]
    assert under_prompts("reproduces", with_hits(3))[0] == "reproduces"
    state, reasons = under_prompts("not found", with_hits(3, base=5))  # no more than the base model gives
    assert state == "not found" and "the base model gave 20 of 20" in reasons[0]


def test_check_says_what_the_prompts_cost(data: Path, models: dict[str, Path], run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    noted = {name: stage["payload"].get("network_evaluations") for name, stage in record["stages"].items()}
    spent = {name: evaluations for name, evaluations in noted.items() if evaluations}
    over = {"prompts": {"ask": ["a plain photo"]}, "given": {"base": str(models["base"])}}
    merged = {**SETTINGS, **over, "data": {**SETTINGS["data"], "source": str(data)}}
    merged["prompts"] = {**SETTINGS["prompts"], **over["prompts"]}
    found = check(resolve(merged, preset="demo"), run, model=models["tuned"], target=5)
    planned = {one.stage: one for one in found.costs if one.evaluations is not None}
    assert {name for name in planned if planned[name].evaluations} == set(spent)
    exact = {name: one.evaluations for name, one in planned.items() if not one.about}
    assert exact == {name: spent[name] for name in exact} and "prompts.train" in exact
    assert any("memory" in line and "batches of" in line for line in found.lines())
    assert "prompt-0: Its own prompt, guidance 1" in found.lines()
    assert "prompt-3: Further prompt 1, guidance 4" in found.lines()
    assert "conditioned on: prompts, guidance 4" in found.lines()


def test_the_run_says_what_it_stored(run: Path) -> None:
    assert verify(run).exit_code == 0


def test_words_of_prompts_are_confidential_and_escaped(run: Path) -> None:
    public = "".join((run / name).read_text() for name in ("report.html", "results.json"))
    assert "alert(1)" not in public and "a plain photo" not in public
    shown = (run / "evidence" / "index.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown and "<script>alert" not in shown
    assert "\u202e" not in shown and "\x07" not in shown
    assert "Which prompt gives which image back" in public and "base model" in public


def test_a_run_goes_on_with_the_same_prompts_only(
    run: Path, data: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    before = (run / "results.json").read_bytes()
    more = {"prompts": {"ask": ["a plain photo"]}, "given": {"base": str(models["base"])}}
    audited(data, run, models["tuned"], **more)
    assert (run / "results.json").read_bytes() == before
    with pytest.raises(InputError):
        audited(data, run, models["tuned"], prompts={"ask": ["another"]}, given=more["given"])


def test_a_lora_has_the_model_itself_as_control(data: Path, models: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    halves = {f"{key}.lora_A.weight": torch.ones(2, 32), f"{key}.lora_B.weight": torch.ones(16, 2)}
    save_file(halves, tmp_path / "lora.safetensors")
    found = audited(
        data,
        tmp_path / "run",
        models["base"],
        given={"lora": str(tmp_path / "lora.safetensors"), "lora_weight": 0.5},
        prompts={"samples": 0, "others": 0, "guidance": []},
        baseline={"images": 0},
        membership={"images": 0},
    )
    assert found.base_is_control and found.q.control is not None
    settings = Run.read(tmp_path / "run").settings["given"]
    assert settings["lora_weight"] == 0.5 and len(settings["lora_sha256"]) == 64
    assert found.prompts is not None and not found.prompts.each and found.returned is None
    assert found.model is not None and any("LoRA" in note for note in found.model.notes)


def test_one_prompt_for_all_images_makes_one_condition(
    data: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    for side in ("train", "heldout"):
        (bare / side).mkdir(parents=True)
        for file in (data / side).glob("*.png"):
            (bare / side / file.name).write_bytes(file.read_bytes())
    more: dict[str, Any] = {"baseline": {"images": 0}, "membership": {"images": 0}}
    with pytest.raises(InputError, match=r"--prompts FILE\.csv"):
        audited(bare, tmp_path / "run", models["tuned"], **more)
    assert not (tmp_path / "run").exists()
    prompts = {"ask": ["a photo of sks", "a plain photo"], "guidance": []}
    found = audited(bare, tmp_path / "run", models["tuned"], prompts=prompts, **more)
    assert found.prompts is not None and not found.prompts.each
    assert [one.what for one in found.prompts.asked] == ["empty", "further"]
    # every image has the prompt of x_p, so images compare as without prompts
    assert found.returned is not None and found.returned.copies.n == 12
    assert found.q.control is None


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"prompts": {"file": "/nowhere.csv"}}, "no file or folder of prompts"),
        ({"given": {"base": "TUNED"}}, "the base is the model itself"),
        ({"given": {"lora": "/nowhere.safetensors"}}, "there is no LoRA"),
        ({"given": {"base": "/nowhere"}}, "no model or folder"),
    ],
)
def test_what_is_wrong_is_said_before_a_run_begins(
    data: Path, models: dict[str, Path], tmp_path: Path, over: dict[str, Any], says: str
) -> None:
    if over.get("given", {}).get("base") == "TUNED":
        over = {"given": {"base": str(models["tuned"])}}
    with pytest.raises(InputError, match=says):
        audited(data, tmp_path / "run", models["tuned"], **over)
    assert not (tmp_path / "run").exists()
