"""A Mac, by hand: what Linux alone has is taken away, and what means something else there means that."""

import csv
import errno
import fcntl
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dualscore.data.shard_file import ShardFile, row_bytes
from dualscore.data.shards import Manifest
from dualscore.devices import find_device
from dualscore.errors import ConfigError
from dualscore.runs.folder import Run
from fakes import photograph, real_images
from workspace import TINY, Workspace, command

MAC = """
import builtins, multiprocessing, os, pathlib, resource, signal, sys
import torch
os.chdir({folder!r})
for name in ("sched_getaffinity", "preadv", "posix_fadvise", "pidfd_open", "memfd_create"):
    delattr(os, name)
del signal.pidfd_send_signal
hidden = ("/proc", "/dev/shm", "/sys")
def look(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(hidden):
        raise FileNotFoundError(2, "No such file or directory", str(arguments[0]))
sys.addaudithook(look)
there = os.stat
def stat(path, *rest, **options):
    if str(path).startswith(hidden):
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return there(path, *rest, **options)
os.stat = stat
limits = [24, resource.RLIM_INFINITY]
def setrlimit(kind, wanted):
    if wanted[0] == resource.RLIM_INFINITY or wanted[0] > 10240:
        raise ValueError("current limit exceeds maximum limit")
    limits[:] = wanted
resource.getrlimit = lambda kind: tuple(limits)
resource.setrlimit = setrlimit
torch.backends.mps.is_available = lambda: True
multiprocessing.set_start_method("spawn", force=True)
sys.platform = "darwin"
"""


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Pictures, two of whose names differ in capitals only, beside what a Mac leaves in folders."""
    folder = tmp_path / "album"
    folder.mkdir()
    for name, pixels in zip(("x.png", "x.PNG", "y.jpg"), real_images(3, 16), strict=True):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / name)
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "._x.png").write_bytes(b"\0\5\x16\7")
    return folder


def on_a_mac(workspace: Workspace, *arguments: str) -> str:
    done = command(*arguments, before=MAC.format(folder=str(workspace.folder)))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return str(done.stdout)


def test_training_needs_nothing_that_a_mac_lacks(workspace: Workspace, demo_shards: Path) -> None:
    steps = ["optim.warmup_steps=0", "trainer.max_steps=2", "trainer.validate_every=2", "data.workers=0"]
    steps += ["trainer.accelerator=auto", f"data.path={demo_shards}"]
    on_a_mac(workspace, "train", "patches_dual", *TINY, *steps)
    assert workspace.checkpoint("patches_dual")["global_step"] == 2
    assert "patches_dual" in on_a_mac(workspace, "status")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_scoring_neither(workspace: Workspace, trained_demo: Path, album: Path, workers: str) -> None:
    run = str(trained_demo / "runs/patches_dual")
    said = on_a_mac(workspace, "score", run, str(album), "--workers", workers)
    assert "the mean of 3 images" in said
    with Path("scores/scores.csv").open() as rows:
        found = [Path(row["file"]).name for row in csv.DictReader(rows)]
    assert sorted(found) == ["x.PNG", "x.png", "y.jpg"]
    maps = [path.name.lower() for path in Path("scores/maps").iterdir()]
    assert len(set(maps)) == 3  # none is written over another where capitals do not count


@pytest.mark.parametrize("workers", ["1", "2"])
def test_preparing_data_neither(workspace: Workspace, tmp_path: Path, workers: str) -> None:
    (tmp_path / "photographs").mkdir()
    for name, file in (("coffee", "a.png"), ("chelsea", "A.png"), ("china", "b.JPG")):
        photograph(name, 48).save(tmp_path / "photographs" / file)
    given = ["data", "build", "folder", "--src", str(tmp_path / "photographs"), "--workers", workers]
    assert "3 photographs of one's own" in on_a_mac(workspace, *given, "--out", "shards")
    assert "is right" in on_a_mac(workspace, "data", "verify", "shards", "--workers", workers)


def test_shards_are_read_alike_without_preadv(demo_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.load(demo_shards)
    shard = manifest.splits["train"].shards[0]

    def read() -> bytes:
        size = 3 * 16 * 16
        rows = np.zeros((1500, row_bytes(size)), np.uint8)
        with closing(ShardFile(demo_shards, shard, size)) as file:
            file.read(7, list(rows))
        return rows.tobytes()

    whole = read()
    monkeypatch.delattr(os, "preadv")
    assert read() == whole


def test_a_macs_gpu_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(*_: object, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        if dtype == torch.float64 and device.type == "mps":
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return torch.ones(1)

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(ConfigError, match="--device mps: Cannot convert a MPS Tensor to float64"):
        find_device("mps")


def test_a_share_without_locks_trains_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = 45  # of a Mac's ENOTSUP, which is another number than its EOPNOTSUPP

    def none(*_: object) -> None:
        raise OSError(other, "Operation not supported")

    monkeypatch.setattr(errno, "ENOTSUP", other)
    monkeypatch.setattr(fcntl, "lockf", none)
    with Run(tmp_path).alone():
        pass
