"""Our models in deepinv: as its denoiser, as an explicit prior, and a Metropolis step for its samplers.

deepinv's priors are implicit, so that its Langevin steps cannot be corrected. An energy's can: at a standard
deviation σ the prior is p(y | t = σ²), and a proposal is accepted by what it and the data say of both places,
which leaves exp(−f(x) − α U(x, σ²)) as it is for any step size. Source: Roberts and Tweedie 1996.
Import it from this module: it needs deepinv, which dualscore does not.
"""

from typing import Any

import torch
from deepinv.models.base import Denoiser
from deepinv.optim.prior import Prior
from deepinv.sampling.sampling_iterators.sampling_iterator import SamplingIterator
from torch import Tensor

from dualscore.errors import ModelError
from dualscore.model import ImageModel
from dualscore.networks.orders import ORIENTATIONS, mean_over_orders
from dualscore.sampling.annealed import BEST_ACCEPTANCE

_PATIENCE = 0.1


def _variances(sigma: float | Tensor, images: Tensor) -> Tensor:
    """Noise variances (B,) of standard deviations: a number, (1,), (B,) or (B, 1, 1, 1)."""
    deviations = torch.as_tensor(sigma, dtype=images.dtype, device=images.device).flatten()
    if deviations.numel() not in (1, len(images)):
        raise ModelError(f"sigma must be a number, or one an image: {len(images)}, not {deviations.numel()}")
    return deviations.square().expand(len(images))


class EnergyDenoiser(Denoiser):  # type: ignore[misc]  # deepinv has no types
    """A model as deepinv's denoiser: D(x, σ) of pixels in [0, 1], gray or colour, of the model's sizes.

    Args:
        model: any that dualscore loads.
        turned: the mean of the denoisers of an image as it is, turned by 180° and mirrored either way: better
            by 0.2 dB for models that read pixels in one order, at four times the cost.
    """

    def __init__(self, model: ImageModel, turned: bool = False) -> None:
        super().__init__()
        self.model, self.orders = model, len(ORIENTATIONS) if turned else 1

    def forward(self, x: Tensor, sigma: float | Tensor, **_: Any) -> Tensor:
        """The posterior mean of images (B, C, H, W) with noise of σ, a number or (B,)."""
        t = _variances(sigma, x)
        return mean_over_orders(lambda turned: self.model.denoise(turned, t).to(x), x, self.orders)


class EnergyPrior(Prior):  # type: ignore[misc]
    """A model as an explicit prior: U(x, σ²) in nats, and its gradient."""

    def __init__(self, model: ImageModel) -> None:
        super().__init__()
        self.model, self.explicit_prior = model, True

    def fn(self, x: Tensor, sigma_denoiser: float | Tensor, *_: Any, **__: Any) -> Tensor:
        """U(x, σ²) of images (B, C, H, W), (B,): the cost that a plug-and-play algorithm lowers."""
        return self.model.energy(x, _variances(sigma_denoiser, x)).to(x)

    def grad(self, x: Tensor, sigma_denoiser: float | Tensor, *_: Any, **__: Any) -> Tensor:
        """∇U, (B, C, H, W)."""
        t = _variances(sigma_denoiser, x)
        return (x - self.model.denoise(x, t).to(x)) / t[:, None, None, None]


class MetropolisIterator(SamplingIterator):  # type: ignore[misc]
    """Langevin proposals that are accepted or not, by an explicit prior; to be given to `BaseSampling`.

    Args:
        algo_params: `step_size` η, in pixel²; `sigma` of the prior; `alpha`, its weight (1 is Bayes' rule);
            `adapt`, how many iterations change η towards an acceptance of 0.574, to be left out as burn-in.

    States have `accepted`, whether each chain moved, (B,), and `step_size`, its own, (B,).
    """

    def __init__(self, algo_params: dict[str, Any]) -> None:
        super().__init__({"alpha": 1.0, "adapt": 0} | algo_params)
        if missing := {"step_size", "sigma"} - self.algo_params.keys():
            raise ModelError(f"MetropolisIterator needs {' and '.join(sorted(missing))} in algo_params")

    def initialize_latent_variables(
        self, x_init: Tensor, y: Tensor, physics: Any, cur_data_fidelity: Any, cur_prior: Any
    ) -> dict[str, Tensor]:
        """The first state, with what is known there."""
        if not cur_prior.explicit_prior:
            raise ModelError("an implicit prior has no density to accept by: use EnergyPrior, or ULA")
        step = torch.full_like(x_init[:, 0, 0, 0], self.algo_params["step_size"])
        there = self._at(x_init, y, physics, cur_data_fidelity, cur_prior)
        return {"x": x_init, "accepted": torch.ones_like(step), "step_size": step} | there

    def forward(
        self,
        X: dict[str, Tensor],  # noqa: N803 - deepinv's name
        y: Tensor,
        physics: Any,
        cur_data_fidelity: Any,
        cur_prior: Any,
        iteration: int,
        *_: Any,
        **__: Any,
    ) -> dict[str, Tensor]:
        """One step of each chain; random numbers are the global ones, as in deepinv's own."""
        x, step = X["x"], X["step_size"][:, None, None, None]
        moved = x - step * X["gradient"] + (2.0 * step).sqrt() * torch.randn_like(x)
        there = self._at(moved, y, physics, cur_data_fidelity, cur_prior)
        back = (x - moved + step * there["gradient"]).square() - (moved - x + step * X["gradient"]).square()
        log_ratio = X["cost"] - there["cost"] - (back / (4.0 * step)).flatten(1).sum(dim=1)
        accepted = torch.rand_like(log_ratio).log() < log_ratio
        found = {
            name: torch.where(accepted.view(-1, *[1] * (new.ndim - 1)), new, X[name])
            for name, new in ({"x": moved} | there).items()
        }
        size = X["step_size"]
        if iteration < self.algo_params["adapt"]:
            size = size * torch.exp(
                _PATIENCE * (log_ratio.exp().clamp(max=1.0).nan_to_num() - BEST_ACCEPTANCE)
            )
        return found | {"accepted": accepted.to(x), "step_size": size}

    def _at(self, x: Tensor, y: Tensor, physics: Any, data_fidelity: Any, prior: Any) -> dict[str, Tensor]:
        """Minus the log of the density, up to one constant, (B,), and its gradient."""
        alpha, sigma = self.algo_params["alpha"], self.algo_params["sigma"]
        return {
            "cost": data_fidelity.fn(x, y, physics) + alpha * prior.fn(x, sigma),
            "gradient": data_fidelity.grad(x, y, physics) + alpha * prior.grad(x, sigma),
        }
