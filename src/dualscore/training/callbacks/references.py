"""What stands beside a run's figures: Gaussians, a score network, published figures."""

import math
from collections.abc import Mapping

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from dualscore.data.batch import Batch
from dualscore.gaussian import QUANTIZATION_VARIANCE
from dualscore.images import to_pixels
from dualscore.likelihood import bits_per_dim, dequantized_bits_per_dim
from dualscore.noise import corrupt, psnr
from dualscore.objective import space_loss
from dualscore.training.lightning_module import DualScoreModule
from dualscore.training.metrics import Moments


class References(Callback):
    """Logs `gaussian/stationary` and published figures, and knows what others denoise to.

    The training images' Gaussian is measured in the first validation, of the same images with the same noise
    as the model; later ones have the same.

    Args:
        published: bits/dim of others on the same data set, by name.
        score_network: denoised PSNR of a score network by noise variance; empty if there is none.
    """

    def __init__(self, published: Mapping[str, float], score_network: Mapping[float, float]) -> None:
        self.published, self.score_network = published, score_network
        self._measuring: Moments | None = None
        self._figures: list[float] = []
        self._linear: dict[float, float] = {}
        self._stationary = math.nan

    def psnr(self, noise_variance: float) -> dict[str, float]:
        """Denoised PSNR in dB of what is known at a noise variance: `linear`, and maybe `score_network`."""
        near = [value for t, value in self.score_network.items() if abs(t / noise_variance - 1.0) < 1e-3]
        linear = self._linear.get(round(psnr(noise_variance), 3))
        return ({"linear": linear} if linear is not None else {}) | (
            {"score_network": near[0]} if near else {}
        )

    def on_validation_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        assert isinstance(pl_module, DualScoreModule)
        if not self._figures:
            self._measuring = Moments(len(pl_module.levels) + 1).to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: Batch,
        *_: object,
    ) -> None:
        assert isinstance(pl_module, DualScoreModule)
        if self._measuring is None:
            return
        module, prior = pl_module, pl_module.prior
        clean = to_pixels(batch.image, module.image_shape[0], module.working_dtype)
        level = batch.ordinal % len(module.levels)
        t = module.levels.to(clean)[level.to(module.levels.device)]
        noise = module.fixed_noise(batch, 1).to(clean)
        noisy = corrupt(clean, noise, t)
        gradient = (noisy - prior.denoise(noisy, t)) / t[:, None, None, None]
        self._measuring.update(level, space_loss(gradient, noise, t))
        energy = prior(clean, torch.zeros_like(t)).energy.double()
        if module.quantized:
            # The mean over u of U(x + (u − ½)/255): each coefficient's square grows by the step's variance.
            energy = energy + 0.5 * (QUANTIZATION_VARIANCE / prior.eigenvalues.double()).sum()
        self._measuring.update(torch.full_like(level, len(module.levels)), energy)

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        assert isinstance(pl_module, DualScoreModule)
        if self._measuring is not None:
            self._figures = self._measuring.compute()["mean"].tolist()
            self._measuring = None
            *losses, energy = self._figures
            levels = zip(pl_module.levels.tolist(), losses, strict=True)
            # A level that no image had has no figure.
            self._linear = {round(psnr(t), 3): psnr(t * loss) for t, loss in levels if loss > 0}
            convert = dequantized_bits_per_dim if pl_module.quantized else bits_per_dim
            nats = torch.tensor(energy, dtype=torch.float64)
            self._stationary = float(convert(nats, pl_module.dimension))
        pl_module.log("gaussian/stationary", self._stationary)
        for name, value in self.published.items():
            pl_module.log(f"published/{name}", value)
