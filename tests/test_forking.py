"""A fork is what an ordinary process is, without the time that imports take."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import forking
from workspace import ROOT

SHOW = """
import os, signal, subprocess, sys
print(sys.argv, sys.path[0], sys.path[1], sys.stdin.read(), os.getcwd(), os.environ["MINE"], __name__)
print(os.getppid(), signal.getsignal(signal.SIGINT), sys.stdout.line_buffering, "dualscore" in sys.modules)
if len(sys.argv) > 1:
    sys.stdout.flush()
    given = {"env": os.environ | {"MINE": "2"}, "input": "b", "text": True}
    sys.exit(subprocess.run([sys.executable, %r], **given).returncode)
print("wrong", file=sys.stderr)
sys.exit(7)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks are Linux's")
def test_a_fork_begins_as_an_ordinary_process_and_so_does_what_it_starts(tmp_path: Path) -> None:
    script = tmp_path / "show.py"
    script.write_text(SHOW % str(script))
    environment = os.environ | {"PYTHONPATH": f"{ROOT}/src", "MINE": "1"}
    found = []
    for kind in (subprocess.Popen, forking.Popen):
        for command in (["-c", script.read_text(), "a b"], [str(script), "--x"], ["-m", "show", "y"]):
            with kind(
                [sys.executable, *command], cwd=tmp_path, env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            ) as process:  # fmt: skip
                out, error = process.communicate("a", timeout=60)
            assert process.returncode == 7
            assert error == "wrong\n"
            own, nested = str(os.getpid()), str(process.pid)
            assert own in out
            assert nested in out
            found.append(out.replace(own, "own").replace(nested, "nested"))
    assert found[:3] == found[3:]


def test_a_fork_and_its_own_are_told_by_their_numbers(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; s = [sys.executable, '-c', 'import time; time.sleep(100)']\n"
        "print(subprocess.Popen(s).pid, flush=True); input()"
    )
    process = forking.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stdout is not None
    second = int(process.stdout.readline())
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == -signal.SIGTERM
    os.kill(second, signal.SIGKILL)  # which has no other parent than the system now
    process.communicate(timeout=30)
