"""Photographs that may be given away: of scikit-image's and scikit-learn's wheels and of Debian's wallpapers.

What the boxed models are trained on. Each is taken at several sizes, as people keep photographs small, and
two versions in three go through JPEG, as people's photographs did; crops of them lie side by side.
"""

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.plan import Images, Plan, Request, Source, Table, Unit
from data_prep.pool import stop_if_told
from data_prep.sources.archive import explained
from data_prep.sources.demo import locate
from data_prep.sources.folder import look, told
from data_prep.sources.photographs import Photograph, read_again
from data_prep.sources.wallpaper_list import PACKAGES, WALLPAPERS, WHEELS
from dualscore.data.shards import SPLITS
from dualscore.errors import DataError
from dualscore.files.tars import forget_members

LONG_SIDES = (384, 640, 1080, 1600)
"""Of the versions, in pixels; a photograph is not enlarged."""
QUALITIES = (75, 98)
"""Of JPEG, drawn between them."""
SUBSAMPLINGS = (0, 2, 2)
"""Of JPEG's colour, as Pillow numbers them: none, and twice as often of half the resolution either way."""
KEPT_AS_IT_IS = 1 / 3
"""Share of the versions that do not go through JPEG."""
AR_MAGIC, AR_HEADER = b"!<arch>\n", 60
RELEASE = (
    "photographs: {} of scikit-image's and scikit-learn's wheels and of Debian's wallpapers, cut into crops"
)


class Wallpapers(Source):
    """Listed photographs of four Debian packages, as .deb files or unpacked, and of two wheels."""

    about = f"{', '.join(f'{name}_*.deb' for name in PACKAGES)}, by apt-get download, or unpacked"
    uses = frozenset({"src", "size", "seed"})

    def find(self, src: Path | None) -> list[Path]:
        """The packages, or the photographs that they unpack to; DataError if one is missing."""
        if src is None or not src.is_dir():
            raise DataError(
                f"{src} is not a folder: give the one that the packages were downloaded to as --src"
            )
        found = []
        for package in PACKAGES:
            debs = sorted(src.glob(f"{package}_*.deb"))
            unpacked = [src / listed.path for listed in WALLPAPERS if listed.shipper == package]
            if debs:
                found.append(debs[-1])
            elif all(path.is_file() for path in unpacked):
                found += unpacked
            else:
                raise DataError(
                    f"{src} holds neither {package}_*.deb nor what it unpacks to: apt-get download {package} "
                    "there, or unpack it there with dpkg-deb -x"
                )
        return found + [locate(listed.shipper, listed.path) for listed in WHEELS]

    def plan(self, request: Request) -> Plan:
        """Look at every photograph; which one is on which side is fixed."""
        assert request.src is not None
        assert request.size is not None
        assert request.seed is not None
        files = self.find(request.src)
        found = look([*listed_photographs(files)], request.size, request.workers)
        listed = {entry.name: entry for entry in (*WALLPAPERS, *WHEELS)}
        for photo in found:
            if photo.problem:
                raise DataError(f"{photo.path} {photo.problem}: get its package again")
            if photo.sha256 != listed[photo.name].sha256:
                raise DataError(
                    f"{photo.path} is not the photograph that is listed (SHA-256 {photo.sha256:.12}…, listed "
                    f"{listed[photo.name].sha256:.12}…): get the package of Debian 12 or 13"
                )
        splits = {s: [p for p in found if listed[p.name].split == s] for s in SPLITS}
        splits = {split: photographs for split, photographs in splits.items() if photographs}
        units = tuple(
            _Versions(
                split,
                sum(len(_places(photo.size, request.size)) for photo in photographs),
                tuple(photographs),
                request.size,
                request.seed,
            )
            for split, photographs in splits.items()
        )
        source = {
            "crops": {"size": request.size, "long_sides": LONG_SIDES, "seed": request.seed},
            "jpeg": {"qualities": QUALITIES, "kept_as_it_is": round(KEPT_AS_IT_IS, 3)},
            "photographs": {split: len(photographs) for split, photographs in splits.items()},
        }
        shape = (3, request.size, request.size)
        return Plan(shape, RELEASE.format(len(found)), units, source, photographs=told(splits))


def listed_photographs(files: list[Path]) -> Iterator[Photograph]:
    """The listed photographs, of packages read from their beginning to their end."""
    named = {file.name: file for file in files}
    for package in PACKAGES:
        wanted = {entry.path: entry for entry in WALLPAPERS if entry.shipper == package}
        deb = next((file for name, file in named.items() if name.startswith(f"{package}_")), None)
        if deb is None:
            below = {str(path): path for path in files}
            for path, entry in wanted.items():
                place = next(file for name, file in below.items() if name.endswith(path))
                yield Photograph(entry.name, place)
            continue
        contents = _unpacked(deb, set(wanted))
        if missing := sorted(set(wanted) - set(contents)):
            raise DataError(f"{deb} does not hold {missing[0]}: get the package of Debian 12 or 13")
        yield from (
            Photograph(entry.name, deb / path, content=contents[path]) for path, entry in wanted.items()
        )
    for entry in WHEELS:
        yield Photograph(entry.name, locate(entry.shipper, entry.path))


def _unpacked(deb: Path, wanted: set[str]) -> dict[str, bytes]:
    """Some files of a Debian package: an `ar` archive, whose member data.tar.* holds them."""
    found = {}
    with explained(deb), deb.open("rb") as file:
        if file.read(len(AR_MAGIC)) != AR_MAGIC:
            raise DataError(f"{deb} is not a Debian package: download it again")
        while len(header := file.read(AR_HEADER)) == AR_HEADER:
            name, size = header[:16].decode("ascii", "replace").strip(), int(header[48:58])
            if not name.startswith("data.tar"):
                file.seek(size + size % 2, io.SEEK_CUR)
                continue
            with tarfile.open(fileobj=file, mode="r|*") as tar:
                while (member := tar.next()) is not None:
                    forget_members(tar)
                    path = member.name.removeprefix("./")
                    if (
                        path in wanted
                        and member.isfile()
                        and (content := tar.extractfile(member)) is not None
                    ):
                        found[path] = content.read()
            break
    return found


class _Place(NamedTuple):
    """Where a crop lies: in which version, and its corner there."""

    long_side: int
    top: int
    left: int


def _versions(size: tuple[int, int]) -> list[tuple[int, tuple[int, int]]]:
    """Long side and (width, height) of a photograph's versions."""
    longest = max(size)
    sides = [side for side in LONG_SIDES if side <= longest] or [longest]
    return [(side, (round(size[0] * side / longest), round(size[1] * side / longest))) for side in sides]


def _places(size: tuple[int, int], crop: int) -> list[_Place]:
    """Of every crop of a photograph of that (width, height), side by side."""
    return [
        _Place(side, top, left)
        for side, (width, height) in _versions(size)
        for top in range(0, height - crop + 1, crop)
        for left in range(0, width - crop + 1, crop)
    ]


@dataclass(frozen=True)
class _Versions(Unit):
    """Crops of a split's photographs at several sizes, those to train on shuffled together."""

    photographs: tuple[Photograph, ...]
    side: int
    seed: int

    def numbers(self) -> NDArray[np.int32]:
        """Number, in the split, of the photograph that each crop is of: int32, shape (images,)."""
        counts = [len(_places(photo.size, self.side)) for photo in self.photographs]
        return np.repeat(np.arange(len(counts), dtype=np.int32), counts)[self._order()]

    def _order(self) -> NDArray[np.int64]:
        order = np.arange(self.images)
        if self.split == "train":
            np.random.default_rng((self.seed, 1)).shuffle(order)
        return order

    @contextmanager
    def open(self) -> Iterator[Images]:
        """Decode the photographs, and make every version and crop."""
        crops = []
        for number, photograph in enumerate(self.photographs):
            stop_if_told()
            image = read_again(photograph)
            draw = np.random.default_rng((self.seed, 2, SPLITS.index(self.split), number))
            versions = {side: _as_kept(image, size, draw) for side, size in _versions(photograph.size)}
            for side, top, left in _places(photograph.size, self.side):
                crops.append(versions[side][top : top + self.side, left : left + self.side])
        yield Table(np.stack(crops).transpose(0, 3, 1, 2)[self._order()])


def _as_kept(image: Image.Image, size: tuple[int, int], draw: np.random.Generator) -> NDArray[np.uint8]:
    """A photograph at another size, each pixel the mean of what it covers, perhaps through JPEG."""
    small = image if image.size == size else image.resize(size, Image.Resampling.BOX)
    plain, quality = draw.random() < KEPT_AS_IT_IS, int(draw.integers(*QUALITIES, endpoint=True))
    if plain:
        return np.asarray(small)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=quality, subsampling=SUBSAMPLINGS[draw.integers(len(SUBSAMPLINGS))])
    return np.asarray(Image.open(file))
