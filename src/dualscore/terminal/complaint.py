"""What went wrong, in one line that any terminal can show and that holds no credentials."""

from dualscore.files.plain_text import harmless
from dualscore.redaction import redact


def complaint(error: Exception) -> str:
    """An error's message as it is shown.

    Args:
        error: one for people, or the system's.

    Returns:
        One line. Of a traceback in the text, as loader processes send it, only the last line is kept.
    """
    text = str(error).strip()
    if isinstance(error, OSError):
        text = (f"{error.filename}: " if error.filename else "") + (error.strerror or str(error))
    if "Traceback (most recent call last)" in text:
        text = text.splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
    return shown(" ".join(text.split()))


def shown(text: str) -> str:
    """Text that was typed or came with a file, without credentials and without signs that terminals obey."""
    return harmless(redact(text))
