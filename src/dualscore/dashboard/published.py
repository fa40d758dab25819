"""Published figures of others, for the tables; never of ours.

Sources: Guth et al. 2025, arXiv 2506.05310, tables 1 and 2 and figure 2, and what they quote there; the other
likelihoods are their authors' own figures.
"""

from typing import NamedTuple

IMAGENET64 = "imagenet64"
"""The data set whose colour images the published figures are of, as manifests name it."""

PSNR_IN = (90.0, 75.0, 60.0, 45.0, 30.0, 15.0, 0.0, -15.0, -30.0)
SCORE_NETWORK = (90.20, 75.47, 60.43, 47.19, 35.58, 25.92, 18.84, 13.31, -0.11)
ENERGY_NETWORK = (90.09, 75.17, 60.45, 47.25, 35.67, 26.01, 18.88, 13.48, 2.53)
"""Denoised PSNR in dB of ImageNet64's colour validation images, at those noise levels."""


class Likelihood(NamedTuple):
    """A published likelihood of ImageNet64's validation images."""

    model: str
    bits_per_dim: float
    release: str
    """Of the data: `old`, the PNGs without anti-aliasing (van den Oord et al. 2016; 49,999 validation
    images), `new` (Chrabaszcz et al. 2017; 50,000), or `new?`, where it is unclear, and probably the new one.
    Old and new cannot be compared."""
    kind: str  # `exact`, `bound` (of a diffusion's own ELBO), `ODE`, or what the authors call it


LIKELIHOODS = (
    Likelihood("Glow", 3.81, "old", "exact"),
    Likelihood("Jet", 3.66, "old", "exact"),
    Likelihood("PixelCNN", 3.57, "old", "exact"),
    Likelihood("I-DDPM", 3.54, "old", "bound"),
    Likelihood("Sparse Transformer", 3.44, "old", "exact"),
    Likelihood("Routing Transformer", 3.43, "old", "exact"),
    Likelihood("VDM", 3.40, "old", "bound"),
    Likelihood("NFDM", 3.20, "new?", "bound"),
    Likelihood("TarFlow", 2.99, "new?", "exact"),
    Likelihood("Score matching", 3.40, "new", "ODE"),
    Likelihood("ScoreFlow", 3.36, "new", "ODE"),
    Likelihood("FM-Diff", 3.33, "new", "ODE"),
    Likelihood("FM-OT", 3.31, "new", "ODE"),
    Likelihood("LP-PCDM", 3.12, "new", "bound"),
    Likelihood("W-PCDM", 2.95, "new", "bound"),
    # Their own ELBO is 0.2 to 0.5 higher: no figure to hold beside bounds.
    Likelihood("Warm-start diffusion", 2.91, "new", "information-theoretic bound"),
    Likelihood("Dual score matching", 3.36, "new", "estimate, one evaluation"),
    Likelihood("Dual score matching, gray", 4.205, "new", "estimate, one evaluation"),
)

GENERALIZATION = {
    10: (66.0, 35.0),
    100: (8.9, 7.3),
    1_000: (0.23, 0.33),
    10_000: (0.23, 0.27),
    100_000: (0.11, 0.11),
}
"""N → mean |log p_A − log p_B| in dB/dim on A's and on B's training images (ImageNet64, gray)."""


def comparable(colour: bool) -> dict[str, float]:
    """Published bits/dim by name, of the data set that this project trains on: ImageNet64, new release."""
    return {
        like.model.removesuffix(", gray").lower().replace(" ", "_"): like.bits_per_dim
        for like in LIKELIHOODS
        if like.release == "new" and like.model.endswith(", gray") != colour
    }
