"""Official pickles of every age are read; nothing else in a pickle is ever run."""

import io
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from data_prep.safe_pickle import load_batch, peek_shape
from dualscore.errors import DataError
from fakes import real_images, write_official_imagenet
from prep_helpers import build, read_split

TABLE = real_images(6, 16).reshape(6, 768)


def _load(raw: bytes) -> dict[str, object]:
    return load_batch(io.BytesIO(raw), "some/file")


def _check(raw: bytes) -> None:
    assert peek_shape(io.BytesIO(raw), "some/file") == (6, 768)
    batch = _load(raw)
    table = batch["data"]
    assert isinstance(table, np.ndarray)
    assert table.dtype == np.uint8
    assert np.array_equal(table, TABLE)


def python2_pickle(protocol: int) -> bytes:
    """What Python 2 with NumPy 1 writes for {'data': TABLE, 'labels': [7]}, opcode by opcode."""
    raw = TABLE.tobytes()
    if protocol == 2:
        return (
            b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04"
            b"K\x00\x85q\x05U\x01bq\x06\x87q\x07Rq\x08(K\x01K\x06M\x00\x03\x86q\x09cnumpy\ndtype\nq\x0aU\x02u1q\x0b"
            b"K\x00K\x01\x87q\x0cRq\x0d(K\x03U\x01|q\x0eNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0fb\x89"
            b"T" + len(raw).to_bytes(4, "little") + raw + b"q\x10tq\x11bU\x06labelsq\x12]q\x13K\x07au."
        )
    text = "".join(f"\\x{value:02x}" for value in raw).encode()
    return (
        b"(dp0\nS'data'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\n"
        b"tp6\nRp7\n(I1\n(I6\nI768\ntp8\ncnumpy\ndtype\np9\n(S'u1'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'|'\np13\nNNN"
        b"I-1\nI-1\nI0\ntp14\nbI00\nS'" + text + b"'\np15\ntp16\nbsS'labels'\np17\n(lp18\nI7\nas."
    )


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("keys", [str, str.encode])
def test_every_protocol(protocol: int, keys: type) -> None:
    batch = {keys("data"): TABLE, keys("labels"): [1, 2], keys("mean"): TABLE.mean(axis=0)}
    raw = pickle.dumps(batch, protocol=protocol)
    _check(raw)
    assert _load(raw)["labels"] == [1, 2]
    mean = _load(raw)["mean"]
    assert isinstance(mean, np.ndarray)
    assert np.array_equal(mean, TABLE.mean(axis=0))


@pytest.mark.parametrize("protocol", range(3))
def test_names_of_numpy_1(protocol: int) -> None:
    raw = pickle.dumps({"data": TABLE, "label": np.float64(1.5)}, protocol=protocol)
    assert b"numpy._core" in raw
    raw = raw.replace(b"numpy._core", b"numpy.core")
    _check(raw)
    assert _load(raw)["label"] == 1.5


@pytest.mark.parametrize("protocol", [0, 2])
def test_python_2(protocol: int) -> None:
    _check(python2_pickle(protocol))
    assert _load(python2_pickle(protocol))["labels"] == [7]


def test_column_major_and_big_endian_arrays() -> None:
    for array in (np.asfortranarray(TABLE), np.arange(12, dtype=">i4").reshape(3, 4)):
        for protocol in range(6):
            loaded = _load(pickle.dumps({"data": array}, protocol=protocol))["data"]
            assert isinstance(loaded, np.ndarray)
            assert np.array_equal(loaded, array)


def test_a_python_2_batch_becomes_shards(tmp_path: Path) -> None:
    train, val, test = write_official_imagenet(tmp_path / "src", 32, 12, 8)
    for path in (tmp_path / "src").iterdir():
        batch = pickle.loads(path.read_bytes())  # noqa: S301
        raw = batch["data"].tobytes()
        shape = b"K" + bytes([len(batch["data"])]) + b"M\x00\x0c\x86"
        old = python2_pickle(2).replace(b"K\x06M\x00\x03\x86", shape)
        head, tail = re.split(re.escape(b"T" + TABLE.nbytes.to_bytes(4, "little") + TABLE.tobytes()), old)
        path.write_bytes(head + b"T" + len(raw).to_bytes(4, "little") + raw + tail)
    build("imagenet32", tmp_path / "out", src=tmp_path / "src")
    assert np.array_equal(read_split(tmp_path / "out", "train"), train)
    assert np.array_equal(read_split(tmp_path / "out", "val"), val)
    assert np.array_equal(read_split(tmp_path / "out", "test"), test)


class _Call:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> object:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_malicious_pickle_runs_nothing(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    raw = pickle.dumps({"data": TABLE, "x": _Call(os.mkdir, str(marker))}, protocol=protocol)
    with pytest.raises(DataError, match=rf"some/file is refused: it asks for {os.name}\.mkdir"):
        _load(raw)
    assert not marker.exists()
    pickle.loads(raw)  # noqa: S301
    assert marker.exists(), "the test proves nothing: this pickle is harmless"


@pytest.mark.parametrize(
    "name",
    [
        b"builtins\neval",
        b"__builtin__\neval",
        b"builtins\ngetattr",
        b"numpy\nload",
        b"numpy\nmultiarray._reconstruct",
        b"multiarray\n_reconstruct",
        b"numpy._core.multiarray\nfromfile",
        b"numpy.core.numeric\nsave",
        b"numpy.lib.format\nread_array",
        b"_codecs\ndecode",
        b"codecs\nencode",
        b"functools\npartial",
    ],
)
def test_no_other_name_is_allowed(name: bytes) -> None:
    with pytest.raises(DataError, match="is refused: it asks for"):
        _load(b"\x80\x02}X\x04\0\0\0datac" + name + b"\ns.")


def test_attributes_of_allowed_names_are_out_of_reach() -> None:
    raw = b"\x80\x04}\x8c\x04data\x8c\x16numpy._core.multiarray\x8c\x18_reconstruct.__globals__\x93s."
    with pytest.raises(DataError, match=r"_reconstruct\.__globals__"):
        _load(raw)


def _array(shape: bytes, raw: bytes, dtype: bytes = b"u1") -> bytes:
    return (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + shape
        + b"cnumpy\ndtype\nU"
        + bytes([len(dtype)])
        + dtype
        + b"K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + raw
        + b"tbu."
    )


def test_hand_made_array_is_read() -> None:
    data = _load(_array(b"K\x02K\x02\x86", b"U\x04abcd"))["data"]
    assert isinstance(data, np.ndarray)
    assert data.tolist() == [[97, 98], [99, 100]]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (_array(b"\x8a\x07\xff\xff\xff\xff\xff\xff\x7fK\x02\x86", b"U\x04abcd"), "with only 4 bytes"),
        (_array(b"J\xff\xff\xff\xffJ\xfc\xff\xff\xff\x86", b"U\x04abcd"), "impossible shape"),
        (_array(b"K\x02K\x03\x86", b"U\x04abcd"), "with only 4 bytes"),
        (_array(b"K\x02K\x02\x86", b"]"), "not raw bytes"),
        (_array(b"K\x04\x85", b"U\x04abcd", b"O8"), "not of numbers"),
        (_array(b"K\x04\x85", b"U\x04abcd", b"V4"), "not of numbers"),
        (_array(b"K\x04\x85", b"U\x04abcd", b"u1,O"), "not of numbers"),
        (pickle.dumps({"data": np.array([{}, []], dtype=object)}), "not raw bytes"),
        (pickle.dumps([TABLE]), "not hold a dict"),
        (b"\x80\x02}U\x04datac_codecs\nencode\nX\x01\0\0\0aX\x05\0\0\0rot13\x86Rs.", "encoding 'rot13'"),
        (b"\x80\x02}U\x04dataU\x01xQs.", "persistent"),
    ],
)
def test_allowed_names_cannot_be_abused(raw: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=f"some/file is not a readable batch.*{reason}"):
        _load(raw)


def test_every_truncation_is_an_error() -> None:
    raw = pickle.dumps({"data": TABLE[:2, :12], "labels": [1, 2]}, protocol=2)
    for length in range(len(raw)):
        with pytest.raises(DataError, match="some/file is not a readable batch"):
            _load(raw[:length])


@pytest.mark.parametrize("depth", [20_000, 3_000_000])
def test_a_deeply_nested_key_is_refused_before_it_crashes_the_interpreter(depth: int) -> None:
    program = b"\x80\x02}N" + b"\x85" * depth + b"K\x01s."
    with pytest.raises(DataError, match="tuples"):
        load_batch(io.BytesIO(program), "some/file")
