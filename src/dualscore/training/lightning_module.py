"""The LightningModule: draws noise, applies the objective, keeps an average of the weights."""

import math
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dualscore.data.datamodule import Batch
from dualscore.energy import ScoreModel
from dualscore.gaussian import StationaryGaussian
from dualscore.images import dequantize, to_pixels
from dualscore.likelihood.bound import bound_range
from dualscore.measuring.measured import Grid, Measured
from dualscore.measuring.quantities import validation_stages
from dualscore.measuring.subject import Images, Rows, Subject
from dualscore.noise import TRAINING, fixed_noise, log_uniform, seeded_generator
from dualscore.objective import DualLoss, dual_score_matching
from dualscore.settings.config import OptimConfig
from dualscore.training.compiling import Loss, compiled_loss
from dualscore.training.optimizers import make_optimizer, schedule


class Draws(NamedTuple):
    """The random numbers of a training batch."""

    noise: Tensor
    """z, shape (B, C, H, W)."""
    noise_variance: Tensor
    """t in pixel², shape (B,)."""
    flip: Tensor
    """Which images are mirrored, bool, shape (B,)."""
    dequantize: Tensor | None
    """u in [0, 1) for each pixel, shape (B, C, H, W); None where training images stay on their levels."""

    def part(self, first: int, last: int) -> "Draws":
        """Those of images `first` to `last` (excluded)."""
        return Draws(*(None if part is None else part[first:last] for part in self))  # type: ignore[arg-type]


class DualScoreModule(lightning.LightningModule):
    """Trains a score model by dual score matching.

    Args:
        model: an energy or a denoiser.
        prior: the training images' stationary Gaussian, for the bound.
        optim: optimiser and schedule.
        image_shape: shape of an image as the model sees it (C, H, W).
        t_range: smallest and largest noise variance in training, in pixel².
        stratified: whether a batch has one t in each of as many strata as images.
        levels: noise variances at which losses are reported, in pixel².
        objective: the arguments of `dual_score_matching` beside images and noise, by name.
        flip: whether training images are mirrored at random.
        quantized: whether images are 8-bit, so that the bound exists.
        dequantize: whether training images get uniform noise of one 8-bit step.
        streams: of a global batch, each with random numbers of its own: the same on any number of devices.
        strata: strata of ln t that the validation images share for the bound.
        max_steps: training steps, for the schedule.
        accumulate: parts that a device's batch is cut into, whose gradients are added up.
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
        prior: StationaryGaussian,
        optim: OptimConfig,
        image_shape: tuple[int, int, int],
        t_range: tuple[float, float],
        stratified: bool,
        levels: list[float],
        objective: dict[str, float],
        flip: bool,
        quantized: bool,
        dequantize: bool,
        streams: int,
        strata: int,
        max_steps: int,
        accumulate: int,
        seed: int,
        description: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.prior = prior.requires_grad_(False)
        self.average: AveragedModel | None = None
        if optim.ema_steps:
            averaging = get_ema_multi_avg_fn(1.0 - 1.0 / optim.ema_steps)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(model, multi_avg_fn=averaging).requires_grad_(False)
        self.optim, self.max_steps = optim, max_steps
        self.accumulate = accumulate
        self.loss: Loss = dual_score_matching
        self.image_shape, self.t_range = image_shape, t_range
        self.stratified = stratified
        self.levels = torch.tensor(levels, dtype=torch.float64)
        self.objective, self.flip = objective, flip
        self.quantized, self.dequantize = quantized, dequantize
        self.streams, self.strata, self.seed = streams, strata, seed
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

    def pixels(self, images: Tensor) -> Tensor:
        """Images of a batch as the model sees them, shape (B, C, H, W)."""
        return to_pixels(images, self.image_shape[0], self.working_dtype)

    def compile_loss(self, device: str) -> None:
        """Train with a loss compiled for `cpu` or `cuda` from now on; validation stays as it is."""
        self.loss = compiled_loss(device)

    def on_fit_start(self) -> None:
        """Keep the average's count where looking at it holds up no GPU."""
        if self.average is not None:
            self.average.n_averaged = self.average.n_averaged.cpu()

    def draw(self, step: int, images: int) -> Draws:
        """This device's random numbers for a step; its images are a multiple of its streams."""
        mine = self.streams // self.trainer.world_size
        noise, uniform, coin, spread = [], [], [], []
        for stream in range(self.trainer.global_rank * mine, (self.trainer.global_rank + 1) * mine):
            generator = seeded_generator(self.device, TRAINING, self.seed, step, stream)
            each = images // mine
            # In single precision always, so that a run in double precision sees the same noise.
            single, place, shape = torch.float32, self.device, (each, *self.image_shape)
            place_in_range = torch.rand(each, generator=generator, dtype=single, device=place)
            if self.stratified:
                stratum = torch.arange(stream * each, (stream + 1) * each, dtype=single, device=place)
                place_in_range = (stratum + place_in_range) / (self.streams * each)
            uniform.append(place_in_range)
            coin.append(torch.rand(each, generator=generator, dtype=single, device=place))
            noise.append(torch.randn(shape, generator=generator, dtype=single, device=place))
            if self.dequantize:
                spread.append(torch.rand(shape, generator=generator, dtype=single, device=place))
        heads = torch.cat(coin) < 0.5
        flip = heads if self.flip else torch.zeros_like(heads)
        variance = log_uniform(torch.cat(uniform), *self.t_range)
        dtype = self.working_dtype
        u = torch.cat(spread).to(dtype) if spread else None
        return Draws(torch.cat(noise).to(dtype), variance.to(dtype), flip, u)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean over a batch, or a piece of one, of the dual score matching loss."""
        clean = self.pixels(batch.image)
        draws = self.draw(self.global_step, len(clean) * self.accumulate)
        if self.accumulate > 1:  # those of the whole batch, so that cutting it changes nothing but rounding
            first = batch_idx % self.accumulate * len(clean)
            draws = draws.part(first, first + len(clean))
        clean = torch.where(draws.flip[:, None, None, None], clean.flip(3), clean)
        if draws.dequantize is not None:
            clean = dequantize(clean, draws.dequantize)
        losses = self.loss(self.model, clean, draws.noise, draws.noise_variance, **self.objective)
        self.last_losses = losses.detach()
        self.last_noise_variance = draws.noise_variance
        loss = losses.total.mean()
        self.log("train/loss", loss)  # on Lightning's bar it would be waited for in every step
        self.log("train/space_loss", losses.space.mean())
        if losses.time is not None:
            self.log("train/time_loss", losses.time.mean())
        return loss

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - Lightning's
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

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Rows]:  # noqa: ARG002
        """Measure each image with the noise that belongs to it: energies, losses at one level, the bound."""
        measured = self.measured()
        images = Images(self.pixels(batch.image), batch.position.tolist(), ordinal=batch.ordinal)
        rows: Rows = {"position": batch.position}
        for stage in validation_stages(measured.subject, measured.levels, self.span, self.strata):
            found = stage.measure(measured.subject, images)
            rows |= {f"{stage.name}/{name}": values.detach() for name, values in found.items()}
        return {"rows": rows}

    @property
    def span(self) -> tuple[float, float]:
        """The bound's t0 and t1 in validation, in pixel²."""
        return bound_range(self.t_range)

    def measured(self) -> Measured:
        """A measurement of the evaluated weights, without rows."""
        subject = Subject(
            self.evaluated,
            self.prior,
            None,
            quantized=self.quantized,
            dequantize=self.dequantize,
            t_range=self.t_range,
            seed=self.seed,
        )
        return Measured(subject, self.dimension, Grid(*self.t_range, self.strata), self.levels.tolist())

    def fixed_noise(self, batch: Batch, draw: int) -> Tensor:
        """The noise that belongs to the images of a batch, whatever device they are on."""
        return fixed_noise(batch.position.tolist(), self.image_shape, self.seed, draw)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The experiment's optimiser and schedule."""
        optimizer = make_optimizer(self.model, self.optim)
        scheduler = LambdaLR(optimizer, schedule(self.optim, self.max_steps))
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
