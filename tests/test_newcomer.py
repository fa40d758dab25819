"""The newcomer's path: the README's own commands in a fresh clone, and what comes out of them."""

import os
from pathlib import Path

import pytest

from newcomer import Walk, WalkError, borrowed_environment, commands, fresh_clone, variables, walk
from workspace import ROOT


@pytest.mark.long
@pytest.mark.timeout(900)  # a training and seven commands, each with a start of its own
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_readmes_own_commands_lead_from_a_clone_to_a_job(tmp_path: Path) -> None:
    clone = fresh_clone(tmp_path / "dualscore")
    walk(clone, variables(clone, borrowed_environment(tmp_path / "venv")), look=True)


def test_nothing_runs_that_the_readme_has_not(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "    make status      # a comment\n\n    likelihood  2.9\n\n    make data\n"
    )
    steps = Walk(tmp_path, dict(os.environ))
    assert steps.commands == ["make status", "make data"]
    with pytest.raises(WalkError, match="0 commands"):
        steps.run("make clean")
    with pytest.raises(WalkError, match="2 commands"):
        steps.take("make")
    with pytest.raises(WalkError, match="status"):
        steps.run("make status")  # there is no Makefile
    with pytest.raises(WalkError, match="not as the README says: a table"):
        steps.expect("a table", False)


def test_comments_are_no_commands_and_signs_in_quotes_no_comments() -> None:
    assert commands("    printf '# A\\n' > x    # y\n") == ["printf '# A\\n' > x"]
