"""A pause is no hang: a run that is suspended, or a laptop that sleeps, goes on."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dualscore.runs import watchdog
from dualscore.runs.watchdog import Phase, Watchdog
from workspace import ROOT

RUN = """
import sys, time
from pathlib import Path
from dualscore.runs.watchdog import Phase, Watchdog
with Watchdog(Path(sys.argv[1]), 0, 1, 2.5, lambda reason: Path("ended").write_text(reason)) as dog:
    Path("began").touch()
    for step in range(40):
        dog.get_on(step, Phase.computing)
        time.sleep({pause})
Path("done").touch()
"""


@pytest.mark.parametrize("pause", [0.1, 1.0])
def test_a_process_that_was_stopped_for_longer_than_the_limit_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    monkeypatch.chdir(tmp_path)
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            RUN.replace("{pause}", str(pause)).replace("40", str(int(4 / pause))),
            "beats",
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )
    while not Path("began").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGSTOP)
    time.sleep(4.0)
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=20) == 0
    assert Path("done").exists()
    assert not Path("ended").exists()


def test_a_clock_that_leaps_for_all_is_no_hang_and_a_hang_after_it_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a sleeping laptop's where the clock counts its sleep."""
    leap, real, ended = [0.0], time.monotonic, threading.Event()
    monkeypatch.setattr(watchdog, "SECOND", 0.1)
    monkeypatch.setattr(watchdog, "NEAR", 0.2)
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: real() + leap[0])
    with Watchdog(tmp_path, 0, 1, 1.0, lambda _: ended.set()) as dog:
        dog.get_on(3, Phase.computing)
        leap[0] = 3600.0
        assert not ended.wait(0.5)
        assert ended.wait(5)
