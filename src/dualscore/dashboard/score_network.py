"""The score network that an energy's denoising is compared with, while it trains."""

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dualscore.dashboard.tags import level
from dualscore.errors import ConfigError
from dualscore.noise import variance_at_psnr
from dualscore.runs.folder import Run, flatten
from dualscore.runs.run_status import State, Status
from dualscore.settings.config import ExperimentConfig, ModelKind

SAME = (
    "seed",
    "data.dataset",
    "data.density",
    "data.size",
    "data.channels",
    "data.quantized",
    "trainer.validate_images",
    "evaluate.psnr",
)
"""Settings that decide which images and which noise a validation sees."""


def neighbour(
    folder: Path, config: ExperimentConfig, plain: dict[str, Any]
) -> tuple[str, dict[float, float]]:
    """The newest complete score network beside a run, validated on the same images with the same noise.

    Args:
        folder: the run's.
        config: the run's.
        plain: the same as plain values.

    Returns:
        Its name and its last denoised PSNR in dB by noise variance; empty where there is none.
    """
    wanted = flatten(plain)
    if config.model is ModelKind.denoiser:
        return "", {}
    found = sorted(folder.parent.glob("*/status.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        run = Run(path.parent)
        status = Status.read(run.folder)
        if run.folder == folder or status is None or status.state is not State.complete:
            continue
        try:
            other = flatten(run.read_config())
        except ConfigError:
            continue
        if other.get("model") == "denoiser" and all(other.get(key) == wanted[key] for key in SAME):
            measured = _last_psnr(run, config.evaluate.psnr)
            if measured:
                return run.folder.name, measured
    return "", {}


def _last_psnr(run: Run, psnr: list[float]) -> dict[float, float]:
    events = EventAccumulator(str(run.folder), size_guidance={"scalars": 1}).Reload()
    known = set(events.Tags()["scalars"])
    return {
        variance_at_psnr(decibels): events.Scalars(tag)[-1].value
        for decibels in psnr
        if (tag := f"psnr/{level(decibels)}") in known
    }
