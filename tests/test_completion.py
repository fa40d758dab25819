"""Completion in the three shells, by what each of them is given; and commands that do not wait for torch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from workspace import ROOT, Workspace

WITHOUT_TORCH = "import sys, dualscore.cli; dualscore.cli.main([{words}]); sys.exit('torch' in sys.modules)"

# What a shell does at a press of the tab key, with its offers printed, one a line.
BASH = r"""
eval "$(dualscore completion bash)"
COMP_LINE="$LINE_SO_FAR"
COMP_POINT=${#COMP_LINE}
COMP_WORDS=($COMP_LINE); [ "${COMP_LINE: -1}" = " " ] && COMP_WORDS+=("")
COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
COMP_TYPE=9
_python_argcomplete dualscore
printf '%s\n' "${COMPREPLY[@]}"
"""
ZSH = r"""
compdef() { completer=$1; [[ $2 == dualscore ]] }
_describe() { print -rl -- "${${(P)2}[@]%%:*}" }
eval "$(dualscore completion zsh)"
BUFFER="$LINE_SO_FAR" CURSOR=${#LINE_SO_FAR} words=(${=LINE_SO_FAR})
$completer
"""
FISH = 'dualscore completion fish | source; complete -C "$LINE_SO_FAR"'
ASK = {
    "bash": ["bash", "--norc", "-c", BASH],
    "zsh": ["zsh", "-f", "-c", ZSH],
    "fish": ["fish", "--no-config", "-c", FISH],
}


@pytest.mark.long
@pytest.mark.parametrize("shell", ASK)
@pytest.mark.parametrize(
    ("line", "offered", "not_offered"),
    [
        ("dualscore tr", ["train"], ["score"]),
        ("dualscore score --re", ["--resize"], ["--seed"]),
        ("dualscore train patches_d", ["patches_dual", "patches_denoiser"], ["texture_mixture"]),
        ("dualscore train patches_m", ["patches_mine"], []),
        ("dualscore data bu", ["build"], ["verify"]),
        ("dualscore train patches_dual optim.lr", ["optim.lr="], ["energy.phase="]),
        ("dualscore study rec", ["recipe"], []),
        ("dualscore submit --sweep gen", ["generalization"], []),
        ("dualscore score runs/pat", ["runs/patches_dual"], []),
        ("dualscore figures runs/patches_dual --only ta", ["table1", "table2"], ["3"]),
        ("dualscore evaluate patches_dual --name ", ["patches_dual"], []),
        ("dualscore --qu", ["--quiet"], []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_shell_completes(
    line: str, offered: list[str], not_offered: list[str], shell: str, trained_demo: Path, tmp_path: Path
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "experiments").mkdir()  # of one's own; shipped ones are completed too
    (tmp_path / "experiments/patches_mine.yaml").touch()
    (tmp_path / "runs").symlink_to(trained_demo / "runs")
    program = tmp_path / "bin/dualscore"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m dualscore "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src"), "LINE_SO_FAR": line
    }  # fmt: skip
    replies = subprocess.check_output(ASK[shell], cwd=tmp_path, env=environment, text=True)
    words = {reply.split("\t")[0].strip() for reply in replies.splitlines()}  # a tab, and what it is, in fish
    assert words >= set(offered), replies
    assert not words & set(not_offered)


@pytest.mark.parametrize("shell", ASK)
def test_completion_scripts_are_printed_without_torch(shell: str, workspace: Workspace) -> None:
    assert "dualscore" in workspace.run("completion", shell)
    code = WITHOUT_TORCH.format(words=f"'completion', '{shell}'")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("command", ["experiments", "status"])
def test_small_commands_do_not_wait_for_torch(command: str, trained_demo: Path) -> None:
    code = WITHOUT_TORCH.format(words=f"'{command}'")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=False, cwd=trained_demo
    )
    assert done.returncode == 0
