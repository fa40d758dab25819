"""METHOD's equations written down plainly: what a step costs without any of this project's care.

The same networks of modules and operators as PyTorch has them, both gradients by `torch.autograd.grad`, both
losses as they are printed. It is what the bench compares with, and must give the same numbers.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualscore.energy import ScoreModel
from dualscore.networks import ScalePreservingNorm, UNet
from dualscore.networks.normalization import FeatureNorm
from dualscore.networks.unet import Layer


def normalize(norm: FeatureNorm, x: Tensor, embedding: Tensor) -> Tensor:
    """The paper's normalization as it is printed; any other as its module does it."""
    if not isinstance(norm, ScalePreservingNorm):
        return norm(x, embedding)
    x = x - x.mean(dim=(2, 3), keepdim=True)
    variance = x.square().mean(dim=(2, 3), keepdim=True)
    x = x * torch.sqrt(variance.mean(dim=1, keepdim=True) / (variance + norm.epsilon) + norm.epsilon)
    return x * norm.gain[:, None, None] * (1.0 + norm.modulation(embedding))[:, :, None, None]


class PlainLayer(Layer):
    """Convolution, normalization, GELU, one after the other."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """See `Layer`."""
        activated = F.gelu(normalize(self.norm, self.conv(x), embedding))
        return (x + activated) * 0.5**0.5 if self.residual else activated


class PlainUNet(UNet):
    """The network of plain layers."""

    def project(self, features: Tensor) -> Tensor:
        """See `UNet`."""
        return self.output(features)


def plain(model: ScoreModel) -> ScoreModel:
    """A copy of a model with a UNet, of the same weights, whose network is plain."""
    model = copy.deepcopy(model)
    for part in model.modules():
        if isinstance(part, Layer):
            part.__class__ = PlainLayer
        elif isinstance(part, UNet):
            part.__class__ = PlainUNet
    return model


def plain_loss(model: nn.Module, clean: Tensor, noise: Tensor, noise_variance: Tensor) -> Tensor:
    """The mean of both losses, differentiable, from an energy U(y, t)."""
    dimension = clean[0].numel()
    t = noise_variance.clone().requires_grad_()
    y = (clean + t.detach().sqrt()[:, None, None, None] * noise).requires_grad_()
    along_y, along_t = torch.autograd.grad(model(y, t).sum(), (y, t), create_graph=True)
    root = noise_variance.sqrt()[:, None, None, None]
    space = (root * along_y - noise).square().sum(dim=(1, 2, 3)) / dimension
    target = 0.5 * (dimension - noise.square().sum(dim=(1, 2, 3)))
    time = ((target - noise_variance * along_t) / dimension).square()
    return (space + time).mean()
