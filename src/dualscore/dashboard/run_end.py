"""What a run's log ends with: the evaluation, beside the curves of training and in HPARAMS."""

from collections.abc import Iterator
from typing import Any

from dualscore.dashboard import hparams
from dualscore.dashboard.hparams import PSNR_SHOWN
from dualscore.dashboard.logger import PatientLogger
from dualscore.dashboard.tags import band, level
from dualscore.measuring.row_figures import estimate_of


def figures(report: dict[str, Any]) -> dict[str, float]:
    """What is logged of an evaluation's report.

    Args:
        report: evaluation.json's content.

    Returns:
        Values by tag.
    """
    return dict(_figures(report))


def _figures(report: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, figure in report["bits_per_dim"].items():
        yield from band(f"final/{name}", estimate_of(figure))
    for measured in report["noise_levels"]:
        for decibels in PSNR_SHOWN:
            if abs(measured["psnr_in"] - decibels) < 0.05:
                yield f"final/psnr_{level(decibels)}", measured["psnr_out"]
    yield "final/step", float(report["step"])


def write_closing(logger: PatientLogger, report: dict[str, Any], steps: tuple[int, int]) -> None:
    """Write an evaluation into the log.

    Args:
        logger: the log.
        report: evaluation.json's content.
        steps: of training, counted from 0, that its lines and bands go from and to.
    """
    found = figures(report)
    full = report.get("yardsticks", {}).get("full_covariance", {}).get("value")
    if full is not None:
        found["gaussian/full_covariance"] = full
    for step in steps:
        logger.log_metrics(found, step)
    logger.log_summaries([hparams.end()], steps[1])
    logger.finalize("success")
