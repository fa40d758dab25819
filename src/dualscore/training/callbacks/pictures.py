"""Pictures of what a model has learned, at validations: denoised images, where −log p sits, samples."""

from collections.abc import Callable

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from dualscore.dashboard.logger import level
from dualscore.data.datamodule import Batch
from dualscore.energy import MappedEnergy
from dualscore.likelihood import bits_per_dim
from dualscore.measuring.subject import Rows
from dualscore.noise import SAMPLING, corrupt, seeded_generator, variance_at_psnr
from dualscore.pictures.grids import arrange, colour, common_scale, tile
from dualscore.sampling import anneal, last_variance, levels, start_from
from dualscore.training.lightning_module import DualScoreModule, TrainingCallback, logged_step

PSNR = (30.0, 20.0, 10.0, 0.0)
"""Noise levels whose denoised images are shown, in dB."""
IMAGES, SAMPLES, STEPS = 4, 9, 32
"""Validation images shown, samples, and noise levels that a sample comes down by: 32 evaluations of 9."""
WIDTH = 344
"""Pixels of a picture's width, about: TensorBoard makes wider ones smaller."""
EVERY = 4
"""Validations from one picture of samples to the next."""
PICTURES = -4
"""Second number of the random keys: neither a seed nor a split."""


class Pictures(TrainingCallback):
    """Logs `denoised/…` and `energy_map` at every validation, and `samples` at every fourth and the last one.

    Noise and samples are drawn with the same numbers each time, so that pictures can be compared, and never
    from the generators of training. Samples are annealed without Langevin steps: fast, and a little worse
    than the model. Vectors have no pictures.
    """

    def __init__(self, show: Callable[[str, NDArray[np.uint8], int], None]) -> None:
        self.show = show
        self._batch: Batch | None = None

    def after_validation_batch(
        self, module: DualScoreModule, rows: dict[str, Rows], batch: Batch, number: int
    ) -> None:
        if number == 0:
            self._batch = batch

    def after_validation(self, trainer: Trainer, module: DualScoreModule) -> None:
        batch, self._batch = self._batch, None
        if not trainer.is_global_zero or batch is None or min(module.image_shape[1:]) == 1:
            return
        step = logged_step(trainer)
        clean = module.pixels(batch.image[:IMAGES])
        for decibels in PSNR:
            self.show(f"denoised/{level(decibels)}", _denoised(module, clean, decibels), step)
        if isinstance(module.evaluated, MappedEnergy):
            self.show("energy_map", _energy_map(module, module.evaluated, clean), step)
        parts = trainer.global_step * trainer.accumulate_grad_batches
        validation = parts // int(trainer.val_check_interval or 1)
        if validation % EVERY == 0 or trainer.global_step == trainer.max_steps:
            self.show("samples", _samples(module), step)


def _denoised(module: DualScoreModule, clean: torch.Tensor, decibels: float) -> NDArray[np.uint8]:
    """Images clean, noisy and denoised, with the same noise at every input PSNR."""
    generator = seeded_generator(clean.device, SAMPLING, PICTURES, module.seed, 0)
    noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
    t = clean.new_full((len(clean),), variance_at_psnr(decibels))
    noisy = corrupt(clean, noise, t)
    with torch.no_grad():
        columns = [clean, noisy, module.evaluated.denoise(noisy, t)]
    titles = ["clean", f"noisy, {decibels:g} dB", "denoised"]
    return tile(torch.stack(columns, dim=1), titles, side=WIDTH // 3)


def _energy_map(module: DualScoreModule, energy: MappedEnergy, clean: torch.Tensor) -> NDArray[np.uint8]:
    """Images over where their −log p sits, in bits a pixel and channel, with the validation's log Z."""
    channels, pixels = len(clean[0]), clean[0, 0].numel()
    with torch.no_grad():
        nats = energy.energy_map(clean, torch.zeros_like(clean[:, 0, 0, 0])).double()
    maps = bits_per_dim(nats + module.log_normalizer / pixels, channels).cpu().numpy()
    low, high = common_scale(maps)
    heat = torch.from_numpy(colour(maps, (low, high))).movedim(-1, 1) / 255.0
    rows = torch.stack([clean.cpu().float().expand(-1, 3, -1, -1), heat])
    titles = [f"{bits:.2f}" for bits in maps.mean(axis=(1, 2))]
    caption = f"bits/dim; below, each pixel's: {low:.1f} (dark) to {high:.1f} (bright)"
    return tile(rows, titles, caption=caption, side=WIDTH // IMAGES)


def _samples(module: DualScoreModule) -> NDArray[np.uint8]:
    generator = seeded_generator(module.device, SAMPLING, PICTURES, module.seed, 1)
    t_min, t_max = module.t_range
    schedule = levels(t_max, STEPS, last_variance(t_min))
    start = start_from(module.prior, schedule[0], SAMPLES, generator)[0].to(module.working_dtype)
    found = anneal(module.evaluated, start, schedule, generator=generator, steps=0, adjust=False)
    return tile(arrange(found.images), caption=f"{SAMPLES} samples, {STEPS} levels", side=WIDTH // 3)
