"""What was installed: its version, and where experiments, studies and sweeps are, the user's own first.

A wheel holds the shipped ones in this folder; in a checkout, editable installs included, they are the folders
`experiments`, `studies` and `sweeps` at its root.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_HERE = Path(__file__).parent
_IN_WHEEL = (_HERE / "experiments").is_dir()


def installed_version() -> str:
    """The version that was installed, as git told it; `0+unknown` with only the folder `src` on the path."""
    try:
        return version("dualscore")
    except PackageNotFoundError:
        return "0+unknown"


def places(kind: str) -> tuple[Path, ...]:
    """The folders of a kind of files: the user's own, which need not exist, then the shipped one."""
    own, shipped = Path(kind), (_HERE if _IN_WHEEL else _HERE.parents[2]) / kind
    return (own,) if own.resolve() == shipped.resolve() else (own, shipped)


def prepare(dataset: str, *, source: bool, size: int | None, out: str | Path) -> str:
    """The command that prepares a data set, for messages; in a checkout make's, since PATH may lack ours."""
    if _IN_WHEEL:
        words = [f"dualscore data build {dataset}", "--src …", f"--size {size}", f"--out {out}"]
    else:
        words = [f"make data DATASET={dataset}", "SRC=…", f"SIZE={size}", f"OUT={out}"]
    said = (True, source, size is not None, True)
    return " ".join(word for word, wanted in zip(words, said, strict=True) if wanted)
