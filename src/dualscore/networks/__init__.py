"""Networks f(y, t), energies that need none, and the embeddings that tell them the noise variance."""

from dualscore.networks.causal_energy import CausalEnergy
from dualscore.networks.embedding import LinearEmbedding, LogEmbedding, NoiseEmbedding
from dualscore.networks.local_sizes import LocalSizes
from dualscore.networks.mean_free import MeanFreeEnergy
from dualscore.networks.normalization import PixelNorm, ScalePreservingNorm
from dualscore.networks.orders import SeveralOrders
from dualscore.networks.radial import RadialEnergy
from dualscore.networks.unet import UNet

__all__ = [
    "CausalEnergy", "LinearEmbedding", "LocalSizes", "LogEmbedding", "MeanFreeEnergy", "NoiseEmbedding",
    "PixelNorm", "RadialEnergy", "ScalePreservingNorm", "SeveralOrders", "UNet",
]  # fmt: skip
