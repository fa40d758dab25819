"""Runs the Python blocks of a page as they stand, and compares what they claim."""

import ast
import re
from pathlib import Path
from typing import Any

import torch

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CLAIM = re.compile(r"# → (.*)$")


def run_blocks(page: Path) -> tuple[int, int]:
    """Run a page's blocks in order, in one namespace; returns the numbers of blocks and of claims.

    A line that is an expression and ends in `# → …` claims its value.
    """
    text = page.read_text()
    namespace: dict[str, Any] = {"__name__": "documented"}
    claims = 0
    blocks = list(BLOCK.finditer(text))
    for block in blocks:
        source = block[1]
        first = text.count("\n", 0, block.start(1))
        lines = source.splitlines()
        for node in ast.increment_lineno(ast.parse(source), first).body:
            if not isinstance(node, ast.Expr):
                exec(compile(ast.Module([node], []), str(page), "exec"), namespace)  # noqa: S102 - our own page
                continue
            value = eval(compile(ast.Expression(node.value), str(page), "eval"), namespace)  # noqa: S307
            if claimed := CLAIM.search(lines[node.end_lineno - first - 1]):
                claims += 1
                assert agrees(value, claimed[1]), (
                    f"{page.name}:{node.lineno}: {ast.unparse(node)} is {value}, the page says {claimed[1]}"
                )
    written = len(re.findall(CLAIM.pattern, "\n".join(block[1] for block in blocks), re.MULTILINE))
    assert claims == written, f"{page.name}: {written - claims} lines that claim a value are no expressions"
    return len(blocks), claims


def agrees(value: object, claimed: str) -> bool:
    """Whether a value is what is written: shapes exactly, numbers to the digits given, others as printed."""
    if isinstance(value, torch.Size):
        return tuple(value) == ast.literal_eval(claimed)
    if isinstance(value, float):
        digits = len(claimed.partition(".")[2])
        return abs(value - float(claimed)) <= 0.5 * 10.0**-digits
    return str(value) == claimed
