r"""Streaming second-order statistics of uint8 images, merged exactly enough to be the same on every run.

Pixel sums are integers, so mean and variance are exact. The spectrum sums ẑ ẑᵀ, ẑ being the orthonormal 2-D
DCT-II of x/255 − ½. Subtracting the mean m afterwards only changes the constant frequency, since the DCT of a
constant image c is c √(HW) there and 0 elsewhere:  E[ŷ ŷᵀ](0) = E[ẑ ẑᵀ](0) − HW (m − ½)(m − ½)ᵀ.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

CHUNK = 256


@dataclass
class Sums:
    """Sums over ``images`` images: pixels and their squares, shape (C,); ẑ ẑᵀ, shape (C, C, H, W)."""

    images: int
    pixels: NDArray[np.int64]
    squares: NDArray[np.int64]
    moments: NDArray[np.float64]

    @classmethod
    def zeros(cls, image_shape: tuple[int, int, int]) -> "Sums":
        """Sums over no image of shape (C, H, W)."""
        channels, height, width = image_shape
        nothing = np.zeros(channels, np.int64)
        return cls(0, nothing, nothing.copy(), np.zeros((channels, channels, height, width)))

    def add(self, images: NDArray[np.uint8]) -> None:
        """Add images of shape (N, C, H, W)."""
        for start in range(0, len(images), CHUNK):
            chunk = images[start : start + CHUNK]
            wide = chunk.astype(np.int64)
            self.images += len(chunk)
            self.pixels += wide.sum(axis=(0, 2, 3))
            self.squares += np.square(wide).sum(axis=(0, 2, 3))
            coefficients = dctn(chunk / 255 - 0.5, axes=(2, 3), norm="ortho")
            for a in range(chunk.shape[1]):
                for b in range(a + 1):
                    # a plain sum, not a matrix product: BLAS may round differently from run to run
                    product = (coefficients[:, a] * coefficients[:, b]).sum(axis=0)
                    self.moments[a, b] += product
                    if a != b:
                        self.moments[b, a] += product

    def merge(self, other: "Sums") -> None:
        """Add another's sums to these."""
        self.images += other.images
        self.pixels += other.pixels
        self.squares += other.squares
        self.moments += other.moments

    def mean_and_variance(self) -> tuple[list[float], list[float]]:
        """Mean and variance of each channel's pixels, in units of pixels in [0, 1]."""
        count = self.images * self.moments.shape[2] * self.moments.shape[3]
        pairs = list(zip(self.pixels.tolist(), self.squares.tolist(), strict=True))
        mean = [total / (255 * count) for total, _ in pairs]
        variance = [(count * square - total**2) / (255 * count) ** 2 for total, square in pairs]
        return mean, variance

    def spectrum(self) -> NDArray[np.float64]:
        """E[ŷ ŷᵀ] of the centred images, shape (C, C, H, W), in pixel² with pixels in [0, 1]."""
        mean = np.array(self.mean_and_variance()[0]) - 0.5
        spectrum = self.moments / self.images
        spectrum[:, :, 0, 0] -= np.outer(mean, mean) * spectrum.shape[2] * spectrum.shape[3]
        return spectrum
