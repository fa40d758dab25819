"""What is given to make reaches the program as it was typed."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from workspace import ROOT

AWKWARD = [
    "5$ photos",
    "two  spaces",
    "it's",
    'a "quoted" one',
    "$HOME",
    "$(SHELL)",
    "a#b",
    "`id`",
    "a,b",
    "a;b",
    "50%",
    "~x",
]


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An environment whose Python says what it was given."""
    program = tmp_path / "venv/bin/python"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "venv/.installed").touch()
    return tmp_path / "venv"


def _given(venv: Path, *arguments: str) -> list[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")} | {"HOME": "/home/ada"}
    command = ["make", "--no-print-directory", "-C", str(ROOT), "-o", f"{venv}/.installed", f"VENV={venv}"]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("value", AWKWARD)
@pytest.mark.parametrize(
    ("target", "variable", "option"),
    [
        (["data", "DATASET=folder"], "SRC", "--src"),
        (["train", "EXP=gaussian_textures"], "NAME", "--name"),
        (["export", "CKPT=x"], "LICENCE", "--licence"),
        (["sample", "CKPT=x"], "OUT", "--out"),
    ],
)
def test_make_hands_on_what_was_typed(
    target: list[str], variable: str, option: str, value: str, python: Path
) -> None:
    given = _given(python, *target, f"{variable}={value}")
    assert given[given.index(option) + 1] == value


def test_make_expands_the_home_folder_and_no_other_tilde(python: Path) -> None:
    given = _given(python, "data", "DATASET=folder", "SRC=~/my  photos/a~/b")
    assert "/home/ada/my  photos/a~/b" in given


def test_make_keeps_quoted_names_in_lists_whole(python: Path) -> None:
    given = _given(python, "score", "CKPT=run 1", "IMAGES='5$ a.png' \"two  b.png\" '~/c d.png'")
    assert given[-4:] == ["run 1", "5$ a.png", "two  b.png", "/home/ada/c d.png"]


def test_no_setting_ends_in_a_comment_of_the_shell(python: Path) -> None:
    given = _given(python, "train", "EXP=gaussian_textures", "SET=data.path=X #2 seed=1", "NAME=a")
    assert given[-5:] == ["data.path=X", "#2", "seed=1", "--name", "a"]  # which the program refuses
    given = _given(python, "train", "EXP=gaussian_textures", "SET=seed=1 'data.path=5$ X #2'", "NAME=a")
    assert given[-4:] == ["seed=1", "data.path=5$ X #2", "--name", "a"]


def test_make_takes_them_from_the_environment_too(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRC", "5$ photos")
    assert "5$ photos" in _given(python, "data", "DATASET=folder")
