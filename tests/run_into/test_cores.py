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
from dualscore.cores import limit_threads, own_cores
from dualscore.evaluation import session
from dualscore.settings.experiment import load_experiment
from dualscore.training.callbacks.progress import resident_bytes
from dualscore.training.trainer import accelerator
from workspace import ROOT


def test_a_confined_job_counts_its_own_cores(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dualscore.cores._quotas", list)
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7, 8, 90})
    assert own_cores() == 4
    with pytest.raises(SystemExit):
        prepare(["build", "--help"])
    assert "here 4" in capsys.readouterr().out


def test_a_mac_which_confines_no_job_counts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualscore.cores._quotas", list)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert own_cores() == 10
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert own_cores() == 1


QUOTAS = [
    ({"cpu.max": "250000 100000\n"}, "0::/\n", 3),  # a container
    ({"cpu.max": "max 100000\n"}, "0::/\n", 128),
    ({"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b\n", 4),  # a slice above
    ({"a/cpu.max": "100 100000", "c/cpu.max": "200000 100000"}, "0::/c\n", 2),  # another's
    ({"cpu.max": "1000 100000"}, "", 1),
    ({"cpu/cpu.cfs_quota_us": "600000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpuacct,cpu:/x\n", 6),
    ({"cpu/j/cpu.cfs_quota_us": "150000", "cpu/j/cpu.cfs_period_us": "50000"}, "9:cpuset:/\n4:cpu:/j/s\n", 3),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/\n", 128),
    ({"cpu.max": "a word"}, "0::/../../x\nnonsense\n", 128),
    ({"cpu.max": "100000 0"}, "0::/\n", 128),
]  # fmt: skip


@pytest.mark.parametrize(("files", "own", "cores"), QUOTAS)
def test_a_containers_share_of_time_is_heeded(
    files: dict[str, str], own: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(128)))
    for name, content in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(content)
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr("dualscore.cores.CGROUPS", tmp_path / "groups")
    monkeypatch.setattr("dualscore.cores.PROC", tmp_path / "own")
    assert own_cores() == cores


@pytest.mark.parametrize(
    ("quotas", "set_here", "threads"), [([2.5], None, "3"), ([], None, None), ([2.5], "7", "7")]
)
def test_torch_is_told_of_a_share_that_it_does_not_heed(
    quotas: list[float], set_here: str | None, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dualscore.cores._quotas", lambda: quotas)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(128)))
    monkeypatch.setenv("OMP_NUM_THREADS", set_here or "")
    if set_here is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    limit_threads()
    assert os.environ.get("OMP_NUM_THREADS") == threads


def test_where_nothing_says_so_there_is_no_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(128)))
    monkeypatch.setattr("dualscore.cores.CGROUPS", tmp_path / "none")
    monkeypatch.setattr("dualscore.cores.PROC", tmp_path / "none")
    assert own_cores() == 128


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
