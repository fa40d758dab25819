"""dualscore experiments."""

import argparse

from dualscore.commands.options import Commands
from dualscore.terminal import final, shared_console


def add(commands: Commands) -> None:
    """Add the command."""
    shown = "list the experiments: what they are, what they need, whether their data are there"
    commands.add_parser("experiments", help=shown).set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:  # noqa: ARG001 - it takes none
    from rich.padding import Padding
    from rich.text import Text

    from dualscore.settings.experiment import available
    from dualscore.settings.header import read_header

    console = shared_console()
    for name in available():
        header = read_header(name)
        needs = f"{header.hardware}. Takes: {header.takes}. Data: {header.data}"
        final(console, Text(name, style="bold"))
        for text in (Text(header.purpose), Text(needs, style="dim")):
            final(console, Padding(text, (0, 0, 0, 4), expand=False))
