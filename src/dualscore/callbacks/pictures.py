"""Pictures of what a model has learned, at validations: denoised validation images, and a few samples."""

from collections.abc import Callable

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray

from dualscore.data.batch import Batch
from dualscore.grids import arrange, tile
from dualscore.images import to_pixels
from dualscore.module import DualScoreModule
from dualscore.noise import SAMPLING, corrupt, seeded_generator, variance_at_psnr
from dualscore.sampling import anneal, levels, start_from

PSNR = (30.0, 20.0, 10.0, 0.0)
"""Noise levels whose denoised images are shown, in dB."""
IMAGES, SAMPLES, STEPS = 6, 9, 32
"""Validation images shown, samples, and noise levels that a sample comes down by: 32 evaluations of 9."""
EVERY = 4
"""Validations from one picture of samples to the next."""
PICTURES = -4
"""Second number of the random keys: neither a seed nor a split."""


class Pictures(Callback):
    """Logs `denoised` at every validation, and `samples` at every fourth and the last one.

    Noise and the samples' randomness are the same at each, so that the pictures can be compared, and
    nothing is drawn from the generators of training. Samples are annealed without Langevin steps: fast, and
    a little worse than the model. Vectors have no pictures.

    Args:
        show: takes a name, a picture (height, width, 3) and the step.
    """

    def __init__(self, show: Callable[[str, NDArray[np.uint8], int], None]) -> None:
        self.show = show
        self._batch: Batch | None = None

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0:
            self._batch = batch

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        assert isinstance(pl_module, DualScoreModule)
        batch, self._batch = self._batch, None
        if not trainer.is_global_zero or batch is None or min(pl_module.image_shape[1:]) == 1:
            return
        step, last = trainer.global_step, trainer.global_step == trainer.max_steps
        self.show("denoised", denoised(pl_module, batch), step)
        validation = step * trainer.accumulate_grad_batches // int(trainer.val_check_interval or 1)
        if validation % EVERY == 0 or last:
            self.show("samples", samples(pl_module), step)


def denoised(module: DualScoreModule, batch: Batch) -> NDArray[np.uint8]:
    """A picture of validation images: clean, and noisy | denoised at each of some noise levels."""
    clean = to_pixels(batch.image[:IMAGES], module.image_shape[0], module.working_dtype)
    generator = seeded_generator(clean.device, SAMPLING, PICTURES, module.seed, 0)
    noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
    columns, titles = [clean], ["clean"]
    for decibels in PSNR:
        t = clean.new_full((len(clean),), variance_at_psnr(decibels))
        noisy = corrupt(clean, noise, t)
        with torch.no_grad():
            columns += [noisy, module.evaluated.denoise(noisy, t)]
        titles += [f"{decibels:g} dB", "denoised"]
    return tile(torch.stack(columns, dim=1), titles)


def samples(module: DualScoreModule) -> NDArray[np.uint8]:
    """A picture of samples."""
    generator = seeded_generator(module.device, SAMPLING, PICTURES, module.seed, 1)
    schedule = levels(module.t_range[1], STEPS)
    start, _ = start_from(module.prior, schedule[0], SAMPLES, generator)
    found = anneal(
        module.evaluated,
        start.to(module.working_dtype),
        schedule,
        generator=generator,
        steps=0,
        adjust=False,
    )
    return tile(arrange(found.images))
