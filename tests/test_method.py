"""docs/method.md: what it names exists, what it quotes is a line of the code, its walk holds."""

import re
from pathlib import Path

import pytest

from documented import run_blocks
from references import count, problems
from workspace import ROOT

PAGE = ROOT / "docs/method.md"


def test_what_the_page_names_and_quotes_is_there() -> None:
    assert problems(PAGE) == []
    names, lines = count(PAGE)
    assert names >= 80
    assert lines >= 30


def test_every_section_of_the_method_has_a_line_of_code_and_a_test() -> None:
    for part in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        if part[0].isdigit():
            assert re.search(r"`\s+in\s+\[`", part), part.partition("\n")[0]
            assert re.search(r"\.\./tests/test_\w+\.py\)\s+`test_", part), part.partition("\n")[0]


def test_an_image_is_walked_to_its_bits_by_hand(
    trained_demo: Path, demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/demo16").symlink_to(demo_shards)
    (tmp_path / "runs").symlink_to(trained_demo / "runs")
    monkeypatch.chdir(tmp_path)
    assert run_blocks(PAGE) == (1, 1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[`noise.py`](../src/dualscore/nose.py) `corrupt`", "no file"),
        ("[`noise.py`](../src/dualscore/noise.py) `corrupt`, `corupt`", "no corupt"),
        ("[`energy.py`](../src/dualscore/energy.py) `Energy.backward`", "no Energy.backward"),
        ("`return clean` in [`noise.py`](../src/dualscore/noise.py) `corrupt`", "not a line of corrupt"),
        (
            "`return a` in\n[`noise.py`](../src/dualscore/noise.py) `psnr`",
            "not a line of psnr",
        ),
    ],
)
def test_what_is_not_there_is_found(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "src").symlink_to(ROOT / "src")
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs/page.md"
    page.write_text(f"Words, {text}.\n")
    (found,) = problems(page)
    assert problem in found
