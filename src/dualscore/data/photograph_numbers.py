"""Which photograph each image of a prepared data set is of: the manifest's key ``photographs`` and its file.

Where images are crops, ``photographs.npz`` holds an array a split: the number, from 0 in the order of the
split's checksums in the manifest, of the photograph that the image at each position is of.
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualscore.errors import DataError
from dualscore.files.typed_json import TypedJson

PHOTOGRAPHS_FILE = "photographs.npz"
NAMES_KEPT = 2000
"""Photographs of a data set that are named; of more there are only checksums."""
HEADER_BYTES = 2**12
"""Of an array in the file, and more of an archive's bookkeeping than it has."""
_PACKED, _ENCRYPTED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), 1
_BROKEN = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, OSError, MemoryError)


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

    def document(self) -> dict[str, Any]:
        """The manifest's key, as JSON."""
        if self.each_image:
            return {"each_image": True}
        splits = {
            name: {"sha256": list(split.sha256)} | ({"names": list(split.names)} if split.names else {})
            for name, split in self.splits.items()
        }
        return {"file": self.file, "sha256": self.sha256, "splits": splits}

    def load(self, folder: str | Path, images: Mapping[str, int]) -> dict[str, NDArray[np.int32]]:
        """Each split's numbers of its images' photographs, int32, shape (images,); none without a file."""
        if self.each_image:
            return {}
        path = Path(folder) / self.file
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise _wrong(path, f"cannot be read: {error.strerror}") from None
        if hashlib.sha256(raw).hexdigest() != self.sha256:
            raise _wrong(path, "has another checksum than manifest.json says")
        try:
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                return {split: self._read(archive, split, path, count) for split, count in images.items()}
        except _BROKEN as error:
            raise _wrong(path, f"is not an archive of NumPy arrays, one a split ({error})") from None

    def _read(self, archive: zipfile.ZipFile, split: str, path: Path, count: int) -> NDArray[np.int32]:
        """One array, no larger than it must be, whatever the archive claims."""
        member = archive.getinfo(f"{split}.npy")
        if member.compress_type not in _PACKED or member.flag_bits & _ENCRYPTED:
            raise ValueError(f"{split}.npy is packed in another way than NumPy does")
        if member.file_size > 4 * count + HEADER_BYTES:
            raise _wrong(path, f"holds more for {split} than numbers of {count} images")
        array = np.load(io.BytesIO(archive.read(member)), allow_pickle=False)
        if array.shape != (count,) or array.dtype != np.int32:
            raise _wrong(path, f"holds {array.dtype} {array.shape} for {split} instead of int32 ({count},)")
        known = len(self.splits[split].sha256)
        if array.min() < 0 or array.max() >= known:
            raise _wrong(path, f"names photographs of {split} that are not among its {known}")
        numbers: NDArray[np.int32] = array
        return numbers


def pack(numbers: Mapping[str, NDArray[np.int32]]) -> bytes:
    """The file's content, a compressed npz; equal numbers give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **dict(numbers))
    return buffer.getvalue()


def leak(splits: Mapping[str, SplitPhotographs]) -> str | None:
    """Say which photograph two splits share; None if there is none."""
    for (earlier, first), (later, second) in combinations(splits.items(), 2):
        known = set(first.sha256)
        for number, checksum in enumerate(second.sha256):
            if checksum in known:
                there = first.name(first.sha256.index(checksum))
                name = second.name(number)
                also = "" if there == name else f" (there {there})"
                return f"{name} is in {later} and in {earlier}{also}, but splits share no photograph"
    return None


def parse_photographs(key: TypedJson, images: Mapping[str, int]) -> Photographs:
    """What the manifest's key says; DataError names what is wrong with it."""
    if "each_image" in key.mapping():
        if key.value != {"each_image": True}:
            raise key["each_image"].fail("must be true and alone, or absent")
        return Photographs()
    splits = {name: _parse_split(key["splits"][name], most) for name, most in images.items()}
    if others := key["splits"].mapping().keys() - images.keys():
        raise key["splits"][min(others)].fail("is of no split of the data set")
    if (problem := leak(splits)) is not None:
        raise key["splits"].fail(f"are wrong: {problem}")
    return Photographs(
        file=key["file"].text(r"\w[\w.-]*\.npz"), sha256=key["sha256"].text(r"[0-9a-f]{64}"), splits=splits
    )


def _parse_split(split: TypedJson, images: int) -> SplitPhotographs:
    sha256 = tuple(item.text(r"[0-9a-f]{64}") for item in split["sha256"].items())
    if not 0 < len(sha256) <= images:
        raise split["sha256"].fail(f"holds {len(sha256)} photographs of {images} images")
    names: tuple[str, ...] = ()
    if "names" in split.mapping():
        names = tuple(item.text() for item in split["names"].items())
        if len(names) != len(sha256):
            raise split["names"].fail(f"holds {len(names)} names of {len(sha256)} photographs")
    return SplitPhotographs(sha256, names)


def _wrong(path: Path, problem: str) -> DataError:
    return DataError(f"{path} {problem}: prepare the data set again")
