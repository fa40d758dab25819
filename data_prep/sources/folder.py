"""Any folder of photographs, split by photograph and cut into square crops."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import pool, progress
from data_prep.plan import Plan, Request, Source
from data_prep.sources.crops import CropUnit, count_crops
from data_prep.sources.near_copies import near_copies
from data_prep.sources.photographs import Photograph, inspect
from dualscore.data.photograph_numbers import SplitPhotographs
from dualscore.errors import DataError
from dualscore.files.plain_text import printable
from dualscore.pictures.walk import COMMON, Entry, passed_over, walk

NAMES_KEPT = 2000
"""Photographs of a data set that are named; of more there are only checksums."""
GROUP_CROPS = 2**16
GROUP_BYTES = 200 * 10**6
NO_TEST = (
    "2 photographs are too few for a test split: figures will be of the validation photograph, "
    "which also chooses the checkpoint"
)
STRIDES = {"train": 2, "val": 1, "test": 1}
"""Crops a side: every half square to train on, side by side to measure."""


class Folder(Source):
    """Photographs below a folder; shares of them, chosen by the seed, are kept for validation and test."""

    about = "any folder of photographs, cut into crops"
    uses = frozenset({"src", "size", "val_fraction", "test_fraction", "seed"})

    def find(self, src: Path | None) -> list[Path]:
        """Every picture below ``src``, sorted by its name relative to it."""
        return [path for path, problem in _entries(src) if problem is None]

    def plan(self, request: Request) -> Plan:
        """Look at every photograph, drop the unusable ones, split the others."""
        assert request.src is not None
        assert request.size is not None
        assert request.seed is not None
        assert request.val_fraction is not None
        assert request.test_fraction is not None
        src = request.src
        others = Counter[str]()
        entries = _entries(src, others)
        found = [Photograph(path.relative_to(src).as_posix(), path, problem=p) for path, p in entries]
        sound = look([photo for photo in found if not photo.problem], request.size, request.workers)
        usable, channels, warnings = select([*sound, *(p for p in found if p.problem)], src, near=True)
        order = np.random.default_rng([request.seed, 0]).permutation(len(usable))
        val, test = _held_out(len(usable), request.val_fraction, request.test_fraction)
        splits = {
            "train": [usable[i] for i in order[val + test :]],
            "val": [usable[i] for i in sorted(order[:val])],
            "test": [usable[i] for i in sorted(order[val : val + test])],
        }
        release = f"{len(usable)} photographs of one's own, cut into crops"
        return crop_plan(splits, channels, request, release, (*passed_over(others), *warnings))


def _entries(src: Path | None, others: Counter[str] | None = None) -> list[Entry]:
    """What is found below ``src``, sorted by the name relative to it; DataError without a photograph."""
    if src is None or not src.is_dir():
        raise DataError(f"{src} is not a folder: give the folder of your photographs as --src")
    found = sorted(walk(src, others=others), key=lambda entry: entry.path.relative_to(src).as_posix())
    if all(entry.problem for entry in found):
        first = "".join(f"; left out: {printable(str(path))} {problem}" for path, problem in found[:1])
        raise DataError(f"{src} holds no photograph ({COMMON}){first}: give another folder as --src")
    return found


def _held_out(count: int, val_fraction: float, test_fraction: float) -> tuple[int, int]:
    """How many of two or more photographs are kept for validation and for test; of two, none for test."""
    if count < 3:
        return 1, 0
    val = min(max(1, round(val_fraction * count)), count - 2)
    return val, min(max(1, round(test_fraction * count)), count - 1 - val)


def look(files: Sequence[Photograph], size: int, workers: int) -> list[Photograph]:
    """Inspect every file, in processes."""
    jobs = [(file, size) for file in files]
    done = 0
    with progress.bar("looking at photographs", len(jobs), "photographs") as show:

        def advance(_: Photograph) -> None:
            nonlocal done
            done += 1
            show(done)

        return pool.run(inspect, jobs, workers, advance)


def select(
    photographs: list[Photograph], src: Path, near: bool = False
) -> tuple[list[Photograph], int, tuple[str, ...]]:
    """Usable photographs, their number of channels, and a warning for each of those left out.

    Copies are, since one could land on the other side of the split; ``near`` ones, too, if asked for.
    """
    warnings = [
        f"left out: {printable(photo.name)} {photo.problem}" for photo in photographs if photo.problem
    ]
    good = [photo for photo in photographs if not photo.problem]
    first: dict[str, Photograph] = {}
    for photo in good:
        kept = first.setdefault(photo.sha256, photo)
        if kept is not photo:
            warnings.append(f"left out: {printable(photo.name)} is a copy of {printable(kept.name)}")
    unique = list(first.values())
    gray = [photo for photo in unique if photo.gray]
    channels = 1 if unique and len(gray) == len(unique) else 3
    if channels == 3:
        # equal channels among colour ones would put infinite density on a plane
        warnings += [
            f"left out: {printable(photo.name)} is grayscale and others are in colour" for photo in gray
        ]
        unique = [photo for photo in unique if not photo.gray]
    if near:
        copies = near_copies(unique)
        warnings += [
            f"left out: {printable(photo.name)} is a scaled, turned or re-encoded copy "
            f"of {printable(kept.name)}"
            for photo, kept in copies
        ]
        gone = {photo.name for photo, _ in copies}
        unique = [photo for photo in unique if photo.name not in gone]
    if not unique:
        raise DataError(f"{src} holds no usable photograph; the first problem: {warnings[0]}")
    if len(unique) < 2:
        others = f"; {len(warnings)} left out, first: {warnings[0]}" if warnings else ""
        raise DataError(f"{src} holds 1 usable photograph, but training and validation need one each{others}")
    return unique, channels, tuple(warnings)


def crop_plan(
    splits: dict[str, list[Photograph]],
    channels: int,
    request: Request,
    release: str,
    warnings: tuple[str, ...] = (),
) -> Plan:
    """Cut split photographs: overlapping shuffled crops to train on, disjoint ordered ones to measure."""
    assert request.size is not None
    assert request.seed is not None
    shape = (channels, request.size, request.size)
    splits = {split: photographs for split, photographs in splits.items() if photographs}
    strides = {split: max(1, request.size // STRIDES[split]) for split in splits}
    units = []
    for split, photographs in splits.items():
        first = 0
        most = min(GROUP_CROPS, GROUP_BYTES // int(np.prod(shape)))
        for number, group in enumerate(_groups(photographs, request.size, strides[split], most)):
            total = sum(count_crops(photo.size, request.size, strides[split]) for photo in group)
            seed = (request.seed, 1, number) if split == "train" else None
            units.append(
                CropUnit(split, total, tuple(group), request.size, strides[split], channels, seed, first)
            )
            first += len(group)
    counts = {split: len(photographs) for split, photographs in splits.items()}
    source: dict[str, Any] = {
        "crops": {
            "size": request.size,
            "scales": ["1", "1/2", "1/4"],
            "stride": strides,
            "seed": request.seed,
        },
        "transparency": "laid over white",
        "photographs": counts | {"left_out": sum(text.startswith("left out") for text in warnings)},
    }
    if "test" not in splits:
        warnings = (NO_TEST, *warnings)
    return Plan(shape, release, tuple(units), source, warnings, told(splits))


def told(splits: dict[str, list[Photograph]]) -> dict[str, SplitPhotographs]:
    """What the manifest says of each split's photographs."""
    few = sum(map(len, splits.values())) <= NAMES_KEPT
    return {
        split: SplitPhotographs(
            tuple(photo.sha256 for photo in photographs),
            tuple(_printable(photo.name) for photo in photographs) if few else (),
        )
        for split, photographs in splits.items()
    }


def _printable(name: str) -> str:
    """A file's name without what a manifest may not hold: line ends, a terminal's commands, broken bytes."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in name)


def _groups(photographs: list[Photograph], size: int, stride: int, most: int) -> list[list[Photograph]]:
    """Consecutive photographs with at most ``most`` crops together, or a single one with more."""
    groups: list[list[Photograph]] = []
    total = 0
    for photo in photographs:
        crops = count_crops(photo.size, size, stride)
        if not groups or total + crops > most:
            groups.append([])
            total = 0
        groups[-1].append(photo)
        total += crops
    return groups
