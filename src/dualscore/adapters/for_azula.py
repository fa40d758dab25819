"""Our models as denoisers of azula, so that its samplers and its guidance by measurements run on them.

`adapters.told_deviations.of_azula` goes the other way. Import it from this module: it needs azula, which
dualscore does not.
"""

from typing import Any

from azula.denoise import Denoiser, DiracPosterior
from azula.noise import Schedule
from torch import Tensor

from dualscore.errors import ModelError
from dualscore.model import ImageModel


class EnergyDenoiser(Denoiser):  # type: ignore[misc]  # azula has no types
    """The posterior mean E[x | x_t] of x_t = α_t x + σ_t z, differentiable in x_t.

    Args:
        model: of pixels in [0, 1].
        schedule: azula's; σ_t/α_t must lie within what the model knows.
        pixels: black and white as azula sees them.
    """

    def __init__(
        self, model: ImageModel, schedule: Schedule, pixels: tuple[float, float] = (-1.0, 1.0)
    ) -> None:
        super().__init__()
        self.model, self.schedule, self.pixels = model.requires_grad_(False), schedule, pixels

    def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> DiracPosterior:
        """Its mean, (B, C, H, W), of noisy images (B, C, H, W) at times (B,) or one for all.

        A ModelError refuses images of another size than the model's.
        """
        if self.model.image_shape is not None and not self.model.any_size:
            wanted = self.model.image_shape
            if tuple(x_t.shape[1:]) != wanted:
                raise ModelError(f"images must be of shape {wanted}, not {tuple(x_t.shape[1:])}")
        black, white = self.pixels
        alpha, sigma = (part.reshape(-1, 1, 1, 1).to(x_t) for part in self.schedule(t))
        noisy = (x_t / alpha - black) / (white - black)
        variance = (sigma / alpha / (white - black)).square().flatten().expand(len(x_t))
        mean = self.model.score_model.denoise(noisy, variance)
        return DiracPosterior(mean=black + (white - black) * mean)
