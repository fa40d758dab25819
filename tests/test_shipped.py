"""The user's own experiments, studies and sweeps beside the shipped ones; the commands that need no make."""

from pathlib import Path

import pytest

import dualscore
from dualscore.cli import main
from dualscore.cluster.submit_job import load_sweep
from dualscore.errors import ConfigError
from dualscore.settings.experiment import available, load_experiment
from dualscore.study.variants import load_study
from workspace import ROOT


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, content: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)


def test_an_empty_folder_has_what_is_shipped(folder: Path) -> None:
    assert available() == {p.stem: p for p in sorted((ROOT / "experiments").glob("*.yaml"))}
    assert load_experiment("patches_dual") == load_experiment("patches_dual", folder=ROOT / "experiments")
    assert load_study("demo").variants
    assert load_sweep("generalization").experiment == "imagenet64_gray_dual"
    assert not list(folder.iterdir())


def test_ones_own_come_first_and_may_stand_on_shipped_ones(folder: Path) -> None:
    write(folder / "experiments" / "mine.yaml", "parent: patches_dual\nseed: 7\n")
    write(folder / "experiments" / "patches_a.yaml", "parent: patches_dual\nseed: 8\n")
    assert load_experiment("mine").seed == 7
    assert load_experiment("mine").data == load_experiment("patches_dual").data
    assert load_experiment("patches_a").seed == 8
    assert next(iter(available())) == "mine"
    write(folder / "studies" / "demo.yaml", "experiment: mine\nsteps: 10\nvariants: {own: []}\n")
    assert [v.experiment for v in load_study("demo").variants] == ["mine", "mine"]
    write(folder / "sweeps" / "own.yaml", "experiment: mine\ngrid: {seed: [1, 2]}\n")
    assert len(load_sweep("own").runs) == 2


@pytest.mark.usefixtures("folder")
def test_a_folder_that_is_named_is_the_only_one() -> None:
    with pytest.raises(ConfigError, match=r"there are: none \(looked in nowhere\)"):
        load_experiment("patches_dual", folder=Path("nowhere"))


@pytest.mark.parametrize("name", ["patches_duel", "../patches_dual", "", ".", "patches_dual.yaml"])
def test_what_does_not_exist_is_said_with_what_does_and_where(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder / "experiments" / "mine.yaml", "parent: patches_dual\n")
    assert main(["train", name]) == 1
    error = capsys.readouterr().err
    assert f"experiment {name!r} does not exist" in error
    assert "there are: mine, bsds16_causal, bsds16_gray, " in error
    assert f"(looked in experiments and {ROOT / 'experiments'})" in error


def test_a_name_that_would_lead_out_of_its_folder_is_none(folder: Path) -> None:
    """Names become folders of runs and studies."""
    write(folder / "studies" / "...yaml", "experiment: patches_dual\nsteps: 10\nvariants: {own: []}\n")
    with pytest.raises(ConfigError, match=r"study '\.\.' does not exist"):
        load_study("..")


def test_data_is_made_and_checked_by_the_command_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "build", "demo", "--out", "demo", "--size", "64", "--workers", "1"]) == 0
    assert main(["data", "verify", "demo", "--workers=1"]) == 0
    next((folder / "demo").glob("val-*.tar")).unlink()
    capsys.readouterr()
    assert main(["data", "verify", "demo"]) == 1
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["build", "--help"], ["verify", "-h"]])
def test_data_has_help_of_its_own(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["data", *words])
    assert stop.value.code == 0
    usage = " ".join(["dualscore data", *words[:-1]])
    assert capsys.readouterr().out.startswith(f"usage: {usage} [-h]")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    told = capsys.readouterr().out
    assert told.startswith(f"dualscore {dualscore.__version__} (torch 2.")
    assert "lightning 2." in told
