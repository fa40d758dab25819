"""A run in TensorBoard's HPARAMS: the few settings that runs differ by, beside what they led to."""

import time
from collections.abc import Mapping

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Experiment, HParamInfo, Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import Metric, hparams_pb

from dualscore.dashboard.tags import level
from dualscore.settings.config import Anchor, ExperimentConfig, ModelKind

PSNR_SHOWN = (30.0, 15.0)
"""Input PSNR in dB whose denoised PSNR stands beside the likelihoods, where it was measured."""
SHOWN_FIRST = ("experiment", "lr", "recipe", "batch", "steps")


def metrics(estimates: Mapping[str, str]) -> dict[str, str]:
    """What runs are compared by, in the order of the columns: tags, and what the columns are called.

    Args:
        estimates: all that an evaluation may hold, by name, and what tables call them.

    Returns:
        Titles by tag.
    """
    return {
        **{f"final/{name}": f"bits/dim, {label}" for name, label in estimates.items()},
        **{f"final/psnr_{level(p)}": f"denoised PSNR at {p:g} dB" for p in PSNR_SHOWN},
        "final/step": "step",
        "train/minutes": "minutes of training",
    }


def settings(config: ExperimentConfig, parameters: int) -> dict[str, str | int | float]:
    """The settings that are shown, by the names they are shown under.

    Args:
        config: the run's.
        parameters: of the network.

    Returns:
        Names and values.
    """
    return {
        "experiment": config.name,
        "lr": config.optim.lr,
        "optimiser": config.optim.method.value,
        "batch": config.data.batch_size,
        "steps": config.trainer.max_steps,
        "parameters": parameters,
        "width": config.network.width,
        "recipe": recipe(config),
        "embedding": config.network.embedding.value,
        "norm": config.network.norm.value,
        "ema_steps": config.optim.ema_steps,
        "time_weight": config.objective.time_weight,
        "seed": config.seed,
    }


def recipe(config: ExperimentConfig) -> str:
    """The parts of the energy in a few words."""
    if config.model is ModelKind.denoiser:
        return "denoiser"
    options = config.energy
    parts = [] if options.anchor is Anchor.none else [f"{options.anchor.value} anchor"]
    parts.append(options.residual_input.value)
    parts += [part for part in ("fading", "offset", "potential", "phase") if getattr(options, part)]
    return ", ".join(parts)


def begin(
    config: ExperimentConfig, parameters: int, name: str, estimates: Mapping[str, str]
) -> list[Summary]:
    """What a run writes at its start.

    Args:
        config: the run's.
        parameters: of the network.
        name: of the run, which stands in the first column.
        estimates: as in `metrics`.

    Returns:
        Entries of the log.
    """
    shown = settings(config, parameters)
    found = Experiment(
        # TensorBoard sorts settings that differ before others, by name, and shows the first five.
        hparam_infos=[HParamInfo(name=key, differs=key in SHOWN_FIRST) for key in shown],
        metric_infos=[
            Metric(tag, display_name=title).as_proto() for tag, title in metrics(estimates).items()
        ],
        time_created_secs=time.time(),
    )
    return [_entry(metadata.EXPERIMENT_TAG, experiment=found), hparams_pb(shown, trial_id=name)]


def end() -> Summary:
    """What a run writes when it is complete."""
    ended = SessionEndInfo(status=Status.Value("STATUS_SUCCESS"), end_time_secs=time.time())
    return _entry(metadata.SESSION_END_INFO_TAG, session_end_info=ended)


def _entry(tag: str, **content: Experiment | SessionEndInfo) -> Summary:
    stored = metadata.create_summary_metadata(HParamsPluginData(**content))
    return Summary(value=[Summary.Value(tag=tag, metadata=stored)])
