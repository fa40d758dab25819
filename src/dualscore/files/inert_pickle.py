"""Reads the files of `torch.save` without executing their pickle.

The files are zip archives; those released with Guth et al. 2025 hold `argparse.Namespace` and objects of
modules that do not exist here. The pickle's instructions are followed, but the only things they can build are
plain containers, tensors over the archive's own bytes, and inert records that stand for everything else.
"""

import io
import math
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualscore.errors import CheckpointError
from dualscore.files.archives import refuse_bombs
from dualscore.files.plain_text import one_line

_STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


_UNREADABLE = (
    OSError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    EOFError,
    RuntimeError,  # encrypted archives; NotImplementedError and RecursionError are kinds of it
    MemoryError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
)


class Record:
    """Stands for an object of an unknown class: remembers its state, does nothing."""

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        """Take and forget any arguments."""

    def __call__(self, *_arguments: object, **_keywords: object) -> "Record":
        """Stand for a call's result, too: nothing is called."""
        return Record()

    def __setstate__(self, state: object) -> None:
        """Keep a dictionary state as `fields`; forget any other."""
        self.fields = state if isinstance(state, dict) else {}

    def __setitem__(self, key: object, value: object) -> None:
        """Forget items, as of a dictionary subclass."""

    def append(self, item: object) -> None:
        """Forget items, as of a list subclass."""


class _InertUnpickler(pickle.Unpickler):
    """Follows a pickle's instructions with nothing to call but its own methods.

    Methods, because a pickle could set attributes of a function of this file, which would outlive it.
    """

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{prefix}/data.pkl")), encoding="utf-8")
        self._archive, self._prefix = archive, prefix
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - pickle's own signature
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return self._tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return self._parameter
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return type(name, (Record,), {"__module__": module})

    def _tensor(self, storage: Tensor, offset: Any, size: Any, stride: Any, *_: object) -> Tensor:  # noqa: ANN401
        numbers = [offset, *size, *stride]
        if not isinstance(storage, Tensor) or len(size) != len(stride):
            raise CheckpointError("a tensor makes no sense")
        if any(type(n) is not int or n < 0 for n in numbers) or math.prod(size) > len(storage):
            raise CheckpointError("a tensor's size, stride or offset makes no sense")
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if 0 not in size and last >= len(storage):
            raise CheckpointError("a tensor reaches beyond its storage")
        return storage.as_strided(size, stride, offset).clone()

    def _parameter(self, data: object, *_: object) -> object:
        return data

    def persistent_load(self, reference: Any) -> Tensor:  # noqa: ANN401 - pickle's own signature
        kind, dtype, key, _location, count = reference
        if (
            kind != "storage"
            or not isinstance(dtype, np.dtype)
            or type(key) is not str
            or type(count) is not int
        ):
            raise CheckpointError("it has an unknown kind of tensor storage")
        if key not in self._storages:
            data = self._archive.read(f"{self._prefix}/data/{key}")
            if len(data) < count * dtype.itemsize or count < 0:
                raise CheckpointError(f"storage {key} is shorter than it says")
            array = np.frombuffer(data, dtype, count).copy()
            self._storages[key] = torch.from_numpy(array)
        return self._storages[key]


def read_released(path: Path) -> dict[str, Any]:
    """Read a released checkpoint (`.pth.tar`): tensors and plain values; other objects become `Record`s."""
    refuse_bombs(path)
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise CheckpointError(f"{path}: not a checkpoint of torch.save: no data.pkl in it")
            prefix = pickles[0].removesuffix("/data.pkl")
            byteorder = f"{prefix}/byteorder"
            if byteorder in archive.namelist() and archive.read(byteorder) != b"little":
                raise CheckpointError(f"{path}: written on a big-endian machine, which is not supported")
            content = _InertUnpickler(archive, prefix).load()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    except _UNREADABLE as error:
        reason = f"{type(error).__name__}: {one_line(error):.120}"
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason})") from error
    if not isinstance(content, dict) or not {"args", "state_dict"} <= content.keys():
        raise CheckpointError(
            f"{path}: not a released dual score matching checkpoint: no args and state_dict"
        )
    return content
