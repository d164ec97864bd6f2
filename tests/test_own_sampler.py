"""A model's own sampler against the library that saved it: the same noise, the same images, to 1e-4."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from test_adapters import autoencoder, made, saved, scheduler_of, seeded, unet
from torch import Tensor

from latentprint.adapters import ModelError, Opened, from_function, open_model
from latentprint.adapters.cosine import Cosine
from latentprint.adapters.opened import Asked
from latentprint.adapters.own import Own
from latentprint.audit.given import in_unit_time
from latentprint.cli.options import AuditOptions
from latentprint.config import resolve
from latentprint.rate import SamplerPushforward
from latentprint.sampler import State, denoised, reverse
from latentprint.schedule import Flow

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


def ours(opened: Opened, start: Tensor, noises: list[Tensor]) -> Tensor:
    """The model's own sampler from ``start``, drawing the noises one after another."""
    assert opened.own is not None and opened.own.exact
    return walked(opened.own, start, noises)


def walked(own: Own, start: Tensor, noises: list[Tensor]) -> Tensor:
    """What a sampler makes of ``start``, be it the scheduler's own or our nearest."""
    sampler, model = own.sampler, own.denoiser
    grid = sampler.grid(model.schedule)
    assert float(grid[0]) == pytest.approx(model.schedule.start)
    start = start * model.schedule.prior_std
    state = State.at(start, grid[0])
    with torch.no_grad():
        for now in reverse(model, start, grid, sampler.step, lambda column: lambda _: noises[column - 1]):
            state = now
        return denoised(model, state).x if sampler.denoise else state.x


def theirs(
    network: Any, scheduler: Any, steps: int, start: Tensor, **given: Any
) -> tuple[Tensor, list[Tensor]]:
    """diffusers' loop as its pipelines write it, and the noises that it drew."""
    scheduler.set_timesteps(steps, **given)
    generator, noises = torch.Generator().manual_seed(11), list[Tensor]()
    x = start * getattr(scheduler, "init_noise_sigma", 1.0)
    takes = "generator" in scheduler.step.__code__.co_varnames
    with torch.no_grad():
        for k in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, k) if hasattr(scheduler, "scale_model_input") else x
            out = network(scaled, k.expand(len(x))).sample
            before = generator.get_state()
            x = scheduler.step(out, k, x, **({"generator": generator} if takes else {})).prev_sample
            fresh = torch.Generator()
            fresh.set_state(before)
            noises.append(torch.randn(x.shape, generator=fresh))
    return x, noises


ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}

DISCRETE: list[tuple[str, dict[str, Any], int]] = [
    ("DDPMScheduler", {}, 100),
    ("DDPMScheduler", {"variance_type": "fixed_large", "prediction_type": "v_prediction"}, 50),
    ("DDPMScheduler", {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"}, 20),
    ("DDIMScheduler", {}, 10),
    ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}, 20),
    ("DDIMScheduler", {"prediction_type": "sample"}, 20),
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}, 10),
    ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}, 10),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, 10),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}, 10),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing", "prediction_type": "sample"}, 10),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, 10),
    (
        "EulerAncestralDiscreteScheduler",
        {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        10,
    ),
    *(
        (
            name,
            ZERO_SNR | {"beta_schedule": "scaled_linear", "timestep_spacing": spacing},
            10,
        )
        for name in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
        for spacing in ("trailing", "linspace")
    ),
    ("HeunDiscreteScheduler", {"timestep_spacing": "trailing"}, 10),
    ("HeunDiscreteScheduler", {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}, 10),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}, 20),
    ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction", "solver_order": 1}, 10),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing", "prediction_type": "sample"}, 20),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}, 20),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, 20),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min", "solver_order": 1}, 10),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min", "lower_order_final": False}, 10),
    *(
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", **settings}, steps)
        for settings, steps in (
            ({"timestep_spacing": "trailing"}, 20),
            ({"timestep_spacing": "trailing", "prediction_type": "v_prediction"}, 10),
            ({"timestep_spacing": "trailing", "prediction_type": "sample"}, 20),
            ({"prediction_type": "v_prediction", "solver_order": 1}, 10),
            ({"final_sigmas_type": "sigma_min"}, 20),
        )
    ),
    ("LCMScheduler", {}, 4),
    ("LCMScheduler", {"prediction_type": "v_prediction"}, 1),
    ("LCMScheduler", {"prediction_type": "sample"}, 4),
    ("TCDScheduler", {}, 4),
    ("TCDScheduler", {"prediction_type": "v_prediction"}, 4),
    ("TCDScheduler", {"prediction_type": "sample"}, 4),
]


EDM_EULER = ("epsilon", "v_prediction")


@pytest.mark.parametrize(("name", "settings", "steps"), DISCRETE)
def test_own_sampler_is_the_librarys(tmp_path: Path, name: str, settings: dict[str, Any], steps: int) -> None:
    network = unet()
    folder = saved(tmp_path, network, scheduler_of(name, **settings))
    opened = open_model(folder, asked=Asked(steps=steps))
    start = seeded(7, 3, 1, 8, 8)
    expected, noises = theirs(network, scheduler_of(name, **settings), steps, start)
    found = ours(opened, start, noises)
    if name == "DDIMScheduler" and settings.get("clip_sample", True):
        found = found.clamp(-1, 1)  # as every image is before it is looked at
    assert opened.own is not None and opened.own.sampler.describe()["of"] == name
    assert float((found - expected).abs().max()) < 1e-4 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_a_last_level_that_does_not_fall_is_near_and_its_noise_is_whole(
    tmp_path: Path, name: str, prediction: str
) -> None:
    """In place of zero SNR the scheduler has 2^-24, above the level before it; x_T is noise of std 1."""
    settings = ZERO_SNR | {"timestep_spacing": "trailing", "prediction_type": prediction}
    scheduler = scheduler_of(name, **settings)
    assert scheduler.alphas_cumprod[-1] > scheduler.alphas_cumprod[-2]
    own = open_model(saved(tmp_path, unet(), scheduler), asked=Asked(steps=10)).own
    assert own is not None and not own.exact
    scheduler.set_timesteps(10)
    x = seeded(7, 3, 1, 8, 8) * scheduler.init_noise_sigma
    seen = scheduler.scale_model_input(x, scheduler.timesteps[0])
    assert torch.allclose(own.denoiser.schedule.prior_std * seeded(7, 3, 1, 8, 8), seen, rtol=1e-5)


SHORT = {"num_train_timesteps": 20, "beta_start": 0.05, "beta_end": 0.2}  # its first level is noisy

NEAREST: list[tuple[str, dict[str, Any], int]] = [
    ("DDPMScheduler", {"variance_type": "fixed_large", "timestep_spacing": "trailing"}, 20),
    ("DDPMScheduler", {"variance_type": "learned_range", "timestep_spacing": "trailing"}, 20),
    ("DDPMScheduler", {"variance_type": "fixed_large", "steps_offset": 1}, 20),
    ("DDIMScheduler", SHORT | {"clip_sample": False, "set_alpha_to_one": False}, 10),
    ("TCDScheduler", {"num_train_timesteps": 20, "original_inference_steps": 20, "beta_end": 0.2}, 20),
    *(
        ("DPMSolverMultistepScheduler", settings, 10)
        for settings in (
            {"use_karras_sigmas": True},
            {"use_lu_lambdas": True},
            {"use_exponential_sigmas": True},
            {"use_beta_sigmas": True},
            {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
            {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
            SHORT | {"final_sigmas_type": "sigma_min"},
        )
    ),
    (
        "DPMSolverMultistepScheduler",
        SHORT | {"final_sigmas_type": "sigma_min", "timestep_spacing": "trailing", "solver_order": 1},
        20,
    ),
]


@pytest.mark.parametrize(("name", "settings", "steps"), NEAREST)
def test_what_is_not_the_librarys_is_called_nearest(
    tmp_path: Path, name: str, settings: dict[str, Any], steps: int
) -> None:
    network = unet(out_channels=2 if settings.get("variance_type") == "learned_range" else 1)
    own = open_model(saved(tmp_path, network, scheduler_of(name, **settings)), asked=Asked(steps=steps)).own
    assert own is not None and not own.exact and own.sampler.of == f"nearest to {name}"
    start = seeded(7, 3, 1, 8, 8)
    expected, noises = theirs(network, scheduler_of(name, **settings), steps, start)
    found = walked(own, start, noises)
    assert float((found - expected).abs().max()) > 1e-4 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("EDMEulerScheduler", {"sigma_min": 0.02}),
        (
            "EulerDiscreteScheduler",
            {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True}
            | {"sigma_min": 0.02, "sigma_max": 700.0},
        ),
    ],
)
def test_a_renamed_time_keeps_the_last_denoising(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    """The scheduler ends at sigma_min, whose new name would be 0, where nothing is denoised any more."""
    opened = open_model(saved(tmp_path, unet(), scheduler_of(name, **settings)), asked=Asked(steps=10))
    renamed = in_unit_time(opened)
    images = list[Tensor]()
    for own in (opened.own, renamed.own):
        assert own is not None and own.sampler.at is not None and own.sampler.at[-1] > 0
        push = SamplerPushforward(own.denoiser, own.sampler, opened.shape)
        images.append(push(seeded(7, 3, push.latent)))
    assert torch.allclose(*images, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_consistency_model_samples_as_its_pipeline(tmp_path: Path, steps: int) -> None:
    network = unet()
    scheduler = scheduler_of("CMStochasticIterativeScheduler", sigma_max=20.0)
    folder = saved(tmp_path, network, scheduler, "ConsistencyModelPipeline")
    opened = open_model(folder, asked=Asked(steps=steps))
    assert open_model(folder).own.sampler.steps == 0  # type: ignore[union-attr]  # one evaluation, no step
    start = seeded(7, 3, 1, 8, 8)
    expected, noises = theirs(network, scheduler, steps, start)
    assert opened.own is not None
    found = ours(opened, start, noises)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"shift": 3.0},
        {"use_karras_sigmas": True},
        {"stochastic_sampling": True},
        {"shift_terminal": 0.02},
    ],
)
def test_flow_matching_samples_as_its_scheduler(tmp_path: Path, settings: dict[str, Any]) -> None:
    network = unet()
    scheduler = scheduler_of("FlowMatchEulerDiscreteScheduler", **settings)
    network.save_pretrained(tmp_path)
    scheduler.save_pretrained(tmp_path)
    opened = open_model(tmp_path, asked=Asked(steps=9))
    start = seeded(7, 3, 1, 8, 8)
    expected, noises = theirs(network, scheduler, 9, start)
    assert torch.allclose(ours(opened, start, noises), expected, atol=1e-4)


@pytest.mark.parametrize("steps", [2, 20])
def test_ipndm_samples_as_its_scheduler(tmp_path: Path, steps: int) -> None:
    """Its first step takes nothing of the network but the epsilon of pure noise; its last ends at t = 0."""
    network, scheduler = unet(), scheduler_of("IPNDMScheduler")
    folder = saved(tmp_path, network, scheduler)
    start = seeded(7, 3, 1, 8, 8)
    expected, noises = theirs(network, scheduler, steps, start)
    found = ours(open_model(folder, asked=Asked(steps=steps)), start, noises)
    assert float((found - expected).abs().max()) < 1e-4 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("prediction", EDM_EULER)
def test_the_euler_of_edm_samples_as_its_scheduler(tmp_path: Path, prediction: str) -> None:
    network, scheduler = unet(), scheduler_of("EDMEulerScheduler", prediction_type=prediction)
    folder = saved(tmp_path, network, scheduler)
    start = seeded(7, 3, 1, 8, 8)
    expected, noises = theirs(network, scheduler, 10, start)
    found = ours(open_model(folder, asked=Asked(steps=10)), start, noises)
    assert float((found - expected).abs().max()) < 1e-4 * max(1.0, float(expected.abs().max()))


def test_the_shift_of_a_flow_follows_the_resolution(tmp_path: Path) -> None:
    """mu is a straight line through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift)."""
    network = unet()
    settings = {"use_dynamic_shifting": True, "base_image_seq_len": 16, "max_image_seq_len": 112}
    network.save_pretrained(tmp_path)
    scheduler = scheduler_of("FlowMatchEulerDiscreteScheduler", **settings)
    scheduler.save_pretrained(tmp_path)
    start = seeded(7, 3, 1, 8, 8)
    expected, noises = theirs(network, scheduler, 9, start, mu=0.5 + (1.15 - 0.5) * (64 - 16) / (112 - 16))
    assert torch.allclose(
        ours(open_model(tmp_path, asked=Asked(steps=9)), start, noises), expected, atol=1e-4
    )


def test_the_noise_of_a_flow_is_that_of_its_scheduler_at_every_timestep() -> None:
    scheduler = scheduler_of("FlowMatchEulerDiscreteScheduler")
    x, e = seeded(0, 1000, 1, 2, 2), seeded(1, 1000, 1, 2, 2)
    t = scheduler.timesteps.double() / 1000
    schedule = Flow()
    mixed = schedule.alpha(t).reshape(-1, 1, 1, 1) * x + schedule.sigma(t).reshape(-1, 1, 1, 1) * e
    assert torch.allclose(mixed, scheduler.scale_noise(x, scheduler.timesteps, e).double(), atol=1e-6)


@pytest.mark.parametrize("schedule", [Flow(), Cosine()])
def test_the_schedule_is_its_own_derivative(schedule: Any) -> None:
    h = 1e-6
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    f, g2 = schedule.drift(t), schedule.diffusion2(t)
    slope = (schedule.log_alpha(t + h) - schedule.log_alpha(t - h)) / (2 * h)
    variance = (schedule.sigma(t + h) ** 2 - schedule.sigma(t - h) ** 2) / (2 * h)
    assert torch.allclose(f, slope, rtol=1e-6)
    assert torch.allclose(g2, variance - 2 * f * schedule.sigma(t) ** 2, rtol=1e-6)
    assert torch.allclose(schedule.time(schedule.ratio(t)), t, atol=1e-12)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_both_signs_of_a_velocity(sign: float) -> None:
    """x_t = (1 - t) x_0 + t e with v = e - x_0 (diffusers) or x_0 - e (MONAI): D = x_0 for the exact v."""
    x0, e, t = seeded(0, 4, 1, 3, 3), seeded(1, 4, 1, 3, 3), torch.tensor(0.3, dtype=torch.float64)
    name: Any = "flow" if sign > 0 else "reverse flow"
    denoiser = from_function(lambda x, time: sign * (e - x0), Flow(), predicts=name)
    assert torch.allclose(denoiser(0.7 * x0 + 0.3 * e, t), x0, atol=1e-6)


def test_a_score_model_of_the_sde_family_is_understood(tmp_path: Path) -> None:
    network = unet(
        time_embedding_type="fourier",
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        block_out_channels=(32, 64),
        in_channels=3,
        out_channels=3,
        norm_num_groups=8,
    )
    folder = tmp_path
    network.save_pretrained(folder / "unet")
    scheduler = scheduler_of("ScoreSdeVeScheduler", sigma_max=50.0)
    scheduler.save_pretrained(folder / "scheduler")
    opened = open_model(folder)
    x, t = 3 * seeded(0, 2, 3, 8, 8), torch.tensor(0.4, dtype=torch.float64)
    sigma = float(opened.denoiser.schedule.sigma(t))
    with torch.no_grad():
        score = network(x, torch.full((2,), sigma)).sample
        assert torch.allclose(opened.denoiser(x, t), x + sigma**2 * score, rtol=1e-4, atol=1e-4)
    assert opened.own is not None and not opened.own.exact
    assert opened.own.sampler.of == "nearest to ScoreSdeVeScheduler"


# --- transformers and guidance


def dit(**settings: Any) -> Any:
    usual: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 2,
        "out_channels": 4,
        "num_layers": 2,
        "sample_size": 8,
        "patch_size": 2,
        "num_embeds_ada_norm": 1000,  # the pipeline calls the class that stands for none 1000
        "activation_fn": "gelu-approximate",
        "norm_elementwise_affine": False,
        "attention_bias": True,
    }
    return made(diffusers.DiTTransformer2DModel, **(usual | settings))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_dit_samples_as_its_pipeline_with_and_without_guidance(tmp_path: Path, guidance: float) -> None:
    network, vae = dit(), autoencoder(scaling_factor=0.3)
    with torch.no_grad():  # a fresh DiT answers 0 to everything
        network.proj_out_2.weight.copy_(0.05 * seeded(5, *network.proj_out_2.weight.shape))
    scheduler = scheduler_of("DDIMScheduler", clip_sample=False)
    names = {0: "none", 3: "three"}
    pipeline: Any = diffusers.DiTPipeline(network, vae, scheduler, id2label=names)
    pipeline.save_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    opened = open_model(tmp_path, asked=Asked(label=3, guidance=guidance, steps=10))
    assert opened.shape == (2, 8, 8) and opened.image_shape == (1, 16, 16)
    expected = pipeline(
        [3, 3],
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(7),
        num_inference_steps=10,
        output_type="np",
    ).images
    latents = ours(opened, seeded(7, 2, 2, 8, 8), [])
    with torch.no_grad():
        found = (opened.codec.decode(latents) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    # the pipeline makes three channels of one where its autoencoder has one
    assert np.abs(found - expected[..., :1].reshape(found.shape)).max() < 1e-4


def test_guidance_is_refused_where_no_class_stands_for_none(tmp_path: Path) -> None:
    folder = saved(tmp_path, unet(num_class_embeds=4), scheduler_of("DDPMScheduler"))
    with pytest.raises(ModelError, match="means “no class”"):
        open_model(folder, asked=Asked(label=1, guidance=3.0))


def test_at_most_caps_the_pipeline_s_steps_and_never_raises_them(tmp_path: Path) -> None:
    folder = saved(tmp_path, unet(), scheduler_of("DDPMScheduler"))
    for most, steps in ((24, 24), (5000, 1000)):
        own = open_model(folder, asked=Asked(most=most)).own
        assert own is not None and own.pipeline_steps == 1000
        assert own.sampler.steps == open_model(folder, asked=Asked(steps=steps)).own.sampler.steps  # type: ignore[union-attr]


def test_a_given_model_samples_in_more_steps_for_about_the_same_evaluations(tmp_path: Path) -> None:
    """With --model and no more said: the preset's evaluations go into fewer images of more steps."""
    asked = AuditOptions("digits", model=str(tmp_path))
    for name in ("demo", "small", "small3d", "paper"):
        found = resolve(replace(asked, preset=name).settings(), preset=name)
        ours = resolve({}, preset=name)
        steps, most = found.sampler.at_most or 0, ours.sampler.steps
        assert found.sampler.own and steps >= max(96, most)
        assert 200 <= found.samples.count <= ours.samples.count
        assert steps * found.samples.count <= max(most * ours.samples.count, 200 * steps)
        assert 2 <= found.baseline.tries <= max(2, ours.baseline.tries)
    named = resolve(replace(asked, samples="2000").settings(), preset="small")
    assert (named.sampler.at_most, named.samples.count) == (100, 2000)
    (tmp_path / "settings.toml").write_text("[samples]\ncount = 70\n")
    filed = resolve(replace(asked, config=tmp_path / "settings.toml").settings(), preset="small")
    assert filed.samples.count == 70
    told = resolve(replace(asked, sampler=["own:24"]).settings(), preset="small")
    assert told.sampler.at_most is None and told.samples.count == 2000
