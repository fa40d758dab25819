"""A denoiser averaged with its mirror image: any denoiser may serve in the bound, so a better one may."""

from torch import Tensor

from dualscore.energy import Gradients, ScoreModel


class Mirrored(ScoreModel):
    """x̂ = ½ (x̂(y) + flip x̂(flip y)), flipped left to right; it has no energy.

    Where the images' law is symmetric, it is the projection of x̂ onto symmetric denoisers, among which the
    posterior mean is: E‖x − x̂‖² does not rise at any t. It costs two evaluations instead of one.

    Args:
        model: any denoiser or energy.
    """

    def __init__(self, model: ScoreModel) -> None:
        super().__init__()
        self.model = model

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:  # noqa: ARG002
        """½ (g(y) + flip g(flip y)), (B, C, H, W): no energy and no ∂_t U, whatever `time` says."""
        straight = self.model.gradients(noisy, noise_variance, time=False).image
        flipped = self.model.gradients(noisy.flip(-1), noise_variance, time=False).image
        return Gradients(0.5 * (straight + flipped.flip(-1)), None)
