"""Reads the checkpoints released with Guth et al. 2025 without executing their pickle.

The files are zip archives of `torch.save` that hold `argparse.Namespace` and objects of modules that do
not exist here. The pickle's instructions are followed, but the only things they can build are plain
containers, tensors over the archive's own bytes, and inert records that stand for everything else.
"""

import ast
import io
import math
import pickle
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualscore.archives import refuse_bombs
from dualscore.energy import Denoiser, Energy, ScoreModel
from dualscore.errors import CheckpointError
from dualscore.networks import LinearEmbedding, UNet

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
    """Read a released checkpoint's contents, tensors and plain values only.

    Args:
        path: a `.pth.tar` file as `torch.save` wrote it (zip format).

    Returns:
        The top-level dictionary (`step`, `args`, `state_dict`, …); objects of foreign classes are `Record`s
        with their attributes in `fields`.

    Raises:
        CheckpointError: if the file is not of that format.
    """
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
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({type(error).__name__}: {reason:.120})"
        ) from error
    if not isinstance(content, dict) or not {"args", "state_dict"} <= content.keys():
        raise CheckpointError(
            f"{path}: not a released dual score matching checkpoint: no args and state_dict"
        )
    return content


def _parse(text: str) -> object:
    """Read a Python literal, also a dictionary written as dict(key=literal, …)."""
    tree = ast.parse(text.strip(), mode="eval").body
    if isinstance(tree, ast.Call) and ast.unparse(tree.func) == "dict" and not tree.args:
        return {str(pair.arg): ast.literal_eval(pair.value) for pair in tree.keywords}
    return ast.literal_eval(tree)


def _layers(weights: dict[str, Tensor], block: str) -> int:
    """How many layers a block of the stored network has."""
    return len([name for name in weights if name.startswith(f"{block}.") and name.endswith(".conv.weight")])


def _literal(path: Path, arguments: dict[str, Any], key: str) -> dict[str, Any]:
    text = arguments.get(key)
    try:
        value = _parse(text) if isinstance(text, str) else text
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{path}: args.{key} is not a dictionary of literals: {text!r:.80}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: args.{key} is not a dictionary: {text!r:.80}")
    return value


_EMBEDDING = "noise_var_embedding.time_embed."


def _own_name(name: str) -> str:
    """Translate a parameter's name in the released network into ours.

    There, block entries 3l, 3l+1, 3l+2 are the convolution, normalisation and GELU of layer l.
    """
    if name.startswith(_EMBEDDING):
        return "embedding.mlp." + name.removeprefix(_EMBEDDING)
    match = re.fullmatch(r"(encoder|decoder)\.(\d+)\.(\d+)\.(.+)|(middle_block)\.(\d+)\.(.+)", name)
    if match is None:
        return name  # reported as unknown when the state is loaded
    if match[5]:
        block, entry, rest = "middle", int(match[6]), match[7]
    else:
        block, entry, rest = f"{match[1]}.{match[2]}", int(match[3]), match[4]
    if entry % 3 == 0:
        return f"{block}.{entry // 3}.conv.{rest}"
    rest = {"weight": "gain"}.get(rest, rest.replace("conditioning_embedding.", "modulation."))
    return f"{block}.{entry // 3}.norm.{rest}"


def load_released(path: Path) -> ScoreModel:
    """Build the network of a released checkpoint.

    Args:
        path: the `.pth.tar` file.

    Returns:
        An `Energy` ½⟨y, f(y, t)⟩ or a `Denoiser` y − t f(y, t), in evaluation mode, on the CPU.

    Raises:
        CheckpointError: if the file is unreadable or describes another kind of network.
    """
    content = read_released(path)
    arguments = getattr(content["args"], "fields", None)
    if not isinstance(arguments, dict):
        raise CheckpointError(f"{path}: args holds nothing")
    kind, network_name = str(arguments.get("model")), str(arguments.get("network"))
    if network_name != "UNet":
        raise CheckpointError(f"{path}: args.network is {network_name!r:.80}; only 'UNet' can be read")
    if arguments.get("embed_noise_level_in_range", False) is not False:
        raise CheckpointError(f"{path}: args.embed_noise_level_in_range is set, which is not supported")
    expected = {
        "EnergyModel": {"conversion": "inner_product"},
        "DenoiserModel": {"output_scaling": 1, "residual": True},
    }
    reparametrization = _literal(path, arguments, "reparam_kwargs")
    if kind not in expected or reparametrization != expected[kind]:
        raise CheckpointError(
            f"{path}: args.model={kind!r} with args.reparam_kwargs={reparametrization} is unknown; "
            f"known: {expected}"
        )
    options = _literal(path, arguments, "network_kwargs")
    known = {"num_scales", "base_width", "group_size"} | {
        f"num_layers_{b}_block" for b in ("encoder", "mid", "decoder")
    }
    if unknown := options.keys() - known:
        raise CheckpointError(f"{path}: args.network_kwargs has unknown keys {sorted(map(str, unknown))}")
    if options.get("group_size", 1) != 1:
        raise CheckpointError(f"{path}: group_size={options['group_size']} is not supported, only 1")
    state = content["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{path}: state_dict is not a dictionary of names")
    weights = {
        _own_name(name.removeprefix("network.")): value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    first = weights.get("encoder.0.0.conv.weight")
    if first is None or first.ndim != 4:
        raise CheckpointError(f"{path}: state_dict has no network.encoder.0.0.weight")
    # What the options leave out is read off the weights; a disagreement shows when those are loaded.
    scales = options.get("num_scales", len({n.split(".")[1] for n in weights if n.startswith("encoder.")}))
    width = options.get("base_width", len(first))
    layers = (
        options.get("num_layers_encoder_block", _layers(weights, "encoder.0")),
        options.get("num_layers_mid_block", _layers(weights, "middle")),
        options.get("num_layers_decoder_block", _layers(weights, "decoder.0")),
    )
    try:
        network = UNet(first.shape[1], LinearEmbedding(), width=width, scales=scales, layers=layers)
        output = f"decoder.0.{layers[2] - 1}.conv.weight"
        if output in weights:
            weights["output.weight"] = weights.pop(output)
        shaped = {
            # Gains may be stored with singleton dimensions.
            name: value.reshape(-1) if name.endswith(".gain") else value
            for name, value in weights.items()
        }
        network.load_state_dict(shaped)
    except (RuntimeError, ValueError, TypeError, MemoryError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: the weights do not fit args.network_kwargs={options}: {reason:.300}"
        ) from error
    model: ScoreModel = Energy(network) if kind == "EnergyModel" else Denoiser(network)
    return model.eval().requires_grad_(False)
