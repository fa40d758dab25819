"""The LightningModule: draws noise, applies the objective, keeps an average of the weights."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dualscore.config import OptimConfig, Schedule
from dualscore.data.reader import Batch
from dualscore.energy import Energy, ScoreModel
from dualscore.images import to_pixels
from dualscore.metrics import ImageFigures
from dualscore.noise import TRAINING, corrupt, fixed_noise, log_uniform, seeded_generator
from dualscore.objective import DualLoss, dual_score_matching


class Draws(NamedTuple):
    """The random numbers of a training batch."""

    noise: Tensor
    """z, shape (B, C, H, W)."""
    noise_variance: Tensor
    """t in pixel², shape (B,)."""
    flip: Tensor
    """Which images are mirrored, bool, shape (B,)."""


def schedule(optim: OptimConfig, max_steps: int) -> Callable[[int], float]:
    """The learning rate's factor at each step, warm-up included."""

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / optim.warmup_steps) if optim.warmup_steps else 1.0
        if optim.schedule is Schedule.halving:
            decay: float = 0.5 ** (step // optim.halve_every)
            return warm * decay
        progress = min(1.0, max(0, step - optim.warmup_steps) / (max_steps - optim.warmup_steps))
        last = optim.final_lr / optim.lr
        return warm * (last + (1.0 - last) * 0.5 * (1.0 + math.cos(math.pi * progress)))

    return factor


class DualScoreModule(lightning.LightningModule):
    """Trains a score model by dual score matching.

    Args:
        model: an energy or a denoiser.
        optim: optimiser and schedule.
        image_shape: shape of an image as the model sees it (C, H, W).
        t_range: smallest and largest noise variance in training, in pixel².
        levels: noise variances at which losses are reported, in pixel².
        time_weight: weight of the time term.
        flip: whether training images are mirrored at random.
        streams: streams of a global batch; each has random numbers of its own, so that the same batch
            gets the same noise on any number of devices.
        max_steps: training steps, for the schedule.
        seed: the run's seed.
        description: plain values stored in every checkpoint (configuration, data set).
    """

    log_normalizer: Tensor
    last_losses: DualLoss
    last_noise_variance: Tensor

    def __init__(
        self,
        model: ScoreModel,
        *,
        optim: OptimConfig,
        image_shape: tuple[int, int, int],
        t_range: tuple[float, float],
        levels: list[float],
        time_weight: float,
        flip: bool,
        streams: int,
        max_steps: int,
        seed: int,
        description: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.average: AveragedModel | None = None
        if optim.ema_steps:
            averaging = get_ema_multi_avg_fn(1.0 - 1.0 / optim.ema_steps)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(model, multi_avg_fn=averaging).requires_grad_(False)
        self.optim, self.max_steps = optim, max_steps
        self.image_shape, self.t_range = image_shape, t_range
        self.levels = torch.tensor(levels, dtype=torch.float64)
        self.time_weight, self.flip = time_weight, flip
        self.streams, self.seed = streams, seed
        self.description = description
        # Log Z of the evaluated weights; NaN where no validation has measured it since they changed.
        self.register_buffer("log_normalizer", torch.tensor(math.nan, dtype=torch.float64))

    @property
    def evaluated(self) -> ScoreModel:
        """The model that validation measures: the average if one is kept."""
        chosen = self.model if self.average is None else self.average.module
        assert isinstance(chosen, ScoreModel)
        return chosen

    @property
    def dimension(self) -> int:
        """The number of pixels and channels, d = C·H·W."""
        return math.prod(self.image_shape)

    @property
    def working_dtype(self) -> torch.dtype:
        """The weights' precision, in which images and noise are made."""
        return next(self.model.parameters()).dtype

    def draw(self, step: int, images: int) -> Draws:
        """Draw this device's random numbers for a step.

        Args:
            step: training step.
            images: images on this device, a multiple of the device's streams.

        Returns:
            Noise, noise variances and coins for flips.
        """
        mine = self.streams // self.trainer.world_size
        noise, uniform, coin = [], [], []
        for stream in range(self.trainer.global_rank * mine, (self.trainer.global_rank + 1) * mine):
            generator = seeded_generator(self.device, TRAINING, self.seed, step, stream)
            each = images // mine
            # In single precision always, so that a run in double precision sees the same noise.
            single, place, shape = torch.float32, self.device, (each, *self.image_shape)
            uniform.append(torch.rand(each, generator=generator, dtype=single, device=place))
            coin.append(torch.rand(each, generator=generator, dtype=single, device=place))
            noise.append(torch.randn(shape, generator=generator, dtype=single, device=place))
        heads = torch.cat(coin) < 0.5
        flip = heads if self.flip else torch.zeros_like(heads)
        variance = log_uniform(torch.cat(uniform), *self.t_range)
        return Draws(torch.cat(noise).to(self.working_dtype), variance.to(self.working_dtype), flip)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """The mean over a batch of the dual score matching loss."""
        clean = to_pixels(batch.image, self.image_shape[0], self.working_dtype)
        draws = self.draw(self.global_step, len(clean))
        clean = torch.where(draws.flip[:, None, None, None], clean.flip(3), clean)
        losses = dual_score_matching(self.model, clean, draws.noise, draws.noise_variance, self.time_weight)
        self.last_losses = losses.detach()
        self.last_noise_variance = draws.noise_variance
        loss = losses.total.mean()
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/space_loss", losses.space.mean())
        if losses.time is not None:
            self.log("train/time_loss", losses.time.mean())
        return loss

    def on_train_batch_end(self, *_: object) -> None:
        """Move the average, and forget the normaliser of the weights before."""
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.log_normalizer.fill_(math.nan)

    def figures(self, batch: Batch, levels: Tensor) -> ImageFigures:
        """Measure images with the noise that belongs to each of them.

        Args:
            batch: stored images.
            levels: indices into the noise levels, int64, shape (B, n): those measured for each image.

        Returns:
            The figures of each image.
        """
        clean = to_pixels(batch.image, self.image_shape[0], self.working_dtype)
        indices = batch.position.tolist()
        model = self.evaluated
        energy_clean = energy_noisy = None
        if isinstance(model, Energy):
            noise = fixed_noise(indices, self.image_shape, self.seed).to(clean)
            t_max = torch.full_like(noise[:, 0, 0, 0], self.t_range[1])
            with torch.no_grad():
                energy_clean = model(clean, torch.zeros_like(t_max))
                energy_noisy = model(corrupt(clean, noise, t_max), t_max)
        space, time = [], []
        variances = self.levels.to(clean)
        for column in range(levels.shape[1]):
            noise = fixed_noise(indices, self.image_shape, self.seed, 1 + column).to(clean)
            losses = dual_score_matching(model, clean, noise, variances[levels[:, column]])
            space.append(losses.space.detach())
            time.append(losses.time.detach() if losses.time is not None else None)
        times = [value for value in time if value is not None]
        return ImageFigures(
            energy_clean,
            energy_noisy,
            levels.T.reshape(-1),
            torch.cat(space) if space else clean.new_zeros(0),
            torch.cat(times) if times else None,
        )

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, ImageFigures]:  # noqa: ARG002
        """Energies of each image, and its losses at one noise level, in turn."""
        return {"figures": self.figures(batch, (batch.ordinal % len(self.levels))[:, None])}

    def test_step(
        self,
        batch: Batch,
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,
    ) -> dict[str, ImageFigures]:
        """Energies of each image; for validation images also the losses at all noise levels."""
        count = len(self.levels) if dataloader_idx == 0 else 0
        levels = torch.arange(count, device=self.device).expand(len(batch.position), count)
        return {"figures": self.figures(batch, levels)}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam with the experiment's schedule; c(t)'s slopes learn faster by their own factor."""
        offset = getattr(self.model, "offset", None)
        fast = list(offset.parameters()) if offset is not None else []
        slow = [p for p in self.model.parameters() if all(p is not q for q in fast)]
        groups = [{"params": slow, "lr": self.optim.lr}]
        if fast:
            groups.append({"params": fast, "lr": self.optim.lr * self.optim.offset_lr_factor})
        optimizer = torch.optim.Adam(groups)
        scheduler = LambdaLR(optimizer, schedule(self.optim, self.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what is needed to rebuild the model without this module."""
        checkpoint["dualscore"] = self.description
