"""What is given to make reaches the program as it was typed."""

import shlex
from pathlib import Path

import pytest

from workspace import given_by_make

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
    target: list[str], variable: str, option: str, value: str, tmp_path: Path
) -> None:
    given = given_by_make(tmp_path, *target, f"{variable}={value}")
    assert given[given.index(option) + 1] == value


def test_make_expands_the_home_folder_and_no_other_tilde(tmp_path: Path) -> None:
    given = given_by_make(tmp_path, "data", "DATASET=folder", "SRC=~/my  photos/a~/b")
    assert "/home/me/my  photos/a~/b" in given


def test_make_keeps_quoted_names_in_lists_whole(tmp_path: Path) -> None:
    given = given_by_make(tmp_path, "score", "CKPT=run 1", "IMAGES='5$ a.png' \"two  b.png\" '~/c d.png'")
    assert given[-4:] == ["run 1", "5$ a.png", "two  b.png", "/home/me/c d.png"]


def test_no_setting_ends_in_a_comment_of_the_shell(tmp_path: Path) -> None:
    given = given_by_make(tmp_path, "train", "EXP=gaussian_textures", "SET=data.path=X #2 seed=1", "NAME=a")
    assert given[-5:] == ["data.path=X", "#2", "seed=1", "--name", "a"]  # which the program refuses
    given = given_by_make(
        tmp_path, "train", "EXP=gaussian_textures", "SET=seed=1 'data.path=5$ X #2'", "NAME=a"
    )
    assert given[-4:] == ["seed=1", "data.path=5$ X #2", "--name", "a"]


def test_make_takes_them_from_the_environment_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRC", "5$ photos")
    assert "5$ photos" in given_by_make(tmp_path, "data", "DATASET=folder")


@pytest.mark.parametrize(
    "value", ["5$ x", "$HOME a$b", "a#b #c", "(x) `id` a;b c&d e|f <g>", "a,b  c", "-k 'a or b'"]
)
@pytest.mark.parametrize(
    "target",
    [["sample", "CKPT=x", "ARGS"], ["score", "CKPT=x", "IMAGES"], ["train", "EXP=gaussian_textures", "SET"]],
)
def test_a_list_is_words_and_no_order_to_the_shell(target: list[str], value: str, tmp_path: Path) -> None:
    words = shlex.split(value)
    given = given_by_make(tmp_path, *target[:-1], f"{target[-1]}={value}")
    assert given[-len(words) :] == words
