"""Reads pickled image batches without ever running what a pickle asks for.

A pickle is a program that may call any importable function. Here the few names that pickled NumPy arrays need
are mapped to inert stand-ins that only note their arguments, and every other name is refused. NumPy itself is
called afterwards, with checked dtype, shape and length.

Reads protocols 0 to 5 as written by Python 2 and 3, and by NumPy 1 and 2.
"""

import math
import pickle
import pickletools
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from dualscore.errors import DataError

BROKEN = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    RecursionError,
    struct.error,
)
MOST_TUPLES = 10_000  # a batch needs a few; tuples nested millions deep crash the interpreter when hashed
TOO_LARGE = (MemoryError, OverflowError)
KINDS = "buif"  # Booleans, integers and floats; above all no Python objects


class _Dtype:
    __slots__ = ("name", "order")

    def __init__(self, name: object) -> None:
        self.name = name
        self.order: object = "="

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = state[1]

    def real(self) -> np.dtype[Any]:
        name, order = (
            text.decode("ascii") if isinstance(text, bytes) else text for text in (self.name, self.order)
        )
        if (
            not isinstance(name, str)
            or len(name) > 3
            or name[:1] not in KINDS
            or order not in ("<", ">", "|", "=")
        ):
            kind = repr(name) if isinstance(name, str) else type(name).__name__
            raise ValueError(f"it holds an array of kind {kind}, not of numbers")
        return np.dtype(name if order in "=|" else order + name)


class _Array:
    __slots__ = ("dtype", "fortran", "raw", "shape")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.fortran, self.raw = state

    def real(self) -> NDArray[Any]:
        if not isinstance(self.dtype, _Dtype) or not isinstance(self.raw, bytes | bytearray):
            raise ValueError("it holds an array whose values are not raw bytes")
        dtype = self.dtype.real()
        if not isinstance(self.shape, tuple) or not all(
            type(side) is int and side >= 0 for side in self.shape
        ):
            raise ValueError("it holds an array of an impossible shape")
        if math.prod(self.shape) * dtype.itemsize != len(self.raw):
            raise ValueError(f"it holds an array of shape {self.shape} with only {len(self.raw)} bytes")
        return np.frombuffer(self.raw, dtype).reshape(self.shape, order="F" if self.fortran else "C")


def _counted(build: Callable[..., None]) -> Callable[..., None]:
    def step(unpickler: "_Unpickler") -> None:
        unpickler.tuples += 1
        if unpickler.tuples > MOST_TUPLES:
            raise ValueError(f"it builds more than {MOST_TUPLES:,} tuples")
        build(unpickler)

    return step


def _load_global(unpickler: Any) -> None:  # noqa: ANN401 - Python's unpickler is untyped
    # Python's own takes a cut-off name for a whole one.
    module, name = unpickler.readline(), unpickler.readline()
    if not (module.endswith(b"\n") and name.endswith(b"\n")):
        raise EOFError
    unpickler.append(unpickler.find_class(module[:-1].decode(), name[:-1].decode()))


def _counting_dispatch() -> dict[int, Callable[..., None]]:
    steps: dict[int, Callable[..., None]] = dict(pickle._Unpickler.dispatch)
    for code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
        steps[code[0]] = _counted(steps[code[0]])
    steps[pickle.GLOBAL[0]] = _load_global
    return steps


class _Unpickler(pickle._Unpickler):
    # Python's own implementation, not the one in C, because its steps can be counted.
    dispatch: ClassVar[dict[int, Callable[..., None]]] = _counting_dispatch()
    tuples = 0

    # stand-ins for functions are bound methods: a pickle cannot alter those as it could a class or a partial

    def find_class(self, module: str, name: str) -> object:
        known: dict[str, Callable[..., Any] | str] = {
            "multiarray._reconstruct": self._reconstruct,
            "numeric._frombuffer": self._frombuffer,
            "multiarray.scalar": self._scalar,
            "numpy.ndarray": "ndarray",
            "numpy.dtype": self._dtype,
            "_codecs.encode": self._encode,
        }
        short = module.removeprefix("numpy.core.").removeprefix("numpy._core.")
        if module == "numpy" or module == "_codecs" or short != module:
            allowed = known.get(f"{short}.{name}")
            if allowed is not None:
                return allowed
        raise DataError(f"it asks for {module}.{name}, which no image batch needs")

    def _reconstruct(self, *_: object) -> _Array:
        return _Array()

    def _dtype(self, name: object, *_: object) -> _Dtype:
        return _Dtype(name)

    def _frombuffer(self, raw: object, dtype: object, shape: object, order: object) -> _Array:
        array = _Array()
        array.__setstate__((1, shape, dtype, order == "F", raw))
        return array

    def _scalar(self, dtype: object, raw: object) -> object:
        array = _Array()
        array.__setstate__((1, (), dtype, False, raw))
        return array.real().item()

    def _encode(self, text: object, encoding: object) -> bytes:
        if not isinstance(encoding, str | bytes) or encoding not in ("latin1", b"latin1"):
            named = repr(encoding) if isinstance(encoding, str | bytes) else "that is no text"
            raise ValueError(f"it uses the encoding {named}")
        if not isinstance(text, str | bytes):
            raise ValueError("it encodes something that is no text")
        return text if isinstance(text, bytes) else text.encode("latin1")


def load_batch(file: BinaryIO, label: str) -> dict[str, Any]:
    """Read a pickled dict.

    Args:
        file: the open pickle.
        label: how to name the file in errors.

    Returns:
        Its keys as str, its arrays as NumPy arrays, everything else as it is.

    Raises:
        DataError: if the pickle is broken, not a dict, or asks for anything but arrays of numbers.
    """
    try:
        # "bytes" leaves Python 2 strings, pixels among them, undecoded
        content = _Unpickler(file, encoding="bytes").load()
        if not isinstance(content, dict):
            raise ValueError("it does not hold a dict")
        return {
            _text(key): value.real() if isinstance(value, _Array) else value for key, value in content.items()
        }
    except DataError as error:
        raise DataError(f"{label} is refused: {error}; download the official file again") from None
    except BROKEN as error:
        raise DataError(
            f"{label} is not a readable batch: {error or 'it is cut off'}; download it again"
        ) from None
    except TOO_LARGE:
        raise DataError(
            f"{label} asks for more memory than there is; download the official file again"
        ) from None


def _text(key: object) -> str:
    if not isinstance(key, str | bytes):
        raise ValueError(f"its dict has a key of type {type(key).__name__}")
    return key.decode("latin1") if isinstance(key, bytes) else key


def peek_shape(file: BinaryIO, label: str) -> tuple[int, int]:
    """Find the first two-dimensional array in a pickle, without building anything.

    Args:
        file: the open pickle.
        label: how to name the file in errors.

    Returns:
        Its shape.

    Raises:
        DataError: if the pickle is broken or holds none.
    """
    recent: list[tuple[str, Any]] = []
    try:
        for opcode, argument, _ in pickletools.genops(file):
            recent = [*recent[-3:], (opcode.name, argument)]
            ends_pair = opcode.name == "TUPLE2" or (opcode.name == "TUPLE" and recent[0][0] == "MARK")
            pair = [value for _, value in recent[-3:-1]]
            if (
                ends_pair
                and len(pair) == 2
                and all(type(value) is int for value in pair)
                and _are_ints(recent[-3:-1])
            ):
                return pair[0], pair[1]
    except (*BROKEN, *TOO_LARGE) as error:
        raise DataError(f"{label} is not a readable batch: {error}; download it again") from None
    raise DataError(f"{label} holds no table of images; download it again")


def _are_ints(operations: list[tuple[str, Any]]) -> bool:
    return all("INT" in name or "LONG" in name for name, _ in operations)
