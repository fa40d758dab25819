"""Our models as denoisers of azula, so that its samplers and its guidance by measurements run on them.

`adapters.told_deviations.of_azula` goes the other way. Import it from this module: it needs azula, which
dualscore does not.
"""

from typing import Any

import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.noise import Schedule
from torch import Tensor

from dualscore.errors import ModelError
from dualscore.model import ImageModel


class EnergyDenoiser(Denoiser):  # type: ignore[misc]  # azula has no types
    """The posterior mean E[x | x_t] of x_t = α_t x + σ_t z, differentiable in x_t.

    Above the noise that the model knows it is that of its training images' Gaussian.

    Args:
        model: of pixels in [0, 1].
        schedule: azula's.
        pixels: black and white as azula sees them.
    """

    def __init__(
        self, model: ImageModel, schedule: Schedule, pixels: tuple[float, float] = (-1.0, 1.0)
    ) -> None:
        super().__init__()
        if model.prior is None:
            raise ModelError(
                "the model does not hold the Gaussian of its training images, which schedules begin at"
            )
        self.model, self.schedule, self.pixels = model, schedule, pixels

    def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> DiracPosterior:
        """Its mean, (B, C, H, W), of noisy images (B, C, H, W) at times (B,) or one for all.

        A ModelError refuses images of another size than the model's.
        """
        assert self.model.prior is not None
        black, white = self.pixels
        alpha, sigma = (part.reshape(-1, 1, 1, 1).to(x_t) for part in self.schedule(t))
        noisy = (x_t / alpha - black) / (white - black)
        variance = (sigma / alpha / (white - black)).square().flatten().expand(len(x_t))
        try:
            mean = self.model.denoise(noisy, variance.clamp(max=self.model.t_max)).to(x_t)
        except ValueError as error:
            raise ModelError(str(error)) from error
        above = variance > self.model.t_max
        if bool(above.any()):
            prior = self.model.prior.at(*noisy.shape[2:])
            far = prior.denoise(noisy.to(prior.mean), variance.to(prior.mean)).to(x_t)
            mean = torch.where(above[:, None, None, None], far, mean)
        return DiracPosterior(mean=black + (white - black) * mean)
