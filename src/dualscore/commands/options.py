"""Options that several commands share, as types of their parameters."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeAlias


def positive(text: str) -> int:
    """A count from the command line."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


Experiment: TypeAlias = Annotated[str, "name of a file in experiments/, without .yaml"]
Overrides: TypeAlias = Annotated[
    list[str], "settings that win over the file's", {"nargs": "*", "metavar": "key=value"}
]
Name: TypeAlias = Annotated[str | None, "name of the run's folder (default: the experiment's)"]
Runs: TypeAlias = Annotated[Path, "folder of all runs (default: %(default)s)"]
RUNS = Path("runs")

Model: TypeAlias = Annotated[Path, "a checkpoint, or a run's folder for its best one"]
ModelOut: TypeAlias = Annotated[Path, "folder for it (default: %(default)s)"]
Licence: TypeAlias = Annotated[str, "the weights' terms, for the card", {"metavar": "TEXT"}]

ImageFiles: TypeAlias = Annotated[Sequence[Path], "image files"]
Results: TypeAlias = Annotated[Path, "folder for the results (default: %(default)s)"]
Resize: TypeAlias = Annotated[bool, "crop and resize images of other sizes"]
Normalize: TypeAlias = Annotated[bool, "estimate log Z where it is not known"]
BatchSize: TypeAlias = Annotated[int, "images at once (default: %(default)s)", {"type": positive}]
Workers: TypeAlias = Annotated[int, "processes that decode (default: %(default)s, half the cores, at most 8)"]
WORKERS = min(8, max(1, (os.cpu_count() or 1) // 2))
Device: TypeAlias = Annotated[str | None, "cpu, cuda, cuda:1, … (default: a GPU if there is one)"]

Count: TypeAlias = Annotated[int, "samples of each image (default: %(default)s)", {"type": positive}]
Steps: TypeAlias = Annotated[int, "noise levels, not of the flow (default: %(default)s)", {"type": positive}]
Seed: TypeAlias = Annotated[int, "of all that is random (default: %(default)s)"]
