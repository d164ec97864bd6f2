"""A model format of one's own: pixels that are independent normals, stored as two tensors."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from latentprint.adapters import FunctionDenoiser, ModelError, Opened, from_function
from latentprint.denoiser import IdentityCodec
from latentprint.schedule import VP, Schedule, expand

WEIGHTS = "normals.safetensors"


# --8<-- [start:function]
@dataclass(frozen=True, eq=False)
class Normals:
    """Predicts the noise in x_t = alpha x_0 + sigma e for x_0 ~ N(mean, std^2), both of shape (C, H, W)."""

    mean: Tensor
    std: Tensor
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = expand(self.schedule.alpha(t), x), expand(self.schedule.sigma(t), x)
        return sigma * (x - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)


def denoiser_of(mean: Tensor, std: Tensor) -> FunctionDenoiser:
    """Any function of (x, time) with a schedule is a model to audit."""
    schedule = VP()
    return from_function(Normals(mean, std, schedule), schedule, predicts="epsilon")


# --8<-- [end:function]
# --8<-- [start:open]
def open_normals(folder: Path, *, label: int | None = None) -> Opened:
    """The model in ``folder``, for ``--model``.

    Raises:
        ModelError: there is none, it lacks a tensor, or a label was asked for.
    """
    file = folder / WEIGHTS
    if not file.is_file():
        raise ModelError(f"the folder {folder.name!r} holds no {WEIGHTS}")
    if label is not None:
        raise ModelError(f"this model knows no classes, got the label {label}")
    tensors = load_file(file)
    if set(tensors) != {"mean", "std"} or tensors["mean"].ndim != 3:
        raise ModelError(f"{WEIGHTS} holds mean and std of (C, H, W), got {sorted(tensors)}")
    shape: tuple[int, int, int] = tuple(tensors["mean"].shape)  # pyright: ignore[reportAssignmentType]
    return Opened(
        denoiser=denoiser_of(tensors["mean"].to(torch.float32), tensors["std"].to(torch.float32)),
        codec=IdentityCodec(),
        shape=shape,
        image_shape=shape,
        sampler_hint={"step": "heun", "steps": 24},
        weights_sha256=sha256(file.read_bytes()).hexdigest(),
        kind="normals",
        notes=("its pixels are independent: it cannot give back an image",),
        networks=(),
    )


# --8<-- [end:open]
