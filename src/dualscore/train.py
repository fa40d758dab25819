"""Trains and evaluates an experiment in its run folder."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
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
    Saving,
    Throughput,
)
from dualscore.checkpoint_io import AtomicCheckpointIO
from dualscore.checkpoints import newest_sound
from dualscore.compiling import obstacle
from dualscore.config import Best, ExperimentConfig
from dualscore.errors import DivergenceError, TrainingError
from dualscore.evaluation import evaluate, is_complete
from dualscore.experiment import to_plain
from dualscore.memory import advice, is_out_of_memory
from dualscore.module import DualScoreModule
from dualscore.precision import allow_tf32
from dualscore.runs import Run, flatten
from dualscore.signals import StopSignals
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
    io: AtomicCheckpointIO,
    logger: TensorBoardLogger,
) -> lightning.Trainer:
    """Build the Trainer; no inference mode, because scores are gradients, in validation too."""
    options = config.trainer
    if console.is_terminal:
        callbacks = [*callbacks, ProgressBar()]
    plugins: list[Any] = [io]
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
            precision=options.precision,  # type: ignore[arg-type]
            plugins=plugins,
            logger=logger,
            enable_checkpointing=True,
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


def train(config: ExperimentConfig, run: Run, watchers: Sequence[Callback] = ()) -> None:
    """Train an experiment, from its last checkpoint if there is one, and evaluate the best.

    Args:
        config: the experiment.
        run: its folder, new or of an interrupted run.
        watchers: further callbacks.

    Raises:
        DualscoreError: one line for people; nothing is left half-written.
    """
    quiet()
    with StopSignals() as signals, run.alone() if rank() == 0 else nullcontext():
        if _fit(config, run, signals, watchers):
            signals.stop_at_once()
            evaluate(config, run.best, run.folder / "evaluation.json")


def _fit(config: ExperimentConfig, run: Run, signals: StopSignals, watchers: Sequence[Callback]) -> bool:
    """Train to the last step; whether there is something to evaluate."""
    console = shared_console()
    plain = to_plain(config)
    run.check_same(plain)
    module, datamodule = build(config)
    _prepare_device(config, module, console)

    def warn(message: str) -> None:
        console.print(f"[yellow]warning:[/] {message}", highlight=False, soft_wrap=True)

    newest = newest_sound(run, warn)
    step = int(newest[1]["global_step"]) if newest else 0
    if step >= config.trainer.max_steps:
        if not is_complete(run.folder / "evaluation.json", run.best):
            return True
        console.print(
            f"{run.folder} is complete ({step:,} steps). Train longer with SET=trainer.max_steps=… (a cosine "
            "schedule is then stretched to the new length), anew beside it with FRESH=1, or measure it with "
            "make evaluate.",
            soft_wrap=True,
        )
        return False
    throughput = Throughput(config.data.batch_size)
    io = AtomicCheckpointIO(config.trainer.keep, warn)
    callbacks = [
        GradientHealth(),
        throughput,
        BitsPerDim(),
        Bound(),
        NoiseCurves(),
        LearningRateMonitor("step"),
        ConsoleReport(console, throughput),
        *watchers,
        Saving(run, _monitor(config), io, signals),
    ]
    logger = TensorBoardLogger(
        run.folder,
        name="",
        version="tensorboard",
        default_hp_metric=False,
        purge_step=step or None,  # what was logged after the checkpoint is logged again
    )
    trainer = _trainer(config, run, callbacks, console, io, logger)
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
        trainer.fit(module, datamodule, ckpt_path=str(newest[0]) if newest else None, weights_only=True)
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
    return True


def leave() -> None:
    """Leave the group of processes that training on several devices forms; to be called last."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
