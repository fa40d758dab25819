"""Any folder of photographs, split by photograph and cut into square crops."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import pool, progress
from data_prep.plan import Plan, Request, Source
from data_prep.sources.crops import CropUnit, count_crops
from data_prep.sources.photographs import Photograph, inspect
from dualscore.errors import DataError
from dualscore.pictures.photographs import SUFFIXES

GROUP_CROPS = 2**16
GROUP_BYTES = 200 * 10**6
NAMES_KEPT = 2000


class Folder(Source):
    """Photographs below a folder; ``val_fraction`` of them, chosen by the seed, are kept for validation."""

    about = "any folder of photographs, cut into crops"
    uses = frozenset({"src", "size", "val_fraction", "seed"})

    def find(self, src: Path | None) -> list[Path]:
        """Every picture below ``src``, sorted by its name relative to it."""
        if src is None or not src.is_dir():
            raise DataError(f"{src} is not a folder: give the folder of your photographs as --src")
        found = [
            Path(folder, name)
            for folder, _, names in os.walk(src)
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
        if not found:
            raise DataError(
                f"{src} holds no photograph ({', '.join(SUFFIXES)}): give another folder as --src"
            )
        return sorted(found, key=lambda path: path.relative_to(src).as_posix())

    def plan(self, request: Request) -> Plan:
        """Look at every photograph, drop the unusable ones, split the others."""
        assert request.src is not None
        assert request.size is not None
        assert request.seed is not None
        assert request.val_fraction is not None
        files = self.find(request.src)
        names = [path.relative_to(request.src).as_posix() for path in files]
        usable, channels, warnings = select(look(names, files, request.size, request.workers), request.src)
        order = np.random.default_rng([request.seed, 0]).permutation(len(usable))
        held_out = min(max(1, round(request.val_fraction * len(usable))), len(usable) - 1)
        train = [usable[i] for i in order[held_out:]]
        val = [usable[i] for i in sorted(order[:held_out])]
        release = f"{len(usable)} photographs of one's own, cut into crops"
        return crop_plan(train, val, channels, request, release, warnings)


def look(names: Sequence[str], files: Sequence[Path], size: int, workers: int) -> list[Photograph]:
    """Inspect every file, in processes."""
    jobs = [(name, path, size) for name, path in zip(names, files, strict=True)]
    done = 0
    with progress.bar("looking at photographs", len(jobs), "photographs") as show:

        def advance(_: Photograph) -> None:
            nonlocal done
            done += 1
            show(done)

        return pool.run(inspect, jobs, workers, advance)


def select(photographs: list[Photograph], src: Path) -> tuple[list[Photograph], int, tuple[str, ...]]:
    """Usable photographs, their number of channels, and a warning for each kind of those left out."""
    warnings = [f"left out: {photo.name} {photo.problem}" for photo in photographs if photo.problem]
    good = [photo for photo in photographs if not photo.problem]
    first: dict[str, Photograph] = {}
    for photo in good:
        kept = first.setdefault(photo.sha256, photo)
        if kept is not photo:
            # a copy could land on the other side of the split
            warnings.append(f"left out: {photo.name} is a copy of {kept.name}")
    unique = list(first.values())
    gray = [photo for photo in unique if photo.gray]
    channels = 1 if unique and len(gray) == len(unique) else 3
    if channels == 3:
        # equal channels among colour ones would put infinite density on a plane
        warnings += [f"left out: {photo.name} is grayscale and others are in colour" for photo in gray]
        unique = [photo for photo in unique if not photo.gray]
    if not unique:
        raise DataError(f"{src} holds no usable photograph; the first problem: {warnings[0]}")
    if len(unique) < 2:
        others = f"; {len(warnings)} left out, first: {warnings[0]}" if warnings else ""
        raise DataError(f"{src} holds 1 usable photograph, but training and validation need one each{others}")
    return unique, channels, tuple(warnings)


def crop_plan(
    train: list[Photograph],
    val: list[Photograph],
    channels: int,
    request: Request,
    release: str,
    warnings: tuple[str, ...] = (),
) -> Plan:
    """Cut split photographs: overlapping shuffled crops to train on, disjoint ordered ones to validate."""
    assert request.size is not None
    assert request.seed is not None
    shape = (channels, request.size, request.size)
    strides = {"train": max(1, request.size // 2), "val": request.size}
    units = []
    for split, photographs in (("train", train), ("val", val)):
        most = min(GROUP_CROPS, GROUP_BYTES // int(np.prod(shape)))
        for number, group in enumerate(_groups(photographs, request.size, strides[split], most)):
            total = sum(count_crops(photo.size, request.size, strides[split]) for photo in group)
            seed = (request.seed, 1, number) if split == "train" else None
            units.append(CropUnit(split, total, tuple(group), request.size, strides[split], channels, seed))
    source: dict[str, Any] = {
        "crops": {
            "size": request.size,
            "scales": ["1", "1/2", "1/4"],
            "stride": strides,
            "seed": request.seed,
        },
        "transparency": "laid over white",
        "photographs": {"train": len(train), "val": len(val), "left_out": len(warnings)},
    }
    if len(train) + len(val) <= NAMES_KEPT:
        source["names"] = {"train": [photo.name for photo in train], "val": [photo.name for photo in val]}
    return Plan(shape, release, tuple(units), source, warnings)


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
