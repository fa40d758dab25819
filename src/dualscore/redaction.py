"""Keeps credentials, and whatever a terminal would obey, out of everything that is shown or stored."""

import errno
import os
import re
import resource

from dualscore.errors import ConfigError
from dualscore.files.plain_text import harmless, one_line

HIDDEN = "***"
TOO_MANY = os.strerror(errno.EMFILE)
COMMAND = "pipe:"
"""The beginning of a data path that is a command."""

# A command's arguments may be secret in any way; what was hidden already stays as it is.
_ARGUMENTS = re.compile(rf"\b{COMMAND}(\S+)\s+(?!{re.escape(HIDDEN)}).*", re.DOTALL)
# A URL that was taken for a path has one slash left.
_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*:/{1,2})[^\s/?#'\"]*@", re.IGNORECASE)
_QUERY = re.compile(r"(\b[a-z][a-z0-9+.-]*:/{1,2}[^\s?'\"]*)\?(?!\*\*\*)[^\s'\"]*", re.IGNORECASE)


def redact(text: str) -> str:
    """Hide the user, password and query of every URL in a text, and all that follows a `pipe:` command."""
    text = _ARGUMENTS.sub(rf"{COMMAND}\1 {HIDDEN}", text)
    return _QUERY.sub(rf"\1?{HIDDEN}", _USER.sub(rf"\1{HIDDEN}@", text))


def restore_needed(stored: str) -> bool:
    """Whether a stored data path lacks its credentials or its command, which are not kept."""
    return stored.startswith(COMMAND) or HIDDEN in stored


def restore(stored: str, given: str) -> str:
    """A run's stored data path; where credentials or a command are missing, the given one if it matches.

    A command is run only where a person or an experiment's file names it: one that came with a run's folder
    is not to be trusted. ConfigError if what is missing is not given.
    """
    if not restore_needed(stored):
        return stored
    if redact(given) == redact(stored):
        return given
    raise ConfigError(
        f"data.path={redact(stored)}: credentials and commands are not kept with a run; "
        "give the whole data.path=… again"
    )


def shown(text: str) -> str:
    """Text that was typed or came with a file, without credentials and without signs that terminals obey."""
    return harmless(redact(text))


def complaint(error: Exception) -> str:
    """An error's message in one line; of a traceback, as loader processes send it, only the last line."""
    text = str(error).strip()
    if isinstance(error, OSError):
        text = (f"{error.filename}: " if error.filename else "") + (error.strerror or str(error))
    if "Traceback (most recent call last)" in text:
        text = text.splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
    if TOO_MANY in text:
        text += f": the limit is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}, raise it (ulimit -n)"
    return shown(one_line(text))
