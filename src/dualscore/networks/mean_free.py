r"""Gray patches less their mean, as vectors: what density models of BSDS300's patches are compared on.

A patch of n pixels less its mean has n − 1 coordinates v in an orthonormal basis, in which noise is the same
in every direction. They are those whose DCT-II, of length n − 1, are the patch's DCT coefficients but the
first, so that a spectrum of images is one of these vectors too. Others leave out the last pixel instead: the
density of the first n − 1 pixels is √n times that of v.
Source: Zoran and Weiss 2011, ICCV, for the patches; Uria, Murray, Larochelle 2013, arXiv 1306.0186.
"""

import math
from functools import cache

import torch
from torch import Tensor

from dualscore.energy import EnergyModel, Gradients, ScoreModel
from dualscore.gaussian import dct_matrix


@cache  # every batch of data asks for it
def mean_free_basis(side: int) -> Tensor:
    """Orthonormal vectors orthogonal to the constant, as rows: float64, shape (side² − 1, side²)."""
    image = dct_matrix(side)
    return dct_matrix(side**2 - 1).mT @ torch.kron(image, image)[1:]


def mean_free_spectrum(spectrum: Tensor) -> Tensor:
    """Of images' DCT coefficients (1, 1, H, W) that of the vectors', (1, 1, 1, H·W − 1)."""
    return spectrum.flatten()[1:].view(1, 1, 1, -1)


def to_vectors(patches: Tensor) -> Tensor:
    """Coordinates, shape (B, 1, 1, side² − 1), of patches (B, 1, side, side) less their mean."""
    basis = mean_free_basis(patches.shape[-1]).to(patches)
    return (patches.flatten(1) @ basis.mT)[:, None, None]


class MeanFreeEnergy(EnergyModel):
    """The energy of vectors: that of the patches, side × side, that they are coordinates of.

    Args:
        energy: of patches (B, 1, side, side) of mean zero, a density over that subspace.
        side: of the patches, in pixels.
    """

    basis: Tensor

    def __init__(self, energy: EnergyModel, side: int) -> None:
        super().__init__()
        self.energy, self.side = energy, side
        self.normalized = energy.normalized
        self.register_buffer("basis", mean_free_basis(side).to(torch.get_default_dtype()), persistent=False)

    def forward(self, noisy: Tensor, noise_variance: Tensor) -> Tensor:
        """U(v, t) in nats, of v (B, 1, 1, side² − 1) at t ≥ 0 (B,), shape (B,)."""
        return self.energy(self.patches(noisy), noise_variance)  # type: ignore[no-any-return]

    def patches(self, vectors: Tensor) -> Tensor:
        """The patches, shape (B, 1, side, side), that vectors (B, 1, 1, side² − 1) are of."""
        return (vectors.flatten(1) @ self.basis).view(-1, 1, self.side, self.side)

    def averaged(self) -> ScoreModel | None:
        """That of the patches' energy."""
        of_patches = self.energy.averaged()
        return None if of_patches is None else _MeanFreeScore(self, of_patches)


class _MeanFreeScore(ScoreModel):
    """A score of patches as one of vectors."""

    def __init__(self, vectors: MeanFreeEnergy, of_patches: ScoreModel) -> None:
        super().__init__()
        self.vectors, self.of_patches = vectors, of_patches

    def gradients(self, noisy: Tensor, noise_variance: Tensor, *, time: bool = True) -> Gradients:  # noqa: ARG002
        """∇_v U (B, 1, 1, side² − 1) alone."""
        patches = self.of_patches.gradients(self.vectors.patches(noisy), noise_variance, time=False).image
        return Gradients((patches.flatten(1) @ self.vectors.basis.mT).view(noisy.shape), None)


def table_nats(bits_per_dim: float, side: int) -> float:
    """The log-likelihood in nats that tables of BSDS300 have, from 8 + U/(d ln 2) of vectors of d dimensions.

    Theirs is of the first d pixels, the grey levels 0 … 255 and uniform noise divided by 256, not by 255.
    """
    dimension = side**2 - 1
    energy = (bits_per_dim - 8.0) * dimension * math.log(2.0)
    return -energy + dimension * math.log(256.0 / 255.0) + math.log(side)
