"""A trained model as its users hold it: energies, denoising, likelihoods."""

import math
from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from dualscore.constant import constant, kept
from dualscore.energy import BY_FORM, EnergyModel, MappedEnergy, ScoreModel, normalized_by_form, of_any_size
from dualscore.errors import NormalizationError, ScoreError
from dualscore.gaussian import StationaryGaussian
from dualscore.likelihood import (
    bits,
    bits_per_dim,
    check_clean,
    check_floating,
    dequantized_bits_per_dim,
    log_normalizer,
    noise_entropy,
)  # fmt: skip
from dualscore.likelihood.bound import bound_of
from dualscore.likelihood.noise_level import NoiseLevel, noise_level, noise_range
from dualscore.likelihood.normalizer import MeasuredMass, Normalization, moved
from dualscore.likelihood.units import numbers
from dualscore.noise import MEASURING, corrupt, seeded_generator
from dualscore.origin import Origin as Origin


def _sides(shape: Iterable[int]) -> str:
    """A shape as people write it: 3×64×64."""
    return "×".join(map(str, shape))


class ImageModel(nn.Module):
    """A score model with its normalization. Everything works in batches, on the device the model is on.

    Results can be differentiated, to any order, by images or noise variances that ask for it; where none
    asks, no graph is kept. The weights are constants here: they are trained through `score_model`.

    Args:
        score_model: an energy or a denoiser.
        image_shape: (C, H, W) of the training images; None where any size goes.
        log_normalizer: log Z in nats; None where it is not known.
        log_normalizer_stderr: its standard error in nats; None where it is not known.
        normalized_on: how log Z was estimated, for people.
        t_max: the noise variance at which log Z is estimated, in pixel².
        t_min: the smallest noise variance of training, in pixel²; 0 where it is not known.
        noisy_entropy: of the training images at t_max, in nats; None for that of the noise alone.
        prior: the training images' Gaussian, where sampling starts; None where it is not known.
        provenance: what the model came from, for people.
        origin: what `dualscore.save` writes beside the weights; None where that is not known.
        mass: what the energy integrates to with that log Z, as annealed chains found; None if nobody looked.
    """

    def __init__(
        self,
        score_model: ScoreModel,
        *,
        image_shape: tuple[int, int, int] | None = None,
        log_normalizer: float | None = None,
        log_normalizer_stderr: float | None = None,
        normalized_on: str = "",
        t_max: float = 1e3,
        t_min: float = 0.0,
        noisy_entropy: float | None = None,
        prior: StationaryGaussian | None = None,
        provenance: str = "",
        origin: Origin | None = None,
        mass: MeasuredMass | None = None,
    ) -> None:
        super().__init__()
        self.score_model = score_model
        self.image_shape = image_shape
        self.any_size = of_any_size(score_model)
        """Whether images of every size are of one density: the energy is normalized by its form at each."""
        if normalized_by_form(score_model):
            log_normalizer, log_normalizer_stderr, normalized_on = 0.0, 0.0, BY_FORM
        self.log_normalizer, self.log_normalizer_stderr = log_normalizer, log_normalizer_stderr
        self.normalized_on = normalized_on
        self.normalized_shape: tuple[int, ...] | None = image_shape  # (C, H, W) that log Z belongs to
        self.t_max, self.t_min = t_max, t_min
        self.noisy_entropy = noisy_entropy
        self.prior = prior
        self.provenance = provenance
        self.origin = origin
        self.mass = mass

    @property
    def normalization(self) -> Normalization | None:
        """Log Z with its error, how it was found, and the mass that is left with it; None without log Z.

        `log_prob` is that of a density as far as the mass is one. A mass that was not measured, or is
        above one, is told by `str(model.normalization)`.
        """
        if self.log_normalizer is None:
            return None
        how = self.normalized_on or "not said"
        return Normalization(self.log_normalizer, self.log_normalizer_stderr, how, self.mass)

    def at(self, height: int, width: int) -> "ImageModel":
        """The model for images of one other size, with the same weights; itself where it is of one size."""
        if not self.any_size or self.image_shape is None or self.image_shape[1:] == (height, width):
            return self
        return ImageModel(
            self.score_model, image_shape=(self.image_shape[0], height, width), t_max=self.t_max,
            t_min=self.t_min, prior=None if self.prior is None else self.prior.at(height, width),
            provenance=self.provenance, origin=self.origin,
        ).eval()  # fmt: skip

    @property
    def like(self) -> Tensor:
        """A tensor of any shape on the device, and of the type, that everything is computed in."""
        # A known density has no parameters.
        return next(chain(self.parameters(), self.buffers()))

    def _energy(self) -> EnergyModel:
        if not isinstance(self.score_model, EnergyModel):
            raise NormalizationError("this model is a denoiser: it has no energy and no likelihood")
        return self.score_model

    def _batches(
        self, images: Tensor, noise_variance: Tensor | float, batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        wanted: tuple[int | str, ...] = self.image_shape or ("C", "H", "W")
        if self.any_size and self.image_shape is not None:
            wanted = (self.image_shape[0], "H", "W")
        fits = images.ndim == 4 and all(
            isinstance(side, str) or side == found
            for side, found in zip(wanted, images.shape[1:], strict=True)
        )
        if not fits or (self.any_size and not images[:1].numel() and len(images)):
            raise ValueError(
                f"images must have shape (B, {', '.join(map(str, wanted))}), got {tuple(images.shape)}"
            )
        check_floating(images)
        like = self.like
        t = torch.as_tensor(noise_variance, dtype=like.dtype, device=like.device)
        if t.shape not in {(), (1,), (len(images),)}:
            raise ValueError(
                f"noise variances must be a number or one an image, ({len(images)},), got {tuple(t.shape)}"
            )
        t = t.expand(len(images))
        if numbers((t >= 0).all()) == [False]:  # NaN too
            raise ValueError("noise variances must be ≥ 0")
        for start in range(0, max(len(images), 1), batch_size):
            part = slice(start, start + batch_size)
            yield kept(images[part].to(like)), kept(t[part])

    def _map(
        self,
        method: str,
        images: Tensor,
        noise_variance: Tensor | float,
        batch_size: int,
        summed: tuple[int, ...] = (),
    ) -> Tensor:
        """A method of the score model, which sums over some of an image's dimensions, in batches."""
        function = getattr(constant(self.score_model), method)
        parts = []
        for y, t in self._batches(images, noise_variance, batch_size):
            if len(y):
                parts.append(function(y, t))
            else:  # No network is asked what it makes of nothing.
                nothing = y + t[:, None, None, None]
                parts.append(nothing.sum(summed) if summed else nothing)
        return torch.cat(parts)

    def energy(self, images: Tensor, noise_variance: Tensor | float = 0.0, batch_size: int = 256) -> Tensor:
        """U(y, t) in nats, as the network gives it (add log Z to normalize it).

        Args:
            images: y, shape (B, C, H, W), where clean pixels are in [0, 1].
            noise_variance: t ≥ 0 in pixel², a number or shape (B,).
            batch_size: images evaluated at once.

        Returns:
            Energies, shape (B,), on the model's device.

        Raises:
            ValueError: if shapes, types or variances are impossible.
            NormalizationError: if the model is a denoiser.
        """
        self._energy()
        return self._map("__call__", images, noise_variance, batch_size, (1, 2, 3))

    def energy_map(
        self, images: Tensor, noise_variance: Tensor | float = 0.0, batch_size: int = 256
    ) -> Tensor:
        """U(y, t) in nats split over pixels, shape (B, H, W); its sums over H and W are `energy`.

        Arguments and errors as in `energy`; a ScoreError too, if the energy is not a sum over pixels. What
        the split means, the `energy_map` of its energy says.
        """
        if not isinstance(self._energy(), MappedEnergy):
            raise ScoreError("this model's energy is of whole vectors: it cannot be split over pixels")
        return self._map("energy_map", images, noise_variance, batch_size, (1,))

    def denoise(self, images: Tensor, noise_variance: Tensor | float, batch_size: int = 256) -> Tensor:
        """The denoised images x̂(y, t), shape (B, C, H, W); arguments as in `energy`."""
        return self._map("denoise", images, noise_variance, batch_size)

    def log_prob(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """−U(x, 0) − log Z of clean images in nats, shape (B,): a log density as far as the mass is one.

        Of images x in [0, 1], shape (B, C, H, W), `batch_size` at once. A NormalizationError says that log Z
        is not known, or that of another size, or that the model is a denoiser; a ValueError refuses images
        outside [0, 1] or of another shape.
        """
        self._energy()
        if self.log_normalizer is None or not math.isfinite(self.log_normalizer):
            raise NormalizationError(
                "the model's normalization is not known, so its energies are not yet log probabilities: "
                "estimate it with model.normalize(images) on a few hundred images or more"
            )
        own = self.normalized_shape
        if self.image_shape is None and own is not None and images.shape[1:] != own:
            raise NormalizationError(
                f"log Z was estimated on images of {_sides(own)}, and these are of "
                f"{_sides(images.shape[1:])}: estimate it for them with model.normalize(images)"
            )
        if len(images) and images.shape[-2] > 1:  # vectors, of height 1, are no pixels
            check_clean(images)
        return -(self.energy(images, 0.0, batch_size) + self.log_normalizer)

    def bits_per_dim(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """Bits a dimension of each clean image, shape (B,); as `log_prob`.

        By the paper's protocol, 8 + U/(d ln 2); of an energy that knows the grey levels of 8-bit images their
        code length itself, −log₂ P(x)/d.
        """
        return self.in_bits_per_dim(-self.log_prob(images, batch_size), math.prod(images.shape[1:]))

    def in_bits_per_dim(self, energy: Tensor, dimension: int) -> Tensor:
        """Normalized energies of clean images in nats, any shape, as `bits_per_dim` tells them."""
        levels = self._energy().levels
        return dequantized_bits_per_dim(energy, dimension) if levels else bits_per_dim(energy, dimension)

    @torch.no_grad()
    def bound(self, images: Tensor, strata: int = 16, seed: int = 0) -> Tensor:
        """An upper bound on −log₂ P of each 8-bit image by the denoiser alone: one draw, in bits/dim, (B,).

        Of images x on the grey levels k/255, shape (B, C, H, W), by a denoiser in each of `strata` of ln t;
        `dualscore.likelihood.bound.bound_of` says by which. The mean over seeds is the bound. A ValueError
        refuses images off their levels or too large, and models that do not know their images' Gaussian.
        """
        if self.prior is None:
            raise ValueError("the bound ends at a Gaussian of the training images, which this model has not")
        prior = self.prior.at(*images.shape[-2:])
        clean = torch.cat([y for y, _ in self._batches(images, 0.0, max(1, len(images)))])
        generator, ends = seeded_generator(self.like.device, MEASURING, seed), (self.t_min, self.t_max)
        terms = bound_of(constant(self.score_model), clean, prior, ends, strata, generator)
        return bits(terms.total, math.prod(images.shape[1:]))

    def noise_level(self, images: Tensor, batch_size: int = 64) -> NoiseLevel:
        """How noisy each image is: the noise variance at which it is most probable, and its error, (B,).

        Arguments and errors as in `energy`. It takes 15 evaluations of each image.
        """
        energy, ends = constant(self._energy()), noise_range(self.t_min, self.t_max)
        split = self.energy_map if isinstance(self._energy(), MappedEnergy) else None
        found = [noise_level(energy, y, ends, split) for y, _ in self._batches(images, 0.0, batch_size)]
        return NoiseLevel(*map(torch.cat, zip(*found, strict=True)))

    @torch.no_grad()
    def normalize(self, images: Tensor | Iterable[Tensor], seed: int = 0, batch_size: int = 256) -> float:
        """Estimate log Z on given clean images by the paper's protocol, and keep it with its standard error.

        Args:
            images: x in [0, 1], shape (B, C, H, W), or batches of them where they are too many at once.
            seed: of the noise.
            batch_size: images evaluated at once.

        Returns:
            log Z = entropy at t_max − mean U(y, t_max), in nats; see `dualscore.likelihood.log_normalizer`.
            Of an energy that is normalized by its form it is 0, and the images are not looked at.

        Raises:
            ValueError: if there are fewer than two images, they are not pixels in [0, 1] or not of one size,
                or an energy is not finite.
            NormalizationError: if the model is a denoiser.
        """
        like = self.like
        if normalized_by_form(self.score_model):
            return 0.0
        generator = seeded_generator(like.device, MEASURING, seed)
        energies, squares = [], []
        shape: tuple[int, ...] = ()
        for stored in [images] if isinstance(images, Tensor) else images:
            check_clean(stored)
            if shape and tuple(stored.shape[1:]) != shape:
                raise ValueError(
                    f"log Z is that of one size of images: there are {_sides(shape)} and "
                    f"{_sides(stored.shape[1:])} among them"
                )
            shape = tuple(stored.shape[1:])
            for clean, t in self._batches(stored, self.t_max, batch_size):
                noise = torch.randn(clean.shape, generator=generator, dtype=like.dtype, device=like.device)
                energies.append(self.energy(corrupt(clean, noise, t), self.t_max, batch_size))
                squares.append(noise.square().sum(dim=(1, 2, 3)))
        if not energies:
            raise ValueError("there must be at least two images")
        dimension, entropy = math.prod(shape), self.noisy_entropy
        if entropy is None:
            entropy = noise_entropy(dimension, self.t_max)
        found = log_normalizer(torch.cat(energies), torch.cat(squares), dimension, entropy)
        if self.mass is not None and self.log_normalizer is not None:
            self.mass = moved(self.mass, self.log_normalizer - found.value, dimension)
        self.log_normalizer, self.log_normalizer_stderr = found.value, found.stderr
        self.normalized_shape = shape
        count = sum(len(part) for part in energies)
        self.normalized_on = f"estimated by the paper's protocol on {count:,} images at t = {self.t_max:g}"
        return found.value
