"""What people see: the bar on a terminal, plain lines elsewhere, quiet, log files, hints, completion."""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from PIL import Image

from dualscore.cli import main
from dualscore.commands.parser import Parser, add_command, call
from dualscore.runs.folder import runs_below
from dualscore.settings.experiment import available, read_header
from dualscore.terminal.boxes import fitting
from dualscore.terminal.console import Terminal
from dualscore.terminal.logfile import LogFile
from terminal_screen import on_terminal, plain
from workspace import ROOT, TINY, Workspace

STEPS = ["trainer.max_steps=6", "trainer.validate_every=3", "optim.warmup_steps=0"]
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


@pytest.fixture(autouse=True)
def _by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DUALSCORE_VIA", raising=False)


def test_a_terminal_shows_a_bar_and_boxes_within_its_width(workspace: Workspace, demo_shards: Path) -> None:
    arguments = ["train", "patches_dual", *TINY, *STEPS, f"data.path={demo_shards}"]
    status, written = on_terminal(workspace.folder, *arguments, columns=80)
    shown = plain(written)
    assert status == 0, shown
    assert re.search(r"validating [━╸╺]+ 3/6 · .*images/s · \d:\d\d:\d\d left", shown)
    assert re.search(r"training [━╸╺]+ 3/6 · [\d.]+ ± [\d.]+ bits/dim", shown)
    assert re.search(r"╭─ patches_dual starts in runs/patches_dual ─+╮", shown)
    assert re.search(r"╭─ patches_dual, step 6, measured ─+╮", shown)
    assert "dualscore score runs/patches_dual" in shown
    for line in re.split(r"[\n\r]", shown.replace("\x1b[2K", "")):
        assert len(line) <= 2 * 80  # a frame, and what is drawn over it
    assert "\x1b[" in written


def test_elsewhere_lines_are_plain_and_have_the_time(workspace: Workspace, demo_shards: Path) -> None:
    printed = workspace.run(
        "train", "patches_dual", *TINY, *STEPS, f"data.path={demo_shards}", "--log-file", "logs/run.txt"
    )
    assert "\x1b" not in printed
    assert "╭" not in printed
    assert not re.search("[━│┃]", printed)  # neither bars nor frames of tables
    assert not re.search("[━│┃]", Path("logs/run.txt").read_text())
    assert re.search(
        rf"^{STAMP}step      3/6 · bits/dim .* images/s · \d:\d\d:\d\d left$", printed, re.MULTILINE
    )
    assert " 0 images/s" not in printed
    assert re.search(r"^patches_dual starts in runs/patches_dual$", printed, re.MULTILINE)
    assert re.search(
        r"^  model +energy: UNet of 2 scales, 4 channels wide, [\d,]+ parameters$", printed, re.MULTILINE
    )
    logged = (workspace.folder / "logs/run.txt").read_text().splitlines()
    assert all(re.match(STAMP, line) for line in logged)
    assert " $ dualscore train patches_dual" in logged[0]
    assert "ended after" in logged[-1]
    for line in printed.splitlines():
        if line.strip():
            assert any(re.sub(f"^{STAMP}", "", line).rstrip() in said for said in logged), line


def test_quiet_shows_errors_and_final_figures_only(workspace: Workspace, demo_shards: Path) -> None:
    arguments = ["patches_dual", *TINY, *STEPS, f"data.path={demo_shards}"]
    printed = workspace.run("--quiet", "train", *arguments, "--log-file", "all.txt")
    assert "step      3/6" not in printed
    assert "starts in" not in printed
    assert "paper's protocol" in printed
    assert "measured" in printed
    logged = (workspace.folder / "all.txt").read_text()
    assert "step      3/6" in logged
    assert "starts in" in logged
    line = workspace.fail("train", "patches", "--quiet", "--log-file", "all.txt")
    appended = (workspace.folder / "all.txt").read_text()
    assert appended.startswith(logged)
    assert line in appended


def test_a_log_file_that_cannot_be_written_is_an_error(workspace: Workspace) -> None:
    assert "--log-file experiments: cannot be written" in workspace.fail(
        "status", "--log-file", "experiments"
    )
    os.mkfifo("pipe")  # that nobody reads
    assert "--log-file pipe: cannot be written" in workspace.fail("status", "--log-file", "pipe")


@pytest.mark.usefixtures("workspace")
def test_a_disk_without_room_costs_the_log_and_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--log-file", "/dev/full"]) == 0
    printed = capsys.readouterr()
    assert "no runs in runs" in printed.out
    assert printed.err == "warning: --log-file /dev/full: lines are missing: No space left on device\n"


def test_lines_of_several_processes_stay_whole(tmp_path: Path) -> None:
    first, second = LogFile(tmp_path / "log", 0), LogFile(tmp_path / "log", 1)
    first.write("half of ")
    second.write("another\n")
    first.write("a line\n\x1b[1mbold\x1b[0m\n\n")
    for log in (first, second):
        log.close()
    lines = [re.sub(STAMP, "", line) for line in (tmp_path / "log").read_text().splitlines()]
    assert lines == ["rank 1: another", "half of a line", "bold"]


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
    ids=["colour", "no colour", "dumb"],
)
def test_colours_are_left_out_where_they_are_not_wanted(
    environment: dict[str, str], coloured: bool, trained_demo: Path
) -> None:
    status, written = on_terminal(trained_demo, "evaluate", "patches_dual", "--dry-run", **environment)
    assert status == 0
    assert bool(re.search(r"\x1b\[\d*;?3\dm", written)) is False  # boxes have no colours of their own
    assert ("\x1b[" in written) is (coloured or "NO_COLOR" in environment)
    assert ("╭" in written) is ("TERM" not in environment)


@pytest.mark.parametrize("columns", [80, 60])
def test_what_is_listed_fits_a_narrow_terminal(columns: int, trained_demo: Path) -> None:
    for command in (["status"], ["experiments"], ["evaluate", "patches_dual", "--dry-run"]):
        _, written = on_terminal(trained_demo, *command, columns=columns)
        assert max(len(line) for line in plain(written).splitlines()) <= columns, command
        assert "patches_dual" in written


def test_a_table_gives_up_lines_before_columns() -> None:
    cells = [["a" * 20, "b" * 20, "c" * 20]]
    names = ["first", "second", "third"]

    def shown(width: int) -> list[str]:
        console = Terminal()
        console.width = width
        return [str(column.header) for column in fitting(console, names, cells, ["third", "second"]).columns]

    assert shown(80) == shown(66) == names
    assert shown(50) == ["first", "second"]
    assert shown(25) == ["first"]


# --- hints


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["train", "patches_dul"], "did you mean patches_dual? there are:"),
        (["train", "experiments/patches_dual.yaml"], "did you mean patches_dual? there are:"),
        (["train", "patches_dual", "optim.lrr=1"], "unknown key; did you mean lr?"),
        (["train", "patches_dual", "lr=1"], "unknown key; did you mean optim.lr?"),
        (["train", "mine"], "it is the name of a run of patches_dual: give patches_dual --name mine"),
        (["study", "recip"], "did you mean recipe?"),
        (["figures", "runs/mime"], "no such run; did you mean mine? there are: runs/mine"),
        (["score", "runs/mime", "photo.png"], "no such checkpoint; did you mean mine?"),
        (
            ["score", "runs/mine/checkpoints/bset.ckpt", "photo.png"],
            "bset.ckpt: no such checkpoint; did you mean best.ckpt? there are: best.ckpt",
        ),
        (
            ["evaluate", "patches_a"],
            "dualscore train patches_a trains it",
        ),
        (
            ["figures", "runs/patches_a"],
            "dualscore train patches_a",
        ),
        (["score", "runs/mine", "foto.png"], "foto.png: no such file or folder; did you mean photo.png?"),
    ],
)
def test_what_was_probably_meant_is_said(arguments: list[str], hint: str, workspace: Workspace) -> None:
    (workspace.folder / "studies").symlink_to(ROOT / "studies")
    (workspace.folder / "photo.png").touch()
    (workspace.folder / "runs/mine/checkpoints").mkdir(parents=True)
    (workspace.folder / "runs/mine/checkpoints/best.ckpt").touch()
    (workspace.folder / "runs/mine/config.yaml").write_text("name: patches_dual\n")
    assert hint in workspace.fail(*arguments)


def test_a_suggested_command_can_be_typed(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As make's users have it, whose PATH does not hold the environment's programs."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/dualscore").touch()
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    monkeypatch.setenv("PATH", "/nowhere")
    told = workspace.fail("score", "runs/patches_dual", ".")
    assert "; .venv/bin/dualscore train patches_dual trains it" in told
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "; dualscore train patches_dual trains it" in workspace.fail("score", "runs/patches_dual", ".")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["trian", "patches_dual"], "there is no command 'trian'; did you mean train?"),
        (["score", "a", "b", "--rezise"], "unrecognized arguments: --rezise; did you mean --resize?"),
        (["sample", "a", "--method", "langvin"], "'langvin'; did you mean langevin?"),
    ],
)
def test_misspelt_words_of_the_command_line(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert hint in capsys.readouterr().err


def test_images_left_out_are_counted(trained_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                     capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(trained_demo)
    random = np.random.default_rng(0)
    for number in range(14):
        side = 16 if number < 2 else 10 + number  # twelve of as many sizes
        pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels if number != 6 else pixels[:16, :16]).save(tmp_path / f"{number:02}.png")
    (tmp_path / "torn.png").write_bytes(b"no image")
    assert (
        main(["score", "runs/patches_dual", str(tmp_path), "--out", str(tmp_path / "out"), "--workers", "0"])
        == 0
    )
    printed = capsys.readouterr().out
    told = [line for line in printed.splitlines() if line.startswith("left out: ")]
    assert len(told) == 2
    assert told[0].startswith(
        f"left out: 11 images; the first, {tmp_path}/02.png is 12×12, but wanted are 16×16"
    )
    assert told[1].startswith(f"left out: {tmp_path}/torn.png cannot be decoded")


def test_a_runs_checkpoint_is_measured_by_the_runs_own_settings(
    workspace: Workspace, demo_shards: Path
) -> None:
    settings = [*TINY, "trainer.max_steps=2", "trainer.validate_every=2", "optim.warmup_steps=0"]
    workspace.run("train", "patches_dual", *settings, f"data.path={demo_shards}", "--name", "mine")
    checkpoint = "runs/mine/checkpoints/last.ckpt"  # of width 4; the experiment's is 24
    printed = workspace.run("evaluate", "patches_dual", "--checkpoint", checkpoint)
    assert "paper's protocol" in printed
    assert (workspace.folder / "runs/mine/checkpoints/evaluation.json").exists()
    workspace.run("evaluate", "patches_dual", "--checkpoint", "runs/mine", "evaluate.images=32")
    assert workspace.report("mine")["bits_per_dim"]["paper"]["images"] == 32
    (workspace.folder / "elsewhere.ckpt").write_bytes((workspace.folder / checkpoint).read_bytes())
    assert "another architecture" in workspace.fail(
        "evaluate", "patches_dual", "--checkpoint", "elsewhere.ckpt"
    )


def test_experiments_say_what_they_need(workspace: Workspace) -> None:
    header = read_header("imagenet64_dual")
    assert header.hardware == "one GPU with 24 GB of memory; 17 GB of disk"
    assert header.takes.startswith("published: about 5 days")
    assert header.data == "data/imagenet64, not there yet"
    assert read_header("imagenet64_denoiser").data == "data/imagenet64, not there yet"  # its parent's
    assert read_header("texture_mixture").data == "draws its own"
    (workspace.folder / "data/imagenet64").mkdir(parents=True)
    (workspace.folder / "data/imagenet64/manifest.json").touch()
    assert read_header("imagenet64_dual").data == "data/imagenet64, there"
    for name in available():
        header = read_header(name)
        assert header.purpose, name
        assert header.hardware, name
        assert header.takes, name
    assert "one GPU with 24 GB of memory; 17 GB of disk. Takes: published" in workspace.run("experiments")


def test_runs_are_listed_the_latest_first(tmp_path: Path) -> None:
    for age, name in enumerate(["last", "sweep/b", "first"]):
        file = tmp_path / name / "checkpoints/best.ckpt"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (1e9 - age, 1e9 - age))
    assert runs_below(tmp_path) == [str(tmp_path / name) for name in ("last", "sweep/b", "first")]


@dataclass(frozen=True)
class _Kettle:
    water: Annotated[float, "litres"] = 1.0
    whistles: Annotated[bool, "tell when it boils"] = False


def _brew(
    leaves: Annotated[Sequence[Path], "what to brew"],
    *,
    cups: Annotated[int | None, "how many", {"metavar": "N"}] = None,
    strength: Annotated[Literal["weak", "strong"], "default: %(default)s"] = "weak",
    sugar: Annotated[bool, "no sugar", {"exclusive": True}] = True,
    milk_first: Annotated[bool, "milk before tea", {"exclusive": True}] = False,
    pot: Annotated[str, "which pot", {"flag": "--in"}],
    kettle: _Kettle = _Kettle(water=0.5),
    dry_run: bool = False,
) -> dict[str, object]:
    """Brew tea."""
    return {"leaves": leaves, "cups": cups, "strength": strength, "sugar": sugar, "milk": milk_first,
            "pot": pot, "kettle": kettle, "dry": dry_run}  # fmt: skip


def test_a_signature_declares_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="kitchen")
    commands: Any = parser.add_subparsers()
    add_command(commands, _brew)
    assert "brew tea\n" in parser.format_help()
    assert "default: weak" in commands.choices["_brew"].format_help()
    usual = {"leaves": [Path("a"), Path("b")], "cups": None, "strength": "weak", "sugar": True, "milk": False,
             "pot": "red", "kettle": _Kettle(water=0.5), "dry": False}  # fmt: skip
    words = ["_brew", "a", "b", "--in", "red"]
    assert call(parser.parse_args(words)) == usual
    given = call(parser.parse_args([*words, "--cups", "2", "--no-sugar", "--strength", "strong"]))
    assert given == usual | {"cups": 2, "strength": "strong", "sugar": False}
    assert call(parser.parse_args([*words, "--whistles"])) == usual | {"kettle": _Kettle(0.5, True)}
    for wrong in (["_brew", "a"], [*words, "--no-sugar", "--milk-first"], [*words, "--cups", "two"]):
        with pytest.raises(SystemExit):
            parser.parse_args(wrong)
    said = capsys.readouterr().err
    assert "required: --in" in said
    assert "not allowed with" in said
