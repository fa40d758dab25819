"""Settings and checkpoints from strangers: they are data, bounded, and nothing in them runs."""

import pickle
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import dualscore
from dualscore.errors import CheckpointError, ConfigError
from dualscore.files.archives import read_released
from dualscore.runs.checkpoints import read_checkpoint
from dualscore.runs.folder import Run
from dualscore.settings.experiment import load_experiment, override_config, to_config
from dualscore.study.variants import load_study
from evil import Evil
from workspace import ROOT, TINY, Workspace

EXPERIMENTS = ROOT / "experiments"


# --- settings


@pytest.mark.parametrize(
    "setting",
    [
        "data.path=${oc.env:SECRET}",
        "data.path=x/${oc.env:SECRET}/y",
        "evaluate.psnr=[1,'${oc.env:SECRET}']",
        "data.batch_size=${data.size}",
        "data={path: '${oc.env:SECRET}'}",
    ],
)
def test_a_setting_cannot_read_the_environment(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv("SECRET", "tiptop")
    with pytest.raises(ConfigError, match="must be a plain value") as caught:
        load_experiment("patches_dual", [setting], EXPERIMENTS)
    assert "tiptop" not in str(caught.value)


def test_no_file_of_settings_can_read_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "tiptop")
    (tmp_path / "bad.yaml").write_text("parent: good\ndata: {path: '${oc.env:SECRET}'}")
    shutil.copy(EXPERIMENTS / "patches_dual.yaml", tmp_path / "good.yaml")
    with pytest.raises(ConfigError, match=r"bad.yaml: data.path: must be a plain value"):
        load_experiment("bad", [], tmp_path)
    stored = {"data": {"path": "${oc.env:SECRET}", "size": 16}}
    for read in (lambda: to_config(stored), lambda: override_config(stored, [], "config.yaml")):
        with pytest.raises(ConfigError, match=r"data\.path: must be a plain value"):
            read()


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True))  # fmt: skip  # noqa: E501
DANGEROUS = {
    "a Python object": "seed: !!python/object/apply:pathlib.Path.touch [oops]",
    "another": "seed: !!python/object/new:os.system [touch oops]",
    "a module": "seed: !!python/name:os.system",
    "aliases of aliases": BOMB,
    "deep nesting": "seed: " + "[" * 3000,
}


@pytest.mark.parametrize("content", DANGEROUS.values(), ids=DANGEROUS)
def test_yaml_is_data(workspace: Workspace, content: str) -> None:
    folder = workspace.folder / "files"
    folder.mkdir()
    (folder / "bad.yaml").write_text(content)
    run = Run(folder / "run")
    run.folder.mkdir()
    run.config_file.write_text(content)
    begun = time.monotonic()
    for read in (
        lambda: load_experiment("bad", [], folder),
        lambda: load_study("bad", folder, EXPERIMENTS),
        run.read_config,
    ):
        with pytest.raises(ConfigError) as caught:
            read()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600
    assert time.monotonic() - begun < 20
    assert not Path("oops").exists()


# --- checkpoints


@pytest.fixture(scope="module")
def checkpoint(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real checkpoint of ours, small."""
    from dualscore.assemble import build

    settings = [*TINY, f"data.path={demo_shards}", "optim.ema_steps=0"]
    module, _ = build(load_experiment("patches_dual", settings, EXPERIMENTS))
    module.log_normalizer.fill_(0.0)
    content = {"state_dict": module.state_dict(), "global_step": 1, "dualscore": module.description}
    path = tmp_path_factory.mktemp("checkpoint") / "x.ckpt"
    torch.save(content, path)
    assert dualscore.load(path).log_normalizer == 0
    return path


def test_a_checkpoint_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    monkeypatch.chdir(tmp_path)
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "more": Evil()}, tmp_path / "zip.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps({**content, "more": Evil()}))
    torch.save({**content, "more": Evil()}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    for name in ("zip", "plain", "old"):
        with pytest.raises(CheckpointError) as caught:
            dualscore.load(tmp_path / f"{name}.ckpt")
        assert f"{name}.ckpt" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not Path("oops").exists()


def test_a_checkpoint_that_unpacks_to_more_than_it_is_long_is_refused(
    tmp_path: Path, checkpoint: Path
) -> None:
    bomb = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(checkpoint) as whole, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
        packed.writestr("x/data/999", bytes(10**8))
    assert bomb.stat().st_size < 10**6
    for read in (read_checkpoint, read_released, dualscore.load):
        with pytest.raises(CheckpointError, match=r"bomb.ckpt: refused: its [\d,]+ bytes unpack to 10"):
            read(bomb)


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"size": 2**20}},
        {"network": {"width": 10**9}},
        {"network": {"layers": 10**9}},
        {"network": {"scales": 10**9}},
    ],
)
def test_a_checkpoint_cannot_ask_for_a_larger_model_than_it_holds(
    tmp_path: Path, checkpoint: Path, change: dict[str, dict[str, int]]
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    for section, values in change.items():
        content["dualscore"]["config"][section].update(values)
    torch.save(content, tmp_path / "absurd.ckpt")
    begun = time.monotonic()
    with pytest.raises(CheckpointError, match=r"absurd.ckpt: weights and configuration do not belong"):
        dualscore.load(tmp_path / "absurd.ckpt")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("kind", ["ours", "released"])
def test_a_damaged_checkpoint_is_an_error_of_one_line_whatever_byte(
    tmp_path: Path, checkpoint: Path, kind: str
) -> None:
    """Flipped anywhere in the pickle and the archive's own records, which are few among the weights."""
    file = checkpoint if kind == "ours" else ROOT / "tests/data/energy_small.pth.tar"
    content = file.read_bytes()
    start = content.index(b"data.pkl")
    generator = np.random.default_rng(0)
    places = [*(start + generator.integers(0, 4000, 60)), *(len(content) - generator.integers(1, 600, 60))]
    path = tmp_path / "flipped.ckpt"
    refused = 0
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= int(generator.integers(1, 256))
        path.write_bytes(flipped)
        complaint = _complaint(path)
        assert "\n" not in complaint
        refused += bool(complaint)
    assert refused > 50


def _complaint(path: Path) -> str:
    """What is said of a checkpoint; nothing if it loads, since a flipped date harms nobody."""
    try:
        dualscore.load(path)
    except CheckpointError as error:
        return str(error)
    return ""
