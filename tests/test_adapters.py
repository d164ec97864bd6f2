"""Foreign models against the library that saved them: diffusers' own noise, steps and pipelines."""

from __future__ import annotations

import doctest
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, UNet2DModel, VQModel
from torch import Tensor

import latentprint.adapters.function
from latentprint.adapters import (
    DiscreteDenoiser,
    DiscreteSchedule,
    LatentCodec,
    ModelError,
    alphas_cumprod,
    discrete_schedule,
    from_function,
    open_model,
    recognise,
)
from latentprint.denoiser import NetworkDenoiser, score
from latentprint.networks import save_model
from latentprint.sampler import (
    DDIM,
    Ancestral,
    DPMSolverPP2M,
    Heun,
    State,
    denoised,
    reverse,
    sampler_from,
    times,
)
from latentprint.schedule import EDM, VP

# diffusers' schedulers hand torch tensors to NumPy in a way that NumPy 2 announces an end to
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

BETAS: dict[str, dict[str, Any]] = {
    "linear": {},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"trained_betas": [0.001 * (1 + k) for k in range(60)], "num_train_timesteps": 60},
    "short": {"num_train_timesteps": 100, "beta_end": 0.2},
    "zero snr": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "zero snr scaled": {
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
    },
}
VARIANCE_PRESERVING = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)
EXPLODING = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
)
TO_ZERO = (
    "DDPMScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
)


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(kind: Callable[..., Any], **settings: Any) -> Any:
    """A network of diffusers with random weights that leave torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(**settings).eval()


def unet(**settings: Any) -> UNet2DModel:
    usual: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }
    return made(UNet2DModel, **(usual | settings))


def saved(folder: Path, network: Any, scheduler: Any, name: str = "DDPMPipeline", **more: Any) -> Path:
    """A pipeline's folder, written by diffusers itself."""
    getattr(diffusers, name)(unet=network, scheduler=scheduler, **more).save_pretrained(folder)
    return folder


def scheduler_of(name: str, **settings: Any) -> Any:
    return getattr(diffusers, name)(**settings)


def schedule_of(scheduler: Any) -> DiscreteSchedule:
    config = json.loads(scheduler.to_json_string())
    predicts = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}[config["prediction_type"]]
    return discrete_schedule(alphas_cumprod(config), predicts)


def pairs(names: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(n, b) for n in names for b in BETAS if not b.startswith("zero") or n in TO_ZERO]


# --- the schedule


@pytest.mark.parametrize(("name", "betas"), pairs(VARIANCE_PRESERVING))
def test_noise_is_the_schedulers_own_at_each_of_its_timesteps(name: str, betas: str) -> None:
    solver = name not in ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
    scheduler = scheduler_of(name, **BETAS[betas])
    schedule = schedule_of(scheduler)
    n = scheduler.config.num_train_timesteps
    assert schedule.timesteps == n
    if solver:  # before this their table of noise is upside down
        single = name == "DPMSolverSinglestepScheduler"  # it has no spacing that names every timestep once
        scheduler = scheduler_of(name, **BETAS[betas], **({} if single else {"timestep_spacing": "trailing"}))
        scheduler.set_timesteps(min(n, 20) if single else n)
    # the others put 2^-24 in the place of the last level where it should be 0
    last = n - 1 if betas.startswith("zero") and name not in ("DDPMScheduler", "DDIMScheduler") else n
    steps = scheduler.timesteps.unique() if solver else torch.arange(n)
    steps = steps[steps < last]
    x, e = seeded(0, len(steps), 1, 2, 2), seeded(1, len(steps), 1, 2, 2)
    t = schedule.time_of(steps)
    ours = schedule.alpha(t).reshape(-1, 1, 1, 1) * x + schedule.sigma(t).reshape(-1, 1, 1, 1) * e
    theirs = scheduler.add_noise(x, e, steps).double()
    assert torch.allclose(ours, theirs, rtol=0, atol=3e-5 if betas.startswith("zero") else 2e-6)


@pytest.mark.parametrize(("name", "betas"), pairs(EXPLODING))
def test_schedulers_of_sigma_have_our_ratio(name: str, betas: str) -> None:
    """Their x is ours / alpha, their sigma our sigma / alpha; their timesteps may be fractions."""
    scheduler = scheduler_of(name, **BETAS[betas])
    schedule = schedule_of(scheduler)
    tolerance = 3e-4 if betas.startswith("zero") else 1e-5
    every = torch.arange(schedule.timesteps - 1)
    levels = scheduler.alphas_cumprod.double()[:-1]
    assert torch.allclose(
        schedule.ratio(schedule.time_of(every)), ((1 - levels) / levels).sqrt(), rtol=tolerance
    )
    if "Heun" in name or "KDPM2" in name:
        return  # these name each timestep twice, which their add_noise does not resolve
    scheduler.set_timesteps(10)
    chosen = scheduler.timesteps[1:-1]
    x, e = seeded(0, len(chosen), 1, 2, 2), seeded(1, len(chosen), 1, 2, 2)
    ratio = schedule.ratio(schedule.time_of(chosen)).reshape(-1, 1, 1, 1)
    # between timesteps they interpolate sigma by straight lines
    assert torch.allclose(x + ratio * e, scheduler.add_noise(x, e, chosen).double(), rtol=1e-3, atol=1e-3)


def test_sigmoid_betas_are_those_of_ddpm() -> None:
    scheduler = scheduler_of("DDPMScheduler", beta_schedule="sigmoid")
    ours = alphas_cumprod(json.loads(scheduler.to_json_string()))
    assert torch.equal(ours, scheduler.alphas_cumprod)


@pytest.mark.parametrize("betas", sorted(BETAS))
def test_alphas_are_computed_as_diffusers_computes_them(betas: str) -> None:
    scheduler = scheduler_of("DDPMScheduler", **BETAS[betas])
    ours = alphas_cumprod(json.loads(scheduler.to_json_string()))
    assert torch.allclose(ours, scheduler.alphas_cumprod, rtol=2e-6, atol=0)


@pytest.mark.parametrize("betas", ["linear", "cosine", "scaled", "zero snr"])
def test_drift_and_diffusion_are_the_derivatives(betas: str) -> None:
    schedule = schedule_of(scheduler_of("DDPMScheduler", **BETAS[betas]))
    t = torch.linspace(0.0007, 0.9993, 997, dtype=torch.float64)
    h = 1e-7
    log_alpha = (schedule.log_alpha(t + h) - schedule.log_alpha(t - h)) / (2 * h)
    variance = (schedule.sigma(t + h) ** 2 - schedule.sigma(t - h) ** 2) / (2 * h)
    f, g2 = schedule.drift(t), schedule.diffusion2(t)
    assert torch.allclose(log_alpha, f, rtol=1e-4, atol=1e-6)
    assert torch.allclose(g2, variance - 2 * f * schedule.sigma(t) ** 2, rtol=1e-4, atol=1e-5)


def test_between_timesteps_linear_betas_follow_the_continuous_process() -> None:
    # beta_k = beta((k + 1) / N) / N discretises VP with beta from 0.1 to 20 (Song et al. 2021, appendix B)
    schedule = schedule_of(scheduler_of("DDPMScheduler"))
    t = torch.linspace(0.05, 0.95, 777, dtype=torch.float64)
    assert torch.allclose(schedule.beta(t), VP(0.1, 20.0).beta(t), rtol=0.02)
    assert torch.allclose(schedule.log_alpha(t), VP(0.1, 20.0).log_alpha(t), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("betas", sorted(BETAS))
def test_time_inverts_ratio_and_ratio_rises(betas: str) -> None:
    schedule = schedule_of(scheduler_of("DDPMScheduler", **BETAS[betas]))
    t = torch.cat([torch.linspace(0, 1, 1234, dtype=torch.float64), schedule.time_of(torch.arange(50))])
    ratio = schedule.ratio(t)
    assert torch.allclose(schedule.time(ratio), t, rtol=0, atol=1e-9)
    assert bool((schedule.ratio(t[:1234]).diff() > 0).all())
    assert float(schedule.sigma(0.0)) == 0.0 and float(schedule.alpha(0.0)) == 1.0


def test_a_schedule_is_rebuilt_from_its_configuration() -> None:
    schedule = schedule_of(scheduler_of("DDPMScheduler"))
    again = json.loads(json.dumps(schedule.config()))
    assert DiscreteSchedule(tuple(again["alphas_cumprod"])) == schedule


def test_zero_terminal_snr_never_divides_by_zero() -> None:
    levels = alphas_cumprod({"rescale_betas_zero_snr": True})
    assert float(levels[-1]) == 0.0
    kept, below = discrete_schedule(levels, "v"), discrete_schedule(levels, "epsilon")
    assert (kept.timesteps, below.timesteps) == (1000, 999)
    assert float(kept.alpha(1.0)) == pytest.approx(float(levels[-2].double().sqrt()) / 16)
    assert float(below.alpha(1.0)) == pytest.approx(float(levels[-2].double().sqrt()))
    for schedule in (kept, below):
        for spacing in ("uniform", "log-snr", "karras"):
            grid = times(schedule, 40, spacing)
            for value in (
                schedule.ratio(grid),
                schedule.drift(grid),
                schedule.diffusion2(grid),
                1 / schedule.alpha(grid),
            ):
                assert bool(value.isfinite().all())


@pytest.mark.parametrize(
    "wrong",
    [
        {"beta_start": 0.0},
        {"beta_end": 1.0},
        {"beta_start": float("nan")},
        {"num_train_timesteps": 10**9},
        {"num_train_timesteps": 1},
        {"trained_betas": [0.1, 2.0]},
        {"trained_betas": [0.1] * 200_000},
        {"trained_betas": "0.1"},
        {"beta_schedule": "__import__('os')"},
        {"beta_start": 1e-12, "beta_end": 1e-12},
    ],
)
def test_what_is_no_schedule_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        discrete_schedule(alphas_cumprod(wrong), "epsilon")


# --- steps


class Fixed:
    """A model whose output is given: what is compared is the step alone."""

    def __init__(self, output: Tensor) -> None:
        self.output = output

    def __call__(self, x: Tensor, timestep: Tensor) -> Any:
        return type("Out", (), {"sample": self.output})


def fixed(scheduler: Any, output: Tensor, clip: float | None = None) -> DiscreteDenoiser:
    predicts: Any = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}[
        scheduler.config.prediction_type
    ]
    return DiscreteDenoiser(Fixed(output), schedule_of(scheduler), predicts, clip=clip)  # type: ignore[arg-type]


def unused(draw: int) -> Tensor:
    raise AssertionError(f"a step without noise asked for draw {draw}")


PREDICTIONS = ("epsilon", "v_prediction", "sample")


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("betas", ["linear", "scaled", "cosine", "trained"])
def test_ancestral_step_is_that_of_ddpm(betas: str, prediction: str) -> None:
    settings = BETAS[betas] | {"prediction_type": prediction, "clip_sample": True}
    scheduler = scheduler_of("DDPMScheduler", **settings)
    x, output = seeded(2, 5, 1, 4, 4), 0.5 * seeded(3, 5, 1, 4, 4)
    denoiser, n = fixed(scheduler, output, clip=1.0), scheduler.config.num_train_timesteps
    for k in (n * 3 // 5, n // 10):  # lower, the float32 of 1 - beta shows in theirs
        theirs = scheduler.step(output, k, x, generator=torch.Generator().manual_seed(4)).prev_sample
        noise = seeded(4, 5, 1, 4, 4)
        state = State.at(x, denoiser.schedule.time_of(k))
        ours = Ancestral()(denoiser, state, denoiser.schedule.time_of(k - 1), lambda draw, e=noise: e)
        assert torch.allclose(ours.x, theirs, atol=2e-5), k


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("betas", sorted(BETAS))
def test_ddim_step_is_that_of_diffusers(betas: str, prediction: str) -> None:
    if betas.startswith("zero") and prediction == "epsilon":
        pytest.skip("a model of epsilon says nothing at zero SNR, where diffusers divides by 0")
    settings = BETAS[betas] | {"prediction_type": prediction, "clip_sample": False}
    scheduler = scheduler_of("DDIMScheduler", timestep_spacing="trailing", **settings)
    scheduler.set_timesteps(10)
    x, output = seeded(2, 5, 1, 4, 4), seeded(3, 5, 1, 4, 4)
    denoiser = fixed(scheduler, output)
    for k, below in zip(scheduler.timesteps[:-1], scheduler.timesteps[1:], strict=True):
        theirs = scheduler.step(output, k, x).prev_sample
        state = State.at(x, denoiser.schedule.time_of(k))
        ours = DDIM()(denoiser, state, denoiser.schedule.time_of(below), unused)
        # a model of epsilon divides by alpha, which multiplies the rounding of both by 1 / alpha
        slack = (
            1 / float(denoiser.schedule.alpha(denoiser.schedule.time_of(k))) if prediction == "epsilon" else 1
        )
        assert torch.allclose(ours.x, theirs, rtol=1e-4, atol=1e-4 * max(1.0, slack * 1e-2)), k


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_euler_and_dpm_solver_take_our_steps(prediction: str) -> None:
    x, outputs = seeded(2, 5, 1, 4, 4), [seeded(3 + i, 5, 1, 4, 4) for i in range(2)]
    euler = scheduler_of("EulerDiscreteScheduler", prediction_type=prediction, timestep_spacing="trailing")
    euler.set_timesteps(20)
    schedule = schedule_of(euler)
    grid = schedule.time_of(euler.timesteps.double())
    k = 12
    root = (euler.sigmas[k] ** 2 + 1).sqrt()  # their x is ours / alpha
    theirs = euler.step(outputs[0], euler.timesteps[k], x * root).prev_sample
    ours = DDIM()(fixed(euler, outputs[0]), State.at(x, grid[k]), grid[k + 1], unused).x
    assert torch.allclose(ours, theirs / (euler.sigmas[k + 1] ** 2 + 1).sqrt(), atol=1e-5)

    solver = scheduler_of(
        "DPMSolverMultistepScheduler", prediction_type=prediction, timestep_spacing="trailing"
    )
    solver.set_timesteps(20)
    solver.set_begin_index(10)
    grid = schedule_of(solver).time_of(solver.timesteps)
    state, theirs = State.at(x, grid[10]), x
    for i, output in enumerate(outputs):
        theirs = solver.step(output, solver.timesteps[10 + i], theirs).prev_sample
        state = DPMSolverPP2M()(fixed(solver, output), state, grid[11 + i], unused)
    assert torch.allclose(state.x, theirs, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_karras_schedulers_are_preconditioned_alike(tmp_path: Path, prediction: str) -> None:
    scheduler = scheduler_of("EDMEulerScheduler", sigma_max=40.0, sigma_data=0.7, prediction_type=prediction)
    network = unet()
    opened = open_model(saved(tmp_path, network, scheduler))
    assert opened.denoiser.schedule == EDM(0.002, 40.0)
    scheduler.set_timesteps(8)
    x, grid = 5 * seeded(2, 2, 1, 8, 8), scheduler.sigmas.double()
    for k in range(2, 5):
        with torch.no_grad():
            scaled = scheduler.scale_model_input(x, scheduler.timesteps[k])
            theirs = scheduler.step(
                network(scaled, scheduler.timesteps[k]).sample, scheduler.timesteps[k], x
            ).prev_sample
        ours = DDIM()(opened.denoiser, State.at(x, grid[k]), grid[k + 1], unused).x
        assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-5)
        x = theirs


def test_continuous_euler_is_preconditioned_alike(tmp_path: Path) -> None:
    settings = {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True}
    scheduler = scheduler_of("EulerDiscreteScheduler", sigma_min=0.01, sigma_max=50.0, **settings)
    network = unet()
    opened = open_model(saved(tmp_path, network, scheduler))
    scheduler.set_timesteps(8)
    x, grid = 5 * seeded(2, 2, 1, 8, 8), scheduler.sigmas.double().clamp(max=50.0)
    for k in range(2, 5):
        with torch.no_grad():
            scaled = scheduler.scale_model_input(x, scheduler.timesteps[k])
            theirs = scheduler.step(
                network(scaled, scheduler.timesteps[k]).sample, scheduler.timesteps[k], x
            ).prev_sample
        ours = DDIM()(opened.denoiser, State.at(x, grid[k]), grid[k + 1], unused).x
        assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-5)
        x = theirs


# --- pipelines


def walked(opened: Any, x: Tensor, timesteps: Tensor) -> Tensor:
    """Our loop on the scheduler's own timesteps, then the last denoising."""
    grid = opened.denoiser.schedule.time_of(timesteps)
    *_, state = reverse(opened.denoiser, x, grid, DDIM())
    return denoised(opened.denoiser, state).x


@pytest.mark.parametrize(
    ("betas", "prediction", "spacing"),
    [
        ("linear", "epsilon", "leading"),
        ("cosine", "v_prediction", "leading"),
        ("scaled", "sample", "trailing"),
        ("short", "epsilon", "trailing"),
        ("zero snr", "v_prediction", "trailing"),
        ("zero snr scaled", "sample", "trailing"),
    ],
)
def test_ddim_through_our_loop_is_the_pipeline(
    tmp_path: Path, betas: str, prediction: str, spacing: str
) -> None:
    settings = BETAS[betas] | {"prediction_type": prediction, "timestep_spacing": spacing}
    scheduler = scheduler_of("DDIMScheduler", clip_sample=False, **settings)
    network = unet(in_channels=3, out_channels=3)
    opened = open_model(saved(tmp_path, network, scheduler, "DDIMPipeline"))
    pipeline = diffusers.DDIMPipeline(network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(2, torch.Generator().manual_seed(7), num_inference_steps=20, output_type="np").images
    start = seeded(7, 2, 3, 8, 8)
    ours = walked(opened, start, pipeline.scheduler.timesteps)
    x = start
    with torch.no_grad():
        for k in pipeline.scheduler.timesteps:  # the pipeline's own loop, before it clips what leaves [-1, 1]
            x = pipeline.scheduler.step(network(x, k).sample, k, x).prev_sample
    assert torch.allclose(ours, x, rtol=1e-4, atol=1e-4)
    images = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert images.std() > 0.05 and np.abs(images - theirs).max() < 1e-4


def test_clipping_is_that_of_the_pipeline(tmp_path: Path) -> None:
    scheduler = scheduler_of("DDIMScheduler", clip_sample_range=0.8)
    network = unet()
    opened = open_model(saved(tmp_path, network, scheduler, "DDIMPipeline"))
    assert any("clipped" in note for note in opened.notes)
    pipeline = diffusers.DDIMPipeline(network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        2,
        torch.Generator().manual_seed(7),
        num_inference_steps=20,
        output_type="np",
        use_clipped_model_output=True,
    ).images
    ours = walked(opened, seeded(7, 2, 1, 8, 8), pipeline.scheduler.timesteps)
    assert np.abs((ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy() - theirs).max() < 1e-4


@pytest.mark.parametrize("name", VARIANCE_PRESERVING + EXPLODING)
def test_every_scheduler_opens_and_its_hint_is_a_sampler(tmp_path: Path, name: str) -> None:
    network = unet()
    opened = open_model(saved(tmp_path, network, scheduler_of(name, prediction_type="v_prediction")))
    assert opened.kind == "diffusers" and opened.shape == opened.image_shape == (1, 8, 8)
    sampler = sampler_from(opened.sampler_hint)
    assert float(sampler.grid(opened.denoiser.schedule)[0]) == 1.0
    x, t = seeded(0, 2, 1, 8, 8), torch.tensor(0.5)
    k, levels = 499, opened.denoiser.schedule.alphas_cumprod
    with torch.no_grad():
        v = network(x, torch.tensor(k)).sample
    expected = levels[k] ** 0.5 * x - (1 - levels[k]) ** 0.5 * v
    if name in ("DDPMScheduler", "DDIMScheduler"):
        expected = expected.clamp(-1, 1)
    assert torch.allclose(opened.denoiser(x, t), expected, atol=1e-5)


def test_rows_at_different_times_do_not_mix(tmp_path: Path) -> None:
    opened = open_model(
        saved(tmp_path, unet(), scheduler_of("DDIMScheduler", prediction_type="v_prediction"))
    )
    x, t = seeded(0, 3, 1, 8, 8), torch.tensor([0.9, 0.2, 0.0005], dtype=torch.float64)
    together = opened.denoiser(x, t)
    for row in range(3):
        assert torch.allclose(opened.denoiser(x[row : row + 1], t[row]), together[row : row + 1], atol=1e-5)


def test_class_conditional_needs_its_label(tmp_path: Path) -> None:
    network = unet(num_class_embeds=4)
    folder = saved(
        tmp_path, network, scheduler_of("DDPMScheduler", prediction_type="sample", clip_sample=False)
    )
    with pytest.raises(ModelError, match="from 0 to 3"):
        open_model(folder)
    with pytest.raises(ModelError, match="from 0 to 3"):
        open_model(folder, label=4)
    x = seeded(0, 2, 1, 8, 8)
    outputs = [open_model(folder, label=label).denoiser(x, torch.tensor(0.5)) for label in (1, 2)]
    with torch.no_grad():
        expected = network(x, torch.tensor(499), class_labels=torch.tensor([2, 2])).sample
    assert torch.allclose(outputs[1], expected, atol=1e-6) and not torch.allclose(
        outputs[0], expected, atol=1e-3
    )


def test_an_unconditional_model_refuses_a_label(tmp_path: Path) -> None:
    folder = saved(tmp_path, unet(), scheduler_of("DDPMScheduler"))
    with pytest.raises(ModelError, match="not conditional"):
        open_model(folder, label=1)


def test_learned_variance_and_learned_times(tmp_path: Path) -> None:
    network = unet(out_channels=2, time_embedding_type="learned", num_train_timesteps=1000)
    settings = {"variance_type": "learned_range", "prediction_type": "sample", "clip_sample": False}
    opened = open_model(saved(tmp_path, network, scheduler_of("DDPMScheduler", **settings)))
    x = seeded(0, 2, 1, 8, 8)
    with torch.no_grad():
        expected = network(x, torch.tensor(700)).sample[:, :1]
    assert torch.allclose(opened.denoiser(x, torch.tensor(0.7012)), expected, atol=1e-6)
    assert len(opened.notes) == 2


# --- latent models


def autoencoder(**settings: Any) -> AutoencoderKL:
    usual: dict[str, Any] = {
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 2,
        "norm_num_groups": 4,
        "sample_size": 16,
    }
    return made(AutoencoderKL, **(usual | settings))


def test_a_latent_model_has_the_pipelines_codec(tmp_path: Path) -> None:
    vae = autoencoder(scaling_factor=0.4, shift_factor=0.1)
    network = unet(in_channels=2, out_channels=2)
    opened = open_model(saved(tmp_path, network, scheduler_of("DDIMScheduler"), "LDMPipeline", vqvae=vae))
    assert (opened.kind, opened.shape, opened.image_shape) == ("diffusers latent", (2, 8, 8), (1, 16, 16))
    images = seeded(0, 2, 1, 16, 16).clamp(-1, 1)
    with torch.no_grad():
        mean = vae.encode(images).latent_dist.mean
        expected = vae.decode(mean).sample
    latents = opened.codec.encode(images)
    assert torch.allclose(latents, (mean - 0.1) * 0.4, atol=1e-6)
    assert torch.allclose(opened.codec.decode(latents), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"\(n, 1, 16, 16\)"):
        opened.codec.encode(seeded(0, 2, 1, 8, 8))


def test_a_quantised_latent_model_samples_as_its_pipeline(tmp_path: Path) -> None:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {
        "block_out_channels": (8, 8),
        "latent_channels": 2,
        "norm_num_groups": 4,
        "num_vq_embeddings": 16,
    }
    vae = made(VQModel, sample_size=16, scaling_factor=0.5, **blocks, **sizes)
    network = unet(in_channels=2, out_channels=2)
    scheduler = scheduler_of("DDIMScheduler", clip_sample=False)
    opened = open_model(saved(tmp_path, network, scheduler, "LDMPipeline", vqvae=vae))
    assert isinstance(opened.codec, LatentCodec) and opened.codec.kind == "VQModel"
    pipeline = diffusers.LDMPipeline(vae, network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(2, torch.Generator().manual_seed(7), num_inference_steps=10, output_type="np").images
    with torch.no_grad():
        latents = walked(opened, seeded(7, 2, 2, 8, 8), pipeline.scheduler.timesteps)
        ours = opened.codec.decode(latents)
    assert np.abs((ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy() - theirs).max() < 1e-4


def test_an_autoencoder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, unet(), scheduler_of("DDIMScheduler"), "LDMPipeline", vqvae=autoencoder())
    with pytest.raises(ModelError, match="2 channels, the model's 1"):
        open_model(folder)


# --- other layouts


def same(first: Any, second: Any) -> bool:
    x, t = seeded(0, 2, 1, 8, 8), torch.tensor(0.5)
    return torch.allclose(first.denoiser(x, t), second.denoiser(x, t), atol=1e-6)


def test_a_bare_network_with_a_scheduler_and_shards(tmp_path: Path) -> None:
    network, scheduler = unet(), scheduler_of("DDPMScheduler")
    pipeline = open_model(saved(tmp_path / "pipeline", network, scheduler))
    network.save_pretrained(tmp_path / "bare", max_shard_size="50KB")
    assert len(list((tmp_path / "bare").glob("*.safetensors"))) > 2
    with pytest.raises(ModelError, match="scheduler_config"):
        open_model(tmp_path / "bare")
    scheduler.save_pretrained(tmp_path / "bare")
    assert same(open_model(tmp_path / "bare"), pipeline)


def test_half_precision_and_old_names_of_attention(tmp_path: Path) -> None:
    network, scheduler = unet(), scheduler_of("DDPMScheduler")
    pipeline = open_model(saved(tmp_path, network, scheduler))
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = dict[str, Tensor]()
    for name, value in tensors.items():
        new = name
        for part, was in old.items():
            new = new.replace(f".{part}.", f".{was}.")
        renamed[new] = value
    assert set(renamed) != set(tensors)
    safetensors.torch.save_file(renamed, file)
    assert same(open_model(tmp_path), pipeline)
    file.unlink()
    safetensors.torch.save_file(
        {k: v.half() for k, v in tensors.items()}, file.with_suffix(".fp16.safetensors")
    )
    x, t = seeded(0, 2, 1, 8, 8), torch.tensor(0.5)
    half = open_model(tmp_path).denoiser(x, t)
    assert half.dtype == torch.float32 and torch.allclose(half, pipeline.denoiser(x, t), atol=0.02)


def test_the_hash_is_that_of_the_weights(tmp_path: Path) -> None:
    from hashlib import sha256

    folder = saved(tmp_path, unet(), scheduler_of("DDPMScheduler"))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert open_model(folder).weights_sha256 == sha256(file.read_bytes()).hexdigest()


def test_an_edm_folder(tmp_path: Path) -> None:
    network = unet()
    settings = {k: v for k, v in network.config.items() if not k.startswith("_")}
    about = {"format": "latentprint-edm/1", "network": settings, "sigma_data": 0.6, "sigma_max": 20.0}
    (tmp_path / "edm.json").write_text(json.dumps(about))
    safetensors.torch.save_file(network.state_dict(), tmp_path / "weights.safetensors")
    opened = open_model(tmp_path)
    assert opened.kind == "edm" and opened.denoiser.schedule == EDM(0.002, 20.0)
    x, sigma, data = 3 * seeded(0, 2, 1, 8, 8), 1.7, 0.6
    root = (sigma**2 + data**2) ** 0.5
    with torch.no_grad():
        inner = network(x / root, torch.tensor(np.log(sigma) / 4, dtype=torch.float32)).sample
    expected = data**2 / root**2 * x + sigma * data / root * inner
    assert torch.allclose(opened.denoiser(x, torch.tensor(sigma)), expected, atol=1e-5)
    assert sampler_from(opened.sampler_hint).step == Heun()


def test_our_own_folder(tmp_path: Path) -> None:
    denoiser = NetworkDenoiser(unet(), VP(), "v")
    save_model(tmp_path, denoiser)
    opened = open_model(tmp_path)
    x, t = seeded(0, 2, 1, 8, 8), torch.tensor(0.5)
    with torch.no_grad():
        expected = denoiser(x, t)
    assert recognise(tmp_path) == "latentprint" and opened.kind == "latentprint"
    assert torch.allclose(opened.denoiser(x, t), expected, atol=1e-6)


def test_samples_are_recognised_and_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.npz").write_bytes(b"")
    assert recognise(tmp_path) == recognise(tmp_path / "b.npz") == "samples"
    with pytest.raises(ModelError, match="samples"):
        open_model(tmp_path)
    with pytest.raises(ModelError, match="there is no"):
        open_model(tmp_path / "nothing")


# --- functions


@pytest.mark.parametrize("schedule", [VP(), EDM(), DiscreteSchedule((0.9, 0.5, 0.1, 0.01))])
def test_a_function_of_any_kind_is_the_same_denoiser(schedule: Any) -> None:
    """One Gaussian model x_0 ~ N(0, 1): D = alpha x / (alpha^2 + sigma^2), in four disguises."""
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    a, s = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    n2 = a**2 + s**2
    disguises: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
        "denoised": lambda x, _: a * x / n2,
        "epsilon": lambda x, _: s * x / n2,
        "score": lambda x, _: -x / n2,
        "v": lambda x, _: 0 * x,  # alpha epsilon = sigma D for unit variance
    }
    x = seeded(0, 2, 6).double()
    for predicts, function in disguises.items():
        denoiser = from_function(function, schedule, predicts=predicts)
        assert torch.allclose(denoiser(x, t), a * x / n2, atol=1e-12), predicts
        assert torch.allclose(score(denoiser, x, t), -x / n2, atol=1e-9), predicts


def test_a_function_gets_its_own_time() -> None:
    seen = list[Tensor]()

    def function(x: Tensor, time: Tensor) -> Tensor:
        seen.append(time)
        return x

    from_function(function, VP(), time=lambda t: 999 * t)(torch.zeros(3, 2), torch.tensor(0.5))
    assert seen[0].tolist() == [499.5] * 3 and seen[0].dtype == torch.float32
    with pytest.raises(ValueError, match="must return the same"):
        from_function(lambda x, t: x[:, :1], VP())(torch.zeros(3, 2), torch.tensor(0.5))
    with pytest.raises(ValueError, match="predicts one of"):
        from_function(function, VP(), predicts="wave")  # type: ignore[arg-type]


def test_the_example_runs() -> None:
    found = doctest.testmod(latentprint.adapters.function)
    assert found.attempted >= 5 and found.failed == 0
