"""Other people's terminals: of no size, and of encodings that lack most signs."""

import errno
import io
import os
import sys
from pathlib import Path

import pytest
from rich.table import Table

from data_prep.cli import main as prepare
from dualscore.cli import main
from dualscore.terminal.any_terminal import fit_any_terminal
from dualscore.terminal.console import WIDE, Terminal
from workspace import TINY, Workspace

SHORT = [*TINY, "trainer.max_steps=2", "trainer.validate_every=2", "optim.warmup_steps=0", "data.workers=0"]


def _printed(monkeypatch: pytest.MonkeyPatch, encoding: str, *arguments: str, command=main) -> str:  # type: ignore[no-untyped-def]  # noqa: ANN001
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    status = command(list(arguments))
    for stream in streams:
        stream.flush()
    out, error = (stream.buffer.getvalue().decode(encoding) for stream in streams)  # type: ignore[attr-defined]
    assert status == 0, error
    return out


@pytest.mark.parametrize("size", ["0", "1", "007", "-3", "²", "99999999999", "", "a few"])
def test_a_terminal_of_no_size_shows_all_the_same(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", size)
    monkeypatch.setenv("LINES", size)
    shown = _printed(monkeypatch, "utf-8", "experiments")
    assert "patches_dual" in shown
    assert max(map(len, shown.splitlines())) <= WIDE


@pytest.mark.parametrize("size", ["20", "0040"])
def test_a_narrow_terminal_is_as_wide_as_it_says(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", size)
    console = Terminal()
    assert console.width == int(size)
    table = Table()
    table.add_column("run")
    table.add_row("patches")
    with console.capture() as shown:
        console.print(table)
    assert shown.get().strip()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r"])
def test_listings_fit_any_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _printed(monkeypatch, encoding, "experiments")
    assert "16×16 gray" in shown or "16x16 gray" in shown
    assert shown.count("?") == _printed(monkeypatch, "utf-8", "experiments").count("?")


def test_a_training_fits_an_ascii_terminal(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _printed(monkeypatch, "ascii", "train", "gaussian_textures", *SHORT)
    assert "16x16" in shown
    assert "+-" in shown  # ±
    assert (workspace.folder / "runs/gaussian_textures/evaluation.json").exists()


def test_help_and_data_fit_an_ascii_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path / "demo")
    build = ["build", "demo", "--out", out, "--size", "16", "--workers", "1", "--dry-run"]
    assert "16x16" in _printed(monkeypatch, "ascii", *build, command=prepare)
    with pytest.raises(SystemExit):
        _printed(monkeypatch, "ascii", "train", "--help")


def test_a_file_name_that_is_no_text_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    fit_any_terminal()
    print(os.fsdecode(b"caf\xe9.png"))
    stream.flush()
    assert stream.buffer.getvalue() == b"caf?.png\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", [main, lambda words: prepare(words[1:])])
def test_a_closed_output_takes_nothing(command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    for name in ("stdout", "stderr"):  # what Python makes of `>&- 2>&-`, as for a daemon
        monkeypatch.setattr(sys, name, None)
    out = tmp_path / "demo"
    assert command(["data", "build", "demo", "--out", str(out), "--size", "16", "--workers", "1"]) == 0
    assert (out / "manifest.json").exists()


class Full(io.StringIO):
    """A file on a full disk."""

    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "words", [["--version"], ["status"], ["data", "build", "demo", "--out", "x", "--dry-run"]]
)
def test_an_output_that_cannot_be_written_is_one_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    assert main(words) == 1
    assert capsys.readouterr().err == "error: No space left on device\n"
