"""docs/extending.md and docs/objective.md do what they say: put into a copy of the tree, and run."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from dualscore.assemble import blank_statistics, build_score_model, image_shape, load_statistics
from dualscore.energy import Energy
from dualscore.errors import ConfigError
from dualscore.model_files.architecture import of_config
from dualscore.network_table import NETWORKS
from dualscore.settings.experiment import load_experiment
from fakes import real_images
from pages import Section, Tree, apply, sections
from workspace import ROOT, TINY

EXTENDING = sections(ROOT / "docs/extending.md")
OBJECTIVE = sections(ROOT / "docs/objective.md")
MOST_LINES = 40
MEASURED = "runs/gaussian_textures/evaluation"

SHRINK = [
    *(o for o in TINY if not o.startswith(("network.", "evaluate.estimators"))),
    "trainer.max_steps=2", "trainer.validate_every=2", "optim.warmup_steps=0", "data.workers=0",
]  # fmt: skip
CHEAP = "evaluate.estimators=[paper]"
EXACT = ["evaluate.images=600", "evaluate.draws=2", "data.channels=1", "optim.lr=1e-6", "optim.final_lr=1e-6"]


def report(tree: Tree, run: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tree.folder / "runs" / run / "evaluation.json").read_text())
    assert content["complete"]
    return content


def scatter_around_truth(tree: Tree, estimate: str) -> float:
    """Standard deviation over images of an estimate's energy less the true one, in bits/dim."""
    energies = []
    for name in (estimate, "truth"):
        parts = [np.load(path) for path in (tree.folder / MEASURED).glob(f"{name}-*/*.npz")]
        order = np.argsort(np.concatenate([part["position"] for part in parts]))
        rows = np.concatenate([part["energy"] for part in parts])[order]
        energies.append(rows.reshape(len(rows), -1).mean(axis=1))
    return float((energies[0] - energies[1]).std()) / (16 * 16 * np.log(2.0))


def ran_config(tree: Tree, run: str) -> str:
    return (tree.folder / "runs" / run / "config.yaml").read_text()


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory, demo_shards: Path) -> Tree:
    """The tree with everything that docs/extending.md adds, after all of its commands."""
    folder = tmp_path_factory.mktemp("extended")
    tree = Tree(folder, list(EXTENDING.values()))
    (folder / "data").mkdir()
    (folder / "data/demo16").symlink_to(demo_shards)
    for split, count in (("train", 40), ("val", 20)):
        (folder / "arrays" / split).mkdir(parents=True)
        for number in range(2):
            crops = real_images(count, 16, seed=number)[:, :1]
            np.save(folder / "arrays" / split / f"{number}.npy", crops)
    for title, section in EXTENDING.items():
        special = {"An estimator": EXACT, "A callback": [CHEAP, "trainer.validate_every=1"]}
        tree.run(section, [*SHRINK, *special.get(title, [CHEAP])])
    tree.finish()
    return tree


@pytest.mark.parametrize("section", [*EXTENDING.values(), *OBJECTIVE.values()], ids=lambda s: s.title)
def test_an_extension_takes_few_lines_and_one_entry(section: Section) -> None:
    assert section.lines() < MOST_LINES
    entered = {path for path, _ in section.diffs}
    assert len(entered) <= (1 if section in EXTENDING.values() else 2)


def test_an_experiment_is_a_file(extended: Tree) -> None:
    assert "width: 16" in ran_config(extended, "patches_narrow")
    assert report(extended, "patches_narrow")["step"] == 2


def test_a_network_trains_is_measured_and_given_away(extended: Tree) -> None:
    assert report(extended, "residual_cnn")["bits_per_dim"]["paper"]["value"] < 8
    assert (extended.folder / "model/model.safetensors").exists()
    assert "$ page A network 0.md\nran 1 1\n" in extended.printed


def test_an_estimator_finds_the_truth_and_is_told(extended: Tree) -> None:
    """Of a known Gaussian, where two draws that belong together must say more than two that do not."""
    figures = report(extended, "gaussian_textures")["bits_per_dim"]
    assert list(figures) == ["antithetic", "dequantized"]
    gap = figures["antithetic"]["above_truth"]
    assert abs(gap["value"]) < 0.005 + 3 * gap["stderr"]
    assert 0 < gap["stderr"] < 0.001
    scatter = {name: scatter_around_truth(extended, name) for name in figures}
    assert scatter["antithetic"] < 0.8 * scatter["dequantized"], scatter
    assert figures["antithetic"]["evaluations"] == figures["dequantized"]["evaluations"]
    shown = f"{figures['antithetic']['value']:.3f} ± {figures['antithetic']['stderr']:.3f}"
    assert re.search(rf"^ *antithetic +{re.escape(shown)}\b", extended.printed, re.MULTILINE)
    log = EventAccumulator(str(extended.folder / "runs/gaussian_textures")).Reload()
    assert log.Scalars("final/antithetic")
    layout = log.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert b"final/antithetic_low" in layout
    assert figures["antithetic"]["interval"] == pytest.approx(
        [figures["antithetic"]["value"] + sign * 1.964 * figures["antithetic"]["stderr"] for sign in (-1, 1)],
        abs=1e-4,
    )  # of 600 images, by Student's t


def test_a_callback_is_called_and_logs(extended: Tree) -> None:
    """At both validations, the second of which finds the weights of the last checkpoint."""
    log = EventAccumulator(str(extended.folder / "runs/patches_dual")).Reload()
    norms, moved = log.Scalars("weights/norm"), log.Scalars("weights/movement")
    assert ([entry.step for entry in norms], [entry.step for entry in moved]) == ([0, 1], [1])
    assert 0 < moved[0].value < 0.1
    config = load_experiment("patches_dual", SHRINK, ROOT / "experiments")
    learned = build_score_model(config, blank_statistics(image_shape(config))).named_parameters()
    path = extended.folder / "runs/patches_dual/checkpoints/last.ckpt"
    weights = torch.load(path, weights_only=True)["state_dict"]
    last = torch.cat([weights[f"model.{name}"].flatten() for name, _ in learned])
    assert norms[-1].value == pytest.approx(float(last.norm()), rel=1e-5)


def test_a_data_source_is_built_verified_and_trained_on(extended: Tree) -> None:
    manifest = json.loads((extended.folder / "data/arrays/manifest.json").read_text())
    assert (manifest["dataset"], manifest["image_shape"]) == ("arrays", [1, 16, 16])
    counts = {name: sum(s["images"] for s in split["shards"]) for name, split in manifest["splits"].items()}
    assert counts == {"train": 80, "val": 40}
    assert report(extended, "arrays")["dataset"]["name"] == "arrays"


def test_arrays_that_are_no_images_are_refused(extended: Tree) -> None:
    wrong = extended.folder / "wrong/train"
    wrong.mkdir(parents=True)
    np.save(wrong / "0.npy", np.zeros((4, 1, 16, 16), np.uint8))
    np.save(wrong / "1.npy", np.zeros((4, 1, 8, 8), np.uint8))
    extended.run(Section("wrong", commands=["make data DATASET=arrays SRC=wrong OUT=data/wrong"]))
    with pytest.raises(AssertionError, match="all of one shape and type"):
        extended.finish()


def test_another_weighting_trains_and_is_what_it_says(tmp_path: Path, demo_shards: Path) -> None:
    (section,) = OBJECTIVE.values()
    tree = Tree(tmp_path, [section])
    (tmp_path / "data").mkdir()
    (tmp_path / "data/demo16").symlink_to(demo_shards)
    tree.run(section, [*SHRINK, CHEAP, "network.width=4"])
    assert "ran 1 0" in tree.finish()
    assert "time_fade: 0.06" in ran_config(tree, "fading_weight")
    assert report(tree, "fading_weight")["step"] == 2


def test_what_the_page_says_of_the_path_stands_in_the_files() -> None:
    """Steps and quoted lines of docs/objective.md, by the parser that docs/method.md is read by."""
    from references import problems

    assert problems(ROOT / "docs/objective.md") == []


def test_a_diff_must_fit_once() -> None:
    assert apply(" a\n-b\n+c\n", "a\nb\na\n") == "a\nc\na\n"
    with pytest.raises(AssertionError, match="0 times"):
        apply(" a\n-b\n", "a\nc\n")
    with pytest.raises(AssertionError, match="2 times"):
        apply(" a\n+b\n", "a\na\n")


class OneConvolution(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.only = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, image: Tensor, noise_variance: Tensor) -> Tensor:  # noqa: ARG002 - it is blind to noise
        convolved: Tensor = self.only(image)
        return convolved


def test_a_script_may_enter_a_network_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network without blocks, too, whose two weights are fewer than the settings' layers."""
    config = load_experiment("gaussian_textures", ["network.kind=mine"], ROOT / "experiments")
    statistics = load_statistics(config)
    with pytest.raises(ConfigError, match=r"network\.kind: must be one of unet, causal, radial, not 'mine'"):
        build_score_model(config, statistics)
    monkeypatch.setitem(NETWORKS, "mine", lambda _, inputs, outputs: OneConvolution(inputs, outputs))
    model = build_score_model(config, statistics)
    again = of_config(config, model.state_dict())
    assert isinstance(again, Energy)
    assert isinstance(again.network, OneConvolution)
    y, t = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 1.0])
    assert torch.equal(again(y, t), model(y, t))
