"""What a run's log begins and ends with: its settings, what its curves are compared with, the evaluation."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Experiment, HParamInfo
from tensorboard.plugins.hparams.api_pb2 import Status as SessionStatus
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import Metric, hparams_pb

from dualscore.dashboard import published
from dualscore.dashboard.layout import layout, layout_summary
from dualscore.dashboard.logger import PatientLogger, band, level
from dualscore.errors import ConfigError
from dualscore.measuring.row_figures import estimate_of
from dualscore.noise import variance_at_psnr
from dualscore.runs.folder import Run, flatten
from dualscore.runs.run_status import State, Status
from dualscore.settings.config import Anchor, ExperimentConfig, ModelKind

PSNR_SHOWN = (30.0, 15.0)
"""Input PSNR in dB whose denoised PSNR stands beside the likelihoods, where it was measured."""
SHOWN_FIRST = ("experiment", "lr", "recipe", "batch", "steps")
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
    """What a run is compared with: a score network beside it or the published one, published figures."""
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


def neighbour(
    folder: Path, config: ExperimentConfig, plain: dict[str, Any]
) -> tuple[str, dict[float, float]]:
    """The newest complete score network beside a run, and its last denoised PSNR in dB by noise variance.

    Only one that was validated on the same images with the same noise; empty where there is none.
    """
    if config.model is ModelKind.denoiser:
        return "", {}
    wanted = flatten(plain)
    beside = sorted(folder.parent.glob("*/status.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for run in (Run(path.parent) for path in beside):
        status = Status.read(run.folder)
        if run.folder == folder or status is None or status.state is not State.complete:
            continue
        try:
            other = flatten(run.read_config())
        except ConfigError:
            continue
        same = all(other.get(key) == wanted[key] for key in SAME)
        if same and other.get("model") == "denoiser" and (found := _last_psnr(run, config.evaluate.psnr)):
            return run.folder.name, found
    return "", {}


def _last_psnr(run: Run, psnr: list[float]) -> dict[float, float]:
    events = EventAccumulator(str(run.folder), size_guidance={"scalars": 1}).Reload()
    known = set(events.Tags()["scalars"])
    return {
        variance_at_psnr(decibels): events.Scalars(tag)[-1].value
        for decibels in psnr
        if (tag := f"psnr/{level(decibels)}") in known
    }


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

    `estimates` are the labels, by name, of all that the evaluation may hold.
    """
    charts = layout(config, list(estimates), list(compared.published), bool(compared.psnr))
    logger.log_summaries([layout_summary(charts), *_hparams_begin(config, parameters, name, estimates)], 0)
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


def write_closing(logger: PatientLogger, report: dict[str, Any], steps: tuple[int, int]) -> None:
    """Write an evaluation's report into the log, as lines from one training step to another."""
    found: dict[str, float] = {}
    for name, figure in report["bits_per_dim"].items():
        found |= dict(band(f"final/{name}", estimate_of(figure)))
    for measured in report["noise_levels"]:
        for decibels in PSNR_SHOWN:
            if abs(measured["psnr_in"] - decibels) < 0.05:
                found[f"final/psnr_{level(decibels)}"] = measured["psnr_out"]
    found["final/step"] = float(report["step"])
    full = report.get("yardsticks", {}).get("full_covariance", {}).get("value")
    if full is not None:
        found["gaussian/full_covariance"] = full
    for step in steps:
        logger.log_metrics(found, step)
    ended = SessionEndInfo(status=SessionStatus.Value("STATUS_SUCCESS"), end_time_secs=time.time())
    logger.log_summaries([_hparams_entry(metadata.SESSION_END_INFO_TAG, session_end_info=ended)], steps[1])
    logger.finalize("success")


def hparams_metrics(estimates: Mapping[str, str]) -> dict[str, str]:
    """What TensorBoard's HPARAMS compares runs by, in the order of its columns: titles by tag."""
    return {
        **{f"final/{name}": f"bits/dim, {label}" for name, label in estimates.items()},
        **{f"final/psnr_{level(p)}": f"denoised PSNR at {p:g} dB" for p in PSNR_SHOWN},
        "final/step": "step",
        "train/minutes": "minutes of training",
    }


def _hparams_begin(
    config: ExperimentConfig, parameters: int, name: str, estimates: Mapping[str, str]
) -> list[Summary]:
    """The few settings that runs differ by; the run's name stands in the first column."""
    shown: dict[str, str | int | float] = {
        "experiment": config.name,
        "lr": config.optim.lr,
        "optimiser": config.optim.method.value,
        "batch": config.data.batch_size,
        "steps": config.trainer.max_steps,
        "parameters": parameters,
        "width": config.network.width,
        "recipe": _recipe(config),
        "embedding": config.network.embedding.value,
        "norm": config.network.norm.value,
        "ema_steps": config.optim.ema_steps,
        "time_weight": config.objective.time_weight,
        "seed": config.seed,
    }
    titles = hparams_metrics(estimates)
    experiment = Experiment(
        # TensorBoard sorts settings that differ before others, by name, and shows the first five.
        hparam_infos=[HParamInfo(name=key, differs=key in SHOWN_FIRST) for key in shown],
        metric_infos=[Metric(tag, display_name=title).as_proto() for tag, title in titles.items()],
        time_created_secs=time.time(),
    )
    entry = _hparams_entry(metadata.EXPERIMENT_TAG, experiment=experiment)
    return [entry, hparams_pb(shown, trial_id=name)]


def _recipe(config: ExperimentConfig) -> str:
    """The parts of the energy in a few words."""
    if config.model is ModelKind.denoiser:
        return "denoiser"
    options = config.energy
    parts = [] if options.anchor is Anchor.none else [f"{options.anchor.value} anchor"]
    parts.append(options.residual_input.value)
    parts += [part for part in ("fading", "offset", "potential", "phase") if getattr(options, part)]
    return ", ".join(parts)


def _hparams_entry(tag: str, **content: Experiment | SessionEndInfo) -> Summary:
    stored = metadata.create_summary_metadata(HParamsPluginData(**content))
    return Summary(value=[Summary.Value(tag=tag, metadata=stored)])
