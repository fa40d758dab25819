"""What is measured of each image, whichever side it is on: its probability and its effective dimensions."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dualscore.images import to_pixels, to_stored
from dualscore.model import ImageModel
from dualscore.noise import variance_at_psnr
from dualscore.scoring.effective import effective_dimension
from dualscore.scoring.files import Chunk
from dualscore.scoring.stream import NOT_FINITE, Problems


@dataclass
class Measured:
    """Figures of a set of images; a few numbers an image, so that sets may be large."""

    bits: Tensor
    """Bits/dim by the paper's protocol, float64, shape (n,)."""
    profile: Tensor
    """Effective dimension at each noise level, float64, > 0, shape (n, K)."""
    paths: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    """A checksum of each image's pixels as the model saw them: equal for equal images."""

    def __getitem__(self, chosen: Tensor) -> "Measured":
        """Some of the images, chosen by a bool tensor of shape (n,)."""
        which = chosen.nonzero()[:, 0].tolist()
        return Measured(
            self.bits[chosen],
            self.profile[chosen],
            [self.paths[k] for k in which],
            [self.keys[k] for k in which],
        )


def measure(
    model: ImageModel,
    chunks: Iterator[Chunk],
    levels: Sequence[float],
    problems: Problems,
    advance: Callable[[int], object],
) -> Measured:
    """Measure images as they come.

    Args:
        model: with a normalization and an image shape.
        chunks: batches of decoded files.
        levels: noise levels of the effective dimension, K of them, in dB.
        problems: told of images whose figures are not finite; they are left out.
        advance: told the number of images after each batch.

    Returns:
        The figures, in the order of the files.
    """
    assert model.image_shape is not None
    variances = [variance_at_psnr(level) for level in levels]
    found = Measured(torch.zeros(0, dtype=torch.float64), torch.zeros(0, len(levels), dtype=torch.float64))
    bits, profiles = [found.bits], [found.profile]
    for chunk in chunks:
        clean = to_pixels(chunk.images, model.image_shape[0])
        batch_bits = model.bits_per_dim(clean, len(clean)).double().cpu()
        batch_profile = effective_dimension(model, clean, variances)[:, :, 0]
        sound = batch_bits.isfinite() & batch_profile.log().isfinite().all(dim=1)
        for image, path, kept in zip(to_stored(clean), chunk.paths, sound.tolist(), strict=True):
            if kept:
                found.paths.append(path)
                found.keys.append(hashlib.blake2b(image.numpy().tobytes(), digest_size=16).hexdigest())
            else:
                problems.add([(path, NOT_FINITE)])
        bits.append(batch_bits[sound])
        profiles.append(batch_profile[sound])
        advance(len(chunk.paths))
    found.bits, found.profile = torch.cat(bits), torch.cat(profiles)
    return found


def reference_half(keys: Sequence[str]) -> Tensor:
    """Which images are the reference that the others are held against: half, chosen by what is in them.

    Equal images are on one side, and neither names nor order matter.

    Args:
        keys: the images' checksums, length n.

    Returns:
        True for the half of the different images with the smaller checksums, bool, shape (n,).
    """
    rank = {key: number for number, key in enumerate(sorted(set(keys)))}
    return torch.tensor([2 * rank[key] < len(rank) for key in keys], dtype=torch.bool)
