"""The model and the images that are measured, the images' random numbers, and the stages that give rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dualscore.densities import GaussianMixture
from dualscore.energy import EnergyModel, ScoreModel
from dualscore.gaussian import StationaryGaussian
from dualscore.images import dequantize
from dualscore.likelihood.bound import Mirrored
from dualscore.noise import fixed_noise, fixed_signs, fixed_uniform

Rows = dict[str, Tensor]
"""Named figures of n images in float64, each of shape (n,) or (n, m); `position` (int64) says of which."""

KINDS = {"train": "training", "val": "validation", "test": "test"}  # names of the splits' images


def joined(one: Rows, other: Rows) -> tuple[Tensor, Tensor]:
    """Indices, of one shape (m,), into two tables of the images that both hold, in the order of positions."""
    a, b = one["position"], other["position"]
    mine, theirs = torch.isin(a, b).nonzero()[:, 0], torch.isin(b, a).nonzero()[:, 0]
    return mine[a[mine].argsort()], theirs[b[theirs].argsort()]


def plain_rows(rows: Rows) -> Rows:
    """Rows as they are kept: on the CPU, in double precision but for integers."""
    kept = {name: values.detach().cpu() for name, values in rows.items()}
    return {name: values if values.dtype == torch.int64 else values.double() for name, values in kept.items()}


# Which of an image's independent draws a quantity uses; strata take one each, from STRATA on.
NORMALIZER, LEVELS, DECODER, HEAT, ODE, STRATA = 0, 1, 2, 3, 4, 10
AGAIN, CERTIFICATE, CALIBRATION = 1_000, 2_000, 3_000
"""Second, independent draws of the strata; those of the certificate; those of noisy images' own levels."""
_OTHERS = {"train": 10_000, "val": 20_000}
"""Images that choose (t0 and t1) have other noise than those that are reported, whatever their positions."""


@dataclass(frozen=True)
class Subject:
    """The model to be measured, and what is known of its images."""

    model: ScoreModel  # on the device, in the precision it is measured in
    prior: StationaryGaussian  # Gaussian of the training images, on the same device
    density: GaussianMixture | None  # the truth, where it is known, on the same device
    quantized: bool  # whether images are 8-bit
    dequantize: bool  # whether the model was trained on dequantized images
    t_range: tuple[float, float]  # smallest and largest noise variance in training, in pixel²
    seed: int

    @property
    def energy(self) -> EnergyModel:
        """The model, which must be an energy."""
        assert isinstance(self.model, EnergyModel)
        return self.model

    @property
    def is_energy(self) -> bool:
        """Whether the model has an energy; a denoiser has none."""
        return isinstance(self.model, EnergyModel)

    def denoiser(self, mirror: bool | str) -> ScoreModel:
        """The model as the bound's denoiser: averaged over its orders, or with its mirror image, or not."""
        return (self.model.averaged() or Mirrored(self.model)) if mirror else self.model

    def inside(self, noise_variance: float) -> bool:
        """Whether the model was trained at a noise variance."""
        return 0.999 * self.t_range[0] <= noise_variance <= 1.001 * self.t_range[1]


@dataclass(frozen=True)
class Images:
    """A batch of clean pixels, and which images they are."""

    clean: Tensor  # pixels in [0, 1], shape (B, C, H, W), on the device
    position: list[int]
    split: str = ""  # `train` or `val` for images that choose; anything else for those that are reported
    ordinal: Tensor | None = None
    """Places among the images that are measured, int64, shape (B,), where images share levels and strata."""

    def noise(self, subject: Subject, draw: int) -> Tensor:
        """Standard normal noise that belongs to these images, shape (B, C, H, W)."""
        draw += _OTHERS.get(self.split, 0)
        return fixed_noise(self.position, self.clean.shape[1:], subject.seed, draw).to(self.clean)

    def uniform(self, subject: Subject, shape: Sequence[int], draw: int) -> Tensor:
        """Uniform numbers that belong to these images, shape (B, *shape)."""
        draw += _OTHERS.get(self.split, 0)
        return fixed_uniform(self.position, shape, subject.seed, draw).to(self.clean)

    def probe(self, subject: Subject, draw: int) -> Tensor:
        """Hutchinson's probes that belong to these images, shape (B, C, H, W)."""
        signs = fixed_signs(self.position, self.clean.shape[1:], subject.seed, draw)
        return subject.prior.synthesize(signs.to(self.clean))

    def with_density(self, subject: Subject, draw: int = 0) -> Tensor:
        """The images spread over their quantisation step, if they have one, shape (B, C, H, W)."""
        if not subject.quantized:
            return self.clean
        return dequantize(self.clean, self.uniform(subject, self.clean.shape[1:], draw))

    def as_trained(self, subject: Subject) -> Tensor:
        """The images as the model saw them in training: dequantized or not, shape (B, C, H, W)."""
        return self.with_density(subject) if subject.dequantize else self.clean

    def constant(self, t: float) -> Tensor:
        """A noise variance for each image, shape (B,)."""
        return torch.full_like(self.clean[:, 0, 0, 0], t)


@dataclass(frozen=True)
class Stage:
    """One quantity, measured of evenly spaced images of a split, or of numbered things that are no images."""

    name: str
    split: str | None  # None where `quantity` needs the numbers in `Images.position` alone, as chains do
    count: int  # images
    quantity: Callable[..., Rows]
    """Of a Subject, of Images and of the settings by name: each image's figures, without `position`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Plain values that decide the figures, beside the model, the data and the seed."""
    marks: dict[str, Any] = field(default_factory=dict)
    """Further ones by which kept rows are told apart, which the quantity does not take."""
    batch_divisor: int = 1  # batches are this many times smaller, for stages that need more memory per image

    def measure(self, subject: Subject, images: Images) -> Rows:
        """The rows of a batch, without graph."""
        with torch.no_grad():
            return self.quantity(subject, images, **self.settings)
