"""The photographs of the Berkeley Segmentation Data Set, BSDS500, in their official splits."""

import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_prep.plan import Plan, Request, Source
from data_prep.sources.archive import explained, files_below, refuse_bomb, what_is_there
from data_prep.sources.folder import crop_plan, look, select, told
from data_prep.sources.photographs import Photograph
from dualscore.data.photograph_numbers import leak
from dualscore.data.shards import SPLITS
from dualscore.errors import DataError
from dualscore.files.tars import forget_members
from dualscore.pictures.walk import is_picture

ARCHIVE = "BSR_bsds500.tgz"
NAMES = (ARCHIVE, "BSR_bsds500.tar.gz", "BSR_bsds500.tar")
"""The archive, and what downloading programs make of it."""
BELOW = (".", "images", "data/images", "BSDS500/data/images", "BSR/BSDS500/data/images")
"""Where the folders of the splits may lie below SRC."""
OFFICIAL = {"train": 200, "val": 100, "test": 200}
MOST_BYTES = 2**28
"""Of all photographs in an archive, which are held in memory; the official ones take 25 MB."""
RELEASE = "BSDS500 (Martin et al. 2001, Arbeláez et al. 2011), its own splits, cut into crops"
_MEMBER = re.compile(r"(?:.*/)?images/(train|val|test)/([^/]+)")


class Bsds500(Source):
    """The official splits, from the archive as it is or from the folder it unpacks to."""

    about = f"{ARCHIVE}, or the folder it unpacks to, cut into crops in the official splits"
    uses = frozenset({"src", "size", "seed"})

    def find(self, src: Path | None) -> list[Path]:
        """The archive, or the photographs below a folder."""
        return files_of(src)

    def plan(self, request: Request) -> Plan:
        """Look at every photograph; none may be in two splits."""
        assert request.src is not None
        assert request.size is not None
        found = photographs_of(request.src)
        _refuse_missing(request.src, found)
        looked_at = look(found, request.size, request.workers)
        sound = [photo for photo in looked_at if not photo.problem]
        if (problem := leak(told(_by_split(sound)))) is not None:
            raise DataError(f"{request.src}: {problem}; get {ARCHIVE} again")
        usable, channels, warnings = select(looked_at, request.src)
        _refuse_missing(request.src, usable)
        counts = Counter(map(split_of, usable))
        if counts != OFFICIAL:
            numbers = "; ".join(f"{split} {counts[split]} of {most}" for split, most in OFFICIAL.items())
            warnings = (*warnings, f"not the whole set: {numbers} photographs")
        return crop_plan(_by_split(usable), channels, request, RELEASE, warnings)


def files_of(src: Path | None, names: tuple[str, ...] = NAMES) -> list[Path]:
    """The archive, by one of these names, or the photographs of a folder's splits; DataError without."""
    if src is not None and src.is_file():
        return [src]
    if src is not None and (folder := _splits_folder(src)) is not None:
        return [path for split in SPLITS for path in _pictures(folder / split)]
    if src is not None and (named := [src / name for name in names if (src / name).is_file()]):
        return named[:1]
    raise DataError(
        f"{src} is neither {names[0]} nor a folder that holds it, or its folders train, val and test "
        f"({what_is_there(src)}): give one of them as --src"
    )


def photographs_of(src: Path, names: tuple[str, ...] = NAMES) -> list[Photograph]:
    """The photographs of an archive or of a folder, split by split, not yet looked at."""
    files = files_of(src, names)
    archive = files[0] if src.is_file() or files[0].name in names else None
    found = list(_unpacked(archive)) if archive else [Photograph(_name(path), path) for path in files]
    return sorted(found, key=lambda photo: (SPLITS.index(split_of(photo)), photo.name))


def _splits_folder(src: Path) -> Path | None:
    """The folder below which train, val and test lie, or some of them."""
    places = [src / below for below in BELOW]
    return next((place for place in places if any((place / split).is_dir() for split in SPLITS)), None)


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in files_below(folder, is_picture) if path.parent == folder]


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def split_of(photo: Photograph) -> str:
    """The official split of a photograph."""
    return photo.name.partition("/")[0]


def _by_split(photographs: list[Photograph]) -> dict[str, list[Photograph]]:
    return {split: [photo for photo in photographs if split_of(photo) == split] for split in SPLITS}


def _refuse_missing(src: Path, photographs: list[Photograph]) -> None:
    for split, members in _by_split(photographs).items():
        if not members:
            raise DataError(f"{src} holds no usable photograph in {split}: get all of {ARCHIVE}")


def _unpacked(archive: Path) -> Iterator[Photograph]:
    """The archive's photographs, read once from its beginning to its end."""
    total = 0
    with explained(archive), tarfile.open(archive, "r|*") as tar:
        while (member := tar.next()) is not None:
            forget_members(tar)
            place = _MEMBER.fullmatch(member.name)
            if place is None or not member.isfile() or member.issparse() or not is_picture(place[2]):
                continue
            total += member.size
            refuse_bomb(archive, archive.stat().st_size, total)
            content = tar.extractfile(member)
            if total > MOST_BYTES or content is None:
                raise DataError(f"{archive} holds more than photographs of BSDS500: get {ARCHIVE} again")
            yield Photograph(f"{place[1]}/{place[2]}", archive / member.name, content=content.read())
