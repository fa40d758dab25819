"""A job that has a few cores of many, and machines that count differently."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data_prep.cli import main as prepare
from dualscore.cores import own_cores
from dualscore.evaluation import session
from dualscore.settings.experiment import load_experiment
from dualscore.training.callbacks.progress import resident_bytes
from dualscore.training.trainer import accelerator
from workspace import ROOT


def test_a_confined_job_counts_its_own_cores(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7, 8, 90})
    assert own_cores() == 4
    with pytest.raises(SystemExit):
        prepare(["build", "--help"])
    assert "here 4" in capsys.readouterr().out


def test_a_mac_which_confines_no_job_counts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert own_cores() == 10
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert own_cores() == 1


def test_nothing_counts_the_machines_cores() -> None:
    counting = re.compile(r"\b(cpu_count|process_cpu_count)\b")
    files = [p for room in ("src", "data_prep", "benchmarks") for p in (ROOT / room).rglob("*.py")]
    assert [p.name for p in files if counting.search(p.read_text())] == ["cores.py"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system confines no process")
def test_threads_and_loaders_are_as_many_as_its_own_cores_take() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import torch; "
    code += "from dualscore.commands.options import Streaming; "
    code += "print(torch.get_num_threads(), Streaming().workers)"
    set_here = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}
    environment = {k: v for k, v in os.environ.items() if k not in set_here}
    environment["PYTHONPATH"] = str(ROOT / "src")
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True) == "1 1\n"


def test_auto_is_never_a_macs_gpu_which_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Fabric:
        def __init__(self, accelerator: str, **_: object) -> None:
            asked.append(accelerator)

        def launch(self) -> None:
            pass

    monkeypatch.setattr(session, "Fabric", Fabric)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for cuda in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: there)
        for wanted in ("auto", "cpu", "gpu"):
            config = load_experiment("gaussian_textures", [f"trainer.accelerator={wanted}"])
            session._fabric(config)
            assert asked.pop() == accelerator(config)
            assert accelerator(config) == (
                "cuda" if wanted == "gpu" or (wanted == "auto" and cuda) else "cpu"
            )


def test_memory_is_counted_as_the_system_does(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    assert resident_bytes() == pytest.approx(1024 * int(resident.split()[1]), rel=0.2)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=2**30))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert resident_bytes() == 2**30
