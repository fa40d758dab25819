"""Trains and evaluates an experiment in its run folder."""

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning
import rich
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch.utils.tensorboard.summary import hparams

from dualscore.assemble import build_datamodule, build_module, load_manifest, load_statistics
from dualscore.callbacks import (
    BitsPerDim,
    ConsoleReport,
    GradientHealth,
    NoiseCurves,
    ProgressBar,
    Throughput,
)
from dualscore.checkpoint_io import AtomicCheckpointIO
from dualscore.checkpoints import read_checkpoint
from dualscore.config import ExperimentConfig, ModelKind
from dualscore.data.module import ShardDataModule
from dualscore.errors import CheckpointError, TrainingError
from dualscore.evaluation import (
    EvaluationFigures,
    evaluation_report,
    measure_gaussians,
    print_report,
    write_report,
)
from dualscore.experiment import to_plain
from dualscore.gaussian import StationaryGaussian
from dualscore.module import DualScoreModule
from dualscore.runs import Run, check_architecture, flatten


def _quiet() -> None:
    """Keep Lightning's hints about things that are as they should be off the terminal."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")
    warnings.filterwarnings("ignore", ".*IterableDataset.*__len__.*")
    warnings.filterwarnings("ignore", ".*`broadcast_buffers` is deprecated.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")


def _trainer(
    config: ExperimentConfig,
    run: Run,
    callbacks: list[Callback],
    console: Console,
    precision: str,
    logger: TensorBoardLogger | None,
) -> lightning.Trainer:
    """Build the Trainer; no inference mode, because scores are gradients, in validation too."""
    options = config.trainer
    if console.is_terminal:
        callbacks = [*callbacks, ProgressBar()]
    gpu = options.accelerator == "gpu" or (options.accelerator == "auto" and torch.cuda.is_available())
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():
        # Lightning's own requeueing leaves checkpoints that a later, unrelated run would take for its own.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    try:
        return lightning.Trainer(
            default_root_dir=run.folder,
            max_steps=options.max_steps,
            max_epochs=-1,
            accelerator="cuda" if gpu else "cpu",
            devices=options.devices,
            num_nodes=options.nodes,
            # Ranks may validate different numbers of batches, so buffers must not be broadcast in forward.
            strategy=DDPStrategy(broadcast_buffers=False) if options.devices * options.nodes > 1 else "auto",
            precision=precision,  # type: ignore[arg-type]
            plugins=plugins,
            logger=logger or False,
            callbacks=callbacks,
            val_check_interval=min(options.validate_every, options.max_steps),
            check_val_every_n_epoch=None,
            log_every_n_steps=min(options.log_every, options.max_steps),
            num_sanity_val_steps=0,
            inference_mode=False,
            use_distributed_sampler=False,
            enable_progress_bar=console.is_terminal,
            enable_model_summary=False,
        )
    except lightning.fabric.utilities.exceptions.MisconfigurationException as error:
        reason = " ".join(str(error).split())
        raise TrainingError(
            f"trainer.devices={options.devices}, trainer.accelerator={options.accelerator}: {reason:.200}"
        ) from error


def _checkpoint(path: Path, monitor: str | None) -> ModelCheckpoint:
    """Write a checkpoint at validations: at each, or where the monitored figure is the lowest so far."""
    return ModelCheckpoint(
        path.parent,
        filename=path.stem,
        monitor=monitor,
        mode="min",
        save_on_train_epoch_end=False,
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )


def _log_settings(logger: TensorBoardLogger, plain: dict[str, Any], metric: str) -> None:
    """Put the settings beside the figure that runs are compared by, which gets its values later."""
    settings = {
        key: value if isinstance(value, bool | int | float) else str(value)
        for key, value in flatten(plain).items()
    }
    for summary in hparams(settings, {metric: 0.0}):  # type: ignore[no-untyped-call]
        logger.experiment._get_file_writer().add_summary(summary)


def _rank() -> int:
    # Set by Lightning's launchers before any Trainer exists.
    return int(getattr(rank_zero_only, "rank", None) or 0)


def _console() -> Console:
    # The one that the progress bar draws on, so that lines appear above it.
    rich.reconfigure(quiet=_rank() != 0)
    return rich.get_console()


def _monitor(config: ExperimentConfig) -> str:
    return "val/bits_per_dim" if config.model is ModelKind.energy else "val/space_loss"


def _build(config: ExperimentConfig) -> tuple[DualScoreModule, ShardDataModule]:
    manifest = load_manifest(config)
    return build_module(config, manifest, to_plain(config)), build_datamodule(config, manifest)


def train(config: ExperimentConfig, run: Run) -> None:
    """Train an experiment, from its last checkpoint if there is one, and evaluate the best.

    Args:
        config: the experiment.
        run: its folder, new or of an interrupted run.

    Raises:
        DualscoreError: one line for people; nothing is left half-written.
    """
    _quiet()
    console = _console()
    plain = to_plain(config)
    run.check_same(plain)
    module, datamodule = _build(config)
    step = 0
    if run.last.exists():
        step = int(read_checkpoint(run.last)["global_step"])
    report = run.folder / "evaluation.json"
    if step >= config.trainer.max_steps and not report.exists():
        evaluate(config, run, run.best, report)
        return
    if step >= config.trainer.max_steps:
        console.print(
            f"{run.folder} is complete ({step:,} steps). Train longer with SET=trainer.max_steps=… (a cosine "
            "schedule is then stretched to the new length), anew beside it with FRESH=1, or measure it with "
            "make evaluate.",
            soft_wrap=True,
        )
        return
    throughput = Throughput(config.data.batch_size)
    callbacks = [
        GradientHealth(),
        throughput,
        BitsPerDim(),
        NoiseCurves(),
        LearningRateMonitor("step"),
        ConsoleReport(console, throughput),
        _checkpoint(run.best, _monitor(config)),
        _checkpoint(run.last, None),  # after the best, whose score it holds
    ]
    logger = TensorBoardLogger(run.folder, name="", version="tensorboard", default_hp_metric=False)
    trainer = _trainer(config, run, callbacks, console, config.trainer.precision, logger)
    if _rank() == 0:
        run.write_config(plain)
    parameters = sum(p.numel() for p in module.model.parameters())
    start = f"goes on from step {step:,}" if step else "starts"
    console.print(
        f"[bold]{config.name}[/] {start} in {run.folder} · {parameters:,} parameters · "
        f"{datamodule.manifest.splits['train'].images:,} training images "
        f"{'×'.join(map(str, module.image_shape))} · "
        f"{trainer.world_size} × {trainer.strategy.root_device.type}",
        highlight=False,
        soft_wrap=True,
    )
    if step == 0 and trainer.is_global_zero:
        _log_settings(logger, plain, _monitor(config))
    try:
        trainer.fit(module, datamodule, ckpt_path=str(run.last) if step else None, weights_only=True)
    except SystemExit as exit_:  # Lightning's answer to Ctrl-C
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from exit_
    evaluate(config, run, run.best, report)


def evaluate(config: ExperimentConfig, run: Run, checkpoint: Path, output: Path) -> dict[str, Any]:
    """Measure a checkpoint and write evaluation.json.

    Args:
        config: the experiment; its architecture must be the checkpoint's.
        run: the run it belongs to.
        checkpoint: the file to measure.
        output: where the report goes.

    Returns:
        The report.

    Raises:
        DualscoreError: one line for people; no half report is left.
    """
    _quiet()
    console = _console()
    content = read_checkpoint(checkpoint)
    check_architecture(checkpoint, content["dualscore"]["config"], to_plain(config))
    module, datamodule = _build(config)
    try:
        module.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{checkpoint}: the weights do not fit the experiment: {reason:.200}"
        ) from error
    figures = EvaluationFigures()
    # Figures are taken in full precision, however the model was trained.
    precision = "64-true" if config.trainer.precision == "64-true" else "32-true"
    trainer = _trainer(config, run, [figures], console, precision, logger=None)
    console.print(f"evaluating {checkpoint} …", highlight=False, soft_wrap=True)
    trainer.test(module, datamodule, verbose=False)
    report: dict[str, Any] = {}
    if trainer.is_global_zero:
        statistics = load_statistics(config, datamodule.manifest)
        stationary = StationaryGaussian(statistics.mean, statistics.spectrum).double()
        gaussian = measure_gaussians(datamodule, stationary, config.data.channels)
        report = {
            "experiment": config.name,
            "checkpoint": str(checkpoint),
            "step": content["global_step"],
            "weights": "averaged" if config.optim.ema_steps else "trained",
            **evaluation_report(figures, module, datamodule, gaussian),
        }
        write_report(report, output)
        print_report(report, console)
        console.print(f"written to {output}", highlight=False, soft_wrap=True)
    # A process that left while the first one still measures would be taken for a crash.
    trainer.strategy.barrier("evaluated")
    return report


def leave() -> None:
    """Leave the group of processes that training on several devices forms; to be called last."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
