"""Puts stored weights into a network, once they are known to be that network's."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

FEW = 8
"""Blocks or layers that may be built unasked: a network need not have as many as the settings' defaults."""
Module = TypeVar("Module", bound=nn.Module)


def check_depth(depth: int, weights: Mapping[str, Tensor]) -> None:
    """Refuse more blocks or layers than there are weights, which would be built one by one.

    Args:
        depth: blocks or layers.
        weights: the network's.

    Raises:
        ValueError: if there are more of them.
    """
    if depth > max(FEW, len(weights)):
        raise ValueError("the network configured is larger than the weights")


def fitted(make: Callable[[], Module], weights: Mapping[str, Tensor]) -> Module:
    """A network with stored weights.

    Names and shapes are compared before anything of the network's size is made: a small file cannot ask for
    a large network.

    Args:
        make: builds the network, the same each time it is called.
        weights: its parameters and buffers by name.

    Returns:
        The network in double precision where its weights are, else in single; in evaluation mode, without
        gradients, on the CPU.

    Raises:
        ValueError: if names, shapes or types are not the network's; torch raises more for absurd sizes.
    """
    with torch.device("meta"):
        wanted = make().state_dict()
    if missing := wanted.keys() - weights.keys():
        raise ValueError(f"{len(missing)} weights are missing, {min(missing)} among them")
    if unknown := weights.keys() - wanted.keys():
        raise ValueError(f"{len(unknown)} weights are not the network's, {min(unknown)!r:.80} among them")
    for name, value in weights.items():
        if value.shape != wanted[name].shape:
            found, configured = tuple(value.shape), tuple(wanted[name].shape)
            raise ValueError(f"{name} has shape {found}, configured is {configured}")
        if not value.is_floating_point():
            raise ValueError(f"{name} holds {value.dtype}, which are no weights")
    model = make()
    if any(value.dtype == torch.float64 for value in weights.values()):
        model = model.double()
    model.load_state_dict(dict(weights))
    return model.requires_grad_(False).eval()
