"""Images as a file by the causal network's own chain rule: an arithmetic code, encoded and decoded.

Pixel after pixel, of all images at once, so that what the decoder computes is what the encoder computed.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualscore.errors import DataError
from dualscore.evaluation.causal import CausalMLP


def _stream() -> Any:  # noqa: ANN401 - the module is untyped
    try:
        import constriction
    except ImportError:
        raise DataError('not installed: pip install "dualscore[coding]"') from None
    return constriction.stream


def encode(model: CausalMLP, images: Tensor) -> bytes:
    """A file of images of integer levels, (B, C, H, W), all of one size."""
    stream = _stream()
    coder, family = stream.queue.RangeEncoder(), stream.model.Categorical(perfect=False)
    for image, channel, row, column in _places(images):
        tables = _tables(model, images, image, channel, row, column)
        coder.encode(images[:, channel, row, column].numpy().astype(np.int32), family, tables)
    return bytes(np.asarray(coder.get_compressed()).astype("<u4").tobytes())


def decode(model: CausalMLP, content: bytes, shape: tuple[int, ...]) -> Tensor:
    """The images of a file, uint8, of a shape (B, C, H, W)."""
    stream = _stream()
    coder = stream.queue.RangeDecoder(np.frombuffer(content, "<u4").astype(np.uint32))
    family, images = stream.model.Categorical(perfect=False), torch.zeros(shape, dtype=torch.uint8)
    for image, channel, row, column in _places(images):
        tables = _tables(model, images, image, channel, row, column)
        images[:, channel, row, column] = torch.from_numpy(coder.decode(family, tables).astype(np.uint8))
    return images


def _places(images: Tensor) -> Iterator[tuple[Tensor, int, int, int]]:
    """The images' numbers, and a channel and place of each in the order of the chain rule."""
    count, channels, height, width = images.shape
    every = torch.arange(count)
    for row in range(height):
        for column in range(width):
            for channel in range(channels):
                yield every, channel, row, column


@torch.no_grad()
def _tables(
    model: CausalMLP, images: Tensor, image: Tensor, channel: int, row: int, column: int
) -> NDArray[np.float64]:
    """Probabilities of the levels, (B, K), given what came before."""
    context = model.context(images, image, torch.full_like(image, row), torch.full_like(image, column))
    found = model.conditional(context, channel)
    every = found._replace(
        log_weights=found.log_weights[:, None],
        means=found.means[:, None],
        log_scales=found.log_scales[:, None],
    )
    logs = every.log_probability(torch.arange(model.levels).expand(len(images), -1))
    tables: NDArray[np.float64] = logs.double().softmax(dim=1).numpy()
    return tables
