"""The causal network of a data set, trained once."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch

from dualscore.data.base import ImageDataModule
from dualscore.evaluation.kept import Keep, Tensors
from dualscore.images import in_channels
from dualscore.likelihood.causal import CausalMLP, train_causal

STEPS, SEED = 5000, 0
"""Of training: about 45 seconds of a core where images are gray, 65 in colour."""
VERSION = 1
"""Of the network and its training; what another one made is made anew."""
MOST_VALUES = 2**26
"""8-bit values that it is trained on, at most: ten times as many as it looks at."""


def causal_mlp(
    datamodule: ImageDataModule,
    channels: int,
    shape: tuple[int, ...],
    keep: Keep,
    watch: Callable[[Iterable[int]], Iterator[int]] = iter,
) -> tuple[CausalMLP, int]:
    """The causal network, trained once a data set on evenly spaced training images, and their number."""
    count = min(datamodule.counts["train"], max(1, MOST_VALUES // math.prod(shape)))
    expected = {name: value.shape for name, value in CausalMLP(channels).state_dict().items()}

    def train() -> Tensors:
        batches = datamodule.evenly_spaced("train", count, 512)
        images = torch.cat([in_channels(batch.image, channels) for batch in batches])
        return train_causal(images, steps=STEPS, seed=SEED, watch=watch).state_dict()

    def fits(tensors: Tensors) -> bool:
        return {name: value.shape for name, value in tensors.items()} == expected

    identity = {
        "version": VERSION,
        "steps": STEPS,
        "seed": SEED,
        "dataset": datamodule.identity,
        "channels": channels,
        "images": count,
    }
    model = CausalMLP(channels)
    model.load_state_dict(keep("causal", identity, fits, train))
    return model.requires_grad_(False).eval(), count
