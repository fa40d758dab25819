"""Shards of any origin: read as tarfile reads them, or refused by name."""

import io
import tarfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dualscore.data.reader import EvenlySpacedBatches
from dualscore.data.shard_file import BLOCK, ShardFile, positions, row_bytes
from dualscore.data.shards import Shard
from dualscore.errors import DataError

SHAPE = (1, 5, 5)
SIZE = 25


def write(path: Path, names: list[str], form: int = tarfile.USTAR_FORMAT, extra: bool = False) -> Shard:
    """A tar of images 0, 1, … whose bytes are all their number."""
    with tarfile.open(path, "w", format=form) as tar:
        for number, name in enumerate(names):
            if extra:
                label = tarfile.TarInfo(name.replace(".u8", ".cls"))
                label.size = 1
                tar.addfile(label, io.BytesIO(b"7"))
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = SIZE, 1_700_000_000 + number, 0o600
            tar.addfile(entry, io.BytesIO(bytes([number]) * SIZE))
    return Shard(path.name, len(names), path.stat().st_size, "0" * 64)


def read(folder: Path, shard: Shard) -> tuple[list[int], NDArray[np.uint8]]:
    batches = list(EvenlySpacedBatches(folder, SHAPE, (shard,), shard.images, 3))
    return (
        [p for batch in batches for p in batch.position.tolist()],
        np.concatenate([batch.image.numpy().reshape(-1, SIZE) for batch in batches]),
    )


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("name", ["{:09d}.u8", "{:06d}.u8", "images/{:012d}.u8", "./{:09d}.u8"])
def test_tars_of_any_kind_are_read(tmp_path: Path, form: int, extra: bool, name: str) -> None:
    shard = write(tmp_path / "train-000000.tar", [name.format(10 * i) for i in range(7)], form, extra)
    places, images = read(tmp_path, shard)
    assert places == [10 * i for i in range(7)]
    assert (images == np.arange(7, dtype=np.uint8)[:, None]).all()


def test_rows_hold_entries_with_sound_headers(tmp_path: Path) -> None:
    shard = write(tmp_path / "train-000000.tar", [f"{i:09d}.u8" for i in range(5)])
    rows = np.zeros((3, row_bytes(SIZE)), np.uint8)
    with closing(ShardFile(tmp_path, shard, SIZE)) as file:
        file.read(1, list(rows))
    assert [a.tolist() for a in positions(rows[:, :BLOCK], SIZE)] == [[1, 2, 3], [0, 0, 0]]
    assert (rows[:, BLOCK : BLOCK + SIZE] == np.array([[1], [2], [3]])).all()


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (2, ord("x"), "is not named like an image"),
        (130, ord("7"), "has another size"),
        (300, 1, "damaged header"),
    ],
)
def test_a_damaged_header_in_the_middle_is_named(
    tmp_path: Path, place: int, value: int, problem: str
) -> None:
    path = tmp_path / "train-000000.tar"
    shard = write(path, [f"{i:09d}.u8" for i in range(5)])
    content = bytearray(path.read_bytes())
    content[2 * row_bytes(SIZE) + place] = value
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"train-000000.tar: entry 2 .*{problem}"):
        read(tmp_path, shard)


def test_a_shard_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "train-000000.tar"
    shard = write(path, [f"{i:09d}.u8" for i in range(5)])
    with closing(ShardFile(tmp_path, shard, SIZE)) as file:
        with path.open("r+b") as shrunk:
            shrunk.truncate(2 * row_bytes(SIZE) + 100)
        with pytest.raises(DataError, match="ends after 2 of its 5 images"):
            file.read(1, list(np.zeros((3, row_bytes(SIZE)), np.uint8)))
