"""A short version of `make faults`; and that what it looks for, it finds."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

import faults
from conditions import CONDITIONS, Trial
from outcomes import ALBUM, Fault, agree, check_end, result
from workspace import ROOT


@pytest.mark.long
def test_combinations_of_what_people_run_into_lose_nothing_in_silence() -> None:
    done = subprocess.run(
        [sys.executable, "tests/faults.py", "--combinations", "16", "--seed", "1"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    report = json.loads(done.stdout[done.stdout.index("{\n") :])
    assert report["faults"] == {}, done.stdout
    assert done.returncode == 0, done.stderr
    assert report["combinations"] == 16


def trial(folder: Path, command: str = "score", **more: object) -> Trial:
    return Trial(0, command, folder, Random(0), 1.0, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("program", "refusals", "fault"),
    [
        ("1 / 0", [], "a traceback"),
        ("import threading; threading.Thread(target=lambda: 1 / 0).start()", [], "a traceback"),
        ("import time; time.sleep(60)", [], "does not end within 2 s"),
        ("sys.exit('error: no room')", ["memory"], "for a reason that no condition gives"),
        ("sys.exit('no room')", ["room"], "without an error in its last line"),
        ("sys.exit(1)", ["room"], "status 1, with 0 lines"),
        ("import os; os.kill(os.getpid(), 9)", [], "status -9"),
        ("sys.exit(75)", [], "status 75"),
    ],
)
def test_a_command_that_ends_badly_is_found(
    program: str, refusals: list[str], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "MAIN", f"import sys; {program}")
    monkeypatch.setattr(faults, "LIMIT", 2)
    tried = trial(tmp_path, refusals=refusals)
    with pytest.raises(Fault, match=fault):
        check_end(tried, *faults.execute(tried, ["score"], True))


def test_a_command_that_must_be_refused_may_not_succeed(tmp_path: Path) -> None:
    tried = trial(tmp_path, "train")
    CONDITIONS["settings_of_lightning"][1](tried)
    with pytest.raises(Fault, match="not refused"):
        check_end(tried, 0, "complete", "")
    (name,) = tried.environment
    told = f"error: {name}=1: set in the environment, where Lightning would take settings from that …"
    check_end(tried, 1, "", told)
    with pytest.raises(Fault, match="for a reason"):
        check_end(tried, 1, "", "error: no room")


def test_a_command_that_ends_well_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "MAIN", "import sys; sys.exit('error: no room: make some')")
    tried = trial(tmp_path, refusals=["no room"])
    check_end(tried, *faults.execute(tried, ["score"], True))


@pytest.mark.parametrize("scored", [ALBUM, ALBUM - 2, ALBUM - 1])
def test_a_scoring_of_fewer_images_is_found(tmp_path: Path, scored: int) -> None:
    """Two more pictures than the album has, of which one is left out by name."""
    rows = [{"file": str(number), "bits_per_dim": 1.0} for number in range(scored)]
    (tmp_path / "scores").mkdir()
    for name, content in (("scores.csv", rows), ("failures.csv", [{"file": "x.jpg", "reason": "is a pipe"}])):
        with (tmp_path / "scores" / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(content[0]))
            writer.writeheader()
            writer.writerows(content)
    summary = {"images": scored, "failed": 1, "scores": rows}
    (tmp_path / "scores/scores.json").write_text(json.dumps(summary))
    tried = trial(tmp_path, entries=scored + 1 - ALBUM)
    assert len(result(tried, "left out: x.jpg")) == scored
    with pytest.raises(Fault, match="not a word"):
        result(tried, "")
    tried.entries += 1
    with pytest.raises(Fault, match=f"{scored} scored and 1 left out are not"):
        result(tried, "left out: x.jpg")


def test_another_score_is_another_result() -> None:
    assert agree("score", {"a": "1.0", "b": "9"}, {"a": "1.00001"})
    assert not agree("score", {"a": "1.0"}, {"a": "1.1"})
    assert not agree("score", {}, {"a": "1.0"})
    assert not agree("train", [1.0], [1.0 + 1e-12])


def test_every_row_of_the_issue_is_a_condition() -> None:
    assert len(CONDITIONS) >= 35
    for command in ("train", "evaluate", "score", "ood", "build", "verify"):
        assert sum(command in commands for commands, _ in CONDITIONS.values()) >= 15
