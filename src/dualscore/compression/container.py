"""The file's layout: what is in it, checked before anything is decoded.

    8 bytes   DUALSCR3
    8 bytes   length of the header, little-endian
    32 bytes  SHA-256 of the header
    header    JSON, deflated
    segments  words of 32 bits, little-endian: one stack of bits each
    raw       tiles that were not coded, deflated

Nothing in it is executed, and every length is compared with what is there before memory is taken for it.
"""

import hashlib
import json
import struct
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dualscore.coding.noise_levels import MOST_LEVELS
from dualscore.compression.tiles import BATCH, Tile, tile_count, tiles_of
from dualscore.errors import CodingError
from dualscore.files.plain_text import is_text
from dualscore.files.typed_json import TypedJson, parse_json
from dualscore.scoring.image_files import MOST_PIXELS

MAGIC = b"DUALSCR3"
_START = struct.Struct("<8sQ32s")
_MOST_HEADER = 2**27
"""Bytes of a header before deflation: some million images."""
_MOST_DEFLATED = 32
"""Times that a header is longer than deflated, beyond a mebibyte; lists of images are 2 to 10 times."""
VALUES_A_SEGMENT = 2**22
"""Pixels times channels of the pictures of a stack, about: it borrows once, and its damage harms no other."""
_HASH = 16  # hexadecimal digits of a picture's checksum


class BrokenJson(TypedJson):
    """A value of a header."""

    def fail(self, problem: str) -> CodingError:
        """What to say of a problem here."""
        return CodingError(f"{self.path}: is damaged: {self.key or 'its header'} {problem}")


@dataclass(frozen=True)
class CodedModel:
    """A model that images were coded with."""

    name: str
    sha256: str
    channels: int
    side: tuple[int, int] | None  # height and width of its images; None for any
    t0: float
    t1: float
    self_test: str


@dataclass(frozen=True)
class CodedPicture:
    """A picture in the file."""

    name: str
    model: int
    rgb: bool  # whether it had three channels, which may be equal
    height: int
    width: int
    checksum: str


@dataclass
class Segment:
    """A stack of bits, and the pictures in it."""

    pictures: int
    words: int
    batches: list[int] = field(default_factory=list)  # tiles that were coded together, in order
    sha256: str = ""


@dataclass
class Contents:
    """All that a file says of itself."""

    levels: int
    double: bool
    orientations: bool  # whether denoisers are means over four orientations
    torch: str
    models: list[CodedModel] = field(default_factory=list)
    pictures: list[CodedPicture] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    raw: list[tuple[int, int]] = field(default_factory=list)
    """Pictures and places of the tiles that were not coded."""
    raw_bytes: int = 0
    raw_sha256: str = ""


def as_png(name: str) -> str:
    """The name that a picture comes back with."""
    return str(Path(name).with_suffix(".png"))


def checksum(pixels: NDArray[np.uint8]) -> str:
    """Of a picture (C, H, W), its size included."""
    found = hashlib.sha256(repr(pixels.shape).encode())
    found.update(np.ascontiguousarray(pixels).data)
    return found.hexdigest()[:_HASH]


def pack(contents: Contents, stacks: list[NDArray[np.uint32]], raw: bytes) -> tuple[bytes, int]:
    """The file, and how many bytes of it are header."""
    bodies = [words.astype("<u4").tobytes() for words in stacks]
    for segment, body in zip(contents.segments, bodies, strict=True):
        segment.sha256 = hashlib.sha256(body).hexdigest()
    deflated = zlib.compress(raw, 9) if raw else b""
    contents.raw_bytes, contents.raw_sha256 = len(deflated), hashlib.sha256(deflated).hexdigest()
    columns = asdict(contents)
    for name in ("pictures", "segments"):  # rows of values, without their names
        columns[name] = [list(row.values()) for row in columns[name]]
    header = zlib.compress(json.dumps(columns, separators=(",", ":")).encode(), 9)
    start = _START.pack(MAGIC, len(header), hashlib.sha256(header).digest())
    return b"".join([start, header, *bodies, deflated]), len(start) + len(header)


def unpack(path: Path) -> tuple[Contents, list[NDArray[np.uint32] | None], bytes | None]:
    """What a file holds; None in place of a segment, or of the raw tiles, whose bytes are not as written.

    Raw tiles stay deflated: only the models, which are not looked at here, tell how long they may be.

    A CodingError says that it is no such file, or that its header is damaged, so that nothing can be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CodingError(f"{path}: cannot be read: {error.strerror}") from None
    if content.startswith(MAGIC[:-1]) and not content.startswith(MAGIC):
        raise CodingError(f"{path}: was written by another version of dualscore, which reads it")
    if len(content) < _START.size or not content.startswith(MAGIC):
        raise CodingError(f"{path}: is no file of `dualscore compress`, or its beginning is damaged")
    _, length, digest = _START.unpack_from(content)
    header = content[_START.size : _START.size + min(length, len(content))]
    if len(header) != length or hashlib.sha256(header).digest() != digest:
        raise CodingError(
            f"{path}: is damaged: the list of its images is not as it was written; none can be read"
        )
    contents = _read(header, path)
    place = _START.size + length
    stacks: list[NDArray[np.uint32] | None] = []
    for segment in contents.segments:
        body = content[place : place + 4 * segment.words]
        whole = hashlib.sha256(body).hexdigest() == segment.sha256 and body[-4:] != bytes(4)
        stacks.append(np.frombuffer(body, "<u4").astype(np.uint32) if whole else None)
        place += 4 * segment.words
    deflated = content[place : place + contents.raw_bytes]
    whole = hashlib.sha256(deflated).hexdigest() == contents.raw_sha256
    return contents, stacks, deflated if whole else None


def reread(content: bytes, path: Path) -> Contents:
    """What a file that was just packed says of itself; errors as of `unpack`."""
    _, length, _ = _START.unpack_from(content)
    return _read(content[_START.size : _START.size + length], path)


def tiles_in(contents: Contents, image: int) -> list[Tile]:
    """The tiles of a picture, in the order that they are coded in."""
    picture = contents.pictures[image]
    side = contents.models[picture.model].side
    return tiles_of(image, picture.model, (picture.height, picture.width), side)


def _read(deflated: bytes, path: Path) -> Contents:
    most = min(_MOST_HEADER, _MOST_DEFLATED * len(deflated) + 2**20)
    try:
        header = zlib.decompressobj().decompress(deflated, most + 1)
    except zlib.error:
        raise CodingError(f"{path}: is damaged: the list of its images cannot be inflated") from None
    if len(header) > most:
        raise CodingError(f"{path}: is damaged: the list of its images is larger than it may be")
    try:
        return _parsed(BrokenJson(parse_json(header), path))
    except (ValueError, LookupError, TypeError, OverflowError):
        raise CodingError(f"{path}: is damaged: its header is not as it was written") from None


def _parsed(document: TypedJson) -> Contents:
    levels = document["levels"].count()
    if levels > MOST_LEVELS:
        raise document["levels"].fail(f"must be at most {MOST_LEVELS:,}")
    contents = Contents(
        levels, bool(document["double"].value), bool(document["orientations"].value), document["torch"].text()
    )
    for item in document["models"].items():
        contents.models.append(_model(item))
    if len({model.sha256 for model in contents.models}) < len(contents.models) or len(contents.models) > 2:
        raise document["models"].fail("are more than that of colour and that of gray")
    for item in document["pictures"].items():
        contents.pictures.append(_picture(item, contents.models))
    names = {as_png(picture.name) for picture in contents.pictures}
    folders = {str(folder) for name in names for folder in Path(name).parents}
    if len(names) < len(contents.pictures) or names & folders:
        raise document["pictures"].fail("hold a name twice")
    first = 0
    for item in document["segments"].items():
        count, words = int(item[0].number(0)), int(item[1].number(0))
        batches = [size.count() for size in item[2].items()]
        segment = Segment(count, words, batches, item[3].text(r"[0-9a-f]{64}"))
        own = contents.pictures[first : first + count]
        values = [contents.models[one.model].channels * one.height * one.width for one in own]
        if not count or len(own) != count:
            raise item.fail("is of no pictures")
        if sum(values[:-1]) >= VALUES_A_SEGMENT or max(batches, default=0) > BATCH or words > 2**40:
            raise item.fail("holds more than it may")
        first += segment.pictures
        contents.segments.append(segment)
    if first != len(contents.pictures):
        raise document["segments"].fail("are not of all pictures")
    for item in document["raw"].items():
        image, place = (int(value.number(0)) for value in item.items())
        if image >= len(contents.pictures) or place >= _tiles(contents, contents.pictures[image]):
            raise item.fail("is of no picture")
        contents.raw.append((image, place))
    if len(set(contents.raw)) < len(contents.raw):
        raise document["raw"].fail("names a tile twice")
    contents.raw_bytes = int(document["raw_bytes"].number(0))
    contents.raw_sha256 = document["raw_sha256"].text(r"[0-9a-f]{64}")
    return contents


def _tiles(contents: Contents, picture: CodedPicture) -> int:
    return tile_count((picture.height, picture.width), contents.models[picture.model].side)


def _model(item: TypedJson) -> CodedModel:
    side = None if item["side"].value is None else tuple(part.count() for part in item["side"].items())
    channels = item["channels"].count()
    if channels not in (1, 3) or (side is not None and (len(side) != 2 or max(side) > 2**13)):
        raise item.fail("is of images that there are none of")
    return CodedModel(
        item["name"].text(), item["sha256"].text(r"[0-9a-f]{64}"), channels, side,
        item["t0"].number(0.0), item["t1"].number(0.0), item["self_test"].text(r"[0-9a-f]*"),
    )  # fmt: skip


def _picture(item: TypedJson, models: list[CodedModel]) -> CodedPicture:
    name, model = item[0].text(), int(item[1].number(0))
    height, width = item[3].count(), item[4].count()
    if model >= len(models):
        raise item[1].fail("is of no model")
    if height * width > MOST_PIXELS:
        raise item.fail("is larger than a picture may be")
    parts = Path(name).parts
    if not is_text(name) or Path(name).is_absolute() or ".." in parts or not parts or "\\" in name:
        raise item[0].fail("is no name of a picture")
    return CodedPicture(
        name, model, bool(item[2].value), height, width, item[5].text(rf"[0-9a-f]{{{_HASH}}}")
    )
