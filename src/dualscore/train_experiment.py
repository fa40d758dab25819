"""Trains and evaluates an experiment in its run folder."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from lightning.pytorch.callbacks import Callback
from rich.text import Text

from dualscore.assemble import build
from dualscore.dashboard.logger import PatientLogger
from dualscore.dashboard.run_log import find_compared, write_closing, write_opening
from dualscore.data.datamodule import ImageDataModule
from dualscore.errors import StoppedError, TrainingError
from dualscore.evaluation import evaluate, is_complete
from dualscore.evaluation.evaluate_checkpoint import check_estimators
from dualscore.files.plain_text import one_line
from dualscore.measuring.estimators import ESTIMATORS
from dualscore.redaction import redact
from dualscore.runs.checkpoints import best_sound, newest_sound
from dualscore.runs.folder import Run
from dualscore.runs.run_status import State, Status
from dualscore.runs.watchdog import StopSignals, Watchdog, within
from dualscore.settings.config import Anchor, ExperimentConfig
from dualscore.settings.experiment import to_plain
from dualscore.telling import count_parameters, introduce, tell_complete, tell_results
from dualscore.terminal.console import quiet, rank, shared_console
from dualscore.training.callbacks import Training, build_callbacks
from dualscore.training.callbacks.checkpointing import AtomicCheckpointIO, Saving
from dualscore.training.callbacks.journal import Journal
from dualscore.training.callbacks.progress import Heartbeat
from dualscore.training.lightning_module import DualScoreModule
from dualscore.training.trainer import errors_for_people, make_trainer, prepare_device


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
    module, datamodule = build(config)  # which fails before anything is written
    run.check_same(to_plain(config))
    status = Status.read(run.folder) or Status()
    measured = status.step if status.state is State.complete else 0  # where the log's last evaluation ends
    report_file = run.folder / "evaluation.json"
    with StopSignals(_stopped_early(run, status)) as signals, run.alone() if rank() == 0 else nullcontext():
        try:
            if not _fit(config, module, datamodule, run, signals, status, watchers):
                return
            _set_state(status, run, State.evaluating)
            signals.stop_at_once()
            best = best_sound(run, _warn)
            report = evaluate(config, best, report_file, shared_console())
            if rank() == 0:
                steps = (measured, config.trainer.max_steps - 1)
                write_closing(PatientLogger(run.folder, 0, _warn), report, steps)
            tell_results(report, report_file, best)
        except BaseException as error:
            by_hand = isinstance(error, StoppedError) and signals.received == "SIGINT" and rank() == 0
            interrupted = by_hand or isinstance(error, KeyboardInterrupt)
            reason = "stopped by Ctrl-C" if interrupted else redact(one_line(error))[:300]
            status.reason = reason or type(error).__name__
            stopped = interrupted or isinstance(error, StoppedError)
            _set_state(status, run, State.stopped if stopped else State.failed)
            if interrupted:
                raise KeyboardInterrupt(run.goes_on()) from error
            raise
        _set_state(status, run, State.complete)


def _fit(
    config: ExperimentConfig,
    module: DualScoreModule,
    datamodule: ImageDataModule,
    run: Run,
    signals: StopSignals,
    status: Status,
    watchers: Sequence[Callback],
) -> bool:
    """Train to the last step; whether there is something to evaluate."""
    prepare_device(config, module, _note)
    before = _ending(status)
    newest = newest_sound(run, _warn, put_aside=rank() == 0)
    step = status.step = int(newest[1]["global_step"]) if newest else 0
    status.max_steps = config.trainer.max_steps
    if step >= config.trainer.max_steps:
        if not is_complete(run.folder / "evaluation.json", run.best):
            return True
        tell_complete(config, run, step)
        return False
    plain, console = to_plain(config), shared_console()
    logger = PatientLogger(run.folder, step, _warn)
    journal = Journal(logger.log_text, logger.save, before if step else None)
    io = AtomicCheckpointIO(config.trainer.keep, journal.recording("failed_writes", _warn))
    compared = find_compared(run.folder, config, plain)
    training = Training(
        config, run, datamodule, logger, status, signals, journal, io, compared,
        bar=console if console.live else None, say=console.progress, warn=_warn,
    )  # fmt: skip
    callbacks = build_callbacks(training)
    # Lightning moves what saves, which is in the table, behind the watchers.
    trainer = make_trainer(config, run, [*callbacks, *watchers], io, logger)
    if rank() == 0:
        run.write_config(plain)
    introduce(config, run, module, datamodule, trainer, step)
    _warn_of_short_range(config, module)
    if newest and (devices := newest[1]["dualscore"].get("devices", 1)) != trainer.world_size:
        _note(
            f"{trainer.world_size} devices where there were {devices}: the same images, noise and order; "
            "sums are taken in another order, so weights agree to rounding"
        )
    wanted = config.evaluate.estimators
    estimates = {name: e.label for name, e in ESTIMATORS.items() if not e.costly or name in wanted}
    parameters = count_parameters(module.model)
    write_opening(logger, config, plain, compared, parameters, run.folder.name, estimates)
    watchdog = _watchdog(config, run, status, (trainer.global_rank, trainer.world_size))
    training.find(Heartbeat).watchdog = watchdog
    with watchdog, errors_for_people(trainer, config, watchdog):
        trainer.fit(module, datamodule, ckpt_path=str(newest[0]) if newest else None, weights_only=True)
    if not training.find(Saving).written:
        raise TrainingError(
            f"{run.last}: the last weights could not be written; make room, and the same command goes on "
            "from the checkpoint before"
        )
    return True


def _warn_of_short_range(config: ExperimentConfig, module: DualScoreModule) -> None:
    """Say so where noise ends before it drowns the images: the anchor is not exact there."""
    largest, t_max = float(module.prior.eigenvalues.max()), module.t_range[1]
    if config.energy.anchor is not Anchor.none and t_max < 10.0 * largest:
        _note(
            f"noise.t_max: {t_max:g} is less than ten times the images' largest eigenvalue, {largest:.3g}: "
            f"at t_max they are not yet Gaussian; {10.0 * largest:.0f} or more lets log Z be taken there"
        )


def _watchdog(config: ExperimentConfig, run: Run, status: Status, place: tuple[int, int]) -> Watchdog:
    """A watchdog that says why it ends the process, on the terminal and in the run's status."""

    def end(reason: str) -> None:
        message = f"error: {reason}; {run.goes_on()}"
        print(message, file=sys.stderr, flush=True)
        # The file system may be what hangs.
        within(10.0, lambda: status.say_failed(run.folder, reason, first=place[0] == 0))
        os._exit(TrainingError.status)  # the main thread may wait for ever in a library

    return Watchdog(run.folder / "heartbeats", *place, 60 * config.trainer.hang_minutes, end)


def _stopped_early(run: Run, status: Status) -> Callable[[str], None]:
    """What tells of a signal before the first step, where the main thread may wait for another device."""

    def tell(name: str) -> None:
        status.reason = f"stopped by {name} before training began"
        print(f"{status.reason}; {run.goes_on()}", file=sys.stderr, flush=True)
        within(5.0, lambda: _set_state(status, run, State.stopped))

    return tell


def _note(message: str) -> None:
    shared_console().print(message, soft_wrap=True)


def _warn(message: str) -> None:
    shared_console().print(Text.assemble(("warning:", "yellow"), f" {redact(message)}"), soft_wrap=True)


def _set_state(status: Status, run: Run, state: State) -> None:
    status.state = state
    if rank() == 0:
        status.say(run.folder)


def _ending(status: Status) -> str:
    """How a run ended before it goes on, as far as it could say."""
    state, reason = status.state.value, status.reason or ""
    return reason if reason.startswith(state) else f"{state}: {reason}" if reason else state


def leave() -> None:
    """Leave the group of processes that training on several devices forms; to be called last."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
