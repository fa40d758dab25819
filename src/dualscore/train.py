"""Trains and evaluates an experiment in its run folder."""

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import lightning
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from rich.console import Console
from rich.markup import escape

from dualscore.assemble import build
from dualscore.callbacks import (
    BitsPerDim,
    Bound,
    ConsoleReport,
    GradientHealth,
    Heartbeat,
    NoiseCurves,
    Pictures,
    Saving,
    SkippedImages,
    SpikeGuard,
    Throughput,
)
from dualscore.checkpoint_io import AtomicCheckpointIO
from dualscore.checkpoints import best_sound, newest_sound
from dualscore.compiling import obstacle
from dualscore.config import Best, ExperimentConfig
from dualscore.data.base import ImageDataModule
from dualscore.errors import StoppedError, TrainingError
from dualscore.evaluation import evaluate, is_complete
from dualscore.experiment import to_plain
from dualscore.failures import told_to_people
from dualscore.module import DualScoreModule
from dualscore.precision import allow_tf32
from dualscore.redaction import redact
from dualscore.runs import Run
from dualscore.signals import StopSignals
from dualscore.status import State, Status
from dualscore.terminal import quiet, rank, shared_console
from dualscore.trainer import PatientLogger, accelerator, log_settings, make_trainer
from dualscore.watchdog import Watchdog, within


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
    parts = build(config)  # which fails before anything is written
    plain = to_plain(config)
    run.check_same(plain)
    status = Status.read(run.folder) or Status()
    with StopSignals() as signals, run.alone() if rank() == 0 else nullcontext():
        try:
            if not _fit(config, parts, run, signals, status, watchers):
                return
            status.state = State.evaluating
            _say(status, run)
            signals.stop_at_once()
            evaluate(config, best_sound(run, _warn), run.folder / "evaluation.json")
        except BaseException as error:
            stopped = isinstance(error, StoppedError | KeyboardInterrupt)
            status.state = State.stopped if stopped else State.failed
            status.reason = redact(" ".join(str(error).split()))[:300] or type(error).__name__
            _say(status, run)
            raise
        status.state = State.complete
        _say(status, run)


def _watchdog(config: ExperimentConfig, run: Run, status: Status, place: tuple[int, int]) -> Watchdog:
    """A watchdog that says why it ends the process, on the terminal and in the run's status."""

    def end(reason: str) -> None:
        message = f"error: {reason}; the same command goes on from the last checkpoint"
        print(message, file=sys.stderr, flush=True)
        status.state, status.reason = State.failed, reason
        within(10.0, lambda: status.say(run.folder))  # the file system may be what hangs
        os._exit(TrainingError.status)  # the main thread may wait for ever in a library

    return Watchdog(run.folder / "heartbeats", *place, 60 * config.trainer.hang_minutes, end)


def _warn(message: str) -> None:
    shared_console().print(f"[yellow]warning:[/] {escape(message)}", highlight=False, soft_wrap=True)


def _say(status: Status, run: Run) -> None:
    if rank() == 0:
        status.say(run.folder)


def _fit(
    config: ExperimentConfig,
    parts: tuple[DualScoreModule, ImageDataModule],
    run: Run,
    signals: StopSignals,
    status: Status,
    watchers: Sequence[Callback],
) -> bool:
    """Train to the last step; whether there is something to evaluate."""
    console = shared_console()
    plain = to_plain(config)
    module, datamodule = parts
    _prepare_device(config, module, console)

    newest = newest_sound(run, _warn, put_aside=rank() == 0)
    step = status.step = int(newest[1]["global_step"]) if newest else 0
    status.max_steps = config.trainer.max_steps
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
    throughput, health = Throughput(config.data.batch_size), GradientHealth(config.trainer.max_skipped, _warn)
    heartbeat = Heartbeat(run, status, throughput, health)
    io = AtomicCheckpointIO(config.trainer.keep, _warn)
    saving = Saving(run, _monitor(config), io, signals)
    logger = PatientLogger(run.folder, step, _warn)
    callbacks = [
        health,
        SkippedImages(config.data.max_skipped, datamodule, console),
        throughput,
        heartbeat,
        BitsPerDim(),
        Bound(),
        NoiseCurves(),
        Pictures(logger.log_picture),
        LearningRateMonitor("step"),
        ConsoleReport(console, throughput),
        *([SpikeGuard(config.trainer.spike, run, _warn)] if config.trainer.spike else []),
        *watchers,
        saving,
    ]
    trainer = make_trainer(config, run, callbacks, console, io, logger)
    if rank() == 0:
        run.write_config(plain)
    _introduce(config, run, module, datamodule, trainer, step, console)
    if newest and (before := newest[1]["dualscore"].get("devices", 1)) != trainer.world_size:
        console.print(
            f"{trainer.world_size} devices where there were {before}: the same images, noise and order; sums "
            "are taken in another order, so weights agree to rounding",
            highlight=False,
            soft_wrap=True,
        )
    if step == 0 and trainer.is_global_zero:
        log_settings(logger, plain, _monitor(config))
    with (
        _watchdog(config, run, status, (trainer.global_rank, trainer.world_size)) as heartbeat.watchdog,
        told_to_people(trainer, module, config, heartbeat.watchdog),
    ):
        trainer.fit(module, datamodule, ckpt_path=str(newest[0]) if newest else None, weights_only=True)
    if not saving.written:
        raise TrainingError(
            f"{run.last}: the last weights could not be written; make room, and the same command goes on "
            "from the checkpoint before"
        )
    return True


def _introduce(
    config: ExperimentConfig,
    run: Run,
    module: DualScoreModule,
    datamodule: ImageDataModule,
    trainer: lightning.Trainer,
    step: int,
    console: Console,
) -> None:
    """One line that says what begins."""
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


def leave() -> None:
    """Leave the group of processes that training on several devices forms; to be called last."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
