"""Options that commands share, as types of their parameters, or as dataclasses of several."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from dualscore.cores import own_cores

if TYPE_CHECKING:
    from dualscore.draw_images import DrawOptions


def positive(text: str) -> int:
    """A count from the command line."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def seed_number(text: str) -> int:
    """A seed from the command line, as settings take one."""
    if not re.fullmatch("0|[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"must be a whole number in decimals, not negative, got {text}")
    if (number := int(text)) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be below 2^63, got {text}")
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
ModelAndImages: TypeAlias = Annotated[
    Sequence[Path],
    "a model, if it is not the one in the box, then image files, folders, tars and prepared data sets",
    {"metavar": "[MODEL] IMAGES"},
]
Results: TypeAlias = Annotated[Path, "folder for the results (default: %(default)s)"]

Resize: TypeAlias = Annotated[bool, "crop and resize images of other sizes"]
BatchSize: TypeAlias = Annotated[int, "images at once (default: %(default)s)", {"type": positive}]
Device: TypeAlias = Annotated[str | None, "cpu, cuda, cuda:1, … (default: a GPU if there is one)"]


@dataclass(frozen=True)
class Streaming:
    """How image files are read and measured."""

    resize: Resize = False
    batch_size: BatchSize = 128
    workers: Annotated[int, "processes that decode (default: %(default)s, half the cores, at most 8)"] = min(
        8, max(1, own_cores() // 2)
    )
    device: Device = None

    def chosen(self) -> dict[str, Any]:
        """The options by name, with a device."""
        return vars(self) | {"workers": max(0, self.workers), "device": _device(self.device)}


@dataclass(frozen=True)
class Scoring(Streaming):
    """How image files are scored."""

    normalize: Annotated[bool, "estimate log Z where it is not known"] = False


@dataclass(frozen=True)
class Drawing:
    """How images are drawn."""

    out: Results = Path("samples")
    steps: Annotated[int, "noise levels, not of the flow (default: %(default)s)", {"type": positive}] = 200
    seed: Annotated[int, "of all that is random (default: %(default)s)", {"type": seed_number}] = 0
    batch_size: BatchSize = 64
    device: Device = None

    def options(self, count: int, method: str, resize: bool = False) -> "DrawOptions":
        """As the drawing takes them."""
        from dualscore.draw_images import DrawOptions
        from dualscore.sampling import Method

        chosen = vars(self) | {"device": _device(self.device)}
        return DrawOptions(count=count, method=Method(method), resize=resize, **chosen)


@dataclass(frozen=True)
class Conditional:
    """How images are drawn given others."""

    count: Annotated[int, "samples of each image (default: %(default)s)", {"type": positive}] = 4
    method: Annotated[Literal["metropolis", "langevin"], "default: %(default)s"] = "metropolis"
    resize: Resize = False


def _device(named: str | None) -> str:
    from dualscore.devices import default_device

    return named or default_device()
