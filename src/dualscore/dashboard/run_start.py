"""What a run's log begins with: the layout, the settings, and what its curves are compared with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dualscore.dashboard import hparams, layout
from dualscore.dashboard.logger import PatientLogger
from dualscore.dashboard.score_network import neighbour
from dualscore.likelihood import published
from dualscore.noise import variance_at_psnr
from dualscore.settings.config import ExperimentConfig

ABOUT = """**{experiment}**: {data}, {parameters:,} parameters.

- Gain in PSNR, `psnr_gain_linear`: above the best linear denoiser, the Wiener filter of the training images'
  stationary Gaussian, on the same validation images with the same noise.
- Gain in PSNR, `psnr_gain_score_network`: {network}.
- Published figures: {published}.
- Bands are ± two standard errors over photographs (over images where nobody knows their photographs).
"""


@dataclass(frozen=True)
class Compared:
    """What a run's curves are compared with, beside the Gaussians."""

    network: str = "no score network is known: train one (`model: denoiser`) beside this run, before it"
    psnr: dict[float, float] = field(default_factory=dict)
    """Denoised PSNR in dB of that network by noise variance; empty without one."""
    published: dict[str, float] = field(default_factory=dict)
    """Published bits/dim of the same data set, by name."""


def find_compared(folder: Path, config: ExperimentConfig, plain: dict[str, Any]) -> Compared:
    """Find what a run is compared with: a score network beside it or the published one, published figures.

    Args:
        folder: the run's.
        config: the run's.
        plain: the same as plain values.

    Returns:
        What was found.
    """
    name, psnr = neighbour(folder, config, plain)
    network = f"above the run `{name}`, same validation images, same noise" if psnr else Compared.network
    if config.data.dataset != "imagenet64":
        return Compared(network, psnr)
    colour = config.data.channels == 3
    if colour and not psnr:
        network = "above the published score network of ImageNet64, whose validation images were others"
        pairs = zip(published.PSNR_IN, published.SCORE_NETWORK, strict=True)
        psnr = {variance_at_psnr(decibels): value for decibels, value in pairs}
    return Compared(network, psnr, published.comparable(colour))


def write_opening(
    logger: PatientLogger,
    config: ExperimentConfig,
    plain: dict[str, Any],
    compared: Compared,
    parameters: int,
    name: str,
    estimates: Mapping[str, str],
) -> None:
    """Write what a run's log begins with, at step 0, at every start: TensorBoard keeps one of each.

    Args:
        logger: the log.
        config: the run's.
        plain: the same as plain values.
        compared: what its curves are compared with.
        parameters: of the network.
        name: of the run.
        estimates: all that its evaluation may hold, by name, and what tables call them.
    """
    found = layout.layout(config, list(estimates), list(compared.published), bool(compared.psnr))
    logger.log_summaries([layout.summary(found), *hparams.begin(config, parameters, name, estimates)], 0)
    about = ABOUT.format(
        experiment=config.name,
        data=config.data.dataset or config.data.density.value,
        parameters=parameters,
        network=compared.network,
        published=", ".join(compared.published) or "none are of this data set",
    )
    logger.log_text("run/about", about, 0)
    settings = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    logger.log_text("run/settings", f"```\n{settings}```", 0)
