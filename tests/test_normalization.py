"""What a model says of its normalization: log Z, how it was found, and the mass that is left with it."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import dualscore
from dualscore.likelihood.normalizer import Normalization


@pytest.fixture
def run(trained_demo: Path, tmp_path: Path) -> Path:
    """A run that was evaluated, to write to."""
    return Path(shutil.copytree(trained_demo / "runs" / "patches_dual", tmp_path / "run"))


def test_a_checkpoint_has_the_mass_that_its_own_evaluation_measured(run: Path) -> None:
    report = json.loads((run / "evaluation.json").read_text())["normalization"]
    model = dualscore.load(run)
    found = model.normalization
    assert found is not None
    assert found.mass is not None
    assert model.log_normalizer is not None
    # Of the checkpoint's own log Z, which is the last validation's; the integral of exp(−U) is one number.
    total = report["mass"]["nats"] + report["value"]
    assert found.mass.nats == pytest.approx(total - model.log_normalizer)
    assert found.limit == pytest.approx(report["mass"]["limit"] + report["value"] - model.log_normalizer)
    assert found.value == model.log_normalizer
    assert "bits/dim" in str(found)


def test_another_checkpoint_has_none_and_says_so(run: Path) -> None:
    alone = run.parent / "alone.ckpt"
    shutil.copy(run / "checkpoints" / "best.ckpt", alone)
    model = dualscore.load(alone)
    assert model.mass is None
    assert "mass not measured" in str(model.normalization)
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    content["global_step"] += 1  # as if trained on
    torch.save(content, run / "checkpoints" / "best.ckpt")
    assert dualscore.load(run).mass is None


@pytest.mark.parametrize(
    "broken", ["", "[]", "{}", '{"normalization": null}', '{"normalization": {"mass": 3}}']
)
def test_an_evaluation_that_cannot_be_read_is_as_if_there_were_none(run: Path, broken: str) -> None:
    (run / "evaluation.json").write_text(broken)
    assert dualscore.load(run).mass is None


def test_an_exported_model_and_its_card_carry_it(run: Path, tmp_path: Path) -> None:
    dualscore.save(run, tmp_path / "model")
    model, given = dualscore.load(run), dualscore.load(tmp_path / "model")
    assert given.mass is not None
    assert given.mass == model.mass
    card = (tmp_path / "model" / "README.md").read_text()
    assert str(model.mass) in card
    assert Normalization.from_plain(given.normalization.plain()) == given.normalization  # type: ignore[union-attr]


def test_a_new_log_z_moves_the_mass_along(run: Path) -> None:
    model = dualscore.load(run)
    assert model.mass is not None
    assert model.log_normalizer is not None
    total = model.mass.nats + model.log_normalizer
    images = torch.rand(16, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    model.normalize(images)
    assert model.mass.nats + model.log_normalizer == pytest.approx(total)
    assert model.mass.bits == pytest.approx(model.mass.nats / (256 * 0.6931471805599453))
