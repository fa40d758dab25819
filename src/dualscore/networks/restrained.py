"""A denoiser that stays where a posterior mean can be, made of one that does not.

The gradient of an energy with edges, as those of grey levels are, is far too large at some pixels, in flat
and saturated places above all, and most of a squared error may be theirs (docs/learning.md). x̂ = E[x | y]
lies in the images' range, and E[z | y] of a number is hardly ever above three. What comes out is another
denoiser, so bounds by it are bounds, and it is not the energy's gradient.
"""

from torch import Tensor

from dualscore.energy import EnergyModel, Gradients, ScoreModel
from dualscore.networks.surroundings import STEP

LONGEST = 3.0
"""Standard deviations of the noise that a number is moved by at most: normal noise is within it in 99.7 %."""
BEYOND = STEP / 2
"""How far dequantized pixels lie outside of [0, 1]."""


class Restrained(ScoreModel):
    """x̂ of a model, no number moved by more than `LONGEST` deviations of the noise, nor out of the range."""

    def __init__(self, model: ScoreModel) -> None:
        super().__init__()
        self.model = model

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:  # noqa: ARG002
        """(y − x̂)/t (B, C, H, W): no energy and no ∂_t U, whatever `time` says."""
        gradient = self.model.gradients(noisy, noise_variance, time=False).image
        t = noise_variance[:, None, None, None]
        longest = LONGEST / t.sqrt()
        gradient = gradient.clamp(-longest, longest)
        # Where y is outside of the range by more than that, the range's end is nearest to what is possible.
        return Gradients(gradient.clamp((noisy - 1.0 - BEYOND) / t, (noisy + BEYOND) / t), None)


def knows_levels(model: ScoreModel) -> bool:
    """Whether it is an energy whose density of dequantized images has the levels' edges."""
    return isinstance(model, EnergyModel) and model.levels > 0


def restrained(model: ScoreModel) -> ScoreModel:
    """An energy that knows the grey levels, restrained; others, with no edges, as they are."""
    return Restrained(model) if knows_levels(model) else model
