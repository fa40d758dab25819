"""A cache, or a run, that cannot be written, with everything there: it is read."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dualscore.data import transfer
from dualscore.data.source import RemoteFolder
from dualscore.errors import SourceError
from dualscore.files import aside
from dualscore.runs import folder, run_status
from dualscore.runs.folder import LOCK, Run, flatten
from test_remote import Server
from test_remote import server as server
from test_remote import small_shards as small_shards
from workspace import Workspace


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def _forbid(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Have this process write nothing, as one of another user, or on a disk that is read only."""
    ordinary, os_open = Path.open, os.open

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    def opened(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        return ordinary(path, mode, *rest, **more) if mode in ("r", "rb") else refuse()

    def os_opened(path: Any, flags: int, *rest: Any, **more: Any) -> int | None:
        return refuse() if flags & (os.O_RDWR | os.O_WRONLY) else os_open(path, flags, *rest, **more)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(os, "open", os_opened)
    for name in ("utime", "unlink", "replace"):
        monkeypatch.setattr(os, name, refuse)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_cache_that_cannot_be_written_is_read(
    number: int, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = RemoteFolder(transfer.Address(server.url), tmp_path, 1.0)
    shard, other = shards.manifest.splits["train"].shards[0], shards.manifest.splits["val"].shards[0]
    os.close(shards.open(shard))
    with monkeypatch.context() as patch:
        _forbid(patch, number)
        again = RemoteFolder(transfer.Address(server.url), tmp_path, 1.0)
        descriptor = again.open(shard)
        assert os.fstat(descriptor).st_size == shard.bytes
        os.close(descriptor)
        with pytest.raises(SourceError, match=r"data\.cache"):  # which is not there
            again.open(other)
    os.close(shards.open(other))


def test_a_complete_run_that_cannot_be_written_is_read(
    workspace: Workspace, trained_demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained_demo / "runs", workspace.folder / "runs")
    run, pages = workspace.folder / "runs/patches_dual", workspace.folder / "pages"
    stored = Run(run).read_config()
    settings = [f"{key}={value}".replace("'", "") for key, value in flatten(stored).items() if key != "name"]
    figures = ["figures", str(run), "--only", "table1", "--out", str(pages)]
    workspace.run(*figures)  # measures what is not there yet
    (run / LOCK).unlink()
    write, may = aside.write_aside, os.access

    def refuse(path: Path, *content: Any) -> None:
        if path.resolve().is_relative_to(run):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        write(path, *content)

    for room in (aside, run_status, folder):
        monkeypatch.setattr(room, "write_aside", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).resolve() != run and may(path, mode))
    shutil.rmtree(pages)
    workspace.run(*figures)
    assert (pages / "table1.json").exists()
    workspace.run("evaluate", "patches_dual", "--checkpoint", "runs/patches_dual")
    assert "is complete" in workspace.run("train", "patches_dual", *settings)
    assert not (run / LOCK).exists()
