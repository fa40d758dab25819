"""Reads the checkpoints released with Guth et al. 2025: which network they describe, and its weights."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dualscore.energy import Denoiser, Energy, ScoreModel
from dualscore.errors import CheckpointError
from dualscore.files.inert_pickle import read_released
from dualscore.model_files.fitting import check_depth, fitted
from dualscore.networks import LinearEmbedding, UNet

__all__ = ["PaperNetwork", "Released", "load_released", "read_network", "read_released"]


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


_KINDS = {"EnergyModel": "energy", "DenoiserModel": "denoiser"}
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
"""What training on several devices, and compiling, put before each name."""
_EMBEDDING = "noise_var_embedding.time_embed."


@dataclass(frozen=True)
class PaperNetwork:
    """Which network of the paper's family a released checkpoint holds.

    Args:
        model: `energy`, ½⟨y, f(y, t)⟩, or `denoiser`, y − t f(y, t).
        channels: of the images.
        width: channels at the finest scale.
        scales: encoder blocks.
        layers: convolutions of an encoder, the middle and a decoder block.
    """

    model: str
    channels: int
    width: int
    scales: int
    layers: tuple[int, int, int]

    def build(self) -> ScoreModel:
        """The network with fresh weights."""
        network = UNet(
            self.channels, LinearEmbedding(), width=self.width, scales=self.scales, layers=self.layers
        )
        return Energy(network) if self.model == "energy" else Denoiser(network)


@dataclass(frozen=True)
class Released:
    """A released checkpoint.

    Args:
        network: which network it is.
        model: that network with its weights, in evaluation mode, on the CPU.
        step: training steps it has seen; None where it does not say.
    """

    network: PaperNetwork
    model: ScoreModel
    step: int | None


def _own_name(name: str) -> str:
    """Translate a parameter's name in the released network into ours.

    There, block entries 3l, 3l+1, 3l+2 are the convolution, normalization and GELU of layer l.
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
    """The network of a released checkpoint alone; see `read_network`."""
    return read_network(path).model


def read_network(path: Path) -> Released:
    """Build the network of a released checkpoint.

    Args:
        path: the `.pth.tar` file.

    Returns:
        The network with its weights, in double precision where they are.

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
        _own_name(_WRAPPERS.sub("", name).removeprefix("network.")): value
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
    output = f"decoder.0.{layers[2] - 1}.conv.weight" if type(layers[2]) is int else ""
    if output in weights:
        weights["output.weight"] = weights.pop(output)
    # Gains may be stored with singleton dimensions.
    weights = {
        f"network.{name}": value.reshape(-1) if name.endswith(".gain") else value
        for name, value in weights.items()
    }
    try:
        check_depth(max(scales, *layers), weights)
        network = PaperNetwork(_KINDS[kind], first.shape[1], width, scales, layers)
        model = fitted(network.build, weights)
    except (RuntimeError, ValueError, TypeError, MemoryError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: the weights do not fit args.network_kwargs={options}: {reason:.300}"
        ) from error
    step = content.get("step")
    return Released(network, model, step if type(step) is int else None)
