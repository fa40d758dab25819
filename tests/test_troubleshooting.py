"""Every message of the page on troubleshooting stands in the code."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from workspace import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
QUOTED = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
SHORTEST = 5
"""Letters and signs that a message must have in common with the code, all its gaps left out."""


@cache
def said() -> list[str]:
    """Every text of the programs, with … for what is filled in; of make its lines."""
    texts = [(ROOT / "Makefile").read_text()]
    for folder in ("src", "data_prep"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                    texts.append("".join(str(part) for part in parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return texts


def is_said(message: str) -> bool:
    """Whether the constant parts of a message stand, in their order, in one text of the code."""
    parts = [part for part in message.split("…") if part.strip()]
    assert sum(len(part.strip()) for part in parts) >= SHORTEST, f"says nothing: {message}"
    pattern = re.compile(".*?".join(re.escape(part) for part in parts), re.DOTALL)
    return any(pattern.search(text) for text in said())


@pytest.mark.parametrize("message", QUOTED)
def test_the_message_is_in_the_code(message: str) -> None:
    assert is_said(message)


def test_there_are_messages_and_a_made_up_one_is_found() -> None:
    assert len(QUOTED) > 25
    assert not is_said("… is missing: no such elephant; make it with: …")
    assert not is_said("make it with: … is missing: no data set was prepared there")


def test_every_kind_of_exit_status_is_told() -> None:
    tree = ast.parse(Path(ROOT, "src/dualscore/errors.py").read_text())
    numbers = {
        str(node.value.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    assert numbers == {"1", "3", "4", "75"}
    assert numbers <= set(re.findall(r"\*\*(\d+)\*\*", PAGE))
