"""Shards from elsewhere: fetched once, checked, bounded, and named without credentials where they fail."""

import base64
import fcntl
import json
import os
import shutil
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from dualscore.data import transfer
from dualscore.data.datamodule import Batching
from dualscore.data.reader import EvenlySpacedBatches, ShardDataModule
from dualscore.data.shards import Manifest, Shard
from dualscore.data.source import RemoteFolder, find
from dualscore.errors import ConfigError, DataError, SourceError
from dualscore.redaction import redact, restore
from workspace import TINY, Workspace

SETTINGS = [*TINY, "optim.warmup_steps=0", "trainer.validate_every=2", "data.streams=2", "data.workers=1"]


class Server:
    """A folder served on this machine, with faults on demand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: Counter[str] = Counter()
        self.logins: list[str | None] = []
        self.fault: Callable[[SimpleHTTPRequestHandler, str], bool] = lambda *_: False
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.partition("?")[0].rpartition("/")[2]
                server.asked[name] += 1
                server.logins.append(self.headers.get("Authorization"))
                if not server.fault(self, name):
                    super().do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder.parent)))
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    @property
    def place(self) -> str:
        """HOST/FOLDER of a URL."""
        return f"127.0.0.1:{self.http.server_port}/{self.folder.name}"

    @property
    def url(self) -> str:
        """Where the folder is."""
        return f"http://{self.place}"

    def stop(self) -> None:
        """Be gone."""
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo images in shards of 1000, 1.5 MB each."""
    from data_prep.cli import main as prepare

    out = tmp_path_factory.mktemp("small") / "demo"
    options = ["--size", "16", "--images-per-shard", "1000", "--workers", "1"]
    assert prepare(["build", "demo", "--out", str(out), *options]) == 0
    return out


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def server(small_shards: Path) -> Iterator[Server]:
    with serving(small_shards) as running:
        yield running


def opened(server: Server, cache: Path, gigabytes: float = 1.0) -> tuple[RemoteFolder, Manifest]:
    source, manifest = find(server.url, str(cache), gigabytes)
    assert isinstance(source, RemoteFolder)
    return source, manifest


def read(source: RemoteFolder, shard: Shard) -> list[int]:
    dataset = EvenlySpacedBatches(source, (3, 16, 16), (shard,), shard.images, 500)
    return [p for batch in dataset for p in batch.position.tolist()]


def held(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("*/*.tar")}


def test_a_run_trains_from_a_server_and_downloads_each_shard_once(
    workspace: Workspace, server: Server, small_shards: Path
) -> None:
    settings = [*SETTINGS, "trainer.max_steps=4"]
    remote = [*settings, f"data.path={server.url}", "data.cache=cache"]
    workspace.run("train", "patches_dual", *remote, "--runs", "runs/remote")
    shards = {name: n for name, n in server.asked.items() if name.endswith(".tar")}
    assert shards
    assert set(shards.values()) == {1}
    assert server.asked["spectrum.npy"] == server.asked["photographs.npz"] == 1
    workspace.run("train", "patches_dual", *settings, f"data.path={small_shards}", "--runs", "runs/local")
    a, b = workspace.checkpoint("remote/patches_dual"), workspace.checkpoint("local/patches_dual")
    assert all(torch.equal(a["state_dict"][k], b["state_dict"][k]) for k in a["state_dict"])
    # A second run finds everything but the manifest.
    before = sum(server.asked.values())
    workspace.run("train", "patches_dual", *remote, "--runs", "runs/again")
    asked = {name for name, n in server.asked.items() if n > 1}
    assert asked == {"manifest.json"}
    assert sum(server.asked.values()) > before


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_and_devices_share_a_cache(server: Server, tmp_path: Path, workers: int) -> None:
    modules = []
    for _ in range(2):
        source, manifest = opened(server, tmp_path)
        module = ShardDataModule(source, manifest, Batching(64, 2, workers, 1, 0, 100, 32), shuffle_buffer=64)
        modules.append(module)
    loaders = [iter(module.epoch_loader(0, 0)) for module in modules]
    for _ in range(5):
        a, b = (next(loader) for loader in loaders)
        assert torch.equal(a.image, b.image)
        assert (a.replaced == -1).all()
    shards = [n for name, n in server.asked.items() if name.endswith(".tar")]
    assert shards
    assert set(shards) == {1}


def test_many_at_once_wait_for_one_download(server: Server, tmp_path: Path) -> None:
    source, manifest = opened(server, tmp_path)
    shard = manifest.splits["train"].shards[0]
    with ThreadPoolExecutor(8) as pool:
        assert len({len(places) for places in pool.map(lambda _: read(source, shard), range(8))}) == 1
    assert server.asked[shard.file] == 1


def test_the_least_recently_used_shards_go_and_none_in_use(server: Server, tmp_path: Path) -> None:
    mine = tmp_path / "imagenet64" / "train-000000.tar"
    mine.parent.mkdir()
    mine.write_bytes(bytes(10**6))  # somebody's own data, beside
    source, manifest = opened(server, tmp_path, 0.0035)  # two shards
    first, second, third, fourth, *_ = manifest.splits["train"].shards
    read(source, first)
    read(source, second)
    read(source, first)
    read(source, third)
    assert held(tmp_path) == {first.file, third.file, mine.name}
    assert (source.folder / first.file).exists()
    assert not (source.folder / second.file).exists()
    descriptor = source.open(first)
    try:
        read(source, second)
        read(source, fourth)
        assert (source.folder / first.file).exists()  # the oldest, but open
        other = source.open(fourth)
        try:
            with pytest.raises(SourceError, match=r"no room for train-000001.tar .* data.cache_gb=0.0035"):
                source.open(second)
        finally:
            os.close(other)
    finally:
        os.close(descriptor)
    read(source, second)
    assert mine.stat().st_size == 10**6
    assert sum(path.stat().st_size for path in source.folder.glob("*.tar")) <= 3.5e6
    assert not list(tmp_path.rglob("*.part"))


def test_a_cache_too_small_for_what_is_read_at_once_is_refused(workspace: Workspace, server: Server) -> None:
    settings = [*SETTINGS, f"data.path={server.url}", "data.cache=cache", "data.cache_gb=0.004"]
    line = workspace.fail("train", "patches_dual", *settings, "trainer.max_steps=2")
    assert "data.cache_gb=0.004 is too little: up to 4 shards" in line
    assert "0.006" in line
    assert not server.asked["train-000000.tar"]


def test_a_damaged_cached_shard_is_fetched_again(server: Server, tmp_path: Path) -> None:
    source, manifest = opened(server, tmp_path)
    shard = manifest.splits["train"].shards[0]
    whole = read(source, shard)
    path = source.folder / shard.file
    path.write_bytes(path.read_bytes()[:5000])
    assert read(source, shard) == whole
    assert server.asked[shard.file] == 2


def test_which_photograph_an_image_is_of_is_fetched_once(
    server: Server, small_shards: Path, tmp_path: Path
) -> None:
    source, manifest = opened(server, tmp_path)
    assert manifest.photographs is not None
    here = manifest.photographs.load(small_shards, manifest.images)
    there = manifest.photographs.load(source.folder, manifest.images)
    assert set(there) == {"train", "val", "test"}
    assert {split: array.tolist() for split, array in here.items()} == {
        split: array.tolist() for split, array in there.items()
    }
    (source.folder / "photographs.npz").write_bytes(b"damaged")
    opened(server, tmp_path)
    opened(server, tmp_path)
    assert server.asked["photographs.npz"] == 2
    assert manifest.photographs.load(source.folder, manifest.images)["test"].tolist() == here["test"].tolist()


def test_photographs_that_are_another_file_stop_the_run_before_it_begins(
    small_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dualscore.data.transfer.FIRST_WAIT", 0.0)
    folder = shutil.copytree(small_shards, tmp_path / "served")
    for content, reason in ((b"another", "checksum is not the manifest"), (bytes(10**7), "it has more than")):
        (folder / "photographs.npz").write_bytes(content)
        with serving(folder) as server, pytest.raises(SourceError, match=rf"photographs\.npz.*{reason}"):
            opened(server, tmp_path / "cache")


def test_a_set_that_changed_is_not_mixed_with_what_it_was(small_shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_shards, tmp_path / "served")
    with serving(folder) as server:
        before, _ = opened(server, tmp_path / "cache")
        document = json.loads((folder / "manifest.json").read_text())
        document["release"] = "another"
        (folder / "manifest.json").write_text(json.dumps(document))
        after, manifest = opened(server, tmp_path / "cache")
    assert manifest.release == "another"
    assert before.folder != after.folder


@pytest.mark.parametrize(("faults", "status"), [(2, 503), (4, 429)])
def test_a_server_that_fails_at_first_is_asked_again(
    server: Server, tmp_path: Path, faults: int, status: int
) -> None:
    def fault(handler: SimpleHTTPRequestHandler, name: str) -> bool:
        if server.asked[name] > faults:
            return False
        handler.send_error(status)
        return True

    server.fault = fault
    source, manifest = opened(server, tmp_path)
    assert len(read(source, manifest.splits["val"].shards[0])) == manifest.splits["val"].shards[0].images
    assert server.asked["val-000000.tar"] == faults + 1


def cut_off(handler: SimpleHTTPRequestHandler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])


def wrong(handler: SimpleHTTPRequestHandler, content: bytes) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(content[:700] + bytes([content[700] ^ 1]) + content[701:])


def endless(handler: SimpleHTTPRequestHandler, content: bytes) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(content * 3)


def gone(handler: SimpleHTTPRequestHandler, _: bytes) -> None:
    handler.send_error(404)


def silent(*_: object) -> None:
    threading.Event().wait(0.6)


@pytest.mark.parametrize(
    ("answer", "times", "reason"),
    [
        (cut_off, 5, "the connection ended after"),
        (wrong, 5, "its checksum is not the manifest's"),
        (endless, 5, "it has more than the"),
        (gone, 1, "HTTP 404"),
        (silent, 5, "timed out"),
    ],
)
def test_what_stays_wrong_is_an_error_that_names_place_and_reason(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any, times: int, reason: str
) -> None:
    source, manifest = opened(server, tmp_path)
    shard = manifest.splits["train"].shards[2]
    content = (server.folder / shard.file).read_bytes()
    server.fault = lambda handler, name: name == shard.file and (answer(handler, content), True)[1]
    monkeypatch.setattr(transfer, "TIMEOUT", 0.2)
    with pytest.raises(SourceError, match=reason) as caught:
        read(source, shard)
    assert f"{server.url}/{shard.file}: cannot be fetched" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert server.asked[shard.file] == times
    assert held(tmp_path) == set()
    server.fault = lambda *_: False
    assert len(read(source, shard)) == shard.images


def test_a_server_gone_during_a_run_is_one_line(workspace: Workspace, server: Server) -> None:
    settings = [*SETTINGS, f"data.path={server.url}", "data.cache=cache", "trainer.max_steps=4"]

    def fault(handler: SimpleHTTPRequestHandler, name: str) -> bool:
        if name.startswith("val"):  # the first validation is in the middle of the run
            handler.close_connection = True
        return name.startswith("val")

    server.fault = fault
    line = workspace.fail("train", "patches_dual", *settings)
    assert f"{server.url}/val-00000" in line
    assert "cannot be fetched (tried 5 times; the last time:" in line


def test_a_server_that_is_not_there_is_one_line(workspace: Workspace) -> None:
    with socket.socket() as unheard:  # bound, so that nobody else listens
        unheard.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}/demo"
        line = workspace.fail("train", "patches_dual", *SETTINGS, f"data.path={url}")
    reason = "(tried 5 times; the last time: Connection refused)"
    assert f"{url}/manifest.json: cannot be fetched {reason}" in line
    assert not Path("runs/patches_dual/checkpoints").exists()


def test_a_source_that_is_gone_is_never_skipped(server: Server, tmp_path: Path) -> None:
    source, manifest = opened(server, tmp_path)
    server.fault = lambda handler, _: (handler.send_error(404), True)[1]
    module = ShardDataModule(source, manifest, Batching(8, 1, 0, 1, 0, 8, 8), shuffle_buffer=8)
    with pytest.raises(SourceError, match="HTTP 404"):
        next(iter(module.epoch_loader(0, 0)))


def test_a_command_fetches_and_no_shell_reads_it(small_shards: Path, tmp_path: Path) -> None:
    odd = shutil.copytree(small_shards, tmp_path / "a b; touch oops $(id)")
    source, manifest = find(f"pipe:cat '{odd}/{{}}'", str(tmp_path / "cache"), 1.0)
    assert isinstance(source, RemoteFolder)
    shard = manifest.splits["val"].shards[0]
    assert len(read(source, shard)) == shard.images
    assert not list(tmp_path.rglob("oops"))
    assert str(source) == "pipe:cat ***"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("cat /nowhere/{}", "cat ended with status 1: cat: /nowhere/manifest.json: No such file"),
        ("no-such-program {}", "no-such-program: No such file"),
        ("echo {}", "is not valid JSON"),
        ("tail -f /dev/null {}", "nothing came for 0.2 s"),
        ("yes {}", "it has more than the"),
    ],
)
def test_a_command_that_fails_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, reason: str
) -> None:
    monkeypatch.setattr(transfer, "TIMEOUT", 0.2)
    monkeypatch.setattr("dualscore.data.source.MOST_MANIFEST_BYTES", 10**6)
    with pytest.raises(DataError, match=r"manifest\.json") as caught:
        find(f"pipe:{command}", str(tmp_path), 1.0)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("ftp://host/folder", "must be a folder, http"),
        ("http://", "must be a folder, http"),
        ("http://u:secret/word@host/folder", "not a URL"),
        ("pipe:cat /data", "the command needs {}"),
        ("pipe:{} x", "the command needs {}"),
        ("pipe:cat 'x {}", "No closing quotation"),
    ],
)
def test_what_is_no_place_is_refused(path: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find(path, str(tmp_path), 1.0)
    assert complaint in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://host/a/b", "http://host/a/b"),
        ("https://me:pw@host:8/a?token=t&x=1#y", "https://***@host:8/a?***"),
        ("see 'https://me:p@w@host/a?t=1' and http://b/?u", "see 'https://***@host/a?***' and http://b/?***"),
        ("pipe:curl -H 'A: b' https://host/{}", "pipe:curl ***"),
        ("pipe:curl ***/train-000001.tar: gone", "pipe:curl ***/train-000001.tar: gone"),
        ("data/demo16", "data/demo16"),
        ("what? a@b.c", "what? a@b.c"),
    ],
)
def test_credentials_are_hidden_and_nothing_else(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


def test_credentials_reach_the_server_and_nothing_else(workspace: Workspace, server: Server) -> None:
    url = f"http://me:pa%40ssword@{server.place}?token=tiptop"
    settings = [*SETTINGS, "data.cache=cache", f"data.path={url}"]
    printed = workspace.run("train", "patches_dual", *settings, "trainer.max_steps=2")
    assert set(server.logins) == {f"Basic {base64.b64encode(b'me:pa@ssword').decode()}"}
    # Goes on, and is measured: with the address given again, or refused without.
    printed += workspace.run("train", "patches_dual", *settings, "trainer.max_steps=4")
    assert "goes on from step 2" in printed
    line = workspace.fail("evaluate", "patches_dual")
    assert f"data.path=http://***@{server.place}?***: credentials and commands are not kept" in line
    printed += line + workspace.run("evaluate", "patches_dual", f"data.path={url}")
    server.fault = lambda handler, _: (handler.send_error(403), True)[1]
    printed += workspace.fail("train", "patches_dual", *settings, "trainer.max_steps=6")
    printed += workspace.fail("train", "patches_dual", f"data.pth={url}")
    printed += workspace.fail("train", "patches_dual", f"data.path=[{url}]")
    for secret in ("pa%40ssword", "pa@ssword", "tiptop"):
        assert secret not in printed
        for path in (*Path("runs").rglob("*"), *Path("cache").rglob("*")):
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path


def test_credentials_are_not_carried_to_another_host(
    server: Server, small_shards: Path, tmp_path: Path
) -> None:
    with serving(small_shards) as other:

        def fault(handler: SimpleHTTPRequestHandler, name: str) -> bool:
            handler.send_response(302)
            handler.send_header("Location", f"{other.url}/{name}")
            handler.end_headers()
            return True

        server.fault = fault
        find(f"http://me:secret@{server.place}?token=tiptop", str(tmp_path), 1.0)
        assert all(server.logins)
        assert set(other.logins) == {None}


def test_a_command_in_a_runs_folder_is_not_run(workspace: Workspace, demo_shards: Path) -> None:
    settings = [*SETTINGS, f"data.path={demo_shards}", "trainer.max_steps=2"]
    workspace.run("train", "patches_dual", *settings)
    config = Path("runs/patches_dual/config.yaml")
    config.write_text(config.read_text().replace(f"path: {demo_shards}", "path: 'pipe:touch oops{}'"))
    line = workspace.fail("evaluate", "patches_dual")
    assert "data.path=pipe:touch ***: credentials and commands are not kept" in line
    assert not list(workspace.folder.glob("oops*"))
    assert restore("pipe:cat ***", "pipe:cat /data/{}") == "pipe:cat /data/{}"
    assert restore("data/demo16", "elsewhere") == "data/demo16"


def test_what_is_being_fetched_takes_room_too(server: Server, tmp_path: Path) -> None:
    source, manifest = opened(server, tmp_path, 0.0035)  # two shards
    first, second, third, *_ = manifest.splits["train"].shards
    read(source, first)
    part = source.folder / f".{second.file}.part"  # as long as its shard from the start, and locked
    with part.open("wb") as file:
        file.truncate(second.bytes)
        fcntl.flock(file, fcntl.LOCK_SH)
        read(source, third)
        assert not (source.folder / first.file).exists()
        assert part.exists()
