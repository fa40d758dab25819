"""The command line: train, evaluate, score, submit. Errors meant for people become one line."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dualscore.errors import ConfigError, DualscoreError, StoppedError
from dualscore.redaction import redact

if TYPE_CHECKING:
    from rich.console import Console

_CHOSEN_RUN = "DUALSCORE_RUN"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dualscore", description="Normalized energy models of images.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train an experiment, or go on where it stopped")
    train.add_argument("--fresh", action="store_true", help="start a new run beside the old ones")
    evaluate = commands.add_parser("evaluate", help="measure a trained experiment")
    evaluate.add_argument("--checkpoint", type=Path, help="file to measure; default: the newest run's best")
    submit = commands.add_parser("submit", help="give an experiment to a Slurm cluster, new or to go on")
    _add_resources(submit)
    for command in (train, evaluate, submit):
        command.add_argument("experiment", help="name of a file in experiments/, without .yaml")
        command.add_argument(
            "overrides", nargs="*", metavar="key=value", help="settings that win over the file's"
        )
        command.add_argument("--name", help="name of the run's folder (default: the experiment's)")
        command.add_argument(
            "--runs", type=Path, default=Path("runs"), help="folder of all runs (default: runs)"
        )
    _add_score(commands.add_parser("score", help="how probable images are, and where they are not"))
    figure = commands.add_parser("figure", help="draw a figure of the paper from runs")
    figure.add_argument("number", help="its number in the paper")
    figure.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    figure.add_argument("--out", type=Path, default=Path("figures"), help="folder for PDF, PNG and numbers")
    study = commands.add_parser("study", help="compare variants of an experiment, or go on where it stopped")
    study.add_argument("study", help="name of a file in studies/, without .yaml")
    status = commands.add_parser("status", help="list runs: step, bits/dim, speed, time left, state")
    status.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    commands.add_parser("experiments", help="list the experiments")
    return parser


def _add_resources(submit: argparse.ArgumentParser) -> None:
    submit.add_argument("--sweep", action="store_true", help="EXPERIMENT is a file in sweeps/: a job array")
    submit.add_argument("--nodes", type=int, default=1, help="nodes (default: 1)")
    submit.add_argument("--gpus", type=int, default=1, help="GPUs a node; 0 for CPUs (default: 1)")
    submit.add_argument("--tasks", type=int, default=1, help="processes a node without GPUs (default: 1)")
    submit.add_argument("--cpus", type=int, default=4, help="cores a process (default: 4)")
    submit.add_argument("--time", help="time limit, 24:00:00; at its end a job is requeued and goes on")
    submit.add_argument("--partition", help="the cluster's partition")
    submit.add_argument("--sbatch", default="", metavar="OPTIONS", help="more options, for sbatch")
    submit.add_argument("--dry", action="store_true", help="print the script; submit nothing")


def _add_score(score: argparse.ArgumentParser) -> None:
    score.add_argument("model", type=Path, help="a checkpoint, or a run's folder for its best one")
    score.add_argument("images", type=Path, nargs="+", help="image files, and folders of them")
    score.add_argument("--out", type=Path, default=Path("scores"), help="folder for the results")
    score.add_argument("--psnr", type=float, metavar="DB", help="effective dimension at this noise level")
    score.add_argument("--resize", action="store_true", help="crop and resize images of other sizes")
    score.add_argument("--normalize", action="store_true", help="estimate log Z where it is not known")
    score.add_argument("--no-maps", dest="maps", action="store_false", help="no heat map of each image")
    score.add_argument("--batch-size", type=_positive, default=128, help="images at once (default: 128)")
    workers = min(8, max(1, (os.cpu_count() or 1) // 2))
    shown = f"processes that decode (default: {workers}, half the cores, at most 8)"
    score.add_argument("--workers", type=int, default=workers, help=shown)
    score.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def _submit(arguments: argparse.Namespace) -> None:
    from dualscore.cluster.script import Resources, render
    from dualscore.cluster.submit import check, experiment_job, submit, sweep_job

    try:
        extra = tuple(shlex.split(arguments.sbatch))
    except ValueError as error:
        raise ConfigError(f"--sbatch={arguments.sbatch}: cannot be read: {error}") from error
    resources = Resources(
        nodes=arguments.nodes,
        gpus=arguments.gpus,
        tasks=arguments.tasks,
        cpus=arguments.cpus,
        time=arguments.time,
        partition=arguments.partition,
        extra=extra,
    )
    make = sweep_job if arguments.sweep else experiment_job
    job = make(arguments.experiment, arguments.overrides, arguments.name, arguments.runs, resources)
    check(job)
    if arguments.dry:
        print(render(job), end="")
    else:
        print(f"job {submit(job)} is submitted; script and log are in {job.folder}")


def _train(arguments: argparse.Namespace) -> None:
    from dualscore.experiment import load_experiment
    from dualscore.runs import Run, fresh_run, newest_run
    from dualscore.train import leave, train

    config = load_experiment(arguments.experiment, arguments.overrides)
    if chosen := os.environ.get(_CHOSEN_RUN):
        train(config, Run(Path(chosen)))
    elif arguments.fresh and int(os.environ.get("SLURM_NTASKS") or os.environ.get("WORLD_SIZE") or 1) > 1:
        # Processes started side by side would each count the folders for themselves.
        raise ConfigError(f"FRESH=1 with several tasks: name the new run yourself, {_CHOSEN_RUN}=runs/NAME-2")
    else:
        run = (fresh_run if arguments.fresh else newest_run)(arguments.name or config.name, arguments.runs)
        # The processes that Lightning starts for other devices inherit this and join the same run.
        os.environ[_CHOSEN_RUN] = str(run.folder)
        try:
            train(config, run)
        finally:
            del os.environ[_CHOSEN_RUN]
    leave()


def _evaluate(arguments: argparse.Namespace) -> None:
    from dualscore.evaluation import evaluate
    from dualscore.experiment import load_experiment, override_config
    from dualscore.redaction import restore
    from dualscore.runs import newest_run
    from dualscore.train import leave

    config = load_experiment(arguments.experiment, arguments.overrides)
    run = newest_run(arguments.name or config.name, arguments.runs)
    if arguments.checkpoint is None and run.config_file.exists():
        # What the run was trained with, not what the experiment's file says today.
        stored = run.read_config()
        if isinstance(data := stored.get("data"), dict):
            given = any(override.startswith("data.path=") for override in arguments.overrides)
            data["path"] = config.data.path if given else restore(str(data.get("path")), config.data.path)
        config = override_config(stored, arguments.overrides, str(run.config_file))
    checkpoint = arguments.checkpoint or run.best
    output = run.folder if arguments.checkpoint is None else checkpoint.parent
    evaluate(config, checkpoint, output / "evaluation.json")
    leave()


def _score(arguments: argparse.Namespace) -> None:
    import torch

    from dualscore.scoring.results import Options
    from dualscore.scoring.run import score

    options = Options(
        out=arguments.out,
        psnr=arguments.psnr,
        resize=arguments.resize,
        normalize=arguments.normalize,
        maps=arguments.maps,
        batch_size=arguments.batch_size,
        workers=max(0, arguments.workers),
        device=arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )
    score(arguments.model, arguments.images, options, _wide_console())


def _figure(arguments: argparse.Namespace) -> None:
    from dualscore.figures import draw

    for file in draw(arguments.number, arguments.runs, arguments.out):
        print(f"written to {file}")


def _study(arguments: argparse.Namespace) -> None:
    from dualscore.study import load_study, run_study
    from dualscore.terminal import shared_console

    run_study(load_study(arguments.study), shared_console())


def _status(arguments: argparse.Namespace) -> None:
    from dualscore.status import table

    shown = table(arguments.runs)
    _wide_console().print(shown or f"no runs in {arguments.runs}; make train starts one", soft_wrap=not shown)


def _wide_console() -> "Console":
    """The terminal; written into a file or a pipe, no line is cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200)


def _one_line(error: DualscoreError) -> str:
    """The message without credentials; of a traceback in text, as loader processes send it, the last line."""
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:
        text = text.splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
    return redact(" ".join(text.split()))


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments, without the program's name; default: the process's own.

    Returns:
        The exit status: 0; after an error that is shown as one line 1, 3 where a training diverged,
        4 where an energy could not be normalized; 75 where a run was asked to stop and can go on.
    """
    # Torch's CPU threads wait for each other by spinning. Where anything else runs, spinning long makes a
    # step tens of times slower (measured: 0.1 instead of 2.6 steps/s beside one busy process); spinning this
    # long and then sleeping costs a fifth where nothing else does. Read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    settable = hasattr(arguments, "overrides")
    if strangers := [word for word in rest if word.startswith("-") or "=" not in word or not settable]:
        parser.error(f"unrecognized arguments: {' '.join(strangers)}")
    if rest:  # settings after an option, which argparse leaves over
        arguments.overrides += rest
    try:
        if arguments.command == "train":
            _train(arguments)
        elif arguments.command == "submit":
            _submit(arguments)
        elif arguments.command == "evaluate":
            _evaluate(arguments)
        elif arguments.command == "score":
            _score(arguments)
        elif arguments.command == "figure":
            _figure(arguments)
        elif arguments.command == "status":
            _status(arguments)
        elif arguments.command == "study":
            _study(arguments)
        else:
            from dualscore.experiment import available, summary

            names = available()
            width = max(map(len, names), default=0)
            print("\n".join(f"{name:{width}}  {summary(name)}" for name in names))
    except StoppedError as stop:
        from dualscore.terminal import rank

        # Launchers take the failure of any other process for one of the whole group, and kill the first.
        if rank() > 0:
            return 0
        print(_one_line(stop), file=sys.stderr)
        return stop.status
    except DualscoreError as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return error.status
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {redact(f'{where}{error.strerror or error}')}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0
