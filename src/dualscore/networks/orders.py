r"""An energy that reads the pixels in several orders, and has the mean of the densities that come of it.

U(y, t) = −log (1/n) Σ_k exp(−U_1(g_k y, t)), where g_k turns and mirrors the image. As g_k only moves pixels,
every summand integrates to what exp(−U_1) does: to one, if U_1 is normalized. Source: ensembles of orderings,
Uria, Murray, Larochelle 2014, arXiv 1310.1757.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dualscore.energy import Gradients, MappedEnergy, ScoreModel
from dualscore.networks.restrained import restrained

ORIENTATIONS = ((), (2, 3), (3,), (2,))
"""Dimensions of (B, C, H, W) that are reversed: as it is, turned by 180°, mirrored either way."""
ORDERS = (1, 2, 4, 8)
"""Numbers of orders there are; the last four of eight are the first four of the transposed image."""


def reordered(images: Tensor, order: int) -> Tensor:
    """g_k y, of shape (B, C, H, W), transposed (B, C, W, H), for k from 0 to 7."""
    turned = images.mT if order >= len(ORIENTATIONS) else images
    return turned.flip(ORIENTATIONS[order % len(ORIENTATIONS)])


def put_back(images: Tensor, order: int) -> Tensor:
    """What `reordered` was given, (B, C, H, W), from what it returned."""
    turned = images.flip(ORIENTATIONS[order % len(ORIENTATIONS)])
    return turned.mT if order >= len(ORIENTATIONS) else turned


def mean_over_orders(function: Callable[[Tensor], Tensor], images: Tensor, orders: int) -> Tensor:
    """1/n Σ_k g_k⁻¹ f(g_k y), of a function of images (B, C, H, W) to others of their shape."""
    found = torch.zeros_like(images)
    for order in range(orders):
        found = found + put_back(function(reordered(images, order)), order)
    return found / orders


class SeveralOrders(MappedEnergy):
    """−log of the mean of a density's values in several orders; `train()` has it learn in the first alone.

    That costs 1/n as much, and the others learn by it as far as images look alike turned and mirrored. Where
    they don't, little is lost: U ≤ U_1 + ln n.

    Args:
        energy: U_1, which reads pixels in one order.
        orders: n, one of `ORDERS`.
    """

    def __init__(self, energy: MappedEnergy, orders: int) -> None:
        super().__init__()
        if orders not in ORDERS:
            raise ValueError(f"orders must be one of {ORDERS}, got {orders}")
        self.energy, self.orders = energy, orders
        self.normalized = energy.normalized

    @property
    def levels(self) -> int:  # type: ignore[override]  # loaded with the weights
        """Grey levels that every order knows."""
        return self.energy.levels

    def averaged(self) -> ScoreModel | None:
        """The mean of the orders' denoisers: better than the mean density's, which follows one of them."""
        return MeanOfOrders(self.energy, self.orders) if self.orders > 1 else None

    def forward(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        """U(y, t) in nats, of y (B, C, H, W) at t ≥ 0 (B,), shape (B,); U_1 in training."""
        if self.training:
            return self.energy(noisy, noise_variance)  # type: ignore[no-any-return]
        energies = [self.energy(reordered(noisy, order), noise_variance) for order in range(self.orders)]
        return math.log(self.orders) - torch.logsumexp(-torch.stack(energies), dim=0)

    def energy_map(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        """Nats a pixel, (B, H, W), whose sum is U: the orders' maps by their shares of the density.

        With shares p_k ∝ exp(−U_k), U = Σ_k p_k U_k + Σ_k p_k ln n p_k, the last spread evenly over pixels.
        """
        if self.training:
            return self.energy.energy_map(noisy, noise_variance)
        found = []
        for order in range(self.orders):
            turned = self.energy.energy_map(reordered(noisy, order), noise_variance)
            found.append(put_back(turned[:, None], order)[:, 0])
        maps = torch.stack(found)
        logs = (-maps.sum(dim=(2, 3))).log_softmax(dim=0)
        shares = logs.exp()
        rest = (shares * (logs + math.log(self.orders))).sum(dim=0) / maps[0, 0].numel()
        return (shares[:, :, None, None] * maps).sum(dim=0) + rest[:, None, None]


def mean_of_orientations(energy: ScoreModel) -> ScoreModel:
    """The mean of an energy's denoisers of an image as it is, turned by 180°, and mirrored either way.

    Each sees what the others do not; their mean is nearer to the posterior mean than any of them.
    """
    return MeanOfOrders(energy, len(ORIENTATIONS))


class MeanOfOrders(ScoreModel):
    """x̂ = 1/n Σ_k g_k⁻¹ x̂_1(g_k y): the mean of the denoisers of an energy's orders; it has no energy.

    Each is restrained (restrained.py), as one that is far off would spoil the mean.
    """

    def __init__(self, energy: ScoreModel, orders: int) -> None:
        super().__init__()
        self.single, self.orders = restrained(energy), orders

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:  # noqa: ARG002
        """The mean of the orders' ∇_y U, (B, C, H, W): no energy and no ∂_t U, whatever `time` says."""

        def gradient(turned: Tensor) -> Tensor:
            return self.single.gradients(turned, noise_variance, time=False).image

        return Gradients(mean_over_orders(gradient, noisy, self.orders), None)
