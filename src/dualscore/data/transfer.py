"""Fetches files from a URL or through a command: with time-outs, retries and checks."""

import base64
import hashlib
import http.client
import shlex
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from multiprocessing.connection import wait
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from dualscore.errors import ConfigError, SourceError
from dualscore.files.plain_text import one_line
from dualscore.redaction import COMMAND, redact

ATTEMPTS = 5
FIRST_WAIT = 1.0
"""Seconds before the second attempt; each further one waits twice as long."""
TIMEOUT = 30.0
"""Seconds that a source may stay silent."""
PASSING = {408, 425, 429}
"""Client errors that are worth another attempt."""
_CHUNK = 2**20


class _FailedError(Exception):
    """An attempt failed; `final` if further ones would too."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(one_line(redact(reason))[:200])
        self.final = final


def is_remote(path: str) -> bool:
    """Whether a data path is a URL or a command rather than a folder."""
    return path.startswith(COMMAND) or "://" in path


class Address:
    """A place that files are fetched from by name: `http://HOST/FOLDER`, `https://…` or `pipe:COMMAND {}`.

    The file's name replaces `{}`. It shows itself without credentials. ConfigError if it is none of these.
    """

    def __init__(self, path: str) -> None:
        self._shown = redact(path)
        if path.startswith(COMMAND):
            try:
                self._words = shlex.split(path.removeprefix(COMMAND))
            except ValueError as error:
                raise ConfigError(f"{error}: data.path={self}") from None
            if not any("{}" in word for word in self._words[1:]):
                raise ConfigError(f"the command needs {{}}, for the file's name: data.path={self}")
            self._read = self._run
            return
        try:
            self._url = urlsplit(path)
            port, host = self._url.port, self._url.hostname
        except ValueError:  # its words may hold a password
            raise ConfigError("data.path: not a URL that can be read") from None
        if self._url.scheme not in ("http", "https") or not host:
            raise ConfigError(
                f"data.path={self}: must be a folder, http://…, https://… or `pipe:` and a command with {{}}"
            )
        at = f"{host}:{port}" if port else host
        user = "***@" if "@" in self._url.netloc else ""
        self._shown = f"{self._url.scheme}://{user}{at}{self._url.path.rstrip('/')}"
        self._read = self._download

    def __str__(self) -> str:
        return self._shown

    def fetch(
        self, name: str, sink: BinaryIO, most: int, size: int | None = None, sha256: str | None = None
    ) -> None:
        """Fetch a file of at most `most` bytes, again where that fails; SourceError gives the last reason."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._try(name, sink, most, size, sha256)
            except _FailedError as failure:
                reason = failure
            if reason.final or attempt == ATTEMPTS:
                break
            time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
        times = "once" if attempt == 1 else f"{attempt} times"
        raise SourceError(
            f"{self}/{name}: cannot be fetched (tried {times}; the last time: {reason}); "
            "check data.path and the network, then give the same command again"
        )

    def _try(self, name: str, sink: BinaryIO, most: int, size: int | None, sha256: str | None) -> None:
        digest, got = hashlib.sha256(), 0
        sink.seek(0)
        for chunk in self._read(name):
            got += len(chunk)
            if got > most:
                raise _FailedError(f"it has more than the {most:,} bytes expected")
            digest.update(chunk)
            sink.write(chunk)
        if size is not None and got != size:
            raise _FailedError(f"{got:,} bytes came instead of {size:,}")
        sink.truncate()  # what an earlier attempt left behind
        if sha256 is not None and digest.hexdigest() != sha256:
            raise _FailedError("its checksum is not the manifest's")

    def _download(self, name: str) -> Iterator[bytes]:
        url = self._url
        user, _, place = url.netloc.rpartition("@")
        path = f"{url.path.rstrip('/')}/{quote(name)}"
        request = urllib.request.Request(urlunsplit((url.scheme, place, path, url.query, "")))
        if user:
            login = base64.b64encode(unquote(user).encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {login}")  # for this host only
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                expected, got = response.headers.get("Content-Length"), 0
                while chunk := response.read(_CHUNK):
                    got += len(chunk)
                    yield chunk
                if expected is not None and str(got) != expected.strip():
                    raise _FailedError(f"the connection ended after {got:,} of {expected:.20} bytes")
        except urllib.error.HTTPError as error:
            final = 400 <= error.code < 500 and error.code not in PASSING
            raise _FailedError(f"HTTP {error.code} {error.reason}", final) from None
        except urllib.error.URLError as error:
            raise _FailedError(str(getattr(error.reason, "strerror", None) or error.reason)) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _FailedError(str(error) or type(error).__name__) from None

    def _run(self, name: str) -> Iterator[bytes]:
        program, *words = self._words
        words = [program, *(word.replace("{}", name) for word in words)]
        with tempfile.TemporaryFile() as complaints:
            try:
                process = subprocess.Popen(  # no shell: a name is a name, whatever signs it has
                    words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, bufsize=0
                )
            except OSError as error:
                raise _FailedError(f"{program}: {error.strerror}", final=True) from None
            assert process.stdout is not None
            try:
                chunk = b" "
                while chunk:
                    if not wait([process.stdout.fileno()], TIMEOUT):
                        raise _FailedError(f"nothing came for {TIMEOUT:g} s")
                    yield (chunk := process.stdout.read(_CHUNK))
                status = process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                raise _FailedError(f"{program} does not end") from None
            finally:
                process.kill()
                process.wait()
                process.stdout.close()
            if status:
                complaints.seek(0)
                last = complaints.read(_CHUNK).decode(errors="replace").strip().rpartition("\n")[2]
                raise _FailedError(f"{program} ended with status {status}{f': {last}' if last else ''}")
