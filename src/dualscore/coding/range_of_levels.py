"""Where the prior takes over, chosen on images that are coded: the file says where it was."""

import math

import torch
from torch import Tensor

from dualscore.energy import ScoreModel
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood.bound import prior_divergence
from dualscore.noise import MEASURING, normal_like, seeded_generator
from dualscore.objective import denoising_loss

_POINTS = 32
_LOWEST = 1e-2
"""Pixel²: below it no Gaussian of photographs is as good as a denoiser."""


@torch.no_grad()
def last_variance(
    model: ScoreModel, clean: Tensor, prior: StationaryGaussian, t_range: tuple[float, float]
) -> float:
    """The t1 in a range, in pixel², above which the prior costs less than the denoiser; images (B, C, H, W).

    That is the smallest bound: ½ ∫ ‖x − x̂‖² dt/t² up to t1, and KL(q(y_{t1} | x) ‖ prior) for what is above.
    """
    low, high = max(t_range[0], min(_LOWEST, t_range[1] / 2.0)), t_range[1]
    width = math.log(high / low) / (_POINTS - 1)
    variances = [low * math.exp(i * width) for i in range(_POINTS)]
    variances[-1] = high
    generator = seeded_generator(clean.device, MEASURING, 0)
    spent, costs, before = 0.0, [], 0.0
    for place, t in enumerate(variances):
        level = torch.full_like(clean[:, 0, 0, 0], t)
        loss = float(denoising_loss(model, clean, normal_like(clean, generator), level).mean())
        if place:
            spent += 0.25 * clean[0].numel() * width * (before + loss)
        before = loss
        costs.append(spent + float(prior_divergence(clean, prior, t).mean()))
    return variances[min(range(_POINTS), key=costs.__getitem__)]
