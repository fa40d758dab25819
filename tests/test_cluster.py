"""Jobs without a cluster: scripts, sweeps, and everything that is refused before the queue."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import forking
from dualscore.cluster.batch_script import PLACE, Entry, Job, Resources, render, seconds
from dualscore.cluster.submit_job import load_sweep
from dualscore.errors import ClusterError, ConfigError
from dualscore.settings.experiment import load_experiment
from workspace import ROOT, TINY, Workspace

NASTY = ["a=b c", "path=it's $(touch oops) `touch oops`", 'q="\\', "x=*;&|>#%j", "umlaut=äß", "y=!!${HOME}"]
GPUS = Resources(nodes=2, gpus=8, tasks=1, cpus=4, time="24:00:00", partition="long")


def job(
    folder: Path, *, sweep: bool = False, settings: tuple[str, ...] = (), resources: Resources = GPUS
) -> Job:
    entries = [Entry(Path("runs/s") / f"n{i} '", (f"seed={i}", *settings)) for i in range(3 if sweep else 1)]
    for entry in entries:
        (folder / entry.folder).mkdir(parents=True, exist_ok=True)
    where = Path("runs/s") if sweep else entries[0].folder
    return Job(
        "s", "patches_dual", tuple(entries), sweep, where, resources, folder, Path("/opt/an env/bin/python")
    )


def run_script(
    folder: Path,
    script: str,
    *,
    status: int = 0,
    stopped: bool = False,
    state: str = "RUNNING",
    index: int = -1,
) -> tuple[int, list[str], str]:
    """Run a script with stand-ins for Slurm's commands: its status, what srun got, what was requeued."""
    commands = folder / "commands"
    commands.mkdir(exist_ok=True)
    stop = 'touch "$DUALSCORE_STOP_FILE"\n' if stopped else ""
    stand_ins = {
        "srun": f'printf "%s\\0" "$@" > srun.out\n{stop}exit {status}\n',
        "squeue": f"echo {state}\n",
        "scontrol": 'echo "$@" > scontrol.out\n',
    }
    for name, text in stand_ins.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}")
        (commands / name).chmod(0o755)
    given = {
        "PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n1",
        "SLURM_CPUS_PER_TASK": "4", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_NUM_NODES": "2",
    }  # fmt: skip
    if index >= 0:
        given |= {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": str(index)}
    (folder / "scontrol.out").unlink(missing_ok=True)
    finished = subprocess.run(["bash"], input=script, env=given, text=True, cwd="/", check=False)
    requeued = folder / "scontrol.out"
    words = (folder / "srun.out").read_text().split("\0")[:-1]
    return finished.returncode, words, requeued.read_text().strip() if requeued.exists() else ""


@pytest.mark.parametrize("sweep", [False, True])
def test_settings_reach_training_as_they_are(tmp_path: Path, sweep: bool) -> None:
    folder = tmp_path / "a project $(touch oops)'"
    folder.mkdir()
    script = render(job(folder, sweep=sweep, settings=tuple(NASTY)))
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    status, words, _ = run_script(folder, script, index=2 if sweep else -1)
    assert status == 0
    start = words.index("train")
    assert words[start - 3 : start] == ["/opt/an env/bin/python", "-m", "dualscore.task"]
    assert words[start:] == [
        "train", "patches_dual", f"seed={2 if sweep else 0}", *NASTY,
        "trainer.devices=8", "trainer.nodes=2", "trainer.accelerator=gpu",
    ]  # fmt: skip
    assert not list(tmp_path.rglob("oops"))


def test_the_script_asks_for_what_was_asked_for(tmp_path: Path) -> None:
    directives = [line for line in render(job(tmp_path)).splitlines() if line.startswith("#SBATCH")]
    assert directives == [
        f"#SBATCH {option}"
        for option in [
            "--job-name=s", "--nodes=2", "--ntasks-per-node=8", "--cpus-per-task=4", "--gpus-per-node=8",
            "--time=24:00:00", "--partition=long", f"'--output={tmp_path}/runs/s/n0 '\"'\"'/slurm-%j.out'",
            "--open-mode=append", "--requeue", "--signal=USR1@90",
        ]
    ]  # fmt: skip
    cpus = Resources(nodes=1, gpus=0, tasks=2, cpus=1, sbatch="--account=me '--constraint=a b'")
    script = render(job(tmp_path, sweep=True, resources=cpus))
    assert "gpus" not in script
    for line in ("--ntasks-per-node=2", "--array=0-2", "--account=me", "'--constraint=a b'"):
        assert f"#SBATCH {line}\n" in script
    assert "accelerator=cpu\n" in script


@pytest.mark.parametrize("index", [-1, 1])
def test_only_a_stop_on_request_is_requeued_and_only_that_task(tmp_path: Path, index: int) -> None:
    script, own = render(job(tmp_path, sweep=index >= 0)), "70_1" if index >= 0 else "77"
    assert run_script(tmp_path, script, index=index)[::2] == (0, "")
    assert run_script(tmp_path, script, index=index, status=3)[::2] == (3, "")
    assert run_script(tmp_path, script, index=index, stopped=True)[::2] == (0, f"requeue {own}")
    # A task that had not begun to listen, and took the others with it.
    assert run_script(tmp_path, script, index=index, stopped=True, status=143)[2] == f"requeue {own}"
    cancelled = run_script(tmp_path, script, index=index, stopped=True, state="COMPLETING")
    assert cancelled[::2] == (0, "")
    # What is left of the last stop says nothing about this start.
    assert run_script(tmp_path, script, index=index, status=3)[::2] == (3, "")


def test_a_line_break_is_refused(tmp_path: Path) -> None:
    for settings in (("a=b\nc",), ("a=\x07",)):
        with pytest.raises(ClusterError, match="line break"):
            render(job(tmp_path, settings=settings))


def test_a_job_of_a_name_that_lightning_takes_for_a_terminal_gets_another(tmp_path: Path) -> None:
    plain = job(tmp_path)
    named = replace(plain, name="bash")
    assert "--job-name=bash-run\n" in render(named)


@pytest.mark.parametrize(
    ("time", "expected"),
    [("90", 5400), ("5:30", 330), ("24:00:00", 86400), ("2-0", 172800), ("1-2:30", 95400), ("0-0:5:1", 301)],
)
def test_time_limits_in_every_form(time: str, expected: int) -> None:
    assert seconds(time) == expected


@pytest.mark.parametrize("time", ["1d", "", "1:2:3:4", "-5", "24h"])
def test_what_is_no_time_limit_is_refused(time: str) -> None:
    with pytest.raises(ClusterError, match="no time limit"):
        seconds(time)


def _task(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    imports = "import os, signal, sys, dualscore.cli, dualscore.task as task"
    code = f"{imports}; {code}; sys.exit(task.main())"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "DUALSCORE_STOP_FILE": str(folder / "stop")}
    return forking.run([sys.executable, "-c", code], env=environment, text=True)


def test_a_task_that_stops_on_request_has_not_failed(tmp_path: Path) -> None:
    for status in (0, 1, 3):
        assert _task(f"dualscore.cli.main = lambda: {status}", tmp_path).returncode == status
        assert not (tmp_path / "stop").exists()
    assert _task("dualscore.cli.main = lambda: 75", tmp_path).returncode == 0
    assert (tmp_path / "stop").exists()


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1"])
def test_a_task_told_to_stop_before_it_trains_ends_at_once_and_the_others_with_it(
    tmp_path: Path, number: str
) -> None:
    code = f"dualscore.cli.main = lambda: (os.kill(os.getpid(), signal.{number}), 0)[1]"
    assert _task(code, tmp_path).returncode == 75
    assert (tmp_path / "stop").exists()


def test_dry_prints_the_script_and_leaves_nothing(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    settings = [*TINY, f"data.path={demo_shards}", "optim.warmup_steps=0", "trainer.max_steps=2"]
    job = ["submit", "patches_dual", *settings, "--gpus=0", "--tasks=4", "--sbatch=--account='a b'"]
    printed = workspace.run(*job, "--dry-run")
    assert "#SBATCH --ntasks-per-node=4" in printed
    assert "#SBATCH '--account=a b'" in printed
    assert f"python={sys.executable}" in printed
    assert not (workspace.folder / "runs").exists()
    assert "sbatch: no such command" in workspace.fail(*job)
    assert not (workspace.folder / "runs").exists()


def test_a_script_has_credentials_from_its_environment(
    workspace: Workspace, demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = f"data.path=pipe:env TOKEN=tiptop cat {demo_shards}/{{}}"
    fake = workspace.folder / "bin/sbatch"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nprintf %s "$DUALSCORE_DATA_PATH" > handed; echo 7\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    job = ["submit", "patches_dual", secret, "--gpus=0", "--log-file", "log"]
    printed = workspace.run(*job, "--dry-run") + workspace.run(*job)
    assert (workspace.folder / "handed").read_text() == secret.removeprefix("data.path=")
    script = workspace.folder / "runs/patches_dual/job.sh"
    for text in (printed, script.read_text(), (workspace.folder / "log").read_text()):
        assert "tiptop" not in text
    # The shell that runs it says what is missing, and hands on what is there, as one word.
    head = script.read_text().partition("# With a command of its own")[0] + "printf '%s' \"${settings[@]}\"\n"
    missing = subprocess.run(["bash", "-c", head], capture_output=True, text=True, check=False)
    assert "DUALSCORE_DATA_PATH: holds the place" in missing.stderr
    there = os.environ | {"DUALSCORE_DATA_PATH": "pipe:a b $c {}"}
    assert subprocess.check_output(["bash", "-c", head], text=True, env=there) == "data.path=pipe:a b $c {}"
    assert PLACE not in workspace.run("submit", "patches_dual", f"data.path={demo_shards}", "--dry-run")


def test_what_could_only_fail_in_the_queue_is_refused_before(workspace: Workspace, demo_shards: Path) -> None:
    good = ["submit", "patches_dual", f"data.path={demo_shards}", "--dry-run", "--gpus", "0"]
    for wrong, complaint in {
        ("optim.lrr=3",): "did you mean lr?",
        ("--tasks=3",): "data.streams: 8 must be a multiple of the 3 devices",
        ("--nodes=16",): "data.streams: 8 must be a multiple of the 16 devices",
        ("--nodes=0",): "--nodes: must be ≥ 1, not 0",
        ("trainer.devices=2",): "--nodes, --gpus and --tasks settle that",
        ("data.images=20000", "data.half=A"): "twice, without sharing any",
        ("network.kind=resnet",): "network.kind: must be one of unet, causal, radial, not 'resnet'",
        ("evaluate.estimators=[papier]",): "evaluate.estimators: must be some of paper, dequantized,",
        ("--time=1:00",): "--time: 1:00 is too short",
        ("--time=soon",): "'soon' is no time limit",
        ("--sbatch='",): "cannot be read",
    }.items():
        assert complaint in workspace.fail(*good, *wrong)
    assert "nowhere/manifest.json is missing" in workspace.fail("submit", "patches_dual", "data.path=nowhere")
    assert "there are: generalization" in workspace.fail("submit", "nothing", "--sweep", "--dry-run")
    workspace.run(
        "train",
        "patches_dual",
        *TINY,
        f"data.path={demo_shards}",
        "optim.warmup_steps=0",
        "trainer.max_steps=2",
    )
    assert "the run was started with" in workspace.fail(*good, *TINY, "optim.lr=1")


def test_the_papers_sweep_is_pairs_on_disjoint_images(workspace: Workspace) -> None:
    sweep = load_sweep("generalization", ROOT / "sweeps")
    assert len(sweep.runs) == 10
    configs = [load_experiment(sweep.experiment, s, ROOT / "experiments") for s in sweep.runs.values()]
    assert [(c.data.images, c.data.half.value) for c in configs] == [
        (10**power, half) for power in range(1, 6) for half in "AB"
    ]
    assert {(c.data.channels, c.optim.lr, c.data.batch_size) for c in configs} == {(1, 2e-4, 128)}
    assert list(sweep.runs)[3] == "images100_halfB"
    (workspace.folder / "sweeps").symlink_to(ROOT / "sweeps")
    assert "data/imagenet64/manifest.json is missing" in workspace.fail("submit", "generalization", "--sweep")
    assert "the sweep generalization varies it" in workspace.fail(
        "submit", "generalization", "--sweep", "data.images=7", "--dry-run"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("experiment: e\ngrid: {a: [1]}\ngird: 1", "gird: unknown key"),
        ("grid: {a: [1]}", "experiment: must be a name"),
        ("experiment: e", "grid: must name settings"),
        ("experiment: e\ngrid: {a: 1}", "grid.a: must be a list of values"),
        ("experiment: e\ngrid: {a: [[1]]}", "grid.a: must be a list of values"),
        ("experiment: e\ngrid: {a: [1, 1]}", "the same folder"),
        ("experiment: e\ngrid: {a: [1]}\ngrid: {a: [2]}", "not valid YAML"),
        ("experiment: e\ngrid: {a: [1]}\nsettings: [lr]", "settings: must be a list of settings"),
        (f"experiment: e\ngrid: {{a: {list(range(40))}, b: {list(range(40))}}}", "1600 combinations"),
    ],
)
def test_a_wrong_sweep_is_one_line_that_names_it(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_sweep("wrong", tmp_path)
    assert "wrong.yaml: " in str(caught.value)
    assert complaint in str(caught.value)


def test_values_of_every_kind_become_settings_and_folders(tmp_path: Path) -> None:
    grid = "{data.flip: [true], optim.lr: [1e-4, 0.5], evaluate.x: [a/b c]}"
    (tmp_path / "s.yaml").write_text(f"experiment: e\ngrid: {grid}")
    combinations = load_sweep("s", tmp_path).runs
    assert list(combinations) == ["fliptrue_lr0.0001_xa-b-c", "fliptrue_lr0.5_xa-b-c"]
    assert combinations["fliptrue_lr0.5_xa-b-c"] == ["data.flip=true", "optim.lr=0.5", "evaluate.x=a/b c"]


def test_make_submit_passes_everything_on(tmp_path: Path) -> None:
    """With an environment whose python prints its arguments."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".installed").touch()
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")

    def words(*arguments: str) -> list[str]:
        command = [make, "--no-print-directory", "submit", f"VENV={tmp_path}", *arguments]
        return subprocess.check_output(command, text=True, cwd=ROOT).splitlines()[2:]

    assert words("EXP=imagenet64_dual") == ["submit", "imagenet64_dual"]
    assert words(
        "EXP=imagenet64_dual", "SET=evaluate.psnr=[45,0] data.path=a*", "NODES=2", "GPUS=0", "TIME=24:00:00",
        "PARTITION=long", "TASKS=2", "CPUS=8", "NAME=mine", "SBATCH=--account=me --qos=x", "DRY=1",
    ) == [
        "--dry-run", "submit", "imagenet64_dual", "evaluate.psnr=[45,0]", "data.path=a*", "--name", "mine",
        "--nodes", "2", "--gpus", "0", "--tasks", "2", "--cpus", "8", "--time", "24:00:00",
        "--partition", "long",
        "--sbatch=--account=me --qos=x",
    ]  # fmt: skip
    assert words("SWEEP=generalization", "DRY=0") == ["submit", "generalization", "--sweep"]
