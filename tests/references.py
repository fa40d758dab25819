"""What a page says of the code: files, the names in them, and lines that are quoted."""

import ast
import re
from pathlib import Path

LINK = re.compile(r"\[`[^`\]]+\.py`\]\(([^)#\s]+\.py)\)((?:,?\s+`[\w.]+`)*)")
"""A link to a Python file, and the names behind it."""
QUOTED = re.compile(r"`([^`\n]+)`\s+in\s+\[`[^`\]]+\.py`\]\(([^)#\s]+\.py)\)(?:\s+`([\w.]+)`)?")
"""A line of code, `in` a link, and the function where it stands."""


def definition(tree: ast.Module, name: str) -> ast.AST | None:
    """The function, class or method of a (dotted) name."""
    found: ast.AST | None = tree
    for part in name.split("."):
        body = getattr(found, "body", [])
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        found = next((node for node in body if isinstance(node, kinds) and node.name == part), None)
    return found


def problems(page: Path) -> list[str]:
    """What a page names or quotes that is not there."""
    text = page.read_text()
    found = []
    for link, names in LINK.findall(text):
        path = page.parent / link
        if not path.is_file():
            found.append(f"no file {link}")
            continue
        tree = ast.parse(path.read_text())
        missing = [name for name in re.findall(r"`([\w.]+)`", names) if definition(tree, name) is None]
        found += [f"no {name} in {link}" for name in missing]
    for line, link, name in QUOTED.findall(text):
        path = page.parent / link
        if not path.is_file():
            continue
        source: str | None = path.read_text()
        if name:
            node = definition(ast.parse(path.read_text()), name)
            source = None if node is None else ast.get_source_segment(path.read_text(), node)
        if source is not None and line not in {row.strip() for row in source.splitlines()}:
            found.append(f"not a line of {name or 'it'} in {link}: {line}")
    return found


def count(page: Path) -> tuple[int, int]:
    """How many names behind links and how many quoted lines a page has."""
    text = page.read_text()
    names = sum(len(re.findall(r"`([\w.]+)`", names)) for _, names in LINK.findall(text))
    return names, len(QUOTED.findall(text))
