"""A value is taken as it is written, or refused by one line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dualscore.cli import main
from dualscore.errors import ConfigError
from dualscore.settings.experiment import load_experiment, override_config, to_plain
from workspace import ROOT, TINY, Workspace


def _value(override: str) -> Any:
    found: Any = load_experiment("patches_dual", [override])
    for name in override.partition("=")[0].split("."):
        found = getattr(found, name)
    return found


TAKEN = [
    ("seed=10", 10),
    ("seed=9223372036854775807", 2**63 - 1),
    ("optim.lr=.5", 0.5),
    ("data.path=X #2", "X #2"),
    ("data.path=#2", "#2"),
    ("data.path=a: b", "a: b"),
    ("data.path= two  spaces ", " two  spaces "),
    ("data.path='a b'", "a b"),
    ("data.path=[a]", "[a]"),
    ("data.path=a=b", "a=b"),
    ("data.path=null", "null"),
    ("data.dataset=on", "on"),
    ("data.dataset=1e3", "1e3"),
    ("data.dataset=007", "007"),
    ("data.dataset='#7'", "#7"),
    ("data.path='pipe:ssh host cat /data/{}'", "pipe:ssh host cat /data/{}"),
    ("data.path=pipe:ssh host cat /data/{}", "pipe:ssh host cat /data/{}"),
    ("evaluate.psnr=[10, 20.5]", [10.0, 20.5]),
]


@pytest.mark.parametrize(("override", "value"), TAKEN)
def test_a_setting_is_taken_as_it_is_written(override: str, value: object) -> None:
    found = _value(override)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "override",
    [
        "seed=010", "seed=0x1f", "seed=0b11", "seed=1:30", "seed=-010", "optim.lr=010", "optim.lr=0x10",
        "evaluate.psnr=[010,20]", "seed=5 #3", "optim.lr=1e-4 # half", "seed=9223372036854775808",
        "seed=18446744073709551616", f"seed={10**400}", f"optim.lr={10**400}", f"trainer.max_steps={10**30}",
        f"data.batch_size={2**64}", f"evaluate.psnr=[{10**400}]", "data.path=${HOME}", "seed=1_0",
        "seed=-1_0", "data.batch_size=1_6", "optim.lr=1_0e-5", "optim.lr=.0_1", "optim.lr=1_0.5",
        "evaluate.psnr=[1_0]", "seed=???", "data.path=???", "data.path='???'", "optim.lr=???",
        "evaluate.psnr=[???]", "trainer.best=???", "optim=???",
    ],
)  # fmt: skip
def test_what_would_become_another_value_is_refused_in_one_line(override: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_experiment("patches_dual", [override])
    assert override[:12] in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", ["path", "cache"])
@pytest.mark.parametrize("where", ["~/my photos", "~"])
def test_the_home_folder_can_be_meant(key: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert _value(f"data.{key}={where}") == where.replace("~", "/home/ada")
    assert _value(f"data.{key}=a~/b") == "a~/b"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 010", "010"),
        ("evaluate: {psnr: [0x10]}", "0x10"),
        ("seed: 1:30", "1:30"),
        ("data: {batch_size: 1_6}", "1_6"),
        ("seed: ???", "seed: ??? is no value"),
        ("data:\n  path: ???", "data.path: ??? is no value"),
        ("data: {dataset: 1e3}", "data.dataset: is a text"),
        ("data: {dataset: on}", "data.dataset: is a text"),
        ("data: {path: 12}", "data.path: is a text"),
        (f"seed: {2**64}", "seed: must be below"),
    ],
)
def test_so_is_a_file(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"{text}\n")
    with pytest.raises(ConfigError, match="mine") as refused:
        load_experiment("mine", ["data.size=16", "data.path=x", "data.dataset=x"], tmp_path)
    assert said in str(refused.value)


@pytest.mark.parametrize("override", [override for override, _ in TAKEN if "pipe:" not in override])
def test_what_was_taken_is_read_again(override: str) -> None:
    config = load_experiment("patches_dual", [override])
    assert override_config(to_plain(config), [], "config.yaml") == config


@pytest.mark.parametrize(
    "seed", ["010", "0x1f", "-1", "1_000", " 7", str(2**63), str(10**400), "1e3", "\u0663"]
)
@pytest.mark.parametrize("command", [["sample", "x"], ["data", "build", "demo", "--out", "x"]])
def test_so_is_a_seed_of_images_and_data(
    command: list[str], seed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, f"--seed={seed}"])
    assert ended.value.code == 2
    said, hint = capsys.readouterr().err.splitlines()
    assert said.startswith("error: argument --seed: must be ")
    assert hint.startswith("see: ")


def test_the_largest_seed_is_one(workspace: Workspace, trained_demo: Path) -> None:
    run = str(trained_demo / "runs/patches_dual")
    workspace.run("sample", run, "--count", "2", "--steps", "2", f"--seed={2**63 - 1}")
    assert json.loads(Path("samples/samples.json").read_text())["seed"] == 2**63 - 1
    workspace.run("data", "build", "demo", "--out", "x", "--seed", str(2**63 - 1), "--workers", "1")


NO_TEXT = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize("key", ["path", "cache", "dataset"])
def test_what_no_file_can_hold_is_refused_before_training(key: str) -> None:
    with pytest.raises(ConfigError, match=f"^override 'data.{key}=.*: holds letters that are no text here"):
        load_experiment("patches_dual", [f"data.{key}={NO_TEXT}"])


def test_so_is_a_name_of_a_run(workspace: Workspace, demo_shards: Path) -> None:
    settings = ["patches_dual", *TINY, f"data.path={demo_shards}"]
    for more in (["--name", NO_TEXT], ["--name", NO_TEXT, "--fresh"], ["--runs", NO_TEXT]):
        assert "caf?" in (line := workspace.fail("train", *settings, *more))
        assert "holds letters that are no text here; use a name (or a link) of ASCII" in line
    assert {path.name for path in workspace.folder.iterdir()} == {"experiments"}


def test_a_locale_of_ascii_takes_names_of_ascii(tmp_path: Path, demo_shards: Path) -> None:
    code = "import sys; from dualscore.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "train", "patches_dual", "--dry-run", *TINY]
    ascii_only = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": str(ROOT / "src"),
    }
    for path, status in (("café", 1), (str(demo_shards), 0)):
        done = subprocess.run(
            [*words, f"data.path={path}"], cwd=tmp_path, env=os.environ | ascii_only, capture_output=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        assert (b"data.path: holds letters that are no text here" in done.stderr) == bool(status)


def test_a_report_holds_the_name_of_any_folder(workspace: Workspace, trained_demo: Path) -> None:
    run = workspace.folder / NO_TEXT
    shutil.copytree(trained_demo / "runs/patches_dual", run)
    before = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").unlink()
    workspace.run("evaluate", "patches_dual", "--checkpoint", str(run))
    found = json.loads((run / "evaluation.json").read_text())
    assert found["checkpoint"] == str(run / "checkpoints/best.ckpt")
    assert found["bits_per_dim"] == before["bits_per_dim"]
