"""What the comments at the head of an experiment's file say of it, and whether its data are there."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualscore.errors import ConfigError
from dualscore.redaction import redact
from dualscore.settings.experiment import find, read_yaml

_ENTRY = re.compile(r"#\s{0,2}(Data|Run|Hardware|Takes|Expect|Energy): +(.*)")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:.+")


@dataclass(frozen=True)
class Header:
    """What an experiment is, what it needs and how long it takes, in the words of its file."""

    purpose: str
    hardware: str
    takes: str
    path: str | None
    """Where its data are; None where it draws its own."""

    @property
    def data(self) -> str:
        """Where the data are, and whether they are there."""
        if self.path is None:
            return "draws its own"
        if _ADDRESS.fullmatch(self.path):
            return f"at {redact(self.path)}"
        return f"{self.path}, {'there' if (Path(self.path) / 'manifest.json').exists() else 'not there yet'}"


def read_header(name: str, folder: Path | None = None) -> Header:
    """Read what an experiment's file says of it; what it does not say is empty."""
    path = find("experiments", name, folder)
    entries: dict[str, list[str]] = {}
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    current: list[str] = []
    for line in lines[1:]:
        if found := _ENTRY.match(line):
            current = entries.setdefault(found[1], [])
            current.append(found[2].strip())
        elif re.match(r"#\s{6,}\S", line):
            current.append(line.lstrip("# ").strip())
        else:
            current = []
    said = {key: " ".join(words) for key, words in entries.items()}
    purpose = lines[0].removeprefix("#").strip() if lines else ""
    return Header(purpose, said.get("Hardware", ""), said.get("Takes", ""), _data_path(path, folder))


def _data_path(path: Path, folder: Path | None) -> str | None:
    """`data.path` of an experiment or of its parent; None where its density is known."""
    content = read_yaml(path)
    data = _section(content)
    if isinstance(parent := content.get("parent"), str):
        try:
            data = _section(read_yaml(find("experiments", parent, folder))) | data
        except ConfigError:
            return None
    return None if data.get("density", "none") != "none" or "path" not in data else str(data["path"])


def _section(content: dict[str, Any]) -> dict[str, Any]:
    data = content.get("data")
    return data if isinstance(data, dict) else {}
