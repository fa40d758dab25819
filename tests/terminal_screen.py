"""Runs a command on a pseudo-terminal, and keeps what its screen would show."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

import forking
from workspace import ROOT

STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")


def on_terminal(folder: Path, *arguments: str, columns: int = 80, **environment: str) -> tuple[int, str]:
    """Run `dualscore` on a terminal so wide; returns its status and all bytes that it wrote, as text."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "NO_COLOR", "TERM", "FORCE_COLOR"}}
    process = forking.Popen(
        [sys.executable, "-m", "dualscore", *arguments],
        cwd=folder,
        stdin=side,
        stdout=side,
        stderr=side,
        env=kept | {"PYTHONPATH": str(ROOT / "src"), "TERM": "xterm-256color"} | environment,
    )
    os.close(side)
    written = b""
    while True:
        try:
            chunk = os.read(main, 65536)
        except OSError:  # what Linux says when the other side is closed
            break
        if not chunk:
            break
        written += chunk
    os.close(main)
    return process.wait(), written.decode(errors="replace").replace("\r\n", "\n")


def plain(text: str) -> str:
    """Text without colours and movements of the cursor."""
    return STYLE.sub("", text)
