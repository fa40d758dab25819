r"""Anybody's denoisers as scores, whatever their networks are told and predict.

Here a denoiser is D(y, t) = E[x | y = x + √t z] of pixels in [0, 1]. Most networks see x′ = 2x − 1 instead,
whose noise has the standard deviation σ′ = 2√t, and many a scaled version of it:

    ε-prediction (DDPM)     σ′ = √((1 − ᾱ)/ᾱ)    x̂′ = y′ − σ′ ε̂(√ᾱ y′, τ)
    v-prediction            the same              x̂′ = √ᾱ (√ᾱ y′) − √(1 − ᾱ) v̂(√ᾱ y′, τ)
    x-prediction            the same              x̂′ = x̂₀(√ᾱ y′, τ)
    EDM                     σ′ = σ                x̂′ = D(y′, σ)
    rectified flow          σ′ = s/(1 − s)        x̂′ = x_s − s û(x_s, s), of x_s = (1 − s) x′ + s ε

Any function is a denoiser for the bound; a poor one has a loose bound.
Sources: Ho et al. 2020, arXiv 2006.11239; Salimans and Ho 2022, arXiv 2202.00512; Karras et al. 2022, arXiv
2206.00364; Liu et al. 2022, arXiv 2209.03003.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dualscore.energy import Gradients, ScoreModel
from dualscore.errors import ModelError

Denoise = Callable[[Tensor, Tensor], Tensor]
"""Of noisy images (B, C, H, W) and noise levels (B,), the denoised images or whatever a network predicts."""
Prediction = Literal["epsilon", "v_prediction", "sample"]


def asked(function: Denoise, images: Tensor, levels: Tensor, *, halves: bool = False) -> Tensor:
    """What a function gives for images (B, C, H, W) at levels (B,), of the images' shape and type.

    A ModelError says what is wrong with it. With `halves` it may have twice the channels, of which the second
    half, learned variances, is dropped.
    """
    given = function(images.clone(), levels.clone())  # which it may write into
    if not isinstance(given, Tensor):
        raise ModelError(
            f"the denoiser gave a {type(given).__name__}, not a tensor: hand on what it predicts"
        )
    if halves and given.ndim == 4 and given.shape[1] == 2 * images.shape[1]:
        given = given[:, : images.shape[1]]
    if given.shape != images.shape:
        raise ModelError(
            f"the denoiser gave {tuple(given.shape)} for images {tuple(images.shape)}: both must be alike"
        )
    if not bool(given.isfinite().all()):
        where = f"from {float(levels.min()):.3g} to {float(levels.max()):.3g}"
        raise ModelError(f"the denoiser gave values that are not finite, at levels {where}")
    return given.to(images)


class GivenDenoiser(ScoreModel):
    """A denoiser D(y, t) → x̂ on pixels in [0, 1] as a score: ∇_y U = (y − x̂)/t. It has no energy.

    Args:
        function: of y (B, C, H, W) and t (B,), variances in pixel²; gives x̂ of y's shape.
        t_range: smallest and largest variance that it knows, in pixel².

    `image_shape`, (C, H, W), may be set where images of one kind alone go; the command reads it.
    """

    image_shape: tuple[int, int, int] | None = None

    def __init__(self, function: Denoise, t_range: tuple[float, float]) -> None:
        super().__init__()
        if not 0.0 < t_range[0] < t_range[1]:
            raise ModelError(f"t_range must be variances 0 < smallest < largest, got {t_range}")
        self.function, self.t_range = function, t_range

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:  # noqa: ARG002
        """(y − x̂)/t, shape (B, C, H, W); a ModelError says what is wrong with x̂."""
        denoised = asked(self.function, noisy, noise_variance)
        return Gradients((noisy - denoised) / noise_variance[:, None, None, None], None)


def of_pixels(
    function: Denoise,
    *,
    t_range: tuple[float, float],
    pixels: tuple[float, float] = (0.0, 1.0),
    level: Literal["variance", "deviation"] = "variance",
) -> GivenDenoiser:
    """A function that denoises images itself.

    Args:
        function: D(y, level) → x̂, of y (B, C, H, W) and noise levels (B,).
        t_range: smallest and largest noise variance that it knows, of pixels in [0, 1].
        pixels: black and white as it sees them, (−1, 1) or (0, 255) for others than (0, 1).
        level: whether it is told the noise's variance or its standard deviation, on that scale.

    Returns:
        The denoiser of pixels in [0, 1].
    """
    black, white = pixels
    width = white - black
    if not width > 0 or level not in ("variance", "deviation"):
        raise ModelError(
            f"pixels must be (black, white), rising, level variance or deviation: {pixels}, {level!r:.80}"
        )

    def denoise(noisy: Tensor, noise_variance: Tensor) -> Tensor:
        told = noise_variance * width**2
        given = asked(function, black + width * noisy, told if level == "variance" else told.sqrt())
        return (given - black) / width

    return GivenDenoiser(denoise, t_range)


def of_edm(function: Denoise, *, deviations: tuple[float, float] = (0.002, 80.0)) -> GivenDenoiser:
    """D(y′; σ) of pixels in [−1, 1] and standard deviations (B,), known between `deviations`."""
    low, high = deviations
    t_range = (0.25 * low**2, 0.25 * high**2)
    return of_pixels(function, t_range=t_range, pixels=(-1.0, 1.0), level="deviation")


def of_steps(
    network: Denoise,
    cumulative: Tensor,
    *,
    prediction: Prediction = "epsilon",
    between: bool = False,
) -> GivenDenoiser:
    """A network that knows steps τ = 0 … T−1 of a noise schedule, and predicts the noise, v, or the image.

    Args:
        network: of √ᾱ y′ (B, C, H, W), pixels in [−1, 1], and steps (B,).
        cumulative: ᾱ at each step, falling, shape (T,): `alphas_cumprod` of a scheduler.
        prediction: what it gives, of y's shape.
        between: whether it takes steps that are no integers; else it is asked at the nearest one.

    Returns:
        The denoiser of pixels in [0, 1].
    """
    found = torch.as_tensor(cumulative).detach().double().cpu()
    between_ends = found.ndim == 1 and len(found) > 1 and bool(((found > 0) & (found < 1)).all())
    if not between_ends or bool((found.diff() >= 0).any()):
        raise ModelError("cumulative must be ᾱ of every step, between 0 and 1 and falling (alphas_cumprod)")
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise ModelError(f"prediction must be epsilon, v_prediction or sample, got {prediction!r:.80}")
    log_deviations = 0.5 * torch.log((1.0 - found) / found)
    ends = 0.25 * float((2.0 * log_deviations[0]).exp()), 0.25 * float((2.0 * log_deviations[-1]).exp())

    def denoise(noisy: Tensor, noise_variance: Tensor) -> Tensor:
        wanted = (0.5 * noise_variance.detach().double().cpu().log() + torch.log(torch.tensor(2.0))).double()
        step = _place(log_deviations, wanted)
        if not between:
            step = step.round()
            wanted = log_deviations[step.long()]
        deviation = wanted.exp().to(noisy)[:, None, None, None]
        root = (1.0 + deviation.square()).rsqrt()  # √ᾱ
        centred = 2.0 * noisy - 1.0
        told = step.to(noisy) if between else step.long().to(noisy.device)
        given = asked(network, root * centred, told, halves=True)
        if prediction == "epsilon":
            denoised = centred - deviation * given
        elif prediction == "v_prediction":
            denoised = root * (root * centred) - (deviation * root) * given
        else:
            denoised = given
        return 0.5 * (denoised + 1.0)

    return GivenDenoiser(denoise, ends)


def of_flow(velocity: Denoise, *, times: tuple[float, float] = (0.001, 0.999)) -> GivenDenoiser:
    """The velocity û(x_s, s) ≈ ε − x′ of x_s = (1 − s) x′ + s ε, x′ in [−1, 1], s (B,) between `times`."""
    if not 0.0 < times[0] < times[1] < 1.0:
        raise ModelError(f"times must be 0 < first < last < 1 (at 1 there is no image left), got {times}")
    low, high = (0.25 * (s / (1.0 - s)) ** 2 for s in times)

    def denoise(noisy: Tensor, noise_variance: Tensor) -> Tensor:
        deviation = 2.0 * noise_variance.sqrt()
        s = deviation / (1.0 + deviation)
        share = s[:, None, None, None]
        mixed = (1.0 - share) * (2.0 * noisy - 1.0)
        return 0.5 * (mixed - share * asked(velocity, mixed, s) + 1.0)

    return GivenDenoiser(denoise, (low, high))


def _place(rising: Tensor, wanted: Tensor) -> Tensor:
    """Places (B,) of values among rising ones (T,), between them where they are between."""
    right = torch.searchsorted(rising, wanted).clamp(1, len(rising) - 1)
    left = right - 1
    return (left + (wanted - rising[left]) / (rising[right] - rising[left])).clamp(0, len(rising) - 1)
