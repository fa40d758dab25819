"""Numbers that no float holds, in files of ours that others wrote or damaged."""

import json
import shutil
from pathlib import Path

import pytest

from dualscore.data.shards import Manifest
from dualscore.errors import DataError
from dualscore.files.typed_json import TypedJson, parse_json, read_json
from dualscore.runs.run_status import Status, all_runs
from workspace import Workspace

HUGE = ["1" + 400 * "0", "-1" + 400 * "0", "1" + 5000 * "0", "1e400", "-3.5E+999"]


@pytest.mark.parametrize("number", HUGE)
def test_a_number_that_no_float_holds_is_no_json_of_ours(number: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"large|digits"):
        parse_json(f'{{"a": [{number}]}}')
    (tmp_path / "a.json").write_text(f'{{"a": {number}}}')
    assert read_json(tmp_path / "a.json") == {}


def test_what_is_nested_too_deep_is_none_either(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(100_000 * "[" + 100_000 * "]")
    assert read_json(tmp_path / "a.json") == {}


def test_ordinary_numbers_are_read_as_ever() -> None:
    text = f"[{2**80}, -3, 0.1, 1e300, -0.0, 1e-400, 12345678901234567890]"
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), float("nan"), 2**63])
def test_a_typed_value_has_limits(value: float) -> None:
    with pytest.raises(DataError, match="f: a"):
        TypedJson(value, "f", "a").count()
    with pytest.raises(DataError, match="f: a"):
        TypedJson([2 * value], "f", "a").numbers(1 if value != 2**63 else 2)


@pytest.mark.parametrize("number", [*HUGE, str(2**70)])
@pytest.mark.parametrize("key", ["images", "bytes"])
def test_a_manifest_says_where_its_number_is_too_large(key: str, number: str, demo_shards: Path) -> None:
    text = (demo_shards / "manifest.json").read_text()
    changed = json.loads(text)
    changed["splits"]["train"]["shards"][0][key] = "HERE"
    raw = json.dumps(changed).replace('"HERE"', number)
    with pytest.raises(DataError, match="manifest"):
        Manifest.parse(raw.encode(), "manifest.json")


@pytest.mark.parametrize("number", [*HUGE, "Infinity", "NaN"])
@pytest.mark.parametrize("key", ["seconds_left", "step", "memory", "updated"])
def test_runs_are_listed_beside_a_damaged_status(key: str, number: str, tmp_path: Path) -> None:
    for name in ("sound", "damaged"):
        (tmp_path / name).mkdir()
        Status().say(tmp_path / name)
    path = tmp_path / "damaged/status.json"
    content = json.loads(path.read_text()) | {key: "HERE"}
    path.write_text(json.dumps(content).replace('"HERE"', number))
    rows, _ = all_runs(tmp_path)
    assert [row[0] for row in rows] == ["sound"]


def test_a_run_with_a_damaged_evaluation_can_still_be_used(workspace: Workspace, trained_demo: Path) -> None:
    shutil.copytree(trained_demo / "runs", "runs")
    report = Path("runs/patches_dual/evaluation.json")
    report.write_text(report.read_text().replace('"complete": true', f'"complete": true, "x": {HUGE[0]}'))
    assert "patches_dual" in workspace.run("status")
    workspace.run("export", "runs/patches_dual", "--out", "model", "--dry-run")
