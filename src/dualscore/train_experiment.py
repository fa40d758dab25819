"""Trains and evaluates an experiment in its run folder."""

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.text import Text

from dualscore.assemble import build
from dualscore.dashboard.logger import PatientLogger
from dualscore.dashboard.run_end import write_closing
from dualscore.dashboard.run_start import find_compared, write_opening
from dualscore.data.base import ImageDataModule
from dualscore.devices import allow_tf32
from dualscore.errors import StoppedError, TrainingError
from dualscore.evaluation import evaluate, is_complete
from dualscore.evaluation.evaluation_stages import check_estimators
from dualscore.measuring.estimators import ESTIMATORS
from dualscore.redaction import redact
from dualscore.runs.checkpoint_io import AtomicCheckpointIO
from dualscore.runs.checkpoints import best_sound, newest_sound
from dualscore.runs.folder import Run
from dualscore.runs.run_status import State, Status
from dualscore.runs.signals import StopSignals
from dualscore.runs.watchdog import Watchdog, within
from dualscore.settings.config import Anchor, Best, ExperimentConfig
from dualscore.settings.experiment import to_plain
from dualscore.telling import introduce, tell_results
from dualscore.terminal import final, quiet, rank, shared_console
from dualscore.terminal.hints import afresh, command, option
from dualscore.training.callbacks import (
    ConsoleReport,
    GradientHealth,
    Heartbeat,
    Journal,
    LearningRate,
    Pictures,
    References,
    Saving,
    SkippedImages,
    SpikeGuard,
    Throughput,
    TrainingBar,
    ValidationFigures,
)
from dualscore.training.compiling import obstacle
from dualscore.training.failures import told_to_people
from dualscore.training.lightning_module import DualScoreModule
from dualscore.training.trainer import accelerator, make_trainer


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
            f"trainer.compile: {missing}; training goes on without, correct but slower",
            soft_wrap=True,
        )
        return
    module.compile_loss(device)


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
    check_estimators(config)
    parts = build(config)  # which fails before anything is written
    plain = to_plain(config)
    run.check_same(plain)
    status = Status.read(run.folder) or Status()
    measured = status.step if status.state is State.complete else 0  # where the log's last evaluation ends
    with StopSignals() as signals, run.alone() if rank() == 0 else nullcontext():
        try:
            if not _fit(config, parts, run, signals, status, watchers):
                return
            status.state = State.evaluating
            _say(status, run)
            signals.stop_at_once()
            best = best_sound(run, _warn)
            report = evaluate(config, best, run.folder / "evaluation.json")
            if rank() == 0:
                steps = (measured, config.trainer.max_steps - 1)
                write_closing(PatientLogger(run.folder, 0, _warn), report, steps)
            tell_results(report, run.folder / "evaluation.json", best)
        except BaseException as error:
            stopped = isinstance(error, StoppedError | KeyboardInterrupt)
            status.state = State.stopped if stopped else State.failed
            said = (
                "stopped by Ctrl-C" if isinstance(error, KeyboardInterrupt) else " ".join(str(error).split())
            )
            status.reason = redact(said)[:300] or type(error).__name__
            _say(status, run)
            raise
        status.state = State.complete
        _say(status, run)


def _look_at_range(config: ExperimentConfig, module: DualScoreModule, console: Console) -> None:
    """Say so where noise ends before it drowns the images: the anchor is not exact there."""
    largest, t_max = float(module.prior.eigenvalues.max()), module.t_range[1]
    if config.energy.anchor is not Anchor.none and t_max < 10.0 * largest:
        console.print(
            f"noise.t_max: {t_max:g} is less than ten times the images' largest eigenvalue, {largest:.3g}: "
            f"at t_max they are not yet Gaussian; {10.0 * largest:.0f} or more lets log Z be taken there",
            soft_wrap=True,
        )


def _watchdog(config: ExperimentConfig, run: Run, status: Status, place: tuple[int, int]) -> Watchdog:
    """A watchdog that says why it ends the process, on the terminal and in the run's status."""

    def end(reason: str) -> None:
        message = f"error: {reason}; the same command goes on from the last checkpoint"
        print(message, file=sys.stderr, flush=True)
        # The file system may be what hangs.
        within(10.0, lambda: status.say_failed(run.folder, reason, first=place[0] == 0))
        os._exit(TrainingError.status)  # the main thread may wait for ever in a library

    return Watchdog(run.folder / "heartbeats", *place, 60 * config.trainer.hang_minutes, end)


def _warn(message: str) -> None:
    shared_console().print(Text.assemble(("warning:", "yellow"), f" {redact(message)}"), soft_wrap=True)


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

    before = replace(status)
    newest = newest_sound(run, _warn, put_aside=rank() == 0)
    step = status.step = int(newest[1]["global_step"]) if newest else 0
    status.max_steps = config.trainer.max_steps
    if step >= config.trainer.max_steps:
        if not is_complete(run.folder / "evaluation.json", run.best):
            return True
        _say_complete(config, run, step)
        return False
    logger = PatientLogger(run.folder, step, _warn)
    journal = Journal(logger.log_text, logger.save, _ending(before) if step else None)
    throughput = Throughput(config.data.batch_size)
    health = GradientHealth(config.trainer.max_skipped, journal.telling("skipped_steps", _warn))
    heartbeat = Heartbeat(run, status, throughput, health)
    io = AtomicCheckpointIO(config.trainer.keep, journal.telling("failed_writes", _warn))
    saving = Saving(run, _monitor(config), io, signals)
    compared = find_compared(run.folder, config, plain)
    references = References(compared.published, compared.psnr)
    unreadable = journal.telling("unreadable_images", _warn)
    guard = SpikeGuard(config.trainer.spike, run, journal.telling("rollbacks", _warn))
    callbacks = [
        health,
        SkippedImages(config.data.max_skipped, datamodule, unreadable),
        throughput,
        heartbeat,
        references,
        ValidationFigures(references, logger.log_histogram),
        Pictures(logger.log_picture),
        LearningRate(),
        journal,
        ConsoleReport(console, throughput),
        *([TrainingBar(console, throughput)] if console.live else []),
        *([guard] if config.trainer.spike else []),
        *watchers,
        saving,
    ]
    trainer = make_trainer(config, run, callbacks, io, logger)
    if rank() == 0:
        run.write_config(plain)
    introduce(config, run, module, datamodule, trainer, step)
    _look_at_range(config, module, console)
    if newest:
        _compare_devices(newest[1]["dualscore"].get("devices", 1), trainer.world_size, console)
    parameters = sum(p.numel() for p in module.model.parameters())
    estimates = {name: estimator.label for name, estimator in ESTIMATORS.items()}
    write_opening(logger, config, plain, compared, parameters, run.folder.name, estimates)
    with (
        _watchdog(config, run, status, (trainer.global_rank, trainer.world_size)) as heartbeat.watchdog,
        told_to_people(trainer, config, heartbeat.watchdog),
    ):
        trainer.fit(module, datamodule, ckpt_path=str(newest[0]) if newest else None, weights_only=True)
    if not saving.written:
        raise TrainingError(
            f"{run.last}: the last weights could not be written; make room, and the same command goes on "
            "from the checkpoint before"
        )
    return True


def _say_complete(config: ExperimentConfig, run: Run, step: int) -> None:
    more, fresh = option("trainer.max_steps=…", "SET=trainer.max_steps=…"), afresh()
    final(
        shared_console(),
        f"{run.folder} is complete ({step:,} steps). Train longer with {more} (a cosine schedule is then "
        f"stretched to the new length), anew beside it with {fresh}, or measure it with "
        f"{command('evaluate', config.name, variables={'EXP': config.name})}.",
        soft_wrap=True,
    )


def _compare_devices(before: int, now: int, console: Console) -> None:
    if before != now:
        console.print(
            f"{now} devices where there were {before}: the same images, noise and order; "
            "sums are taken in another order, so weights agree to rounding",
            soft_wrap=True,
        )


def _ending(before: Status) -> str:
    """How a run ended before it goes on, as far as it could say."""
    state, reason = before.state.value, before.reason or ""
    return reason if reason.startswith(state) else f"{state}: {reason}" if reason else state


def leave() -> None:
    """Leave the group of processes that training on several devices forms; to be called last."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
