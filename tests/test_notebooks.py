"""The notebooks run from the first cell to the last, draw figures, and show what they say."""

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from nbclient.exceptions import CellExecutionError
from PIL import Image
from skimage import data

from notebook_runner import FOLDER, TAG, execute, parametrize, read
from workspace import ROOT, TINY

NAMES = sorted(path.name for path in FOLDER.glob("[0-9]_*.ipynb"))
CELLS = 14


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the experiments, where nothing of the user's Jupyter is read or written."""
    (tmp_path / ".jupyter").mkdir()
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / ".jupyter" / name.lower()))
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # ipykernel behaves in another way where it is set
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "experiments").symlink_to(ROOT / "experiments")
    return folder


@pytest.fixture
def trained(project: Path, trained_demo: Path) -> Path:
    """The same with runs/patches_dual."""
    shutil.copytree(trained_demo / "runs", project / "runs")
    return project


def assert_drawn(figures: list[Image.Image], count: int) -> None:
    assert len(figures) == count
    for figure in figures:
        assert min(figure.size) > 150
        assert np.asarray(figure.convert("L")).std() > 5  # nothing is blank


@pytest.mark.long
def test_training_on_photographs(project: Path) -> None:
    tiny = [*TINY, "data.workers=0", "trainer.validate_every=10", "optim.warmup_steps=0"]
    ran = execute(
        "1_train_on_your_photos.ipynb",
        project,
        {"STEPS": 20, "SETTINGS": tiny},
        {
            "folder": "os.getcwd()",
            "photographs": "[len(names['train']), len(names['val'])]",
            "patches": "list(patches.shape)",
            "error": "float((denoised - patches).square().mean())",
            "bits": "report['bits_per_dim']['paper']['value']",
            "gaussian": "gaussian",
            "validations": "len(points)",
        },
    )
    assert_drawn(ran.figures, 3)
    assert Path(ran.values["folder"]) == project
    assert ran.values["photographs"] == [5, 3]
    assert (project / "runs/notebook/checkpoints/best.ckpt").exists()
    assert "step     20/20" in ran.printed
    assert "\x1b" not in ran.printed
    assert ran.values["validations"] == 2
    rows, *patch = ran.values["patches"]
    assert rows > 100
    assert patch == [1, 16, 16]
    assert ran.values["error"] < 0.5 * 0.1**2
    # It starts at the training photographs' Gaussian.
    assert ran.values["bits"] == pytest.approx(ran.values["gaussian"], abs=1.0)


@pytest.mark.long
def test_reading_likelihoods(trained: Path) -> None:
    ran = execute(
        "2_read_likelihoods.ipynb",
        trained,
        {"SHOWN": 3},
        {
            "estimates": "list(estimates)",
            "mean": "float(found.bits.mean())",
            "paper": "estimates['paper']['value']",
            "shown": "found.bits[chosen].tolist()",
            "maps": "(8 + maps.double().mean(dim=(1, 2)) / np.log(2)).tolist()",
            "changed": "bits",
            "noise": "noise",
            "gray": "grey",
            "best": "float(found.decibels.max())",
        },
    )
    assert_drawn(ran.figures, 4)
    assert ran.values["estimates"] == ["paper", "dequantized", "bound", "ode"]
    assert re.search(r"consistent|INCONSISTENT|undecided", ran.printed)
    assert ran.values["mean"] == pytest.approx(ran.values["paper"], abs=1e-4)
    shown = ran.values["shown"]
    assert shown == sorted(shown)
    assert ran.values["maps"] == pytest.approx(shown, abs=1e-3)
    changed = ran.values["changed"]
    assert max(changed["blurred, 3×3"], changed["half the contrast"]) < changed["as they are"]
    assert changed["as they are"] < changed["pixels shuffled"]
    assert ran.values["noise"] < ran.values["best"] < ran.values["gray"]


@pytest.mark.long
def test_dimensions(trained: Path) -> None:
    ran = execute(
        "3_dimension_and_manifolds.ipynb",
        trained,
        {"IMAGES": 16, "DRAWS": 2, "LEVELS": 9},
        {
            "plateaus": "[float(measured[which == k, 4].mean()) for k in (0, 1)]",
            "exact": "[float(exact(m, torch.tensor([1e-3]))) for m in manifolds]",
            "average": "average.tolist()",
            "gaussian": "exact(prior, levels).tolist()",
            "faded": "faded.tolist()",
        },
    )
    assert_drawn(ran.figures, 3)
    # At t = 0.001: k directions of variance 0.64/k, and the images' noise in all.
    by_hand = [k / (1 + 1e-3 / (0.64 / k + 1e-5)) + (64 - k) / (1 + 1e-3 / 1e-5) for k in (4, 16)]
    assert ran.values["exact"] == pytest.approx(by_hand, rel=1e-3)
    assert ran.values["plateaus"] == pytest.approx(by_hand, rel=0.1)
    # At t = 1e-8 all of the pixels; from 1e-4 on an untrained network's are nearly its Gaussian's. At 1 few,
    # yet more than the Gaussian's: these photographs' brightness is farther from the training images' mean.
    average, gaussian = ran.values["average"], ran.values["gaussian"]
    assert average[0] == pytest.approx(256, rel=0.05)
    assert average[-1] < 12
    assert average[4:-1] == pytest.approx(gaussian[4:-1], rel=0.4)
    assert ran.values["faded"][0] < ran.values["faded"][-1]


@pytest.mark.long
def test_restoring(project: Path) -> None:
    ran = execute(
        "4_restore_a_photograph.ipynb",
        project,
        {"SIDE": 12, "SAMPLES": 8, "STEPS": 16, "CHAINS": 32},
        {
            "sigma": "sigma",
            "gain": "psnr(restored) - psnr(noisy)",
            "spread": "float(off.square().mean().sqrt())",
            "evidence": "[result.log_evidence for result in found]",
        },
    )
    assert_drawn(ran.figures, 4)
    assert ran.values["sigma"] == pytest.approx(0.1, rel=0.05)
    assert ran.values["gain"] > 7.0  # dB
    assert 0.6 < ran.values["spread"] < 2.0
    assert all(math.isfinite(value) for value in ran.values["evidence"])
    assert "blurred by 1.5: log p(y) = " in ran.printed


@pytest.mark.long
def test_a_noisy_photograph_of_ones_own(project: Path) -> None:
    """Nothing is known of it but what it is."""
    draw = np.random.default_rng(0)
    gray = np.asarray(Image.fromarray(data.chelsea()).convert("L").resize((160, 120)))
    Image.fromarray((gray + draw.normal(0, 20, gray.shape)).clip(0, 255).astype(np.uint8)).save(
        project / "own.png"
    )
    small = {"PHOTOGRAPH": "own.png", "SIDE": 12, "SAMPLES": 2, "STEPS": 4, "CHAINS": 32}
    ran = execute("4_restore_a_photograph.ipynb", project, small, {"sigma": "sigma"})
    assert_drawn(ran.figures, 4)
    assert ran.values["sigma"] == pytest.approx(20 / 255, rel=0.1)
    assert "PSNR" not in ran.printed


@pytest.mark.long
def test_a_failing_cell_fails(project: Path) -> None:
    with pytest.raises(CellExecutionError, match="no-such-run"):
        execute("3_dimension_and_manifolds.ipynb", project, {"RUN": "runs/no-such-run", "LEVELS": 2}, {})


def test_only_parameters_can_be_set() -> None:
    with pytest.raises(AssertionError, match="no such parameters"):
        parametrize(read(NAMES[0]), {"STEP": 1})


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_stored_short_and_without_results(name: str) -> None:
    """Results would be stale where they are stored, and drown a change in its pictures."""
    notebook = read(name)
    assert len(notebook.cells) <= CELLS
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [TAG in cell.metadata.get("tags", ()) for cell in code] == [True] + [False] * (len(code) - 1)
    for cell in code:
        assert cell.outputs == []
        assert cell.execution_count is None
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
