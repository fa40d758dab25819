"""Trains and evaluates an experiment in its run folder."""

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from torch.utils.tensorboard.summary import hparams

from dualscore.assemble import build
from dualscore.callbacks import (
    BitsPerDim,
    Bound,
    ConsoleReport,
    GradientHealth,
    NoiseCurves,
    ProgressBar,
    SkippedImages,
    Throughput,
)
from dualscore.checkpoint_io import AtomicCheckpointIO
from dualscore.checkpoints import read_checkpoint
from dualscore.compiling import obstacle
from dualscore.config import Best, ExperimentConfig
from dualscore.errors import DivergenceError, TrainingError
from dualscore.evaluation import evaluate, is_complete
from dualscore.experiment import to_plain
from dualscore.memory import advice, is_out_of_memory
from dualscore.module import DualScoreModule
from dualscore.precision import allow_tf32
from dualscore.runs import Run, flatten
from dualscore.terminal import quiet, rank, shared_console


def accelerator(config: ExperimentConfig) -> str:
    """What an experiment runs on here, as Lightning calls it."""
    wanted = config.trainer.accelerator
    return "cuda" if wanted == "gpu" or (wanted == "auto" and torch.cuda.is_available()) else "cpu"


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
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():
        # Lightning's own requeueing leaves checkpoints that a later, unrelated run would take for its own.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    try:
        return lightning.Trainer(
            default_root_dir=run.folder,
            max_steps=options.max_steps,
            max_epochs=-1,
            accelerator=accelerator(config),
            devices=options.devices,
            num_nodes=options.nodes,
            # Ranks may validate different numbers of batches, so buffers must not be broadcast in forward.
            strategy=DDPStrategy(broadcast_buffers=False) if options.devices * options.nodes > 1 else "auto",
            precision=precision,  # type: ignore[arg-type]
            plugins=plugins,
            logger=logger or False,
            callbacks=callbacks,
            accumulate_grad_batches=options.accumulate,
            # Lightning counts parts of batches here
            val_check_interval=min(options.validate_every, options.max_steps) * options.accumulate,
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


def _monitor(config: ExperimentConfig) -> str:
    return "val/bound" if config.trainer.best is Best.bound else "val/loss"


def _prepare_device(config: ExperimentConfig, module: DualScoreModule, console: Console) -> None:
    """Settle how training computes, and say so where it is not as asked for."""
    options, device = config.trainer, accelerator(config)
    if options.precision == "bf16-mixed" and device == "cuda" and not torch.cuda.is_bf16_supported():
        raise TrainingError(
            f"trainer.precision=bf16-mixed: {torch.cuda.get_device_name()} has no bfloat16; use 32-true, "
            "with trainer.tf32=true where the GPU has that"
        )
    allow_tf32(options.tf32)
    if not options.compile:
        return
    if (missing := obstacle(device)) is not None:
        console.print(
            f"trainer.compile: {missing}; training goes on [bold]without[/], correct but slower",
            highlight=False,
            soft_wrap=True,
        )
        return
    module.compile_loss()


def train(config: ExperimentConfig, run: Run) -> None:
    """Train an experiment, from its last checkpoint if there is one, and evaluate the best.

    Args:
        config: the experiment.
        run: its folder, new or of an interrupted run.

    Raises:
        DualscoreError: one line for people; nothing is left half-written.
    """
    quiet()
    console = shared_console()
    plain = to_plain(config)
    run.check_same(plain)
    module, datamodule = build(config)
    _prepare_device(config, module, console)
    step = 0
    if run.last.exists():
        step = int(read_checkpoint(run.last)["global_step"])
    report = run.folder / "evaluation.json"
    if step >= config.trainer.max_steps and not is_complete(report, run.best):
        evaluate(config, run.best, report)
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
        SkippedImages(config.data.max_skipped, datamodule, console),
        throughput,
        BitsPerDim(),
        Bound(),
        NoiseCurves(),
        LearningRateMonitor("step"),
        ConsoleReport(console, throughput),
        _checkpoint(run.best, _monitor(config)),
        _checkpoint(run.last, None),  # after the best, whose score it holds
    ]
    logger = TensorBoardLogger(run.folder, name="", version="tensorboard", default_hp_metric=False)
    trainer = _trainer(config, run, callbacks, console, config.trainer.precision, logger)
    if rank() == 0:
        run.write_config(plain)
    parameters = sum(p.numel() for p in module.model.parameters())
    start = f"goes on from step {step:,}" if step else "starts"
    console.print(
        f"[bold]{config.name}[/] {start} in {run.folder} · {parameters:,} parameters · "
        f"{datamodule.counts['train']:,} training images "
        f"{'×'.join(map(str, module.image_shape))} · "
        f"{trainer.world_size} × {trainer.strategy.root_device.type}",
        highlight=False,
        soft_wrap=True,
    )
    if step == 0 and trainer.is_global_zero:
        _log_settings(logger, plain, _monitor(config))
    try:
        trainer.fit(module, datamodule, ckpt_path=str(run.last) if step else None, weights_only=True)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        # SOAP's, of gradients that are finite but absurd.
        raise DivergenceError(
            f"step {trainer.global_step}: the optimiser's preconditioner overflows; the last good checkpoint "
            "is kept; try a smaller optim.lr with FRESH=1"
        ) from error
    except RuntimeError as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = " ".join(str(error).split())
            raise TrainingError(
                f"trainer.compile: torch.compile failed ({reason:.200}); trainer.compile=false trains without"
            ) from error
        if not is_out_of_memory(error):
            raise
        batch = config.data.batch_size // trainer.world_size
        raise TrainingError(
            f"step {trainer.global_step}: {batch // config.trainer.accumulate} images at once do not fit "
            f"into the memory of a device; {advice(module, batch, config.trainer.accumulate)}"
        ) from error
    except SystemExit as exit_:  # Lightning's answer to Ctrl-C
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from exit_
    evaluate(config, run.best, report)


def leave() -> None:
    """Leave the group of processes that training on several devices forms; to be called last."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
