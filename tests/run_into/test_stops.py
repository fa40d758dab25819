"""Whatever stops a run, it saves; and what it promises is there."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import forking
from data_prep import cli as preparing
from dualscore import cli
from dualscore.errors import StoppedError
from dualscore.runs.watchdog import StopSignals
from dualscore.settings.experiment import load_experiment
from dualscore.study import run_variants
from dualscore.train_experiment import train
from test_checkpoints import at, run_of, tell_self
from test_study import declare
from workspace import REFERENCE, ROOT, Workspace

LONG = ["trainer.max_steps=100000", "trainer.validate_every=100000"]


def go(shards: Path, *settings: str, **options: Any) -> "subprocess.Popen[str]":
    """A run of the demo, far from its first validation."""
    command = [sys.executable, "-m", "dualscore", "train", "patches_dual", *REFERENCE, *LONG, *settings]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
    kinds = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return forking.Popen(
        [*command, f"data.path={shards}"], env=environment | {"OMP_NUM_THREADS": "1"}, **kinds
    )


def steps_are_made(workspace: Workspace) -> None:
    """Wait until a run has logged steps."""
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size > 6_000 for p in (workspace.folder / "runs").glob("*/events*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGUSR1])
def test_every_way_to_stop_saves_before_the_first_validation(
    workspace: Workspace, demo_shards: Path, number: signal.Signals
) -> None:
    config = load_experiment("patches_dual", [*REFERENCE, f"data.path={demo_shards}", "data.workers=1"])
    kind: Any = KeyboardInterrupt if number == signal.SIGINT else StoppedError
    with pytest.raises(kind, match="the same command goes on"):
        train(config, run_of(workspace, "stopped"), [at(2, tell_self(number))])
    assert workspace.checkpoint("stopped")["global_step"] == 2
    assert "stopped" in workspace.run("status")


def test_ctrl_c_in_a_terminal_reaches_loader_processes_too_and_saves(
    workspace: Workspace, demo_shards: Path
) -> None:
    process = go(demo_shards, "data.workers=1", start_new_session=True)
    steps_are_made(workspace)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines()[-1] == "interrupted; the same command goes on from the last checkpoint"
    assert workspace.checkpoint("patches_dual")["global_step"] > 0
    assert "Traceback" not in error


def test_a_terminal_that_closes_saves(workspace: Workspace, demo_shards: Path) -> None:
    ours, theirs = pty.openpty()
    process = go(
        demo_shards, "data.workers=1", start_new_session=True, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size > 6_000 for p in (workspace.folder / "runs").glob("*/events*")):
        assert time.monotonic() < deadline
        with contextlib.suppress(OSError):
            os.read(ours, 100_000)
        time.sleep(0.05)
    os.close(ours)
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(timeout=60) == StoppedError.status
    assert workspace.checkpoint("patches_dual")["global_step"] > 0
    assert "stopped by SIGHUP" in workspace.run("status")


@pytest.fixture
def ignored_hangup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("ignored_hangup")
def test_what_nohup_ignores_stays_ignored() -> None:
    with StopSignals() as signals:
        signals.listen()
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_second_ctrl_c_ends_and_the_same_one_handed_on_does_not() -> None:
    with StopSignals() as signals:
        signals.listen()
        for _ in range(2):  # by the terminal, and by a study that waits for the run
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == "SIGINT"
        time.sleep(1.2)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_ends_before_a_checkpoint_promises_none(workspace: Workspace, demo_shards: Path) -> None:
    config = load_experiment("patches_dual", [*REFERENCE, f"data.path={demo_shards}"])

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.2)
        os.kill(os.getpid(), signal.SIGINT)

    run = run_of(workspace, "stopped")
    with pytest.raises(KeyboardInterrupt) as ended:
        train(config, run, [at(1, twice)])
    assert str(ended.value) == "no checkpoint was written yet: the same command begins at step 0"
    assert run.kept() == []
    with pytest.raises(KeyboardInterrupt, match="goes on from the last checkpoint"):
        train(config, run, [at(4, twice)])
    assert re.search(r"stopped .*stopped by Ctrl-C", workspace.run("status"), re.DOTALL)
    assert run.kept()


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (75, "the run was stopped; no checkpoint was written yet: the same command begins at step 0"),
        (130, "interrupted; no checkpoint was written yet: the same command begins at step 0"),
    ],
)
def test_a_study_promises_no_more_than_its_run_has(
    workspace: Workspace,
    demo_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: int,
    said: str,
) -> None:
    settings = [*REFERENCE, f"data.path={demo_shards}", "evaluate.estimators=[paper,dequantized,bound]"]
    declare(workspace.folder, settings=settings, variants={"recipe": []}, steps=10, measurements=1)
    monkeypatch.setattr(run_variants, "_seconds_per_step", lambda configs, _: dict.fromkeys(configs, 1.0))
    monkeypatch.setattr(run_variants, "_run_and_log", lambda *_: status)
    assert cli.main(["study", "mine"]) == status
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", [["status"], ["--version"], ["data", "verify", "shards"]])
def test_ctrl_c_before_a_command_begins_is_one_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While it is imported, or its options are read."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preparing if words[0] == "data" else cli, "_parser", interrupted)
    assert cli.main(words) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_nothing_is_imported_before_ctrl_c_is_heard() -> None:
    code = "import sys, dualscore.cli; sys.exit('dualscore.commands' in sys.modules or 'rich' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_ctrl_c_after_a_command_is_no_traceback(tmp_path: Path) -> None:
    """While Python tidies up: the result is out."""
    code = (
        "import atexit, os, signal, sys; from dualscore.cli import main\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT)); sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "status"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = forking.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert "no runs in runs" in done.stdout
    assert done.stderr == ""
