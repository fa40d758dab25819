"""Pages that tell how to change the code: their blocks put where they say, in a copy of the tree, and run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import forking
from workspace import ROOT

PLACED = re.compile(r"^`([\w./-]+)`:\n\n```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
"""A path on a line of its own, then a block: a whole file, or a diff of one."""
COMMAND = re.compile(r"^    (make .*)$", re.MULTILINE)
FREE = re.compile(r"(?:\A|\n)(?!`[\w./-]+`:)[^\n]*\n\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COPIED = ("src", "data_prep", "experiments", "Makefile", "pyproject.toml", "setup.py", "requirements.lock")

DRIVER = """
import json, pathlib, sys
import data_prep.cli, documented, dualscore.cli
for module, arguments in json.loads(sys.argv[1]):
    print("$", module, *arguments, flush=True)
    if module == "page":
        print("ran", *documented.run_blocks(pathlib.Path(arguments[0])))
    elif status := {"dualscore": dualscore.cli.main, "data_prep": data_prep.cli.main}[module](arguments):
        sys.exit(status)
"""


@dataclass
class Section:
    """What a section of a page adds and runs."""

    title: str
    files: dict[str, str] = field(default_factory=dict)
    diffs: list[tuple[str, str]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)

    def lines(self) -> int:
        """Lines that are not blank, of new files and of what diffs add or take away."""
        new = sum(bool(line.strip()) for text in self.files.values() for line in text.splitlines())
        changed = [line for _, diff in self.diffs for line in diff.splitlines() if line[:1] in "+-"]
        return new + sum(bool(line[1:].strip()) for line in changed)


def sections(page: Path) -> dict[str, Section]:
    """A page's sections by their titles."""
    found = {}
    for part in re.split(r"^## ", page.read_text(), flags=re.MULTILINE)[1:]:
        section = Section(part.partition("\n")[0])
        for path, kind, text in PLACED.findall(part):
            if kind == "diff":
                section.diffs.append((path, text))
            else:
                section.files[path] = text
        section.commands = COMMAND.findall(part)
        section.blocks = FREE.findall(part)
        found[section.title] = section
    return found


def apply(diff: str, text: str) -> str:
    """A text with a diff's change, whose old lines must stand in it once."""
    lines = diff.splitlines()
    assert all(line[:1] in ("+", "-", " ", "") for line in lines)
    old = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "+")
    new = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "-")
    assert text.count(old) == 1, f"stands {text.count(old)} times in the file:\n{old}"
    return text.replace(old, new)


class Tree:
    """A copy of the tree in a folder, changed as sections say."""

    def __init__(self, folder: Path, changes: Sequence[Section]) -> None:
        self.folder, self.printed = folder, ""
        self._steps: list[tuple[str, list[str]]] = []
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, folder / name)
        (folder / ".venv").mkdir()
        (folder / ".venv/.installed").touch()
        for section in changes:
            for path, text in section.files.items():
                assert not (folder / path).exists(), path
                (folder / path).write_text(text)
            for path, diff in section.diffs:
                (folder / path).write_text(apply(diff, (folder / path).read_text()))

    def run(self, section: Section, shrink: Sequence[str] = ()) -> None:
        """Note a section's commands and blocks, to be run; `shrink` is for those that train or measure."""
        for command in section.commands:
            self._steps += self._expand(command, shrink)
        for number, block in enumerate(section.blocks):
            page = self.folder / f"{section.title} {number}.md"
            page.write_text(f"```python\n{block}```\n")
            self._steps.append(("page", [page.name]))

    def finish(self) -> str:
        """Run what was noted, all in one process, as its imports take longest; returns what it printed."""
        places = [self.folder / "src", self.folder, ROOT / "tests"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places)), "COLUMNS": "200"}
        done = forking.run(
            [sys.executable, "-c", DRIVER, json.dumps(self._steps)],
            cwd=self.folder, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        self._steps, self.printed = [], done.stdout
        return done.stdout

    def _expand(self, command: str, shrink: Sequence[str]) -> list[tuple[str, list[str]]]:
        """What make would run."""
        printed = subprocess.check_output(
            ["make", "-n", "--no-print-directory", *shlex.split(command)[1:]], text=True, cwd=self.folder
        )
        steps = []
        for line in printed.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            assert "-m" in words, line
            module, *arguments = words[words.index("-m") + 1 :]
            # make train also makes the demo's shards where they are missing, which a link stands for
            steps.append((module, [*arguments, *(shrink if arguments[0] in ("train", "evaluate") else ())]))
        return steps
