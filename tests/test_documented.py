"""Every Python block of the README and of pages in docs/ runs as it stands, and gives what it claims."""

import argparse
import re
import shutil
from pathlib import Path

import pytest

from documented import agrees, run_blocks
from dualscore.commands import add_all
from workspace import ROOT


@pytest.mark.parametrize(
    ("page", "blocks", "claims"),
    [
        ("README.md", 1, 0),
        ("docs/api.md", 8, 7),
        ("docs/data.md", 1, 1),
        ("docs/denoisers.md", 3, 6),
        ("docs/photographs.md", 1, 0),
        ("docs/compression.md", 1, 0),
        ("docs/measurements.md", 2, 0),
    ],
)
def test_what_is_documented_runs_as_written(
    page: str,
    blocks: int,
    claims: int,
    trained_demo: Path,
    demo_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(trained_demo / "runs", tmp_path / "runs")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/demo16").symlink_to(demo_shards)
    monkeypatch.chdir(tmp_path)
    ran = run_blocks(ROOT / page)
    assert ran[0] >= blocks
    assert ran[1] >= claims


def test_the_table_of_commands_is_that_of_the_command_line() -> None:
    commands = argparse.ArgumentParser().add_subparsers()
    add_all(commands)
    rows = re.findall(r"^\| `([a-z]+)` \|", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(commands.choices)


def test_links_lead_to_files() -> None:
    """Of every page and notebook, and of the README."""
    pages = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb"))
    for page in pages:
        text = page.read_text()
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) + re.findall(r'src(?:set)?="([^":]+)"', text)
        for link in links:
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


def test_a_wrong_claim_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Words.\n\n```python\nx = 1.24\nx  # → 1.2\n```\n\n```python\nx + 1  # → 2.35\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:9: x \+ 1 is 2\.24, the page says 2\.35"):
        run_blocks(page)
    page.write_text("```python\nx = 1  # → 1\n```\n")
    with pytest.raises(AssertionError, match="no expressions"):
        run_blocks(page)
    assert agrees("as printed", "as printed")
    assert not agrees((1, 2), "(1, 3)")
