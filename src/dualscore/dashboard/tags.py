"""The names of what is logged, the same in every run, and what TensorBoard says of them."""

import math
from collections.abc import Iterator

from dualscore.likelihood import Estimate

BAND = 2.0
"""Standard errors from a figure to either edge of its band."""
STEP = "step = training step, counted from 0"
DESCRIPTIONS = {
    "val/bits_per_dim": "Bits/dim of validation images by the paper's protocol: one evaluation at t = 0.",
    "val/bound": "Estimated upper bound on −log2 P in bits/dim, of the denoiser's diffusion.",
    "val/log_normalizer": "log Z in nats: how far from normalized the network's energies are.",
    "final/": "The evaluation after training, of the best checkpoint, in bits/dim.",
    "gaussian/stationary": "Bits/dim of the training images' stationary Gaussian on the same images.",
    "gaussian/full_covariance": "Bits/dim of the Gaussian with a full covariance, from the evaluation.",
    "published/": "Published figures of others, in bits/dim of the same data set; docs/reproduce.md.",
    "space_loss/": "Space (denoising) loss at one input PSNR; it is d_eff/d.",
    "time_loss/": "Time loss at one input PSNR; at best 1/(2d) or below.",
    "psnr/": "PSNR in dB of denoised validation images at one input PSNR.",
    "psnr_gain_linear/": "dB above the best linear denoiser (Wiener's filter of the training images' "
    "spectrum), same images, same noise.",
    "psnr_gain_score_network/": "dB above the score network that the text `run/about` names, same images, "
    "same noise; for ImageNet64 the published one.",
    "effective_dimension/": "d_eff = E‖x − x̂‖²/t in dimensions, from the denoiser's error.",
    "train/stall": "Fraction of the time that training waits for images.",
    "train/images_per_second": "Over all devices, validations left out.",
    "train/learning_rate": "Of the network's weights.",
    "train/largest_gradient_norm": "The largest since the entry before.",
    "train/skipped_steps": "Steps left out so far in this process, because their gradient was not finite.",
    "data/skipped_images": "Unreadable training images of this epoch, which others took the place of.",
    "events/": "How often it happened in this run so far; the text `run/events` says when and why.",
}  # fmt: skip


def describe(tag: str) -> str:
    """What TensorBoard says of a curve; empty where its name says all."""
    found = [text for prefix, text in DESCRIPTIONS.items() if tag.startswith(prefix)]
    return f"{found[0]} ({STEP}.)" if found else ""


def level(psnr_in: float) -> str:
    """How a noise level is named in tags: its input PSNR."""
    return f"{round(psnr_in, 1):+03g}dB"


def band(tag: str, estimate: Estimate) -> Iterator[tuple[str, float]]:
    """A figure and the edges of its band, as they are logged.

    Args:
        tag: of the figure.
        estimate: the figure.

    Yields:
        Tags and values: the figure, then `low` and `high`, two standard errors away, where there is an error.
    """
    yield tag, estimate.value
    if not math.isnan(estimate.stderr):
        yield f"{tag}_low", estimate.value - BAND * estimate.stderr
        yield f"{tag}_high", estimate.value + BAND * estimate.stderr
