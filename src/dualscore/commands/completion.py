"""dualscore completion."""

import argparse

from dualscore.commands.options import Commands
from dualscore.terminal import final, shared_console

SHELLS = ("bash", "zsh", "fish")


def add(commands: Commands) -> None:
    """Add the command."""
    shown = "print what makes a shell complete commands, options and names"
    completion = commands.add_parser("completion", help=shown)
    completion.add_argument("shell", choices=SHELLS, help='load it with: eval "$(dualscore completion bash)"')
    completion.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from argcomplete.shell_integration import shellcode

    script = shellcode(["dualscore"], shell=arguments.shell)
    final(shared_console(), script, soft_wrap=True)
