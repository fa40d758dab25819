"""The assembler's table of networks: what experiments may name in `network.kind`, and what builds it."""

from collections.abc import Callable

from torch import nn

from dualscore.errors import ConfigError
from dualscore.networks import (
    LinearEmbedding,
    LogEmbedding,
    NoiseEmbedding,
    PixelNorm,
    ScalePreservingNorm,
    UNet,
)
from dualscore.settings.config import CAUSAL, RADIAL, Embedding, ExperimentConfig, NetworkConfig, Norm

NORMS: dict[Norm, type[ScalePreservingNorm] | type[PixelNorm]] = {
    Norm.scale_preserving: ScalePreservingNorm,
    Norm.pixel: PixelNorm,
}
EMBEDDINGS: dict[Embedding, type[NoiseEmbedding]] = {
    Embedding.linear: LinearEmbedding,
    Embedding.log: LogEmbedding,
}


def build_embedding(options: NetworkConfig) -> NoiseEmbedding:
    """How the network is told t."""
    return EMBEDDINGS[options.embedding](options.contrast)


def build_unet(options: NetworkConfig, inputs: int, outputs: int) -> UNet:
    """The UNet of an experiment, of given channels in and out."""
    return UNet(
        inputs,
        build_embedding(options),
        width=options.width,
        scales=options.scales,
        layers=options.layers,
        output_gain=options.output_gain,
        hidden_gain=options.hidden_gain,
        norm=NORMS[options.norm],
        residual=options.residual,
        outputs=outputs,
    )


NetworkBuilder = Callable[[NetworkConfig, int, int], nn.Module]
"""(the section `network`, channels in, channels out) → f(w, t): (B, in, H, W), (B,) → (B, out, H, W)."""
NETWORKS: dict[str, NetworkBuilder] = {
    "unet": build_unet,
}
"""Functions f(w, t) of images; docs/extending.md adds one. Those that are energies are none of them."""


def check_network(config: ExperimentConfig) -> None:
    """Refuse a network that is not in the table, with a ConfigError."""
    known = [*NETWORKS, CAUSAL, RADIAL]
    if config.network.kind not in known:
        raise ConfigError(f"network.kind: must be one of {', '.join(known)}, not {config.network.kind!r:.80}")
