"""What is shown is what is there: names that hold markup or a terminal's commands, and no credentials."""

import shutil
from pathlib import Path

import pytest

from dualscore.cli import main
from dualscore.terminal.console import Terminal
from dualscore.terminal.logfile import LogFile
from terminal_screen import on_terminal, plain
from workspace import Workspace

EVIL = "e\x1b[31mred\x1b]0;T\x07"
URL = "https://me:secret@host.invalid/x?key=tiptop"


@pytest.fixture
def odd(trained_demo: Path, workspace: Workspace) -> Workspace:
    """Runs whose names are markup, and a terminal's commands."""
    for name in ("[bold]r", "[red", EVIL):
        shutil.copytree(trained_demo / "runs/patches_dual", workspace.folder / "runs" / name)
    return workspace


@pytest.mark.parametrize("root", ["[red]x[/]", "[/]"])
def test_markup_in_the_name_of_a_folder_is_no_markup(root: str, workspace: Workspace) -> None:
    assert f"no runs in {Path(root)};" in workspace.run("status", "--runs", root)


def test_tables_boxes_and_lines_show_names_as_they_are(odd: Workspace) -> None:
    status = odd.folder / "runs/[red/status.json"
    status.write_text(status.read_text().replace('"reason": null', '"reason": "[/] [green]"'))
    listed = odd.run("status")
    assert "[bold]r  " in listed
    assert "[red: [/] [green]" in listed
    printed = odd.run("evaluate", "patches_dual", "--checkpoint", "runs/[bold]r")
    assert "evaluating runs/[bold]r/checkpoints/best.ckpt …" in printed
    assert "written to runs/[bold]r/evaluation.json" in printed


def test_a_terminals_commands_in_names_are_not_obeyed(
    odd: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = odd.run("status") + odd.run("export", f"runs/{EVIL}", "--dry-run", "--log-file", "log")
    printed += (odd.folder / "log").read_text()
    printed += odd.fail("sample", "runs/none") + odd.fail("score", f"runs/{EVIL}", EVIL)
    assert main(["data", "verify", EVIL]) == 1
    with pytest.raises(SystemExit):
        main(["train", "patches_dual", f"--{EVIL}"])
    printed += capsys.readouterr().err
    assert "\x1b" not in printed
    assert "\x07" not in printed
    assert printed.count("e?[31mred?]0;T?") >= 6
    _, written = on_terminal(odd.folder, "status", columns=200)
    assert "\x1b[31m" not in written
    assert "e?[31mred?]0;T" in plain(written)


def test_a_console_takes_signs_out_of_all_that_it_draws(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().print("a\x9b31m b\x7f\ud800", "[bold]")
    assert capsys.readouterr().out == "a?31m b?? [bold]\n"


def test_credentials_are_in_no_line(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["data", "build", "folder", "--src", URL, "--out", "new", "--log-file", "log"],
        ["data", "verify", URL, "--log-file", "log"],
        ["score", URL, URL, "--log-file", "log"],
    ):
        assert main(arguments) == 1
    with pytest.raises(SystemExit):
        main(["train", "patches_dual", f"--data.path={URL}"])
    said = capsys.readouterr().err
    logged = (workspace.folder / "log").read_text()
    assert " $ dualscore data build folder --src 'https://***@host.invalid/x?***'" in logged
    for text in (said, logged):
        assert "host.invalid" in text
        assert "secret" not in text
        assert "tiptop" not in text


def test_a_log_file_is_plain(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log", 0)
    log.write("\x1b[1mbold\x1b[0m and \x1b]0;T\x07\n")
    log.close()
    assert (tmp_path / "log").read_text().endswith("bold and ?]0;T?\n")
