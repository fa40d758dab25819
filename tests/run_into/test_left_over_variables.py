"""Variables that a launcher left in a shell: a real launch, or one line that names the variable."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import forking
from dualscore.cluster import submit_job
from dualscore.errors import ConfigError
from dualscore.runs.launch import MEETING, check_launch, in_a_group
from test_cluster import job
from workspace import REFERENCE, ROOT, Workspace

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip
SRUN = {
    "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0",
}  # fmt: skip
LIGHTNING = {
    "DUALSCORE_RUN": "runs/x", "NODE_RANK": "0", "LOCAL_RANK": "1", "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1",
}  # fmt: skip
LSF = {
    "LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "/nonexistent", "JSM_NAMESPACE_LOCAL_RANK": "0",
    "JSM_NAMESPACE_SIZE": "1",
}  # fmt: skip
SHELL_IN_A_JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}


def without(variables: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in variables.items() if key != name}


@pytest.mark.parametrize(
    ("devices", "variables", "named"),
    [
        (1, {"LOCAL_RANK": "1"}, "LOCAL_RANK=1"),
        (1, {"RANK": "1"}, "RANK=1"),
        (2, {"LOCAL_RANK": "0"}, "LOCAL_RANK=0"),
        (2, {"RANK": "0"}, "RANK=0"),
        (1, {"NODE_RANK": "1"}, "NODE_RANK=1"),
        (2, {"GROUP_RANK": "1"}, "GROUP_RANK=1"),
        (1, {"SLURM_PROCID": "3"}, "SLURM_PROCID=3"),
        (2, {"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1"}, "SLURM_PROCID=1"),
        (1, {"WORLD_SIZE": "4"}, "WORLD_SIZE=4"),
        (2, {"WORLD_SIZE": ""}, "WORLD_SIZE="),
        (1, {"LOCAL_RANK": "first"}, "LOCAL_RANK=first"),
        (4, {"SLURM_NTASKS": "4"}, "SLURM_NTASKS=4"),
        (1, {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"}, "SLURM_NTASKS=4"),
        (2, {"MASTER_ADDR": "10.1.2.3"}, "MASTER_ADDR=10.1.2.3"),
        (1, {"TORCHELASTIC_RUN_ID": "none"}, "TORCHELASTIC_RUN_ID=none"),
        (4, TORCHRUN, "WORLD_SIZE=2"),
        (2, without(TORCHRUN, "TORCHELASTIC_RUN_ID"), "RANK=1"),
        (2, without(LIGHTNING, "DUALSCORE_RUN"), "LOCAL_RANK=1"),
        (1, LIGHTNING, "LOCAL_RANK=1"),
        (4, SRUN, "SLURM_NTASKS=2"),
        (2, SRUN | {"LOCAL_RANK": "0"}, "LOCAL_RANK=0"),
    ],
)
def test_what_no_launcher_set_is_named(devices: int, variables: dict[str, str], named: str) -> None:
    with pytest.raises(
        ConfigError, match=f"^{named} is set in the environment, but .*; if it is left over, "
    ):
        check_launch(devices, 1, variables)


@pytest.mark.parametrize(
    ("devices", "nodes", "variables", "grouped"),
    [
        (1, 1, {}, False),
        (4, 1, {}, False),
        (2, 1, TORCHRUN, True),
        (2, 1, SRUN | {"SLURM_JOB_NAME": "bash"}, True),
        (1, 2, SRUN, True),
        (2, 1, LIGHTNING, True),
        (1, 1, SHELL_IN_A_JOB, False),
        (4, 1, SHELL_IN_A_JOB, False),
        (1, 1, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, False),
        (2, 1, {"MASTER_ADDR": "localhost", "MASTER_PORT": "3"}, False),
        (2, 2, {"NODE_RANK": "1", "MASTER_ADDR": "10.1.2.3", "MASTER_PORT": "3"}, True),
    ],
)
def test_a_real_launch_is_one(devices: int, nodes: int, variables: dict[str, str], grouped: bool) -> None:
    assert check_launch(devices, nodes, variables) == grouped


SETTINGS_OF_LIGHTNING = [
    ("PL_TRAINER_LIMIT_VAL_BATCHES", "1"), ("PL_TRAINER_FAST_DEV_RUN", "1"), ("PL_TRAINER_BAREBONES", "True"),
    ("PL_TRAINER_OVERFIT_BATCHES", "1"), ("PL_TRAINER_GRADIENT_CLIP_VAL", "0.1"), ("LT_CLI_USED", "1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), SETTINGS_OF_LIGHTNING)
@pytest.mark.parametrize("launched", [{}, TORCHRUN, SRUN, LIGHTNING])
def test_settings_that_lightning_would_take_are_named(
    name: str, value: str, launched: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match=f"^{name}={value}: .*`unset {name}`, and give settings as trainer"):
        check_launch(2, 1, launched | {name: value})
    assert check_launch(2, 1, launched | {name: ""}) == bool(launched)  # Lightning passes over it


def test_no_command_takes_settings_that_the_experiment_does_not_know(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SETTINGS_OF_LIGHTNING[:2]:
        monkeypatch.setenv(name, value)
    settings = ["patches_dual", *REFERENCE, f"data.path={demo_shards}"]
    commands = (
        ("train", *settings),
        ("train", *settings, "--dry-run"),
        ("evaluate", *settings),
        ("study", "x"),
    )
    for words in commands:
        line = workspace.fail(*words)
        assert "unset PL_TRAINER_FAST_DEV_RUN PL_TRAINER_LIMIT_VAL_BATCHES" in line
    assert {path.name for path in workspace.folder.iterdir()} == {"experiments"}


@pytest.mark.parametrize("port", ["abc", "in use"])
def test_a_port_that_was_left_over_is_not_used(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch, port: str
) -> None:
    met: list[str | None] = []
    monkeypatch.setattr(
        "dualscore.train_experiment.train", lambda *_: met.extend(map(os.environ.get, MEETING))
    )
    settings = ["patches_dual", *REFERENCE, f"data.path={demo_shards}", "trainer.devices=2"]
    for name in MEETING:
        monkeypatch.setenv(name, port)
    workspace.run("train", *settings)
    assert met == [None, None]


def test_the_port_of_a_real_launch_is_kept_and_must_be_one(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[str | None] = []
    monkeypatch.setattr("dualscore.train_experiment.train", lambda *_: met.append(os.environ["MASTER_PORT"]))
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    workspace.run("train", "patches_dual", *REFERENCE, f"data.path={demo_shards}", "trainer.devices=2")
    assert met == [TORCHRUN["MASTER_PORT"]]
    with pytest.raises(ConfigError, match=r"^MASTER_PORT=abc "):
        check_launch(1, 2, {"NODE_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "abc"})


def test_a_shell_of_another_scheduler_trains(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in LSF.items():
        monkeypatch.setenv(name, value)
    settings = ["patches_dual", *REFERENCE, f"data.path={demo_shards}", "trainer.max_steps=3"]
    assert "starts in runs/patches_dual" in workspace.run("train", *settings)
    assert workspace.report("patches_dual")["complete"]


def test_training_names_the_variable_and_writes_nothing(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    settings = ["patches_dual", *REFERENCE, f"data.path={demo_shards}"]
    for more in ((), ("--dry-run",), ("--fresh",), ("trainer.devices=2",)):
        assert "LOCAL_RANK=1" in workspace.fail("train", *settings, *more)
    assert not (workspace.folder / "runs/patches_dual").exists()


def test_other_commands_are_processes_of_their_own(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.setenv(name, "1")
        assert "no runs in runs" in workspace.run("status")


@pytest.mark.parametrize("tasks", ["1", "2"])
def test_a_shell_in_a_job_trains_or_is_told(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch, tasks: str
) -> None:
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "mine", "SLURM_NTASKS": tasks}.items():
        monkeypatch.setenv(name, value)
    settings = ["patches_dual", *REFERENCE, f"data.path={demo_shards}", "--fresh"]
    settings += ["trainer.max_steps=3"]
    if tasks == "1":
        assert "starts in runs/patches_dual" in workspace.run("train", *settings)
    else:
        assert "SLURM_NTASKS=2" in workspace.fail("train", *settings)


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_a_wait_for_processes_that_do_not_come(
    demo_shards: Path, number: signal.Signals, status: int
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        launch = TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": str(free.getsockname()[1])}
    settings = [*REFERENCE, f"data.path={demo_shards}", "trainer.devices=2"]
    process = forking.Popen(
        [sys.executable, "-m", "dualscore", "train", "patches_dual", *settings],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | launch | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    time.sleep(5)
    assert process.poll() is None
    process.send_signal(number)
    began = time.monotonic()
    _, error = process.communicate(timeout=30)
    assert time.monotonic() - began < 9
    assert process.returncode == status
    assert f"stopped by {number.name} before training began; no checkpoint was written yet" in error
    assert "Traceback" not in error


def test_a_batch_script_clears_what_it_inherited(tmp_path: Path) -> None:
    script = submit_job.render(job(tmp_path))
    start = script[: script.index("\ncd ")] + "\nenv"
    inherited = {
        "SLURM_CPU_BIND": "quiet", "SLURM_CPU_BIND_TYPE": "mask_cpu:", "SLURM_MEM_BIND": "x", "RANK": "1",
        "SLURM_STEP_ID": "3", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "there",
        "PL_TRAINER_MAX_EPOCHS": "1", "LT_CLI_USED": "1", "STANDALONE_PORT": "x",
    }  # fmt: skip
    given = inherited | {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "9", "SLURM_NTASKS": "2"}
    done = subprocess.run(["bash"], input=start, env=given, capture_output=True, text=True, check=True)
    left = {line.partition("=")[0] for line in done.stdout.splitlines()}
    assert not left & set(inherited)
    assert {"SLURM_JOB_ID", "SLURM_NTASKS"} <= left


def test_sbatch_is_not_told_of_the_job_that_it_is_typed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_CPU_BIND", "SLURM_JOB_ID", "SLURM_CONF"):
        monkeypatch.setenv(name, "x")
    told = submit_job._slurm("env").stdout
    assert "SLURM_CONF=x" in told
    assert "SLURM_CPU_BIND" not in told
    assert "SLURM_JOB_ID" not in told


@pytest.mark.parametrize("started", [TORCHRUN, SRUN, LIGHTNING])
def test_a_group_is_known_by_all_that_its_launcher_sets(started: dict[str, str]) -> None:
    assert in_a_group(started)
    assert not any(in_a_group(without(started, name)) for name in started)


@pytest.mark.long
def test_an_evaluation_on_two_devices_starts_the_other_and_finds_the_same(
    trained_demo: Path, tmp_path: Path
) -> None:
    """What other commands forget of launchers is what the second process is told by."""
    run, report = tmp_path / "runs/patches_dual", Path("evaluation.json")
    shutil.copytree(trained_demo / "runs/patches_dual", run)
    alone = json.loads((run / report).read_text())
    shutil.rmtree(run / "evaluation")
    command = [
        "evaluate",
        "patches_dual",
        "trainer.devices=2",
        "evaluate.estimators=[paper]",
        "evaluate.chains=0",
    ]
    finished = subprocess.run(
        [sys.executable, "-m", "dualscore", *command],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "MASTER_PORT": "abc"},
        cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    together = json.loads((run / report).read_text())
    for part in ("value", "images"):
        assert together["bits_per_dim"]["paper"][part] == pytest.approx(
            alone["bits_per_dim"]["paper"][part], rel=1e-6
        )
