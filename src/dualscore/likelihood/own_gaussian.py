"""An image's own Gaussian, whose denoiser's error is known exactly: it takes noise out of the bound.

Source: Owen 2013, Monte Carlo theory, methods and examples, chapter 8, control variates.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from dualscore.gaussian import dct_matrix

_BLOCK = 8  # side of the blocks whose cosines are its axes


class OwnGaussian:
    """What the denoiser of a Gaussian of the image's own has in the mean over Gaussian images, known exactly.

    Its axes are the colours' own and the cosines of blocks of 8×8, as photographs are flat here and rough
    there; its variances a_k are the squared coefficients of x, in means of two by two frequencies: by
    themselves they are as if the denoiser knew them.

    Args:
        clean: x, (B, C, H, W).
        mean: of the images, per channel, (C,).
    """

    def __init__(self, clean: Tensor, mean: Tensor) -> None:
        centred = clean - mean[:, None, None]
        pixels = centred.flatten(2).double()
        self.colours = torch.linalg.eigh(pixels @ pixels.mT / pixels.shape[2]).eigenvectors.to(clean.dtype)
        self.variances = torch.cat([_smooth(a).flatten(1) for a in self._squares(centred)], dim=1)

    def _squares(self, images: Tensor) -> Iterator[Tensor]:
        """Squared coefficients of each area that has blocks of one size, (B, C, blocks, h, w)."""
        images = torch.einsum("bck,bchw->bkhw", self.colours, images)
        for rows in _areas(images.shape[2]):
            for columns in _areas(images.shape[3]):
                area = images[:, :, rows, columns]
                height, width = (min(_BLOCK, length) for length in area.shape[2:])
                blocks = area.unfold(2, height, height).unfold(3, width, width).flatten(2, 3)
                across = dct_matrix(height).to(area) @ blocks @ dct_matrix(width).to(area).mT
                yield across.double().square()

    def space_loss(self, t: Tensor) -> Tensor:
        """E‖x − x̂‖²/(t d) of Gaussian images at t (B,), (B,)."""
        return self._left(t).mean(dim=1)

    def by_chance(self, noise: Tensor, t: Tensor) -> Tensor:
        """What noise z (B, C, H, W) at t (B,) adds to that mean by its squares: Σ_k w_k (z_k² − 1)/d, (B,).

        w_k = (a_k/(a_k + t))² is the share of z_k² that is left; of mean zero.
        """
        squares = torch.cat([a.flatten(1) for a in self._squares(noise)], dim=1)
        left = self._left(t).square()
        return (left * (squares - 1.0)).mean(dim=1)

    def _left(self, t: Tensor) -> Tensor:
        """a_k/(a_k + t), the share of a coefficient that its denoiser leaves, (B, d)."""
        return self.variances / (self.variances + t.double()[:, None])

    def diffusion(self, t0: float, t1: float) -> Tensor:
        """½ ∫ E‖x − x̂‖² dt/t² from t0 to t1, in nats, (B,)."""
        difference = torch.log1p(self.variances / t0) - torch.log1p(self.variances / t1)
        return 0.5 * difference.sum(dim=1)


def _areas(length: int) -> list[slice]:
    """Of a side: what whole blocks fill, and the rest."""
    whole = length // _BLOCK * _BLOCK
    return [area for area in (slice(0, whole), slice(whole, length)) if area.start < area.stop]


def _smooth(squares: Tensor) -> Tensor:
    """Means of two by two neighbours of (…, h, w), at each of them."""
    height, width = squares.shape[-2:]
    size = (min(2, height), min(2, width))
    means = F.avg_pool2d(squares.flatten(0, -3)[:, None], size, ceil_mode=True)
    means = means.repeat_interleave(2, dim=2)[:, :, :height].repeat_interleave(2, dim=3)[..., :width]
    return means.reshape(squares.shape)
