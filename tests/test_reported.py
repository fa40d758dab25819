"""What is reported was never chosen on: splits, photographs and errors, through whole evaluations."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workspace import TINY, Workspace

SETTINGS = [
    *TINY, "trainer.max_steps=2", "trainer.validate_every=2", "optim.warmup_steps=0", "data.workers=0",
    "evaluate.estimators=[paper,dequantized,bound]", "evaluate.psnr=[30]", "evaluate.yardsticks=[stationary]",
]  # fmt: skip


def without_test(shards: Path, out: Path, photographs: bool) -> Path:
    """The same shards under a manifest from before there were test splits, or photographs."""
    out.mkdir()
    manifest = json.loads((shards / "manifest.json").read_text())
    del manifest["splits"]["test"]
    if photographs:
        del manifest["photographs"]["splits"]["test"]
    else:
        del manifest["photographs"]
    for file in shards.glob("*.*"):
        (out / file.name).symlink_to(file)
    (out / "manifest.json").unlink()
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def rows(workspace: Workspace, stage: str) -> dict[str, Any]:
    """What an evaluation kept of a stage, and what it was measured of."""
    (folder,) = (workspace.folder / "runs/patches_dual/evaluation").glob(f"{stage}-*")
    parts = [np.load(path) for path in sorted(folder.glob("*.npz"))]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0].files}
    return found | {"identity": json.loads((folder / "identity.json").read_text())}


def test_test_images_are_reported_and_validation_images_choose(
    workspace: Workspace, demo_shards: Path
) -> None:
    printed = workspace.run("train", "patches_dual", *SETTINGS, f"data.path={demo_shards}")
    report = workspace.report("patches_dual")
    assert report["dataset"]["split"] == "test"
    assert report["dataset"]["chosen_on"] == "val"
    for stage in ("paper", "dequantized", "bound_strata", "ends", "certificate", "noise_levels"):
        assert rows(workspace, stage)["identity"]["split"] == "test", stage
    for stage in ("pilot", "pilot_ends"):
        assert rows(workspace, stage)["identity"]["split"] == "val", stage
    figure = report["bits_per_dim"]["paper"]
    assert figure["photographs"] == 2
    assert "photographs" in printed
    # The error by hand: two photographs, their shares and means.
    kept = rows(workspace, "paper")
    numbers = np.load(demo_shards / "photographs.npz")["test"][kept["position"]]
    bits = 8 + kept["energy"] / (256 * math.log(2))
    shares = np.array([(numbers == g).mean() for g in (0, 1)])
    means = np.array([bits[numbers == g].mean() for g in (0, 1)])
    variance = (shares**2 * (means - bits.mean()) ** 2 / (1 - shares)).sum()
    noise = figure["log_normalizer"]["stderr"] / (256 * math.log(2))
    assert figure["stderr"] == pytest.approx(math.hypot(math.sqrt(variance), noise), rel=1e-6)
    # Student's t with one degree of freedom.
    low, high = figure["interval"]
    assert (high - low) / 2 == pytest.approx(12.706 * figure["stderr"], rel=1e-3)


def test_an_older_data_set_is_reported_on_its_validation_images(
    workspace: Workspace, demo_shards: Path
) -> None:
    """Without a test split, and without photographs: training images choose, errors are over images."""
    old = without_test(demo_shards, workspace.folder / "old", photographs=False)
    printed = workspace.run("train", "patches_dual", *SETTINGS, f"data.path={old}")
    report = workspace.report("patches_dual")
    assert report["dataset"]["split"] == "val"
    assert rows(workspace, "pilot")["identity"]["split"] == "train"
    figure = report["bits_per_dim"]["dequantized"]
    assert figure["photographs"] is None
    assert "standard error over images; their photographs are not known" in " ".join(printed.split())
    kept = rows(workspace, "dequantized")["energy"].mean(axis=1) / (256 * math.log(2))
    noise = report["bits_per_dim"]["paper"]["log_normalizer"]["stderr"] / (256 * math.log(2))
    expected = math.hypot(kept.std(ddof=1) / math.sqrt(len(kept)), noise)
    assert figure["stderr"] == pytest.approx(expected, rel=1e-6)


def test_one_photograph_in_all_has_no_error_and_that_is_said(workspace: Workspace, demo_shards: Path) -> None:
    old = without_test(demo_shards, workspace.folder / "one", photographs=True)
    numbers = dict(np.load(old / "photographs.npz"))
    numbers = {
        split: np.zeros_like(n) if split == "val" else n for split, n in numbers.items() if split != "test"
    }
    (old / "photographs.npz").unlink()
    np.savez(old / "photographs.npz", **numbers)
    manifest = json.loads((old / "manifest.json").read_text())
    manifest["photographs"]["sha256"] = hashlib.sha256((old / "photographs.npz").read_bytes()).hexdigest()
    for key in ("sha256", "names"):
        manifest["photographs"]["splits"]["val"][key] = manifest["photographs"]["splits"]["val"][key][:1]
    (old / "manifest.json").write_text(json.dumps(manifest))
    checks = "evaluate.estimators=[paper,dequantized,bound,checks]"
    printed = workspace.run("train", "patches_dual", *SETTINGS, checks, f"data.path={old}")
    report = workspace.report("patches_dual")
    figure = report["bits_per_dim"]["paper"]
    assert figure["photographs"] == 1
    assert figure["stderr"] is None
    assert figure["interval"] is None
    assert "(no error: one photograph)" in printed
    # One photograph can show an energy to be wrong, never to be right everywhere.
    words = {check["word"] for check in report["checks"] if check["check"] not in ("mass", "log Z")}
    assert "consistent" not in words
    assert report["word"] != "consistent"
