"""Models whose weights are constants: for use, not for training."""

import copy

import torch
from torch import Tensor

from dualscore.energy import ScoreModel


def constant(model: ScoreModel) -> ScoreModel:
    """A model whose weights ask for no gradients: the model itself, or one that shares its weights."""
    weights = [*model.parameters(), *model.buffers()]
    asking = any(weight.requires_grad or weight.is_inference() for weight in weights)
    if torch.is_inference_mode_enabled() or not asking:
        return model
    return copy.deepcopy(model, {id(weight): kept(weight.detach()) for weight in weights})


def kept(x: Tensor) -> Tensor:
    """The tensor, of any shape, copied if it was made in inference mode: autograd cannot save those."""
    return x.clone() if x.is_inference() else x
