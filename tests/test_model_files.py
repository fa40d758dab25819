"""Model files that are damaged, foreign, newer or hostile: refused in one line, and nothing large is made."""

import json
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file

import dualscore
from dualscore.errors import CheckpointError, DamagedCheckpointError
from dualscore.model_files.exported import digest
from test_models import checkpoint
from test_released import DATA

Document = dict[str, Any]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def good(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of a small energy, with everything but an evaluation."""
    folder = tmp_path_factory.mktemp("good")
    path = checkpoint(folder / "x.ckpt", "patches_dual", f"data.path={demo_shards}", log_z=1.5)
    model = dualscore.load(path)
    model.normalize(torch.rand(9, 1, 16, 16))
    return dualscore.save(model, folder / "model")


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    return dualscore.save(dualscore.load(DATA / "energy_small.pth.tar"), folder / "model")


def content(path: Path) -> tuple[Document, Tensors]:
    with safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["dualscore"])
        return document, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def forge(path: Path, out: Path, change: Callable[[Document, Tensors], object]) -> Path:
    """The same file with something changed by somebody who can compute digests."""
    document, tensors = content(path)
    change(document, tensors)
    document.pop("digest", None)
    try:
        sealed = document | {"digest": digest(document, tensors)}
    except (ValueError, TypeError):  # what no digest can be had of
        sealed = document | {"digest": ""}
    save_file(tensors, out, {"dualscore": json.dumps(sealed)})
    return out


def refused(path: Path, complaint: str) -> str:
    begun = time.monotonic()
    with pytest.raises(CheckpointError, match=complaint) as caught:
        dualscore.load(path)
    line = str(caught.value)
    assert line.startswith(str(path))
    assert "\n" not in line
    assert len(line) < len(str(path)) + 500
    assert time.monotonic() - begun < 5
    return line


def test_a_forgery_without_a_change_is_read(good: Path, released: Path, tmp_path: Path) -> None:
    """So that what is refused below is refused for its change."""
    for path in (good, released):
        forged = forge(path, tmp_path / "same.safetensors", lambda *_: None)
        assert dualscore.load(forged).log_normalizer == dualscore.load(path).log_normalizer


def _network(**changes: object) -> Callable[[Document, Tensors], object]:
    return lambda d, _: d["architecture"]["experiment"]["network"].update(changes)


def _data(**changes: object) -> Callable[[Document, Tensors], object]:
    return lambda d, _: d["architecture"]["experiment"]["data"].update(changes)


def _log_z(**changes: object) -> Callable[[Document, Tensors], object]:
    return lambda d, _: d["log_normalizer"].update(changes)


def _set(**changes: object) -> Callable[[Document, Tensors], object]:
    return lambda d, _: d.update(changes)


def _drop(key: str) -> Callable[[Document, Tensors], object]:
    return lambda d, _: d.pop(key)


def _other_size(document: Document, _: Tensors) -> None:
    document["image_shape"] = [1, 2**20, 2**20]
    document["architecture"]["experiment"]["data"]["size"] = 2**20


def _large_without_spectrum(document: Document, tensors: Tensors) -> None:
    document["architecture"]["experiment"]["energy"] |= {"anchor": "none", "residual_input": "raw"}
    for name in [n for n in tensors if "anchor" in n or "whitener" in n]:
        del tensors[name]
    _other_size(document, tensors)


def _wide(document: Document, tensors: Tensors) -> None:
    """A tensor of one long side must not make a wide network plausible."""
    document["architecture"]["experiment"]["network"]["width"] = 2**17
    tensors["model.fading.variance"] = torch.zeros(2**17 * 16)


def _radial(document: Document, _: Tensors) -> None:
    document["architecture"]["experiment"]["network"]["kind"] = "radial"
    document["architecture"]["experiment"]["data"]["density"] = "texture_mixture"


TOGETHER = "weights and architecture do not belong"
HOSTILE: dict[str, tuple[Callable[[Document, Tensors], object], str]] = {
    "newer": (_set(version=2), "of version 2 of the format.*install a newer one"),
    "no version": (_set(version=True), "version must be of type int"),
    "another format": (_set(format="x"), "format is 'x'"),
    "no architecture": (_drop("architecture"), "architecture is missing"),
    "no evaluation": (_drop("evaluation"), "evaluation is missing"),
    "an evaluation of text": (_set(evaluation="good"), "evaluation must be of type dict"),
    "log Z not a number": (_log_z(value=float("nan")), "NaN is not a number"),
    "log Z infinite": (_log_z(value=float("inf")), "Infinity is not a number"),
    "log Z huge": (_log_z(value=10**400), "log_normalizer.value has an impossible value"),
    "log Z text": (_log_z(value="1"), "log_normalizer.value must be of type float"),
    "an error below zero": (_log_z(stderr=-1.0), "log_normalizer.stderr has an impossible value"),
    "no stderr": (lambda d, _: d["log_normalizer"].pop("stderr"), "log_normalizer.stderr is missing"),
    "t_max zero": (_set(t_max=0), "t_max has an impossible value"),
    "a terminal's commands": (_set(provenance="\x1b[2Jcleared"), "provenance has an impossible value"),
    "a fact of two lines": (lambda d, _: d["facts"].update(x="a\nb"), "facts.x has an impossible value"),
    "a name of two lines": (lambda d, _: d["facts"].update({"a\nb": "x"}), "facts has an impossible value"),
    "two sides": (_set(image_shape=[16, 16]), "image_shape must be"),
    "another shape": (_set(image_shape=[1, 32, 32]), "said to be for images"),
    "absurd images": (_other_size, "more than images here may have"),
    "absurd images without a spectrum": (_large_without_spectrum, "more than images here may have"),
    "images of another size": (
        lambda d, t: (_data(size=24)(d, t), _set(image_shape=[1, 24, 24])(d, t)),
        "weights for images of",
    ),
    "absurd width": (_network(width=10**9), TOGETHER),
    "a wide network": (_wide, TOGETHER),
    "absurd layers": (_network(layers=10**9), "larger than the weights"),
    "absurd scales": (_network(scales=10**9), "larger than the weights"),
    "many scales": (_network(scales=60), TOGETHER),
    "no width": (_network(width=-1), TOGETHER),
    "a key that no network has": (_network(pickle="x"), "Key 'pickle' not in"),
    "the environment": (_network(width="${oc.env:HOME}"), "must be a plain value"),
    "a network not known here": (
        _network(kind="resnet"),
        "network.kind: must be one of unet, causal, radial, not 'resnet'",
    ),
    "another kind of network": (_radial, "needs a density of vectors"),
    "another norm": (_network(norm="scale_preserving"), TOGETHER),
    "a missing weight": (
        lambda _, t: t.pop("model.network.output.weight"),
        "Missing key.*network.output.weight",
    ),
    "a weight more": (
        lambda _, t: t.update({"model.more": torch.zeros(1)}),
        "Unexpected key.*more",
    ),
    "a stranger": (lambda _, t: t.update(more=torch.zeros(1)), "tensor 'more', which belongs to no model"),
    "a short weight": (
        lambda _, t: t.update({"model.offset.slopes": torch.zeros(9)}),
        r"size mismatch for offset.slopes: .* torch.Size\(\[9\]\)",
    ),
    "whole numbers": (
        lambda _, t: t.update({"model.offset.slopes": torch.zeros(63, dtype=torch.int64)}),
        "holds torch.int64",
    ),
    "half precision": (
        lambda _, t: t.update({"model.offset.slopes": torch.zeros(63, dtype=torch.bfloat16)}),
        "holds torch.bfloat16",
    ),
    "a weight not finite": (
        lambda _, t: t["model.offset.slopes"].fill_(float("nan")),
        "slopes' holds weights that are not finite",
    ),
    "half a prior": (lambda _, t: t.pop("prior.mean"), "Missing key.*mean"),
    "a prior without variances": (lambda _, t: t.pop("prior.eigenvalues"), TOGETHER),
    "a prior of another size": (
        lambda _, t: t.update({"prior.eigenvalues": torch.ones(1, 8, 8)}),
        "weights for images of",
    ),
    "a prior not finite": (lambda _, t: t["prior.mean"].fill_(float("inf")), "figures that are not finite"),
    "a prior without spread": (
        lambda _, t: t["prior.eigenvalues"].zero_(),
        "variances that are not positive",
    ),
    "energies not numbers": (
        lambda _, t: t.update({"validation.energies": torch.tensor([0.0, float("nan")])}),
        "no list of finite numbers",
    ),
    "energies of no image": (
        lambda _, t: t.update({"validation.energies": torch.zeros(0)}),
        "no list of finite numbers",
    ),
}


def test_a_prior_needs_a_size(good: Path, released: Path, tmp_path: Path) -> None:
    _, tensors = content(good)
    priors = {name: value for name, value in tensors.items() if name.startswith("prior.")}
    assert priors
    refused(forge(released, tmp_path / "bad.safetensors", lambda _, t: t.update(priors)), "is of one size")


@pytest.mark.parametrize("case", HOSTILE)
def test_what_does_not_belong_together_is_refused(good: Path, tmp_path: Path, case: str) -> None:
    change, complaint = HOSTILE[case]
    refused(forge(good, tmp_path / "bad.safetensors", change), complaint)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model": "oracle"}, "model has an impossible value"),
        ({"model": "denoiser"}, "log_normalizer is of a denoiser"),
        ({"channels": 4}, TOGETHER),
        ({"width": 10**6}, TOGETHER),
        ({"scales": 10**9}, "larger than the weights"),
        ({"layers": [3, 3]}, "must be three counts"),
        ({"layers": [10**9, 3, 3]}, "larger than the weights"),
        ({"layers": "333"}, "must be of type list"),
    ],
)
def test_a_converted_network_that_does_not_fit_is_refused(
    released: Path, tmp_path: Path, change: Document, complaint: str
) -> None:
    def forged(document: Document, _: Tensors) -> None:
        document["architecture"]["released"].update(change)
        document["log_normalizer"] = {"value": 1.0, "stderr": None, "how": "guessed"}

    refused(forge(released, tmp_path / "bad.safetensors", forged), complaint)


def test_a_converted_network_of_a_size_that_it_cannot_take_is_refused(released: Path, tmp_path: Path) -> None:
    for shape in ([3, 20, 16], [1, 16, 16]):
        forged = forge(released, tmp_path / "bad.safetensors", _set(image_shape=shape))
        refused(forged, "cannot be one of images of")


def test_a_flipped_bit_is_noticed_anywhere(good: Path, tmp_path: Path) -> None:
    whole = good.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    chance = random.Random(0)
    places = [*range(8), *(chance.randrange(8, 8 + header) for _ in range(60))]
    places += [chance.randrange(8 + header, len(whole)) for _ in range(60)]
    path = tmp_path / "model.safetensors"
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as caught:
            dualscore.load(path)
        assert "\n" not in str(caught.value)


def test_a_file_that_was_cut_or_grew_is_refused(good: Path, tmp_path: Path) -> None:
    whole = good.read_bytes()
    path = tmp_path / "model.safetensors"
    for length in (0, 5, 9, 500, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedCheckpointError, match=r"model\.safetensors"):
            dualscore.load(tmp_path)
    path.write_bytes(whole + bytes(8))
    with pytest.raises(DamagedCheckpointError, match="damaged or not a model"):
        dualscore.load(tmp_path)


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    tensors = {"weight": torch.zeros(3)}
    for name, header, complaint in (
        ("foreign", None, "not a dualscore model"),
        ("theirs", {"format": "pt"}, "not a dualscore model"),
        ("long", {"dualscore": "[" * 2**22 + "]"}, "not a dualscore model"),
        ("deep", {"dualscore": "[" * 10**5}, "damaged or not a model"),
        ("text", {"dualscore": "hello"}, "damaged or not a model"),
        ("list", {"dualscore": "[]"}, "the document must be of type dict"),
        ("number", {"dualscore": "1" * 5000}, "damaged or not a model"),
        ("infinite", {"dualscore": '{"evaluation": {"more": 1e999}}'}, "1e999 is not a number"),
        ("surrogate", {"dualscore": '{"format": "\\ud800"}'}, "format is"),
    ):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(save(tensors, header))
        refused(path, complaint)


def test_files_of_others_are_left_alone(good: Path, tmp_path: Path) -> None:
    """Other people's models have the same names."""
    theirs = tmp_path / "model.safetensors"
    theirs.write_bytes(save({"weight": torch.zeros(3)}, {"format": "pt"}))
    before = theirs.read_bytes()
    with pytest.raises(CheckpointError, match="holds something else than a model"):
        dualscore.save(dualscore.load(good), tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path: Path) -> None:
    for claimed in (2**63, 10**9, 50):
        path = tmp_path / "model.safetensors"
        path.write_bytes(struct.pack("<Q", claimed) + b'{"a": 1}')
        refused(path, "damaged or not a model")
    entry = {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    text = json.dumps(entry).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    refused(path, "damaged or not a model")


def test_an_evaluation_that_is_none_cannot_be_written_again(good: Path, tmp_path: Path) -> None:
    model = dualscore.load(forge(good, tmp_path / "odd.safetensors", _set(evaluation={"bits_per_dim": 3})))
    with pytest.raises(CheckpointError, match="its evaluation cannot be shown"):
        dualscore.save(model, tmp_path / "again")
    assert not (tmp_path / "again").exists()
