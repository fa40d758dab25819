"""Reads the checkpoints released with Guth et al. 2025, and puts stored weights into networks."""

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from dualscore.energy import Denoiser, Energy, ScoreModel
from dualscore.errors import CheckpointError
from dualscore.files.archives import read_released
from dualscore.files.plain_text import one_line
from dualscore.networks import LinearEmbedding, UNet

FEW = 8  # blocks or layers may be built unasked: settings' defaults may be more than a network has
KINDS = {
    "EnergyModel": ("energy", {"conversion": "inner_product"}),
    "DenoiserModel": ("denoiser", {"output_scaling": 1, "residual": True}),
}  # released models: our name, and the reparametrization that they must have
DEPTHS = ("num_layers_encoder_block", "num_layers_mid_block", "num_layers_decoder_block")
OPTIONS = {"num_scales", "base_width", "group_size", *DEPTHS}
EMBEDDING = "noise_var_embedding.time_embed."
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # what several devices, and compiling, put before names
Module = TypeVar("Module", bound=nn.Module)


def fitted(make: Callable[[], Module], weights: Mapping[str, Tensor], depth: int = 0) -> Module:
    """The network that `make` builds, with stored weights; `depth` is its number of blocks or layers.

    Depth, names and shapes are compared before anything of the network's size is made: a small file cannot
    ask for a large network. It is in double precision where its weights are, else in single; in evaluation
    mode, without gradients, on the CPU. Raises what torch does, or ValueError, if the weights are not its.
    """
    if depth > max(FEW, len(weights)):
        raise ValueError("the network configured is larger than the weights")
    for name, value in weights.items():
        if not value.is_floating_point():
            raise ValueError(f"{name} holds {value.dtype}, which are no weights")
    with torch.device("meta"):
        make().load_state_dict(dict(weights), assign=True)
    model = make()
    if any(value.dtype == torch.float64 for value in weights.values()):
        model = model.double()
    model.load_state_dict(dict(weights))
    return model.requires_grad_(False).eval()


@dataclass(frozen=True)
class PaperNetwork:
    """Which network of the paper's family a released checkpoint holds."""

    model: str  # `energy`, ½⟨y, f(y, t)⟩, or `denoiser`, y − t f(y, t)
    channels: int  # of the images
    width: int  # channels at the finest scale
    scales: int  # encoder blocks
    layers: tuple[int, int, int]  # convolutions of an encoder, the middle and a decoder block

    def fitted(self, weights: Mapping[str, Tensor]) -> ScoreModel:
        """The network with stored weights; errors as of the function."""

        def make() -> ScoreModel:
            network = UNet(
                self.channels, LinearEmbedding(), width=self.width, scales=self.scales, layers=self.layers
            )
            return Energy(network) if self.model == "energy" else Denoiser(network)

        return fitted(make, weights, max(self.scales, *self.layers))


class Released(NamedTuple):
    """A released checkpoint; `step` counts its training steps, None where it does not say."""

    network: PaperNetwork
    model: ScoreModel
    step: int | None


def read_network(path: Path) -> Released:
    """Build the network of a released checkpoint (`.pth.tar`), in double precision where its weights are.

    A CheckpointError refuses an unreadable file and another kind of network.
    """
    content = read_released(path)
    try:
        kind, options = _description(content["args"])
        weights = _weights(content["state_dict"])
    except ValueError as error:
        raise CheckpointError(f"{path}: {one_line(error):.300}") from error
    try:
        network = _network(kind, options, weights)
        output = f"network.decoder.0.{network.layers[2] - 1}.conv.weight"
        model = network.fitted({{output: "network.output.weight"}.get(k, k): v for k, v in weights.items()})
    except (RuntimeError, ValueError, TypeError, MemoryError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: the weights do not fit args.network_kwargs={options}: {one_line(error):.300}"
        ) from error
    step = content.get("step")
    return Released(network, model, step if type(step) is int else None)


def _description(record: object) -> tuple[str, dict[str, Any]]:
    """Our name of the kind of model that `args` describes, and the options of its network."""
    arguments = getattr(record, "fields", None)
    if not isinstance(arguments, dict):
        raise ValueError("args holds nothing")
    kind, network = str(arguments.get("model")), str(arguments.get("network"))
    if network != "UNet":
        raise ValueError(f"args.network is {network!r:.80}; only 'UNet' can be read")
    if arguments.get("embed_noise_level_in_range", False) is not False:
        raise ValueError("args.embed_noise_level_in_range is set, which is not supported")
    reparametrization = _literal(arguments, "reparam_kwargs")
    if kind not in KINDS or reparametrization != KINDS[kind][1]:
        known = {name: how for name, (_, how) in KINDS.items()}
        raise ValueError(
            f"args.model={kind!r:.40} with args.reparam_kwargs={reparametrization!r:.80} is unknown; "
            f"known: {known}"
        )
    options = _literal(arguments, "network_kwargs")
    if unknown := options.keys() - OPTIONS:
        raise ValueError(f"args.network_kwargs has unknown keys {sorted(map(str, unknown))}")
    if options.get("group_size", 1) != 1:
        raise ValueError(f"group_size={options['group_size']} is not supported, only 1")
    return KINDS[kind][0], options


def _literal(arguments: dict[str, Any], key: str) -> dict[str, Any]:
    """A dictionary, or its text as a Python literal or as dict(key=literal, …)."""
    value = text = arguments.get(key)
    try:
        if isinstance(text, str):
            tree = ast.parse(text.strip(), mode="eval").body
            if isinstance(tree, ast.Call) and ast.unparse(tree.func) == "dict" and not tree.args:
                return {str(pair.arg): ast.literal_eval(pair.value) for pair in tree.keywords}
            value = ast.literal_eval(tree)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"args.{key} is not a dictionary of literals: {text!r:.80}") from error
    if not isinstance(value, dict):
        raise ValueError(f"args.{key} is not a dictionary: {text!r:.80}")
    return value


def _weights(state: object) -> dict[str, Tensor]:
    """The tensors under our names; gains, which may be stored with singleton dimensions, are vectors."""
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError("state_dict is not a dictionary of names")
    weights: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            own = _own_name(WRAPPERS.sub("", name).removeprefix("network."))
            weights[f"network.{own}"] = value.reshape(-1) if own.endswith(".gain") else value
    first = weights.get("network.encoder.0.0.conv.weight")
    if first is None or first.ndim != 4:
        raise ValueError("state_dict has no network.encoder.0.0.weight")
    return weights


def _own_name(name: str) -> str:
    """Translate a parameter's name in the released network into ours.

    There, block entries 3l, 3l+1, 3l+2 are the convolution, normalization and GELU of layer l.
    """
    if name.startswith(EMBEDDING):
        return "embedding.mlp." + name.removeprefix(EMBEDDING)
    match = re.fullmatch(r"(encoder\.\d+|decoder\.\d+|middle_block)\.(\d+)\.(.+)", name)
    if match is None:
        return name  # reported as unknown when the state is loaded
    block, entry, rest = match[1].removesuffix("_block"), int(match[2]), match[3]
    if entry % 3 == 0:
        return f"{block}.{entry // 3}.conv.{rest}"
    rest = {"weight": "gain"}.get(rest, rest.replace("conditioning_embedding.", "modulation."))
    return f"{block}.{entry // 3}.norm.{rest}"


def _network(kind: str, options: dict[str, Any], weights: dict[str, Tensor]) -> PaperNetwork:
    """The network that the weights are of; ValueError if the options say another."""
    kernel = weights["network.encoder.0.0.conv.weight"]
    scales = {name.split(".")[2] for name in weights if name.startswith("network.encoder.")}
    encoder, middle, decoder = (
        sum(name.startswith(f"network.{block}.") and name.endswith(".conv.weight") for name in weights)
        for block in ("encoder.0", "middle", "decoder.0")
    )
    found = dict(zip(DEPTHS, (encoder, middle, decoder), strict=True))
    found |= {"num_scales": len(scales), "base_width": len(kernel)}
    if wrong := {key: number for key, number in found.items() if options.get(key, number) != number}:
        raise ValueError(f"they are of {wrong}")
    return PaperNetwork(kind, kernel.shape[1], len(kernel), len(scales), (encoder, middle, decoder))
