"""Checkpoint files: zip archives, which may claim more than they hold, and a pickle that is not executed.

Those released with Guth et al. 2025 hold `argparse.Namespace` and objects of modules that do not exist here.
The pickle's instructions are followed, but the only things they can build are plain containers, tensors over
the archive's own bytes, and inert records that stand for everything else.
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
from dualscore.files.plain_text import one_line

# Of RuntimeError, NotImplementedError and RecursionError are kinds; of LookupError, KeyError and IndexError.
DAMAGED = (
    RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, OverflowError,
    struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What torch and Python raise when bytes of a file are flipped."""
_STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2",
    "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip


def refuse_bombs(path: Path) -> None:
    """Refuse a checkpoint whose parts are longer, unpacked, than the file: torch never compresses them."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (OSError, *DAMAGED):
        return  # whoever reads it will say so
    if unpacked > (size := path.stat().st_size):
        raise CheckpointError(
            f"{path}: refused: its {size:,} bytes unpack to {unpacked:,}, as no checkpoint's do"
        )


def read_released(path: Path) -> dict[str, Any]:
    """Read a released checkpoint (`.pth.tar`): tensors and plain values; other objects become `Record`s."""
    refuse_bombs(path)
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise CheckpointError("not a checkpoint of torch.save: no data.pkl in it")
            prefix = pickles[0].removesuffix("/data.pkl")
            byteorder = f"{prefix}/byteorder"
            if byteorder in archive.namelist() and archive.read(byteorder) != b"little":
                raise CheckpointError("written on a big-endian machine, which is not supported")
            content = _InertUnpickler(archive, prefix).load()
        if not isinstance(content, dict) or not {"args", "state_dict"} <= content.keys():
            raise CheckpointError("not a released dual score matching checkpoint: no args and state_dict")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (*DAMAGED, OSError, MemoryError, pickle.UnpicklingError) as error:
        reason = f"{type(error).__name__}: {one_line(error):.120}"
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason})") from error
    return content


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
            return np.dtype(_STORAGES[name])
        return type(name, (Record,), {"__module__": module})

    def _tensor(self, storage: Tensor, offset: Any, size: Any, stride: Any, *_: object) -> Tensor:  # noqa: ANN401
        numbers = [offset, *size, *stride]
        if not isinstance(storage, Tensor) or any(type(n) is not int or n < 0 for n in numbers):
            raise CheckpointError("a tensor's storage, size, stride or offset makes no sense")
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if math.prod(size) > len(storage) or (0 not in size and last >= len(storage)):
            raise CheckpointError("a tensor reaches beyond its storage")
        return storage.as_strided(size, stride, offset).clone()

    def _parameter(self, data: object, *_: object) -> object:
        return data

    def persistent_load(self, reference: Any) -> Tensor:  # noqa: ANN401 - pickle's own signature
        kind, dtype, key, _location, count = reference
        if (kind, type(key), type(count)) != ("storage", str, int) or not isinstance(dtype, np.dtype):
            raise CheckpointError("it has an unknown kind of tensor storage")
        if key not in self._storages:
            data = self._archive.read(f"{self._prefix}/data/{key}")
            if not 0 <= count * dtype.itemsize <= len(data):
                raise CheckpointError(f"storage {key} is shorter than it says")
            self._storages[key] = torch.from_numpy(np.frombuffer(data, dtype, count).copy())
        return self._storages[key]
