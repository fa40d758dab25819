"""Text for terminals that cannot show all signs: what an encoding lacks is written with what it has."""

import codecs
import io
import os
import sys
import unicodedata

_HANDLER = "dualscore.plainer"
_PLAIN = {
    "−": "-", "–": "-", "—": "-", "×": "x", "·": "*", "±": "+-", "≥": ">=", "≤": "<=", "≈": "~", "→": "->",
    "√": "sqrt", "∞": "inf", "‖": "|", "½": "1/2", "¼": "1/4", "✗": "x", "σ": "sigma", "μ": "mu",
    "λ": "lambda", "Σ": "Sigma", "∇": "grad", "⟨": "<", "⟩": ">", "∂": "d", "’": "'", "“": '"', "”": '"',
}  # fmt: skip


def fit_any_terminal() -> None:
    """Have what this process prints fit any encoding: ASCII and Latin-1 are still those of some terminals."""
    codecs.register_error(_HANDLER, _plainer)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as for a daemon
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - to the process's end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def _plainer(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(sign: str) -> str:
    # Of what is not in the table: the letter below an accent, the digit of an exponent.
    bare = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    return _PLAIN.get(sign) or bare or "?"
