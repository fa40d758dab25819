"""What a run's log begins and ends with: charts, settings, what it is compared with, the evaluation."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.plugins.custom_scalar import metadata as charts_metadata
from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MarginChartContent,
    MultilineChartContent,
)
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Experiment, HParamInfo
from tensorboard.plugins.hparams.api_pb2 import Status as SessionStatus
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import Metric, hparams_pb

from dualscore.dashboard import published
from dualscore.dashboard.logger import PatientLogger, band, level
from dualscore.errors import ConfigError
from dualscore.measuring.row_figures import estimate_of
from dualscore.noise import variance_at_psnr
from dualscore.runs.folder import Run, flatten
from dualscore.runs.run_status import State, Status
from dualscore.settings.config import CAUSAL, Anchor, ExperimentConfig, ModelKind

PSNR_SHOWN = (30.0, 15.0)
"""Input PSNR in dB whose denoised PSNR stands beside the likelihoods, where it was measured."""
SHOWN_FIRST = ("experiment", "lr", "recipe", "batch", "steps")
SAME = (
    "seed", "data.dataset", "data.density", "data.size", "data.channels", "data.quantized",
    "trainer.validate_images", "evaluate.psnr",
)  # fmt: skip
"""Settings that decide which images and which noise a validation sees."""
GROUP = 3
"""Noise levels in a chart where all of them would be too many to tell apart."""
SPEED = {
    "images a second": "train/images_per_second",
    "share of the time spent waiting for images": "train/stall",
    "learning rate": "train/learning_rate",
    "largest gradient norm since the entry before": "train/largest_gradient_norm",
    "minutes of training": "train/minutes",
}
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
    wanted = {key: flatten(plain)[key] for key in SAME} | {"model": "denoiser"}
    beside = sorted(folder.parent.glob("*/status.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for run in (Run(path.parent) for path in beside if path.parent != folder):
        status = Status.read(run.folder)
        if status is None or status.state is not State.complete:
            continue
        try:
            settings = flatten(run.read_config())
        except ConfigError:
            continue
        if any(settings.get(key) != value for key, value in wanted.items()):
            continue
        events = EventAccumulator(str(run.folder), size_guidance={"scalars": 1}).Reload()
        tags = {variance_at_psnr(p): f"psnr/{level(p)}" for p in config.evaluate.psnr}
        known = set(events.Tags()["scalars"])
        if found := {t: events.Scalars(tag)[-1].value for t, tag in tags.items() if tag in known}:
            return run.folder.name, found
    return "", {}


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
    content = TensorProto(dtype="DT_STRING", string_val=[charts.SerializeToString()])
    described = charts_metadata.create_summary_metadata()
    # TensorBoard's own function for it needs TensorFlow.
    shown = Summary.Value(tag=charts_metadata.CONFIG_SUMMARY_TAG, metadata=described, tensor=content)
    settings = hparams(config, parameters)
    experiment = Experiment(
        # TensorBoard sorts settings that differ before others, by name, and shows the first five.
        hparam_infos=[HParamInfo(name=key, differs=key in SHOWN_FIRST) for key in settings],
        metric_infos=[
            Metric(tag, display_name=title).as_proto() for tag, title in hparams_metrics(estimates).items()
        ],
        time_created_secs=time.time(),
    )
    began = _hparams_entry(metadata.EXPERIMENT_TAG, experiment=experiment)
    # The run's name stands in the first column.
    logger.log_summaries([Summary(value=[shown]), began, hparams_pb(settings, trial_id=name)], 0)
    about = ABOUT.format(
        experiment=config.name,
        data=config.data.dataset or config.data.density.value,
        parameters=parameters,
        network=compared.network,
        published=", ".join(compared.published) or "none are of this data set",
    )
    logger.log_text("run/about", about, 0)
    stored = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    logger.log_text("run/settings", f"```\n{stored}```", 0)


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


def hparams(config: ExperimentConfig, parameters: int) -> dict[str, str | int | float]:
    """The few settings that runs differ by, the energy's parts in a few words as its recipe."""
    energy, recipe = config.energy, "denoiser"
    if config.network.kind == CAUSAL:
        recipe = "causal"
    elif config.model is ModelKind.energy:
        parts = [] if energy.anchor is Anchor.none else [f"{energy.anchor.value} anchor"]
        parts.append(energy.residual_input.value)
        parts += [
            part for part in ("fading", "offset", "potential", "sizes", "phase") if getattr(energy, part)
        ]
        recipe = ", ".join(parts)
    return {
        "experiment": config.name,
        "lr": config.optim.lr,
        "optimiser": config.optim.method.value,
        "batch": config.data.batch_size,
        "steps": config.trainer.max_steps,
        "parameters": parameters,
        "width": config.network.width,
        "recipe": recipe,
        "embedding": config.network.embedding.value,
        "norm": config.network.norm.value,
        "ema_steps": config.optim.ema_steps,
        "time_weight": config.objective.time_weight,
        "level_weight": config.objective.level_weight,
        "likelihood_weight": config.objective.likelihood_weight,
        "seed": config.seed,
    }


def _hparams_entry(tag: str, **content: Experiment | SessionEndInfo) -> Summary:
    stored = metadata.create_summary_metadata(HParamsPluginData(**content))
    return Summary(value=[Summary.Value(tag=tag, metadata=stored)])


def layout(
    config: ExperimentConfig, estimates: Sequence[str], published: Sequence[str], score_network: bool
) -> Layout:
    """A run's charts, most important first; estimates are all that an evaluation may hold.

    TensorBoard merges the layouts of all runs it shows, and draws a chart twice where two runs' charts
    differ. So a chart is the same in every run that has it, and what only some runs have is in charts of its
    own. The overview of bits/dim is alone in its category: TensorBoard shuffles charts with bands.
    """
    figures = ["val/bits_per_dim", "val/bound", *(f"final/{name}" for name in estimates)]
    gaussians = ["gaussian/stationary", "gaussian/full_covariance"]
    of_others = [f"published/{name}" for name in published]
    levels = [level(decibels) for decibels in config.evaluate.psnr]
    energy = config.model is ModelKind.energy
    losses = ["loss", "space_loss", *(["time_loss"] if energy else [])]
    gains = _grouped("dB above the best linear denoiser", "psnr_gain_linear", levels)
    if score_network:
        gains += _grouped("dB above the score network", "psnr_gain_score_network", levels)
    single = [
        _bands("paper's protocol: validations, evaluation", ["val/bits_per_dim", "final/paper"]),
        _bands("bound: validations, evaluation", ["val/bound", "final/bound"]),
        _bands("evaluation: dequantized, ODE", ["final/dequantized", "final/ode"]),
    ]
    both = [_lines(name.replace("_", " "), f"train/{name}", f"val/{name}") for name in losses]
    bits = [_bands("bits/dim of ImageNet64", figures, of_others)] if published else []
    log_z = [_lines("log Z in nats", "val/log_normalizer")] if energy else []
    health = [
        Chart(title="events so far", multiline=MultilineChartContent(tag=["events/.+$"])),
        _lines("steps left out and images replaced", "train/skipped_steps", "data/skipped_images"),
    ]
    open_ = {
        "Bits/dim: all estimates, and the Gaussians": [_bands("bits/dim", figures, gaussians)],
        "Bits/dim: all estimates, and published figures (ImageNet64)": bits,
        "Bits/dim: each estimate (bands: ± two standard errors)": single,
        "Losses": both,
        "Denoising": gains,
        "Normalization": log_z,
    }
    closed = {
        "Space loss at each noise level (= d_eff/d)": _grouped("space loss", "space_loss", levels, 1),
        "Time loss at each noise level": _grouped("time loss", "time_loss", levels, 1) if energy else [],
        "Effective dimension": _grouped("d_eff", "effective_dimension", levels),
        "Denoised PSNR": _grouped("dB of denoised images", "psnr", levels),
        "Speed and optimiser": [_lines(title, tag) for title, tag in SPEED.items()],
    }
    categories = [Category(title=title, chart=charts) for title, charts in open_.items() if charts]
    categories += [Category(title=title, chart=c, closed=True) for title, c in closed.items() if c]
    return Layout(category=[*categories, Category(title="Health", chart=health)])


def _grouped(title: str, tag: str, levels: Sequence[str], group: int = GROUP) -> list[Chart]:
    """Charts of a few noise levels each."""
    groups = [levels[first : first + group] for first in range(0, len(levels), group)]
    return [
        _lines(f"{title}, input {' / '.join(names)}", *(f"{tag}/{name}" for name in names))
        for names in groups
    ]


def _lines(title: str, *tags: str) -> Chart:
    """A chart of tags, which TensorBoard matches at the beginning only."""
    return Chart(title=title, multiline=MultilineChartContent(tag=[f"{re.escape(tag)}$" for tag in tags]))


def _bands(title: str, tags: Sequence[str], exact: Sequence[str] = ()) -> Chart:
    """A chart of figures with their bands, and of figures that have none."""
    edges = [(tag, f"{tag}_low", f"{tag}_high") for tag in tags] + [(tag, tag, tag) for tag in exact]
    series = [MarginChartContent.Series(value=v, lower=low, upper=high) for v, low, high in edges]
    return Chart(title=title, margin=MarginChartContent(series=series))
