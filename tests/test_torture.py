"""A short version of `make torture`."""

import json
import os
import subprocess
import sys

import pytest

from workspace import ROOT


@pytest.mark.long
def test_a_run_killed_at_random_moments_loses_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "tests/torture.py", "--kills", "12", "--seed", "1"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert report["faults"] == []
    assert done.returncode == 0, done.stderr
    assert report["kills"] == report["resumes"] == 12
    assert sum(report["fell in"].values()) == 12
    assert len(report["fell in"]) >= 3
