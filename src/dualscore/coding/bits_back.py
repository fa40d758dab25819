r"""Images as bits by the denoiser's bound: bits back over a chain of noisy latents.

The bound is −log P(x) ≤ E_q[log q(k_0…k_T | x) − log P(x | k_0) − Σ log p(k_{i−1} | k_i) − log p(k_T)], and
a stack of bits reaches it: latents k ~ q are *popped* from the bits of other images, which gives those bits
back when the latents are known, and x and the latents are pushed with the model's probabilities. In
Bit-Swap's order, one level after another, no more than one level's bits are ever borrowed:

    encode    pop k_0 ~ q(· | x); push x; for i = 1…T: pop k_i ~ q(· | k_{i−1}), push k_{i−1} by p(· | k_i);
              push k_T by the prior
    decode    the same backwards.

q is the forward noise, y_{i−1} → y_i; p(· | k_i) is normal about E[y_{i−1} | y_i] = y_i − Δ ∇U(y_i, t_i), as
wide as it would be of the image's Gaussian, at the contrast that ‖∇U‖² tells; P(x | k_0) is the bound's own
decoder. Both sides must agree on every mean to a 256th of a bin: all but the network is in double precision.
Sources: Hinton and van Camp 1993; Townsend et al. 2019, arXiv 1901.04866; Kingma et al. 2019, Bit-Swap, arXiv
1905.06845; Kingma et al. 2021, arXiv 2107.00630.
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from dualscore.coding.noise_levels import NoiseLevels
from dualscore.coding.stack import EXPECTED, Stack, fine, log_normal, refuse_far
from dualscore.energy import ScoreModel
from dualscore.gaussian import StationaryGaussian, dct_matrix
from dualscore.likelihood.bound import decoder_variance, prior_divergence
from dualscore.likelihood.units import LEVELS
from dualscore.sampling.annealed import contrast

LAST = LEVELS - 1
_WINDOW = 17.0
"""Deviations of the decoder within which grey levels have a probability: what is left out is below e^−144."""


class Parts(NamedTuple):
    """What an image costs, and would by less of the machinery, each in nats, float64, (B,)."""

    code: Tensor  # −log of the probabilities that were coded with, less those of the bits that were borrowed
    levels: Tensor  # the same by densities in place of lattices, at this number of noise levels
    bound: Tensor  # the bound, its integral by the trapezoid rule over these noise levels


class BitsBack:
    """A code of images (C, H, W) of one size by a denoiser.

    Args:
        model: any score, which is asked on the device and in the precision of `like`.
        prior: the Gaussian of clean images that takes over at the last noise level.
        levels: the noise levels.
        like: a tensor of the model's; None for double precision on the CPU.
    """

    def __init__(
        self, model: ScoreModel, prior: StationaryGaussian, levels: NoiseLevels, like: Tensor | None = None
    ) -> None:
        self.model, self.like = model, torch.zeros(0, dtype=torch.float64) if like is None else like
        self.levels = levels
        self.prior = copy.deepcopy(prior).double().to("cpu")
        height, width = prior.eigenvalues.shape[1:]
        # The single precision's cosines are orthonormal to 1e-7 alone.
        self.prior.dct_rows, self.prior.dct_columns = dct_matrix(height), dct_matrix(width)
        self.shape = tuple(prior.eigenvalues.shape)
        self.dimension = math.prod(self.shape)

    @torch.no_grad()
    def push(self, stack: Stack, images: Tensor) -> Parts:
        """Push images, uint8, (B, C, H, W), as one batch; what they cost is told.

        An OutOfRangeError names images that cannot be pushed; the stack is then of no use any more.
        """
        clean = images.double() / LAST
        account = _Account(clean, self.levels, self.prior)
        at = self._first(clean)
        latents = stack.pop_normal(*at)
        account.pushed(-log_normal(latents, *at))
        noisy, gradient = self._gradient(latents, 0)
        decoder = self._push_clean(stack, images, *self._decoder(noisy, gradient))
        account.pushed(decoder)
        account.loss(noisy, gradient, 0)
        for i in range(1, self.levels.steps + 1):
            at = self._noised(latents, i)
            above = stack.pop_normal(*at)
            account.pushed(-log_normal(above, *at))
            noisy, gradient = self._gradient(above, i)
            left = self._left(gradient, i)
            at = self._denoised(gradient, above, left, i)
            stack.push_normal(latents, *at, EXPECTED)
            account.pushed(log_normal(latents, *at))
            account.step(noisy, gradient, left, i)
            latents = above
        at = self._last(len(images))
        stack.push_normal(latents, *at, EXPECTED)
        account.pushed(log_normal(latents, *at))
        prior = prior_divergence(clean, self.prior, self.levels.variances[-1])
        return account.parts(-decoder.flatten(1).sum(dim=1), prior)

    @torch.no_grad()
    def pop(self, stack: Stack, count: int) -> Tensor:
        """Pop the batch of images that was pushed last, uint8, (count, C, H, W)."""
        latents = stack.pop_normal(*self._last(count), EXPECTED)
        for i in range(self.levels.steps, 0, -1):
            _, gradient = self._gradient(latents, i)
            at = self._denoised(gradient, latents, self._left(gradient, i), i)
            below = stack.pop_normal(*at, EXPECTED)
            stack.push_normal(latents, *self._noised(below, i))
            latents = below
        images = self._pop_clean(stack, *self._decoder(*self._gradient(latents, 0)))
        stack.push_normal(latents, *self._first(images.double() / LAST))
        return images

    @torch.no_grad()
    def expected(self, latents: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Means of p(· | k_i) and log₂ of its deviations, as far as they count, both (B, C, H, W)."""
        _, gradient = self._gradient(latents, i)
        mean, deviation = self._denoised(gradient, latents, self._left(gradient, i), i)
        return fine(mean), fine(torch.log2(deviation))

    def _first(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of k_0 ~ q(· | x), in bins."""
        delta = self.levels.deltas[0]
        centred = self.prior.analyze(clean - self.prior.mean[:, None, None])
        return centred / delta, clean.new_full((1, 1, 1, 1), math.sqrt(self.levels.t0) / delta)

    def _noised(self, latents: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Those of k_i ~ q(· | k_{i−1})."""
        deltas = self.levels.deltas
        mean = latents.double() * (deltas[i - 1] / deltas[i])
        return mean, mean.new_full((1, 1, 1, 1), math.sqrt(self.levels.grown[i]) / deltas[i])

    def _last(self, count: int) -> tuple[Tensor, Tensor]:
        """Those of k_T by the prior."""
        rounded = self.levels.variances[-1] - self.levels.rounding[-1]
        deviation = (self.prior.eigenvalues + rounded).sqrt() / self.levels.deltas[-1]
        return torch.zeros(count, *self.shape, dtype=torch.float64), deviation

    def _gradient(self, latents: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """y_i and ∇U there."""
        noisy = self.prior.synthesize(latents.double() * self.levels.deltas[i])
        noisy = noisy + self.prior.mean[:, None, None]
        asked = noisy.to(self.like)
        t = asked.new_full((len(noisy),), self.levels.variances[i])
        gradient = self.model.gradients(asked, t, time=False).image.to(noisy)
        refuse_far(~gradient.isfinite())
        return noisy, gradient

    def _left(self, gradient: Tensor, i: int) -> Tensor:
        """The share of each coefficient's variance below level i that is expected to be left, (B, C, H, W).

        1 − Δ/(βλ + t), that of a Gaussian with the image's own contrast β, of which ‖∇U‖²/d is expected.
        """
        gap, t = self.levels.gaps[i - 1], self.levels.variances[i]
        beta = contrast(gradient.square().flatten(1).mean(dim=1), self.prior, t)[:, None, None, None]
        left: Tensor = 1.0 - gap / (beta * self.prior.eigenvalues + t)
        return left

    def _denoised(self, gradient: Tensor, latents: Tensor, left: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Mean and deviation of k_{i−1} by p(· | k_i)."""
        gap, delta = self.levels.gaps[i - 1], self.levels.deltas[i - 1]
        mean = latents.double() * self.levels.deltas[i] - gap * self.prior.analyze(gradient)
        variance = gap * left - self.levels.rounding[i - 1]
        return mean / delta, variance.sqrt() / delta

    def _decoder(self, noisy: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's centre, in grey levels, (B, C, H, W), and its deviation, (B,); both rounded."""
        t = self.levels.variances[0]
        unexplained = 1.0 - t * gradient.square().flatten(1).mean(dim=1)
        deviation = LAST * decoder_variance(unexplained, t, noisy).sqrt()
        centre = fine((noisy - t * gradient) * LAST)
        return centre, torch.exp2(fine(torch.log2(deviation)))

    def _table(self, centre: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """Lowest grey level of each pixel's table, (n,), and P of those from it on, (n, k)."""
        nearest = centre.round().clamp(0, LAST)
        reach = min(LAST, math.ceil(_WINDOW * float(deviation.max())))
        lowest = (nearest - reach).clamp(0, LAST - min(LAST, 2 * reach))
        offsets = torch.arange(min(LAST, 2 * reach) + 1, dtype=centre.dtype)
        away = (lowest[..., None] + offsets - centre[..., None]) / deviation[:, None, None, None, None]
        least = (nearest - centre) / deviation[:, None, None, None]
        weights = torch.exp(0.5 * (least.square()[..., None] - away.square())).flatten(0, 3)
        return lowest.flatten().long(), weights / weights.sum(dim=1, keepdim=True)

    def _push_clean(self, stack: Stack, images: Tensor, centre: Tensor, deviation: Tensor) -> Tensor:
        """Push x by P(x | k_0); its log, (B, d)."""
        lowest, table = self._table(centre, deviation)
        symbols = images.flatten().long() - lowest
        outside = (symbols < 0) | (symbols >= table.shape[1])
        found = table.gather(1, symbols.clamp(0, table.shape[1] - 1)[:, None])[:, 0]
        refuse_far((outside | (found == 0.0)).view(len(images), -1))
        stack.push_table(symbols, table)
        return found.log().view(len(images), -1)

    def _pop_clean(self, stack: Stack, centre: Tensor, deviation: Tensor) -> Tensor:
        lowest, table = self._table(centre, deviation)
        return (lowest + stack.pop_table(table)).view(centre.shape).to(torch.uint8)


class _Account:
    """What images cost with and without the machinery, gathered while they are pushed: nats, (B,)."""

    def __init__(self, clean: Tensor, levels: NoiseLevels, prior: StationaryGaussian) -> None:
        self.clean, self.noise, self.prior = clean, levels, prior
        self.code = torch.zeros(len(clean), dtype=torch.float64)
        self.chain = torch.zeros_like(self.code)
        self.losses: list[Tensor] = []

    def pushed(self, log_probability: Tensor) -> None:
        """Log probabilities (B, …) of what was pushed; negative ones of what was popped."""
        self.code -= log_probability.flatten(1).sum(dim=1)

    def loss(self, noisy: Tensor, gradient: Tensor, i: int) -> Tensor:
        """(x̂ − x)/√t at a level, (B, C, H, W)."""
        t = self.noise.variances[i]
        error: Tensor = (noisy - t * gradient - self.clean) / math.sqrt(t)
        self.losses.append(error.square().flatten(1).sum(dim=1))
        return error

    def step(self, noisy: Tensor, gradient: Tensor, left: Tensor, i: int) -> None:
        """KL(q(y_{i−1} | y_i, x) ‖ p(y_{i−1} | y_i)), both normal."""
        gap, t = self.noise.gaps[i - 1], self.noise.variances[i]
        ratio = (1.0 - gap / t) / left  # of their variances
        spread = (ratio - 1.0 - ratio.log()).flatten(1).sum(dim=1)
        away = self.prior.analyze(self.loss(noisy, gradient, i)).square() / left
        self.chain += 0.5 * (spread + gap / t * away.flatten(1).sum(dim=1))

    def parts(self, decoder: Tensor, prior: Tensor) -> Parts:
        """All of it, with what the decoder and the prior cost."""
        # At the noise with all rounding, from which decoder and prior take over.
        places = torch.tensor(self.noise.variances, dtype=torch.float64).log()
        integral = torch.trapezoid(torch.stack(self.losses), places[:, None], dim=0)
        ends = decoder + prior
        return Parts(self.code, self.chain + ends, 0.5 * integral + ends)
