"""Which photograph each image of a prepared data set is of: the manifest's key ``photographs`` and its file.

``photographs.npz`` holds for each split an int32 array: the number, from 0 in the order of the split's
checksums in the manifest, of the photograph that each image is a crop of.
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dualscore.errors import DataError
from dualscore.files.typed_json import TypedJson

HEADER_BYTES = 2**12
"""More than the header of an array in a file takes, and than the archive's bookkeeping for it."""
SHA256 = r"[0-9a-f]{64}"
_BROKEN_ZIP = (
    zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, OSError, MemoryError, RuntimeError
)  # fmt: skip


@dataclass(frozen=True)
class SplitPhotographs:
    """A split's photographs in order: SHA-256 of their files (hexadecimal), and their names or nothing."""

    sha256: tuple[str, ...]
    names: tuple[str, ...] = ()

    def name(self, number: int) -> str:
        """What to call one: its name, or its checksum."""
        return self.names[number] if self.names else self.sha256[number]


@dataclass(frozen=True)
class Photographs:
    """What a manifest says of photographs; without a file, each image is one of its own."""

    file: str = ""
    sha256: str = ""
    splits: dict[str, SplitPhotographs] = field(default_factory=dict)

    @property
    def each_image(self) -> bool:
        """Whether each image is a photograph of its own."""
        return not self.file

    def load(self, folder: str | Path, images: Mapping[str, int]) -> dict[str, NDArray[np.int32]]:
        """Each split's numbers of its images' photographs, int32, shape (images,); none without a file."""
        if self.each_image:
            return {}
        path = Path(folder) / self.file
        try:
            with zipfile.ZipFile(read_checked(path, self.sha256)) as archive:
                return {split: self._numbers(archive, split, path, count) for split, count in images.items()}
        except _BROKEN_ZIP as error:
            raise wrong(path, f"is not an archive of NumPy arrays, one a split ({error})") from None

    def _numbers(self, archive: zipfile.ZipFile, split: str, path: Path, count: int) -> NDArray[np.int32]:
        """One array, no larger than it must be, whatever the archive claims."""
        member = archive.getinfo(f"{split}.npy")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{split}.npy is packed in another way than NumPy does")
        if member.file_size > 4 * count + HEADER_BYTES:
            raise wrong(path, f"holds more for {split} than numbers of {count} images")
        numbers: NDArray[np.int32] = np.load(io.BytesIO(archive.read(member)), allow_pickle=False)
        if numbers.shape != (count,) or numbers.dtype != np.int32:
            found = f"{numbers.dtype} {numbers.shape}"
            raise wrong(path, f"holds {found} for {split} instead of int32 ({count},)")
        known = len(self.splits[split].sha256)
        if numbers.min() < 0 or numbers.max() >= known:
            raise wrong(path, f"names photographs of {split} that are not among its {known}")
        return numbers


def leak(splits: Mapping[str, SplitPhotographs]) -> str | None:
    """Say which photograph two splits share; None if there is none."""
    for (earlier, first), (later, second) in combinations(splits.items(), 2):
        known = set(first.sha256)
        for number, checksum in enumerate(second.sha256):
            if checksum in known:
                there, name = first.name(first.sha256.index(checksum)), second.name(number)
                also = "" if there == name else f" (there {there})"
                return f"{name} is in {later} and in {earlier}{also}, but splits share no photograph"
    return None


def wrong(path: str | Path, problem: str) -> DataError:
    """What to say of a prepared file that is not as it was written."""
    return DataError(f"{path} {problem}: prepare the data set again")


def read_checked(path: Path, sha256: str) -> io.BytesIO:
    """A file's content, if it has its checksum."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise wrong(path, f"cannot be read: {error.strerror}") from None
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise wrong(path, "has another checksum than manifest.json says")
    return io.BytesIO(raw)


def parse_photographs(key: TypedJson, images: Mapping[str, int]) -> Photographs:
    """What the manifest's key says, for splits of so many images; DataError names what is wrong with it."""
    if "each_image" in key.mapping():
        if key.value != {"each_image": True}:
            raise key["each_image"].fail("must be true and alone, or absent")
        return Photographs()
    splits = {}
    for name, most in images.items():
        split = key["splits"][name]
        sha256 = tuple(item.text(SHA256) for item in split["sha256"].items())
        if not 0 < len(sha256) <= most:
            raise split["sha256"].fail(f"holds {len(sha256)} photographs of {most} images")
        named = "names" in split.mapping()
        names = tuple(item.text() for item in split["names"].items()) if named else ()
        if named and len(names) != len(sha256):
            raise split["names"].fail(f"holds {len(names)} names of {len(sha256)} photographs")
        splits[name] = SplitPhotographs(sha256, names)
    if others := key["splits"].mapping().keys() - images.keys():
        raise key["splits"][min(others)].fail("is of no split of the data set")
    if (problem := leak(splits)) is not None:
        raise key["splits"].fail(f"are wrong: {problem}")
    return Photographs(key["file"].text(r"\w[\w.-]*\.npz"), key["sha256"].text(SHA256), splits)
