"""The LightningModule: draws noise, applies the objective, averages the weights; and its callbacks' base."""

# ruff: noqa: ANN401, ARG002 - of hooks that Lightning defines

import math
from dataclasses import asdict
from typing import Any

import lightning
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dualscore.data.datamodule import Batch
from dualscore.energy import EnergyModel, ScoreModel
from dualscore.gaussian import StationaryGaussian
from dualscore.images import crops, dequantize, to_pixels
from dualscore.likelihood.bound import bound_range
from dualscore.measuring.measured import Grid, Measured
from dualscore.measuring.quantities import validation_stages
from dualscore.measuring.subject import Images, Rows, Subject
from dualscore.noise import (
    CROPS,
    TRAINING,
    fixed_noise,
    log_uniform,
    mostly_low,
    seeded_generator,
    variance_at_psnr,
)
from dualscore.objective import DualLoss, another_level, dual_score_matching, maximum_likelihood
from dualscore.settings.config import ExperimentConfig
from dualscore.training.draws import Draws
from dualscore.training.optimizers import Loss, make_optimizer, schedule


class DualScoreModule(lightning.LightningModule):
    """Trains a score model by dual score matching.

    Args:
        model: an energy or a denoiser.
        prior: the training images' stationary Gaussian, for the bound.
        config: the experiment.
        image_shape: shape of an image as the model sees it (C, H, W).
        strata: strata of ln t that the validation images share for the bound.
        description: plain values stored in every checkpoint (configuration, data set).
    """

    log_normalizer: Tensor
    last_losses: DualLoss
    last_noise_variance: Tensor

    def __init__(
        self,
        model: ScoreModel,
        *,
        prior: StationaryGaussian,
        config: ExperimentConfig,
        image_shape: tuple[int, int, int],
        strata: int,
        description: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.prior = prior.requires_grad_(False)
        self.average: AveragedModel | None = None
        if steps := config.optim.ema_steps:
            averaging = get_ema_multi_avg_fn(1.0 - 1.0 / steps)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(model, multi_avg_fn=averaging).requires_grad_(False)
        # Log Z of the evaluated weights; NaN where no validation has measured it since they changed.
        self.register_buffer("log_normalizer", torch.tensor(math.nan, dtype=torch.float64))
        self.config, self.image_shape, self.strata = config, image_shape, strata
        self.seed, self.accumulate = config.seed, config.trainer.accumulate
        self.t_range = (config.noise.t_min, config.noise.t_max)
        self.objective = asdict(config.objective)
        self.likelihood_steps = self.objective.pop("likelihood_steps")
        self.description = description
        self.loss: Loss = dual_score_matching  # or, in training alone, a compiled one

    @property
    def evaluated(self) -> ScoreModel:
        """The model that validation measures: the average if one is kept."""
        chosen = self.model if self.average is None else self.average.module
        assert isinstance(chosen, ScoreModel)
        return chosen

    @property
    def working_dtype(self) -> torch.dtype:
        """The weights' precision, in which images and noise are made."""
        return next(self.model.parameters()).dtype

    def pixels(self, images: Tensor) -> Tensor:
        """Images of a batch as the model sees them, shape (B, C, H, W)."""
        return to_pixels(images, self.image_shape[0], self.working_dtype)

    def on_fit_start(self) -> None:
        """Keep the average's count where looking at it holds up no GPU."""
        if self.average is not None:
            self.average.n_averaged = self.average.n_averaged.cpu()

    def _cut(self, images: Tensor, step: int) -> Tensor:
        """Squares of this step's side, of so many of a device's images that steps see as many pixels."""
        sides, streams = self.config.data.crops, self.config.data.streams
        side = self._seen(step)[1]
        mine = streams // self.trainer.world_size
        first = mine * self.trainer.global_rank
        each = len(images) // mine * min(sides) ** 2 // side**2
        generators = (
            seeded_generator(self.device, CROPS, self.seed, step, first + stream) for stream in range(mine)
        )
        return torch.cat(
            [
                crops(own[:each], side, generator)
                for own, generator in zip(images.chunk(mine), generators, strict=True)
            ]
        )

    def _seen(self, step: int) -> tuple[int, ...]:
        """Shape of an image, or of a square of it, as a step sees it (C, H, W)."""
        if not (sides := self.config.data.crops):
            return self.image_shape
        side = sides[step % len(sides)]
        return self.image_shape[0], side, side

    def draw(self, step: int, images: int) -> Draws:
        """This device's random numbers for a step; its images are a multiple of its streams.

        Each stream of the global batch has its own, so they are the same on any number of devices.
        """
        data, stratified = self.config.data, self.config.noise.stratified
        told_apart = self.config.objective.level_weight > 0
        mine = data.streams // self.trainer.world_size
        each = images // mine
        shape = (each, *self._seen(step))
        drawn = []
        for stream in range(self.trainer.global_rank * mine, (self.trainer.global_rank + 1) * mine):
            generator = seeded_generator(self.device, TRAINING, self.seed, step, stream)
            # In single precision always, so that a run in double precision sees the same noise.
            single: dict[str, Any] = {"dtype": torch.float32, "device": self.device}
            uniform = torch.rand(each, generator=generator, **single)
            if stratified:  # one t in each of as many strata as the global batch has images
                stratum = torch.arange(stream * each, (stream + 1) * each, **single)
                uniform = (stratum + uniform) / (data.streams * each)
            coin = torch.rand(each, generator=generator, **single)
            noise = torch.randn(shape, generator=generator, **single)
            spread = torch.rand(shape, generator=generator, **single) if data.dequantize else noise[:0]
            other = torch.rand(each, generator=generator, **single) if told_apart else noise[:0]
            drawn.append((uniform, coin, noise, spread, other))
        uniform, coin, noise, spread, other = map(torch.cat, zip(*drawn, strict=True))
        low = step < self.likelihood_steps and data.quantized  # where there are grey levels to learn
        levels = mostly_low if low else log_uniform
        dtype, variance = self.working_dtype, levels(uniform, *self.t_range)
        return Draws(
            noise.to(dtype),
            variance.to(dtype),
            (coin < 0.5) & data.flip,
            spread.to(dtype) if data.dequantize else None,
            another_level(variance, other, self.t_range).to(dtype) if told_apart else None,
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean over a batch, or a piece of one, of what is learned at this step."""
        clean = self.pixels(batch.image)
        if self.config.data.crops:
            clean = self._cut(clean, self.global_step)
        draws = self.draw(self.global_step, len(clean) * self.accumulate)
        if self.accumulate > 1:  # those of the whole batch, so that cutting it changes nothing but rounding
            first = batch_idx % self.accumulate * len(clean)
            draws = draws.part(first, first + len(clean))
        clean = torch.where(draws.flip[:, None, None, None], clean.flip(3), clean)
        if draws.dequantize is not None:
            clean = dequantize(clean, draws.dequantize)
        losses = self._losses(clean, draws)
        self.last_losses = losses.detach()
        self.last_noise_variance = draws.noise_variance
        return losses.total.mean()

    def _losses(self, clean: Tensor, draws: Draws) -> DualLoss:
        """What is learned at this step: the likelihood alone at first, where the experiment says so."""
        if self.global_step < self.likelihood_steps:
            assert isinstance(self.model, EnergyModel)
            return maximum_likelihood(self.model, clean, draws.noise, draws.noise_variance)
        return self.loss(
            self.model, clean, draws.noise, draws.noise_variance, **self.objective, elsewhere=draws.elsewhere
        )

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Move the weights and the average, and forget the normalizer of the weights before."""
        super().optimizer_step(*arguments, **named)
        if self.average is not None:
            self._follow(self.average)
        self.log_normalizer.fill_(math.nan)

    @torch.no_grad()
    def _follow(self, average: AveragedModel) -> None:
        """`average.update_parameters`, which takes its count to the GPU in every step and waits for it."""
        if int(average.n_averaged) == 0:
            for mean, weight in zip(average.parameters(), self.model.parameters(), strict=True):
                mean.copy_(weight)
        else:
            assert average.multi_avg_fn is not None
            average.multi_avg_fn([*average.parameters()], [*self.model.parameters()], average.n_averaged)
        for kept, buffer in zip(average.module.buffers(), self.model.buffers(), strict=True):
            kept.copy_(buffer)
        average.n_averaged += 1

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, dict[str, Rows]]:
        """Measure each image with the noise that belongs to it: energies, losses at one level, the bound."""
        measured = self.measured()
        images = Images(self.pixels(batch.image), batch.position.tolist(), ordinal=batch.ordinal)
        rows = {
            stage.name: {"position": batch.position, **stage.measure(measured.subject, images)}
            for stage in validation_stages(measured.subject, measured.levels, self.span, self.strata)
        }
        return {"rows": rows}

    @property
    def span(self) -> tuple[float, float]:
        """The bound's t0 and t1 in validation, in pixel²."""
        return bound_range(self.t_range)

    def measured(self) -> Measured:
        """What belongs to a measurement of the evaluated weights, without rows."""
        data = self.config.data
        subject = Subject(
            self.evaluated,
            self.prior,
            None,
            quantized=data.quantized,
            dequantize=data.dequantize,
            t_range=self.t_range,
            seed=self.seed,
        )
        levels = [variance_at_psnr(decibels) for decibels in self.config.evaluate.psnr]
        return Measured(subject, math.prod(self.image_shape), Grid(*self.t_range, self.strata), levels)

    def fixed_noise(self, batch: Batch, draw: int) -> Tensor:
        """The noise that belongs to the images of a batch, whatever device they are on."""
        return fixed_noise(batch.position.tolist(), self.image_shape, self.seed, draw)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The experiment's optimiser and schedule."""
        optimizer = make_optimizer(self.model, self.config.optim)
        scheduler = LambdaLR(optimizer, schedule(self.config.optim, self.config.trainer.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Count batches in the parts of now, where they were cut into others before."""
        before = checkpoint["dualscore"]["config"]["trainer"].get("accumulate", 1)
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            for key, parts in counts.items():
                counts[key] = parts // before * self.accumulate

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what is needed to rebuild the model without this module."""
        checkpoint["dualscore"] = self.description | {"devices": self.trainer.world_size}


class TrainingCallback(Callback):
    """A callback of our module. To Lightning's hooks it adds four, called on every device.

    Call `module.log` in `after_step` only where `is_logged`, and in `after_validation`, on every device.
    """

    def after_step(self, trainer: Trainer, module: DualScoreModule) -> None:
        """After a step of the optimiser, however many parts its batch was cut into."""

    def before_validation(self, trainer: Trainer, module: DualScoreModule) -> None:
        """Before the first batch of a validation."""

    def after_validation_batch(
        self, module: DualScoreModule, rows: dict[str, Rows], batch: Batch, number: int
    ) -> None:
        """After a batch of a validation, counted from 0, with the rows that each stage measured of it."""

    def after_validation(self, trainer: Trainer, module: DualScoreModule) -> None:
        """After the last batch of a validation."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *batch: Any) -> None:
        """Call `after_step` where the batch's last part was."""
        if (batch[-1] + 1) % trainer.accumulate_grad_batches == 0:
            self.after_step(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Call `before_validation`."""
        self.before_validation(trainer, pl_module)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *batch: Any) -> None:
        """Call `after_validation_batch`."""
        outputs, images, number, *_ = batch
        self.after_validation_batch(pl_module, outputs["rows"], images, number)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Call `after_validation`."""
        self.after_validation(trainer, pl_module)


def is_logged(trainer: Trainer) -> bool:
    """Whether the log has an entry of this step."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return trainer.global_step % every == 0


def logged_step(trainer: Trainer) -> int:
    """The step that a validation is logged at: counted from 0, as by Lightning.

    A run that resumes from the checkpoint of a validation drops what was logged at later steps.
    """
    return max(0, trainer.global_step - 1)
