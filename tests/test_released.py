"""The released checkpoint format: the paper's network to the last digit, and nothing executed."""

import argparse
import io
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

import dualscore
from dualscore.energy import Denoiser, Energy
from dualscore.errors import CheckpointError, NormalizationError
from dualscore.files.archives import read_released
from dualscore.model_files.released import read_network
from dualscore.networks import convolution, normalization
from dualscore.training.optimizers import obstacle

DATA = Path(__file__).parent / "data"


def load_released(path: Path) -> Energy | Denoiser:
    model = read_network(path).model
    assert isinstance(model, Energy | Denoiser)
    return model


def _reference(name: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    with np.load(DATA / f"{name}_outputs.npz", allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]).to(dtype) for key in arrays}


def _relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest relative error of any image."""
    error = (found.detach() - expected).reshape(len(expected), -1).norm(dim=1)
    return float((error / expected.reshape(len(expected), -1).norm(dim=1)).max())


PRECISIONS = [(torch.float64, 1e-9), (torch.float32, 1e-4)]


def _check_energy_and_both_gradients(dtype: torch.dtype, tolerance: float, compiled: bool = False) -> None:
    reference = _reference("energy_small", dtype)
    model = load_released(DATA / "energy_small.pth.tar").to(dtype)
    assert isinstance(model, Energy)
    y, t = reference["noisy"], reference["noise_variance"]
    find = torch.compile(model.gradients, fullgraph=True) if compiled else model.gradients
    gradients = find(y, t)
    assert gradients.noise_variance is not None
    assert gradients.energy is not None
    assert _relative_error(gradients.energy, reference["energy"]) < tolerance
    assert _relative_error(model(y, t), reference["energy"]) < tolerance
    assert _relative_error(gradients.image, reference["grad_image"]) < tolerance
    assert _relative_error(gradients.noise_variance, reference["grad_noise_variance"]) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("large", [False, True])
def test_energy_and_both_gradients_agree_with_the_released_network(
    dtype: torch.dtype, tolerance: float, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By PyTorch's derivatives and by those written by hand for large networks."""
    for module in (convolution, normalization):
        monkeypatch.setattr(module, "WORTHWHILE", 0 if large else math.inf)
    _check_energy_and_both_gradients(dtype, tolerance)


@pytest.mark.long
@pytest.mark.skipif(obstacle("cpu") is not None, reason=str(obstacle("cpu")))
@pytest.mark.timeout(600)
def test_compiled_they_agree_as_well() -> None:
    _check_energy_and_both_gradients(torch.float32, 1e-4, compiled=True)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_the_denoiser_agrees_with_the_released_network(dtype: torch.dtype, tolerance: float) -> None:
    reference = _reference("denoiser_small", dtype)
    model = load_released(DATA / "denoiser_small.pth.tar").to(dtype)
    assert isinstance(model, Denoiser)
    denoised = model.denoise(reference["noisy"], reference["noise_variance"])
    assert _relative_error(denoised, reference["denoised"]) < tolerance


def test_load_takes_the_released_format_and_knows_no_normalization() -> None:
    reference = _reference("energy_small", torch.float64)
    model = dualscore.load(DATA / "energy_small.pth.tar").double()
    energy = model.energy(reference["noisy"], reference["noise_variance"], batch_size=3)
    assert _relative_error(energy, reference["energy"]) < 1e-9
    with pytest.raises(NormalizationError, match="normalization is not known"):
        model.log_prob(reference["clean"])
    model.normalize(reference["clean"].clamp(0, 1))
    assert model.log_prob(reference["clean"].clamp(0, 1)).isfinite().all()


def test_a_released_denoiser_has_no_energy() -> None:
    reference = _reference("denoiser_small", torch.float64)
    model = dualscore.load(DATA / "denoiser_small.pth.tar").double()
    denoised = model.denoise(reference["noisy"], reference["noise_variance"])
    assert _relative_error(denoised, reference["denoised"]) < 1e-9
    with pytest.raises(NormalizationError, match="denoiser"):
        model.energy(reference["noisy"], 0.0)


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("exploded"),)


def _torch_file(path: Path, content: object) -> Path:
    """A file with the layout of torch.save whose pickle holds anything."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(content, protocol=2))
    return path


def test_a_malicious_pickle_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = _torch_file(tmp_path / "evil.pth.tar", {"args": _Bomb(), "state_dict": OrderedDict()})
    with zipfile.ZipFile(path) as archive:
        pickle.loads(archive.read("x/data.pkl"))  # noqa: S301 - shows that the bomb is one
    assert Path("exploded").exists()
    Path("exploded").unlink()
    read_released(path)
    with pytest.raises(CheckpointError, match="args holds nothing"):
        load_released(path)
    assert not Path("exploded").exists()


def _arguments(**changes: object) -> argparse.Namespace:
    good: dict[str, object] = {
        "model": "EnergyModel",
        "network": "UNet",
        "network_kwargs": "{'num_scales': 3, 'base_width': 8}",
        "reparam_kwargs": "{'conversion': 'inner_product'}",
    }
    return argparse.Namespace(**(good | changes))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"network": "ResNet"}, "args.network is 'ResNet'"),
        ({"reparam_kwargs": "{'conversion': 'sum'}"}, "unknown; known"),
        ({"network_kwargs": "__import__('os').getcwd()"}, "not a dictionary of literals"),
        ({"network_kwargs": "{'base_width': 8, 'dropout': 1}"}, "unknown keys"),
        ({"network_kwargs": "{'group_size': 8}"}, "group_size=8"),
        ({}, "state_dict has no"),
    ],
)
def test_other_descriptions_are_refused_by_name(
    tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    content = {"args": _arguments(**changes), "state_dict": OrderedDict()}
    path = _torch_file(tmp_path / "other.pth.tar", content)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        load_released(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    content = torch.load(DATA / "energy_small.pth.tar", weights_only=False, pickle_module=_Tolerant)
    content["args"] = _arguments(network_kwargs="{'num_scales': 3, 'base_width': 16}")
    torch.save({"args": content["args"], "state_dict": content["state_dict"]}, tmp_path / "wide.pth.tar")
    with pytest.raises(CheckpointError, match="the weights do not fit"):
        load_released(tmp_path / "wide.pth.tar")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_as_several_devices_and_compiling_leave_them(tmp_path: Path, prefix: str) -> None:
    """And weights in double precision stay so."""
    content = torch.load(DATA / "energy_small.pth.tar", weights_only=False, pickle_module=_Tolerant)
    state = {prefix + name: value.double() for name, value in content["state_dict"].items()}
    torch.save({"args": content["args"], "state_dict": state}, tmp_path / "wrapped.pth.tar")
    found, plain = (
        load_released(path) for path in (tmp_path / "wrapped.pth.tar", DATA / "energy_small.pth.tar")
    )
    reference = _reference("energy_small", torch.float64)
    y, t = reference["noisy"], reference["noise_variance"]
    assert torch.equal(found(y, t), plain.double()(y, t))


class _Tolerant:
    """A pickle module that replaces missing classes, to edit the reference file with torch's own code."""

    __name__ = "tolerant"
    load = staticmethod(pickle.load)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            if module.partition(".")[0] in ("torch", "collections", "argparse"):
                return super().find_class(module, name)
            return type(name, (), {})


FAMILY = [
    "{'num_scales': 2, 'base_width': 4, 'group_size': 1, 'num_layers_encoder_block': 2, "
    "'num_layers_mid_block': 4, 'num_layers_decoder_block': 3}",
    "dict(num_scales=2, base_width=4)",
    "{}",
]


@pytest.mark.parametrize("kwargs", FAMILY)
def test_other_shapes_of_the_family_load(tmp_path: Path, kwargs: str) -> None:
    """Written by torch.save from our own network under the released names: a round trip through the names."""
    from dualscore.networks import LinearEmbedding, UNet

    network = UNet(1, LinearEmbedding(), width=4, scales=2, layers=(2, 4, 3))
    state = OrderedDict()
    for name, value in network.state_dict().items():
        parts = name.split(".")
        if parts[0] == "embedding":
            state[f"network.noise_var_embedding.time_embed.{'.'.join(parts[2:])}"] = value
            continue
        if parts[0] == "output":
            state["network.decoder.0.6.weight"] = value
            continue
        block = ["middle_block"] if parts[0] == "middle" else parts[:2]
        layer, *rest = parts[len(block) :]
        entry = 3 * int(layer) + (rest[0] == "norm")
        leaf = {"conv.weight": "weight", "norm.gain": "weight"}.get(
            ".".join(rest), ".".join(rest).replace("norm.modulation", "conditioning_embedding")
        )
        state[f"network.{'.'.join(block)}.{entry}.{leaf}"] = value
    torch.save({"args": _arguments(network_kwargs=kwargs), "state_dict": state}, tmp_path / "family.pth.tar")
    model = load_released(tmp_path / "family.pth.tar")
    assert isinstance(model, Energy)
    y, t = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 1.0])
    assert torch.equal(model.network(y, t), network(y, t))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 truncated"])
def test_files_of_another_kind_are_one_line_errors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pth.tar"
    path.write_bytes(content)
    for function in (load_released, dualscore.load):
        with pytest.raises(CheckpointError) as caught:
            function(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    whole = (DATA / "energy_small.pth.tar").read_bytes()
    for length in (100, len(whole) // 2, len(whole) - 1):
        path = tmp_path / f"cut{length}.pth.tar"
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            dualscore.load(path)


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    """as_strided must not be talked into reading other memory."""
    source = zipfile.ZipFile(DATA / "energy_small.pth.tar")
    path = tmp_path / "short.pth.tar"
    with zipfile.ZipFile(path, "w") as archive:
        for name in source.namelist():
            data = source.read(name)
            archive.writestr(name, data[:16] if name.endswith("data/0") else data)
    with pytest.raises(CheckpointError, match="storage 0 is shorter"):
        load_released(path)
    buffer = io.BytesIO()
    torch.save({"args": 0, "state_dict": torch.zeros(4).as_strided((2,), (3,), 0)}, buffer)
    forged = tmp_path / "forged.pth.tar"
    with zipfile.ZipFile(buffer) as good, zipfile.ZipFile(forged, "w") as archive:
        for name in good.namelist():
            # The stride 3 becomes 200: the second element would lie far behind the four stored ones.
            data = good.read(name)
            archive.writestr(
                name, data.replace(b"K\x03\x85", b"K\xc8\x85") if name.endswith(".pkl") else data
            )
    with pytest.raises(CheckpointError, match="beyond its storage"):
        read_released(forged)


@pytest.mark.parametrize(
    "content",
    [
        {"args": _arguments(), "state_dict": [1, 2]},
        {"args": _arguments(), "state_dict": {1: 2}},
        {"args": _arguments(model=["EnergyModel"]), "state_dict": {}},
        {"args": _arguments(network_kwargs="{1: 2, 'a': 3}"), "state_dict": {}},
        {"args": _arguments(embed_noise_level_in_range=True), "state_dict": {}},
        {"args": 3, "state_dict": {}},
        [1, 2],
    ],
)
def test_strange_contents_are_one_line_errors(tmp_path: Path, content: object) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_released(_torch_file(tmp_path / "strange.pth.tar", content))
    assert "\n" not in str(caught.value)


def test_a_pickle_cannot_change_the_reader(tmp_path: Path) -> None:
    """BUILD on an allowed name would otherwise set attributes of a function that outlives the file."""
    program = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x0c\x00\x00\x00__defaults__K\x01sb."
    path = tmp_path / "build.pth.tar"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program)
    with pytest.raises(CheckpointError):
        read_released(path)
    load_released(DATA / "energy_small.pth.tar")
