"""The older PNG release of ImageNet at 64×64 (van den Oord et al. 2016): archives or folders of PNG files."""

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.plan import EACH_IMAGE, Images, Plan, Request, Source, Unit, even_cuts
from data_prep.sources.archive import (
    FileRef,
    explained,
    files_below,
    what_is_there,
)
from data_prep.sources.batches import held_out
from data_prep.sources.imagenet import VALIDATION, VALIDATION_SHARE
from dualscore.errors import DataError
from dualscore.files.tars import TAR_SUFFIXES, forget_members

NAMES = {"train": "train_64x64", "test": "valid_64x64"}
SHAPE = (3, 64, 64)
IMAGES_PER_UNIT = 4096
MOST_BYTES = 2**20
"""Read of a PNG of 64×64 pixels, which takes 12 kB: one that unpacks to more is cut off, and refused."""
RELEASE = (
    "imagenet64 PNG release (van den Oord et al. 2016), not anti-aliased: "
    "not comparable with the official down-sampled release"
)

Place = str | tuple[int, int]


@dataclass(frozen=True)
class PngUnit(Unit):
    """Consecutive PNG files of a folder, zip or tar.

    ``places`` says where each file lies: its name, or for an uncompressed tar its (offset, size) in it.
    """

    path: Path
    places: tuple[Place, ...]

    @contextmanager
    def open(self) -> Iterator[Images]:
        """Open the archive; a PNG is decoded as it is taken."""
        with ExitStack() as stack:
            with explained(self.path):
                read = _reader(self.path, stack)
            yield _Pngs(self, read)


def _reader(path: Path, stack: ExitStack) -> Callable[[Place], bytes]:
    if path.is_dir():
        return lambda place: _read_bounded((path / str(place)).open("rb"))
    if path.name.endswith(".zip"):
        archive = stack.enter_context(zipfile.ZipFile(path))
        return lambda place: _read_bounded(archive.open(str(place)))
    if path.name.endswith(".tar"):
        file = stack.enter_context(FileRef(path).open())

        def read(place: Place) -> bytes:
            assert isinstance(place, tuple)
            file.seek(place[0])
            return file.read(min(place[1], MOST_BYTES))

        return read
    tar = stack.enter_context(tarfile.open(path, "r|gz"))  # noqa: SIM115 - the stack closes it

    def read_on(place: Place) -> bytes:
        # a compressed tar can only be read forwards
        while (member := tar.next()) is not None:
            forget_members(tar)
            if member.name == place and (content := tar.extractfile(member)) is not None:
                return _read_bounded(content)
        raise DataError(f"{path} has lost {place}: run again")

    return read_on


def _read_bounded(file: IO[bytes]) -> bytes:
    with file:
        return file.read(MOST_BYTES)


@dataclass
class _Pngs:
    unit: PngUnit
    read: Callable[[Place], bytes]

    def take(self, start: int, stop: int) -> NDArray[np.uint8]:
        return np.stack([self._decode(place) for place in self.unit.places[start:stop]])

    def _decode(self, place: Place) -> NDArray[np.uint8]:
        where = f"{self.unit.path}, PNG at {place if isinstance(place, str) else f'byte {place[0]}'}"
        with explained(self.unit.path):
            raw = self.read(place)
        try:
            with Image.open(io.BytesIO(raw), formats=["PNG"]) as image:
                if image.size != SHAPE[1:]:  # before it is decoded: any size can be claimed
                    raise DataError(
                        f"{where}: {image.width}×{image.height} pixels instead of 64×64: check --src"
                    )
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{where}: cannot be decoded ({error}); download the archive again") from None
        return pixels.transpose(2, 0, 1)


class Imagenet64Png(Source):
    """Archives are read in their own order, folders by sorted name; the training images' end validates."""

    about = "the older PNG release, train_64x64 and valid_64x64; never compare the two"
    uses = frozenset({"src"})

    def find(self, src: Path | None) -> list[Path]:
        """The archive or folder of each split."""
        if src is None or not src.is_dir():
            raise DataError(
                f"{src} is not a folder: give the folder of train_64x64.tar and valid_64x64.tar as --src"
            )
        return [_locate(src, name) for name in NAMES.values()]

    def plan(self, request: Request) -> Plan:
        """List the PNG files and cut the lists into units."""
        files = self.find(request.src)
        units = []
        for split, path in zip(NAMES, files, strict=True):
            places = _places(path)
            if not places:
                raise DataError(f"{path} holds no PNG file: check --src")
            # a compressed tar has no random access: one process reads all of it
            most = len(places) if path.name.endswith((".gz", ".tgz")) else IMAGES_PER_UNIT
            parts = {split: places}
            if split == "train":
                kept = len(places) - held_out(len(places), VALIDATION, VALIDATION_SHARE)
                parts = {"train": places[:kept], "val": places[kept:]}
            for part, those in parts.items():
                for start, stop in even_cuts(len(those), most):
                    units.append(PngUnit(part, stop - start, path, tuple(those[start:stop])))
        source = {"files": {split: path.name for split, path in zip(NAMES, files, strict=True)}}
        return Plan(SHAPE, RELEASE, tuple(units), source, photographs=EACH_IMAGE)


def _locate(src: Path, name: str) -> Path:
    candidates = [src / name, *(src / f"{name}{suffix}" for suffix in (".zip", *TAR_SUFFIXES))]
    for path in candidates:
        if path.is_dir() or (path.is_file() and path != src / name):
            return path
    raise DataError(
        f"{src} holds neither a folder {name} nor {name}.tar, .zip or .tar.gz "
        f"({what_is_there(src)}): check --src"
    )


def _wanted(name: str) -> bool:
    last = name.rsplit("/", 1)[-1]
    return last.endswith(".png") and not last.startswith(".")


def _places(path: Path) -> Sequence[Place]:
    with explained(path):
        if path.is_dir():
            return sorted(file.relative_to(path).as_posix() for file in files_below(path, _wanted))
        if path.name.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                return [name for name in archive.namelist() if _wanted(name)]
        offsets: list[tuple[int, int]] = []
        names: list[str] = []
        plain = path.name.endswith(".tar")
        with tarfile.open(path, "r:" if plain else "r|gz") as tar:
            while (member := tar.next()) is not None:
                forget_members(tar)
                if member.isfile() and _wanted(member.name):
                    offsets.append((member.offset_data, member.size))
                    names.append(member.name)
        return offsets if plain else names
