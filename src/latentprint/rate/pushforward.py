"""A sampler as a deterministic map of its Gaussian noise: the space that splitting moves in.

    z = (z_0, z_1, ...) ~ N(0, I),    x_T = prior_std z_0,    x_0 = G(z)

For the probability-flow ODE z is x_T alone. A stochastic step draws noise on its way. Then the increments of
all steps belong to z as well, and the sampler is still a deterministic map, of a longer vector.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from latentprint.denoiser import Codec, Denoiser, IdentityCodec
from latentprint.sampler.loop import denoised, reverse
from latentprint.sampler.sampler import Sampler
from latentprint.sampler.state import Noise, State


@dataclass(frozen=True)
class SamplerPushforward:
    """``sampler`` over ``denoiser``: (n, latent) -> images (n, C, H, W), decoded by ``codec``.

    ``shape`` is that of one x_T, in the model's own space. Each row depends only on its own noise.

    Raises:
        ValueError: the sampler's step is adaptive, so that neither its noise nor its cost is fixed.
    """

    denoiser: Denoiser
    sampler: Sampler
    shape: tuple[int, ...]
    codec: Codec = field(default_factory=IdentityCodec)

    def __post_init__(self) -> None:
        if self.sampler.evaluations(self.denoiser.schedule) is None:
            raise ValueError(
                f"splitting needs a sampler with a fixed number of steps, got the adaptive "
                f"{self.sampler.step.name!r}"
            )

    @property
    def dims(self) -> int:
        """Numbers in one x_T."""
        return math.prod(self.shape)

    @property
    def latent(self) -> int:
        return self.dims * (1 + self.sampler.steps * self.sampler.step.draws)

    @property
    def evaluations(self) -> int:
        count = self.sampler.evaluations(self.denoiser.schedule)
        assert count is not None  # refused at the start
        return count

    def __call__(self, z: Tensor, /) -> Tensor:
        if z.ndim != 2 or z.shape[1] != self.latent:
            raise ValueError(f"this sampler's noise has shape (n, {self.latent}), got {tuple(z.shape)}")
        parts = z.reshape(len(z), -1, *self.shape)
        schedule, draws = self.denoiser.schedule, self.sampler.step.draws

        def noise_of_step(column: int) -> Noise:
            return lambda draw: parts[:, 1 + (column - 1) * draws + draw]

        with torch.no_grad():
            x = parts[:, 0] * schedule.prior_std
            grid = self.sampler.grid(schedule)
            state = State.at(x, grid[0])
            for now in reverse(self.denoiser, x, grid, self.sampler.step, noise_of_step):
                state = now
            if self.sampler.denoise:
                state = denoised(self.denoiser, state)
            return self.codec.decode(state.x)
